import Foundation
import JSONSupport
import NIOCore
import NIOHTTP1
import Synchronization
import TestSupport
import Testing

/// Whatever is killed, and whenever: nothing is lost, nothing happens twice, and nothing is left over.
@Suite struct KillTests {
  /// `CLAUDE_API_TEST_KILLS` says how many times; `CLAUDE_API_TEST_FUZZ_SEED` repeats a run.
  @Test func nothingIsLostOrLeftOverWhateverIsKilled() async throws {
    let kills = ProcessInfo.processInfo.environment["CLAUDE_API_TEST_KILLS"].flatMap { Int($0) } ?? 16
    let seed = Fuzz.seed(.random(in: 0...UInt64.max))
    try await Stack.run { stack in
      // What is left when a session has lived and is gone.
      let first = try await stack.createSession()
      _ = try await stack.say("hello", to: first)
      #expect(try await Self.upload(1, to: first, stack) == 201)
      #expect(try await stack.request(.DELETE, "/sessions/\(first)").status == 200)
      let before = try await Footprint.atRest(of: stack)

      let id = try await stack.createSession()
      let followers = (0..<3).map { _ in Follower(stack, id) }
      let reading = followers.map { follower in Task { await follower.follow() } }
      let end = End()
      let accepted = try await withThrowingTaskGroup(of: Int.self) { group in
        group.addTask {
          var sent = 0
          while !end.hasCome {
            sent += 1
            try await Self.send("fake:count 40 \(sent)", key: "message-\(sent)", to: id, stack)
          }
          return sent
        }
        group.addTask {
          var version = 0
          while !end.hasCome {
            version += 1
            while (try? await Self.upload(version, to: id, stack)).map({ $0 >= 300 }) ?? true {
              try await Task.sleep(for: .milliseconds(20))
            }
          }
          return 0
        }
        group.addTask {
          defer { end.come() }
          var random = SplitMix64(seed: seed)
          for _ in 0..<kills {
            try await Task.sleep(for: .milliseconds(Int.random(in: 20...400, using: &random)))
            switch Int.random(in: 0..<8, using: &random) {
            case 0: stack.nginx.killWorkers()
            case 1:
              await stack.nginx.kill()
              try await stack.nginx.restart()
            case 2, 3: for pid in try stack.processesLeft() { kill(pid, SIGKILL) }
            default:
              await stack.killResponder()
              try await stack.startResponder()
            }
          }
          return 0
        }
        return try await group.reduce(0, +)
      }

      let log = try await stack.log(id)
      for follower in followers {
        try await stack.until { follower.seen.count >= log.count }
        #expect(follower.seen == log, "seed \(seed)")
      }
      #expect(log.map(\.sequence) == Array(1...Int64(log.count)), "seed \(seed)")
      // Every message was accepted once, and came to one end.
      #expect(log.count { $0.type == "user.message" } == accepted, "seed \(seed)")
      #expect(log.count { $0.type.hasPrefix("turn.") && $0.type != "turn.queued" } == accepted, "seed \(seed)")
      let transcript = text(of: "\(stack.stateDirectory)/claude-config/\(id)/projects/-workspace/\(id).jsonl")
      let prompts = transcript.split(separator: "\n")
      #expect(Set(prompts).count == prompts.count, "a prompt ran twice; seed \(seed)")
      // The file is one that was sent, and whole.
      let file = FileManager.default.contents(atPath: "\(stack.workspaceRoot)/\(id)/file") ?? Data()
      #expect(file.count == Self.uploadBytes && Set(file).count == 1, "seed \(seed)")

      for follower in followers { follower.stop() }
      #expect(try await stack.request(.DELETE, "/sessions/\(id)").status == 200)
      for task in reading { await task.value }
      #expect(try stack.processesLeft().isEmpty, "seed \(seed)")
      let after = try await Footprint.atRest(of: stack)
      #expect(after.files.subtracting(before.files).isEmpty, "seed \(seed)")
      #expect(after.descriptorsBeyond(before).isEmpty, "seed \(seed)")
      #expect(after.children.isEmpty, "seed \(seed)")
    }
  }

  // MARK: Clients

  private final class End: Sendable {
    private let isHere = Mutex(false)
    var hasCome: Bool { isHere.withLock { $0 } }
    func come() { isHere.withLock { $0 = true } }
  }

  private static let uploadBytes = 300_000

  /// Every byte of a version is the same.
  private static func upload(_ version: Int, to id: String, _ stack: Stack) async throws -> Int {
    let body = ByteBuffer(repeating: UInt8(truncatingIfNeeded: version), count: uploadBytes)
    return try await stack.request(.PUT, "/sessions/\(id)/files/file", body: body, timeout: .seconds(10)).status
  }

  /// Sends a message as a careful client does: again with the same key until it is known to be accepted, and waits
  /// for the end of its turn.
  private static func send(_ prompt: String, key: String, to id: String, _ stack: Stack) async throws {
    var turn: String?
    while turn == nil {
      let answer = try? await stack.post(
        "/sessions/\(id)/messages", ["prompt": .string(prompt)],
        headers: ["Idempotency-Key": key, "Prefer": "respond-async"])
      // A replayed turn that has failed meanwhile is an answer too.
      if let answer, answer.status < 500 || (try? answer.json["code"]) == "interrupted" {
        guard answer.status == 202 else { return }
        turn = try answer.json["id"]?.stringValue
      } else {
        try await Task.sleep(for: .milliseconds(20))
      }
    }
    while true {
      let state = try? await stack.get("/sessions/\(id)/turns/\(turn ?? "")?wait=30s").json["state"]?.stringValue
      if let state, !["queued", "running"].contains(state) { return }
      try await Task.sleep(for: .milliseconds(20))
    }
  }
}

/// What a system at rest has on disk and open.
private struct Footprint {
  /// Below the system's directory, but logs and the store's own files.
  var files: Set<String> = []
  /// What the responder has open, and how often.
  var descriptors: [String: Int] = [:]
  /// Processes that the responder has started.
  var children: [Int32] = []

  func descriptorsBeyond(_ other: Footprint) -> [String: Int] {
    descriptors.filter { $0.value > other.descriptors[$0.key, default: 0] }
  }

  /// Looks when nothing is connected to the responder: without nginx, which is started again afterwards.
  static func atRest(of stack: Stack) async throws -> Footprint {
    await stack.nginx.kill()
    guard let pid = await stack.responder?.pid else { throw Stack.Failure("there is no responder") }
    var footprint = Footprint()
    do {
      try await stack.until {
        footprint.children = try FileManager.default.contentsOfDirectory(atPath: "/proc/\(pid)/task").flatMap {
          thread in
          text(of: "/proc/\(pid)/task/\(thread)/children").split(separator: " ").compactMap { Int32($0) }
        }
        footprint.descriptors = descriptors(of: pid)
        return footprint.children.isEmpty && connections(to: stack.directory + "/s/r.sock").isEmpty
      }
    } catch {
      throw Stack.Failure("\(error): \(footprint) \(connections(to: stack.directory + "/s/r.sock"))")
    }
    try await stack.nginx.restart()
    footprint.files = Set(
      try FileManager.default.subpathsOfDirectory(atPath: stack.directory).filter { path in
        !path.hasSuffix(".log") && !path.hasPrefix("state/claude-api.sqlite")
      })
    return footprint
  }

  /// What a process has open, by what it is, but sockets: whether any of those is left is told by its connections.
  private static func descriptors(of pid: Int32) -> [String: Int] {
    let names = (try? FileManager.default.contentsOfDirectory(atPath: "/proc/\(pid)/fd")) ?? []
    // One may have been closed meanwhile.
    let targets = names.compactMap {
      try? FileManager.default.destinationOfSymbolicLink(atPath: "/proc/\(pid)/fd/\($0)")
    }
    return targets.reduce(into: [:]) { counts, target in
      if !target.hasPrefix("socket:") { counts[target.replacing(/\[\d+\]/, with: ""), default: 0] += 1 }
    }
  }

  /// The ends of connections to a socket, which all bear its name, without the one that listens.
  private static func connections(to path: String) -> [Substring] {
    text(of: "/proc/net/unix").split(separator: "\n").filter { line in
      line.hasSuffix(" " + path) && !line.split(separator: " ").contains("00010000")
    }
  }
}

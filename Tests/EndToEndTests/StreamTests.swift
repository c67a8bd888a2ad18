import AsyncHTTPClient
import Foundation
import JSONSupport
import NIOCore
import NIOHTTP1
import Synchronization
import TestSupport
import Testing

/// Whoever follows a session sees its log, whatever happens to the system meanwhile.
@Suite struct StreamTests {
  @Test func aStreamComesThroughNginxAsItIsWritten() async throws {
    try await Stack.run { stack in
      let id = try await stack.createSession()
      let follower = Follower(stack, id)
      let reading = Task { await follower.follow() }
      // The head is there before the first event.
      try await waitUntil { follower.connections == 1 }
      let answer = Task { try await stack.say("fake:count 2000", to: id) }
      // The turn is far from its end when its first words are here.
      try await waitUntil { follower.seen.contains { $0.type == "agent.message" } }
      #expect(follower.seen.allSatisfy { !$0.type.hasPrefix("turn.c") })
      #expect(try await answer.value == "counted")
      try await waitUntil { follower.seen.last?.type == "turn.completed" }
      #expect(follower.connections == 1)
      // A graceful end doesn't wait for streams.
      #expect(await stack.stopResponder() == .status(0))
      follower.stop()
      await reading.value
    }
  }

  @Test func aFollowerMissesNothingWhateverIsKilled() async throws {
    let environment = ProcessInfo.processInfo.environment
    let kills = environment["CLAUDE_API_TEST_KILLS"].flatMap { Int($0) } ?? 12
    let seed = environment["CLAUDE_API_TEST_SEED"].flatMap { UInt64($0) } ?? .random(in: 0...UInt64.max)
    print("seed \(seed)")
    try await Stack.run { stack in
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
          var random = Random(seed: seed)
          for _ in 0..<kills {
            try await Task.sleep(for: .milliseconds(Int.random(in: 20...400, using: &random)))
            switch Int.random(in: 0..<4, using: &random) {
            case 0: try Self.killWorkersOfNginx(stack)
            case 1: for pid in try stack.processesLeft() { kill(pid, SIGKILL) }
            default:
              await stack.killResponder()
              try await stack.startResponder()
            }
          }
          end.come()
          return 0
        }
        return try await group.reduce(0, +)
      }

      let log = try await Self.log(stack, id)
      for follower in followers {
        try await waitUntil { follower.seen.count >= log.count }
        #expect(follower.seen == log, "seed \(seed)")
      }
      #expect(log.map(\.sequence) == Array(1...Int64(log.count)), "seed \(seed)")
      // Every message was accepted once, and came to one end.
      #expect(log.count { $0.type == "user.message" } == accepted, "seed \(seed)")
      #expect(log.count { $0.type.hasPrefix("turn.") && $0.type != "turn.queued" } == accepted, "seed \(seed)")
      let transcript = text(of: "\(stack.stateDirectory)/claude-config/\(id)/projects/-workspace/\(id).jsonl")
      let prompts = transcript.split(separator: "\n")
      #expect(Set(prompts).count == prompts.count, "a prompt ran twice; seed \(seed)")

      for follower in followers { follower.stop() }
      _ = try await stack.request(.DELETE, "/sessions/\(id)")
      for task in reading { await task.value }
      #expect(try stack.processesLeft().isEmpty)
    }
  }

  // MARK: Parts

  private final class End: Sendable {
    private let isHere = Mutex(false)
    var hasCome: Bool { isHere.withLock { $0 } }
    func come() { isHere.withLock { $0 = true } }
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

  private static func log(_ stack: Stack, _ id: String) async throws -> [Follower.Entry] {
    var entries: [Follower.Entry] = []
    while true {
      let page = try await stack.get("/sessions/\(id)/events?limit=1000&after=\(entries.count)").json
      entries += (page["events"]?.arrayValue ?? []).map(Follower.Entry.init)
      if page["has_more"] != true { return entries }
    }
  }

  private static func killWorkersOfNginx(_ stack: Stack) throws {
    let master = stack.nginx.process.pid
    for pid in text(of: "/proc/\(master)/task/\(master)/children").split(separator: " ").compactMap({ Int32($0) }) {
      kill(pid, SIGKILL)
    }
  }

  private func waitUntil(_ condition: () -> Bool) async throws {
    for _ in 0..<6000 {
      if condition() { return }
      try await Task.sleep(for: .milliseconds(10))
    }
    throw Stack.Failure("the condition did not come true")
  }
}

/// Follows the events of a session as an `EventSource` does, across lost connections.
private final class Follower: Sendable {
  struct Entry: Equatable, Sendable {
    let sequence: Int64
    let type: String
    let json: JSONValue

    init(_ json: JSONValue) {
      sequence = json["sequence"]?.intValue ?? 0
      type = json["type"]?.stringValue ?? ""
      self.json = json
    }
  }

  private struct State {
    var seen: [Entry] = []
    var connections = 0
    var isStopped = false
  }

  private let stack: Stack
  private let session: String
  private let state = Mutex(State())

  init(_ stack: Stack, _ session: String) {
    self.stack = stack
    self.session = session
  }

  var seen: [Entry] { state.withLock { $0.seen } }
  var connections: Int { state.withLock { $0.connections } }

  /// It ends with the connection that it has.
  func stop() { state.withLock { $0.isStopped = true } }

  func follow() async {
    while !state.withLock({ $0.isStopped }) {
      // Without an answer, or in the middle of one, the next attempt goes on where this one ended.
      try? await connect()
      try? await Task.sleep(for: .milliseconds(10))
    }
  }

  private func connect() async throws {
    var request = HTTPClientRequest(
      url: "http://127.0.0.1:\(stack.nginx.port)/sessions/\(session)/events?deltas=false")
    request.headers.add(name: "Accept", value: "text/event-stream")
    if let last = seen.last { request.headers.add(name: "Last-Event-ID", value: "\(last.sequence)") }
    let response = try await HTTPClient.shared.execute(request, timeout: .minutes(10))
    guard response.status == .ok else { return }
    state.withLock { $0.connections += 1 }
    var rest: [UInt8] = []
    for try await chunk in response.body {
      rest += Array(buffer: chunk)
      while let end = rest.firstRange(of: Array("\n\n".utf8)) {
        let fields = String(decoding: rest[..<end.lowerBound], as: UTF8.self).split(separator: "\n")
        rest.removeSubrange(..<end.upperBound)
        guard let id = fields.first(where: { $0.hasPrefix("id: ") })?.dropFirst(4),
          let data = fields.first(where: { $0.hasPrefix("data: ") })?.dropFirst(6)
        else { continue }
        let entry = Entry(try JSONValue(parsing: data.utf8))
        guard String(entry.sequence) == id else { throw Stack.Failure("id \(id) of event \(entry.sequence)") }
        state.withLock { $0.seen.append(entry) }
      }
    }
  }
}

import Foundation
import GRDB
import SQLiteStore
import SessionStoreContract
import Sessions
import Testing

@Suite(.serialized) struct ProcessTests {
  /// What the helper said of one session.
  private struct Acknowledged {
    var turns: [UUID: String] = [:]
    var sequence: Int64 = 0
  }

  @Test func nothingAcknowledgedIsLostWhenTheProcessIsKilled() async throws {
    let seed = UInt64.random(in: 0...UInt64.max)
    print("seed of nothingAcknowledgedIsLostWhenTheProcessIsKilled: \(seed)")
    var random = SeededGenerator(state: seed)
    try await withTemporaryDirectory { directory in
      let path = directory + "/store.sqlite"
      var acknowledged: [UUID: Acknowledged] = [:]
      // One database for all rounds: each also recovers what the one before left.
      for round in 0..<25 {
        let lines = Int.random(in: 1...400, using: &random)
        let writer = try Writer(
          path: path, seed: random.next(), tasks: Int.random(in: 1...8, using: &random), rounds: .max)
        var count = 0
        while let line = await writer.nextLine() {
          try note(line, in: &acknowledged)
          count += 1
          if count == lines { writer.kill() }
        }
        #expect(await writer.exitStatus() == -9, "round \(round)")
        #expect(count >= lines)
        try await check(path, acknowledged, seed: seed)
      }
    }
  }

  @Test func twoProcessesWriteAtTheSameTime() async throws {
    try await withTemporaryDirectory { directory in
      let path = directory + "/store.sqlite"
      let store = try await reopen(path)
      let session = makeSession()
      _ = try await store.createSession(session)
      let writer = try Writer(path: path, seed: 1, tasks: 4, rounds: 20)
      var acknowledged: [UUID: Acknowledged] = [:]
      // A line of theirs, an event of ours.
      var appended: Int64 = 0
      while let line = await writer.nextLine() {
        try note(line, in: &acknowledged)
        let events = try await store.appendEvents([NewEvent(type: "t", processedAt: .now())], to: session.id)
        appended += 1
        #expect(events.map(\.sequence) == [appended])
      }
      #expect(await writer.exitStatus() == 0)
      #expect(acknowledged.count == 4)
      #expect(try await store.sessions().count == 5)
      await store.close()
      try await check(path, acknowledged, seed: 1)
    }
  }

  private func note(_ line: String, in acknowledged: inout [UUID: Acknowledged]) throws {
    let words = line.split(separator: " ").map(String.init)
    let session = try #require(UUID(uuidString: words[1]))
    var entry = acknowledged[session] ?? Acknowledged()
    if words.count == 4 {
      entry.turns[try #require(UUID(uuidString: words[2]))] = words[0]
      entry.sequence = max(entry.sequence, try #require(Int64(words[3])))
    }
    acknowledged[session] = entry
  }

  private func check(_ path: String, _ acknowledged: [UUID: Acknowledged], seed: UInt64) async throws {
    let store = try await reopen(path)
    let interrupted = try await store.recoverInterrupted(at: .now()) { _ in [] }.interrupted
    for session in interrupted { #expect(session.turns.count == 1) }
    // Each end of a turn is in the books, and nothing else is.
    var ended: Int64 = 0
    for session in try await store.sessions(SessionQuery(owner: "k")).sessions {
      ended += Int64(try await store.turns(of: session.id, in: [.completed]).count)
    }
    let books = try await store.usage(of: "k", at: .now())
    #expect(books.costThisMonth == ended * KeyLimit.dollar / 100, "seed \(seed)")
    for (session, entry) in acknowledged {
      let log = try await store.log(of: session)
      #expect(log.map(\.sequence) == log.indices.map { Int64($0 + 1) }, "seed \(seed)")
      #expect(Int64(log.count) >= entry.sequence, "seed \(seed)")
      let turns = try await store.turns(of: session)
      #expect(turns.map(\.number) == turns.indices.map { $0 + 1 })
      let byID = Dictionary(uniqueKeysWithValues: turns.map { ($0.id, $0) })
      for (id, said) in entry.turns {
        let turn = try #require(byID[id], "seed \(seed)")
        #expect(turn.prompt == "prompt of \(session.lowercaseString)")
        switch said {
        case "queued": break
        case "completed": #expect(turn.state == .completed, "seed \(seed)")
        default: #expect(turn.state == .interrupted || turn.state == .completed, "seed \(seed)")
        }
        if turn.state == .completed {
          #expect(turn.result == "result of \(id.lowercaseString)")
          // The result and the event that tells of it are there together.
          #expect(log.contains { $0.turnID == id && $0.type == "session.status_idle" })
        }
      }
    }
    await store.close()
    let queue = try DatabaseQueue(path: path)
    #expect(try await queue.read { try String.fetchAll($0, sql: "PRAGMA quick_check") } == ["ok"])
    #expect(try await queue.read { try Row.fetchAll($0, sql: "PRAGMA foreign_key_check").isEmpty })
    try queue.close()
  }
}

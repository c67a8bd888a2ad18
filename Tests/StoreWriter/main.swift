// Writes to a store until it is killed, or for a number of rounds, and says on stdout what the store has
// acknowledged. The tests of SQLiteStore kill it and look for what it said.
//
//     store-writer PATH SEED TASKS ROUNDS

import Foundation
import Glibc
import SQLiteStore
import Sessions

/// A generator that gives the same numbers for the same seed.
struct SeededGenerator: RandomNumberGenerator {
  var state: UInt64

  mutating func next() -> UInt64 {
    state &+= 0x9E37_79B9_7F4A_7C15
    var mixed = state
    mixed = (mixed ^ (mixed >> 30)) &* 0xBF58_476D_1CE4_E5B9
    mixed = (mixed ^ (mixed >> 27)) &* 0x94D0_49BB_1331_11EB
    return mixed ^ (mixed >> 31)
  }
}

/// One line in one call, so that lines of several tasks don't mix and nothing is left in a buffer.
func acknowledge(_ words: String...) {
  let line = words.joined(separator: " ") + "\n"
  let written = Array(line.utf8).withUnsafeBytes { write(STDOUT_FILENO, $0.baseAddress, $0.count) }
  if written != line.utf8.count { exit(3) }
}

func converse(_ store: SQLiteSessionStore, rounds: Int, seed: UInt64) async throws {
  var random = SeededGenerator(state: seed)
  let session = Session(id: UUID(), name: "s", createdAt: .now(), workspace: "/w", owner: "k")
  _ = try await store.createSession(session)
  let id = session.id.lowercaseString
  acknowledge("session", id)
  for _ in 0..<rounds {
    let new = NewTurn(sessionID: session.id, prompt: "prompt of \(id)", createdAt: .now())
    let turnID = new.id.lowercaseString
    let message = NewEvent(type: "user.message", turnID: new.id, processedAt: .now())
    guard case .created(_, let events) = try await store.enqueueTurn(new, events: [message]) else { exit(4) }
    acknowledge("queued", id, turnID, "\(events[0].sequence)")
    _ = try await store.startTurn(new.id, at: .now())
    acknowledge("running", id, turnID, "0")
    for _ in 0..<Int.random(in: 0..<5, using: &random) {
      let text = String(repeating: "x", count: Int.random(in: 0..<3000, using: &random))
      let new = (0..<Int.random(in: 1..<4, using: &random)).map { _ in
        NewEvent(type: "agent.message", turnID: new.id, processedAt: .now(), payload: #"{"text":"\#(text)"}"#)
      }
      let events = try await store.appendEvents(new, to: session.id)
      acknowledge("event", id, turnID, "\(events.last?.sequence ?? 0)")
    }
    let idle = NewEvent(type: "session.status_idle", turnID: new.id, processedAt: .now())
    let change = try await store.finishTurn(
      new.id,
      TurnOutcome(state: .completed, finishedAt: .now(), result: "result of \(turnID)", costUSD: 0.01),
      events: [idle])
    acknowledge("completed", id, turnID, "\(change.events[0].sequence)")
  }
}

let arguments = CommandLine.arguments
guard arguments.count == 5, let seed = UInt64(arguments[2]), let tasks = Int(arguments[3]),
  let rounds = Int(arguments[4])
else { exit(2) }

let store = try await SQLiteSessionStore.open(SQLiteStoreConfiguration(path: arguments[1]))
try await withThrowingTaskGroup { group in
  for task in 0..<tasks {
    group.addTask { try await converse(store, rounds: rounds, seed: seed &+ UInt64(task)) }
  }
  try await group.waitForAll()
}
await store.close()

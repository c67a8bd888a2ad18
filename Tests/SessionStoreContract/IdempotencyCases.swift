internal import Foundation
internal import Sessions
internal import Testing

private func claim(_ digest: UInt8, key: String = "k", owner: String? = nil) -> IdempotencyClaim {
  IdempotencyClaim(
    key: IdempotencyKey(owner: owner, scope: "POST /x", key: key), digest: [digest, 0, 255])
}

private let day = 24 * 60 * 60

let idempotencyCases: [ContractCase] = [
  ContractCase(
    "a repeated creation gives the first session, another body is a mismatch",
    aRepeatedCreationGivesTheFirstSessionAnotherBodyIsAMismatch),
  ContractCase(
    "a repeated message gives the first turn, also over a full queue",
    aRepeatedMessageGivesTheFirstTurnAlsoOverAFullQueue),
  ContractCase(
    "records are found until they expire, and purged then", recordsAreFoundUntilTheyExpireAndPurgedThen),
  ContractCase("a refused request leaves no record", aRefusedRequestLeavesNoRecord),
]

@Sendable private func aRepeatedCreationGivesTheFirstSessionAnotherBodyIsAMismatch(_ store: any SessionStore)
  async throws
{
  let session = makeSession()
  let turn = NewTurn(sessionID: session.id, prompt: "hello", createdAt: time(0))
  let first = try await store.createSession(
    session, firstTurn: turn, events: makeEvents("a"), idempotency: claim(1))
  guard case .created(_, let created?, _) = first else { throw Unexpected("\(first)") }
  func again(_ claim: IdempotencyClaim, at seconds: Int = 5) async throws -> SessionAdmission {
    let other = makeSession(at: seconds)
    return try await store.createSession(
      other, firstTurn: NewTurn(sessionID: other.id, prompt: "hello", createdAt: time(seconds)),
      events: makeEvents("a"), idempotency: claim)
  }
  #expect(try await again(claim(1)) == .replayed(session, firstTurn: created))
  #expect(try await again(claim(2)) == .mismatch)
  let running = try await store.startTurn(turn.id, at: time(6)).turn
  #expect(try await again(claim(1)) == .replayed(session, firstTurn: running))
  #expect(try await store.sessions() == [session])
  #expect(try await store.log(session).count == 1)

  // Another owner's key is another key.
  guard case .created = try await again(claim(2, owner: "x")) else { throw Unexpected("not created") }
  _ = try await store.beginDeletion(of: session.id, at: time(7))
  #expect(try await again(claim(1)) == .replayedButDeleted(sessionID: session.id))
  try await store.finishDeletion(of: session.id)
  #expect(try await again(claim(1), at: day - 1) == .replayedButDeleted(sessionID: session.id))
  #expect(try await again(claim(2)) == .mismatch)
  guard case .created = try await again(claim(2), at: day) else { throw Unexpected("not expired") }
}

@Sendable private func aRepeatedMessageGivesTheFirstTurnAlsoOverAFullQueue(_ store: any SessionStore)
  async throws
{
  let session = try await store.addSession()
  let other = try await store.addSession()
  func enqueue(_ claim: IdempotencyClaim, _ session: Session, at seconds: Int = 1) async throws
    -> TurnAdmission
  {
    try await store.enqueueTurn(
      NewTurn(sessionID: session.id, prompt: "x", createdAt: time(seconds)), events: makeEvents("a"),
      idempotency: claim, queueLimit: 0)
  }
  guard case .created(let turn, _) = try await enqueue(claim(1), session) else {
    throw Unexpected("refused")
  }
  #expect(try await enqueue(claim(1), session) == .replayed(turn))
  #expect(try await enqueue(claim(9), session) == .mismatch)
  #expect(try await enqueue(claim(1), other) == .mismatch)
  #expect(try await enqueue(claim(1, key: "new"), session) == .queueFull(unfinished: 1))
  let outcome = TurnOutcome(state: .completed, finishedAt: time(4), result: "done")
  let finished = try await store.finishTurn(turn.id, outcome).turn
  #expect(try await enqueue(claim(1), session, at: day) == .replayed(finished))
  guard case .created(let later, _) = try await enqueue(claim(1), session, at: day + 1) else {
    throw Unexpected("not expired")
  }
  #expect(later.number == 2)
  #expect(try await store.log(session).count == 2)
  #expect(try await store.log(other).isEmpty)
}

@Sendable private func recordsAreFoundUntilTheyExpireAndPurgedThen(_ store: any SessionStore) async throws {
  let session = try await store.addSession()
  for (index, key) in ["a", "b", "c\u{0}"].enumerated() {
    _ = try await store.enqueueTurn(
      NewTurn(sessionID: session.id, prompt: "x", createdAt: time(index)), events: [],
      idempotency: claim(UInt8(index), key: key), queueLimit: nil)
  }
  let key = claim(0, key: "c\u{0}").key
  let record = try #require(try await store.idempotencyRecord(for: key, at: time(3)))
  #expect(record.key == key)
  #expect(record.digest == [2, 0, 255])
  #expect(record.sessionID == session.id)
  #expect(record.createdAt == time(2))
  #expect(try await store.idempotencyRecord(for: claim(0, key: "c").key, at: time(3)) == nil)
  #expect(try await store.idempotencyRecord(for: key, at: time(2 + day)) == nil)
  #expect(try await store.purgeIdempotencyRecords(at: time(day + 1)) == 2)
  #expect(try await store.purgeIdempotencyRecords(at: time(day + 1)) == 0)
  #expect(try await store.idempotencyRecord(for: key, at: time(3)) == record)
}

@Sendable private func aRefusedRequestLeavesNoRecord(_ store: any SessionStore) async throws {
  let session = makeSession()
  let turn = NewTurn(sessionID: session.id, prompt: "x", createdAt: time(0))
  await expect(.sessionNotFound(session.id)) {
    try await store.enqueueTurn(turn, events: [], idempotency: claim(1), queueLimit: nil)
  }
  #expect(try await store.idempotencyRecord(for: claim(1).key, at: time(0)) == nil)
}

internal import Foundation
internal import Sessions
internal import Testing

let turnCases: [ContractCase] = [
  ContractCase("turns are numbered within their session", turnsAreNumberedWithinTheirSession),
  ContractCase("texts come back to the byte", textsComeBackToTheByte),
  ContractCase(
    "a turn goes through its states, with everything that is known at its end",
    aTurnGoesThroughItsStatesWithEverythingThatIsKnownAtItsEnd),
  ContractCase("a failure is kept with all its parts", aFailureIsKeptWithAllItsParts),
  ContractCase("lastUsed never goes back", lastusedNeverGoesBack),
  ContractCase(
    "a change of state that is not allowed changes nothing", aChangeOfStateThatIsNotAllowedChangesNothing),
  ContractCase(
    "the queue has a limit that doesn't count the turn in front",
    theQueueHasALimitThatDoesntCountTheTurnInFront),
  ContractCase("a message for a session at rest starts at once", aMessageForASessionAtRestStartsAtOnce),
]

@Sendable private func turnsAreNumberedWithinTheirSession(_ store: any SessionStore) async throws {
  let sessions = [try await store.addSession(), try await store.addSession()]
  var turns: [Turn] = []
  for index in 0..<6 { turns.append(try await store.addTurn(sessions[index % 2], "p\(index)")) }
  #expect(turns.map(\.number) == [1, 1, 2, 2, 3, 3])
  #expect(try await store.unfinishedTurns() == turns.map(\.withoutPrompt))
  let ofFirst = [turns[0], turns[2], turns[4]]
  #expect(try await store.turns(of: sessions[0].id, after: 0, limit: 10, states: nil).items == ofFirst)
  #expect(try await store.turns(of: sessions[0].id, after: 1, limit: 1, states: nil).items == [turns[2]])
  #expect(try await store.turns(of: sessions[0].id, after: 3, limit: 10, states: nil).items.isEmpty)
  #expect(try await store.turns(of: sessions[0].id, after: 0, limit: -1, states: nil).items.isEmpty)
  _ = try await store.startTurn(turns[0].id, at: time(5))
  let queued = try await store.turns(of: sessions[0].id, after: 0, limit: 10, states: [.queued]).items
  #expect(queued == [turns[2], turns[4]])
  #expect(try await store.turns(of: sessions[0].id, after: 0, limit: 10, states: []).items.isEmpty)
  let both = try await store.turns(of: sessions[0].id, after: 0, limit: 10, states: [.queued, .running]).items
  #expect(both.count == 3)
}

@Sendable private func textsComeBackToTheByte(_ store: any SessionStore) async throws {
  let session = try await store.addSession()
  for text in hardTexts {
    let turn = try await store.addTurn(session, text)
    #expect(try await store.turn(turn.id).prompt == text)
    let outcome = TurnOutcome(
      state: .failed, finishedAt: time(2), result: text, failure: TurnFailure(code: text, detail: text))
    let change = try await store.finishTurn(turn.id, outcome)
    #expect(change.turn.result == text)
    #expect(try await store.turn(turn.id) == change.turn)
  }
  let large = String(repeating: "0123456789abcdef", count: 1 << 16)
  let turn = try await store.addTurn(session, large)
  #expect(try await store.turn(turn.id).prompt == large)
}

@Sendable private func aTurnGoesThroughItsStatesWithEverythingThatIsKnownAtItsEnd(_ store: any SessionStore)
  async throws
{
  let session = try await store.addSession()
  let queued = try await store.addTurn(session, at: 10)
  #expect(try await store.session(session.id).lastUsed == time(10))
  let started = try await store.startTurn(
    queued.id, at: time(11), events: makeEvents("session.status_running"))
  #expect(started.turn.state == .running)
  #expect(started.turn.startedAt == time(11))
  #expect(started.events.map(\.sequence) == [1])
  let outcome = TurnOutcome(
    state: .completed, finishedAt: time(15), result: "four", structuredOutput: #"{"n":4}"#,
    usage: TokenUsage(inputTokens: 1, outputTokens: 2, cacheReadTokens: 3, cacheCreationTokens: 1 << 40),
    costUSD: 0.012_345_678_9, durationMilliseconds: 3999, modelTurns: 2)
  let change = try await store.finishTurn(queued.id, outcome, events: makeEvents("a", "b"))
  #expect(change.events.map(\.sequence) == [2, 3])
  let expected = Turn(
    id: queued.id, sessionID: session.id, number: 1, prompt: "hello", state: .completed,
    createdAt: time(10),
    startedAt: time(11), finishedAt: time(15), result: "four", structuredOutput: #"{"n":4}"#,
    usage: outcome.usage, costUSD: 0.012_345_678_9, durationMilliseconds: 3999, modelTurns: 2)
  #expect(change.turn == expected)
  #expect(try await store.turn(queued.id) == expected)
  #expect(try await store.session(session.id).lastUsed == time(15))
  #expect(try await store.log(session) == started.events + change.events)
}

@Sendable private func aFailureIsKeptWithAllItsParts(_ store: any SessionStore) async throws {
  let session = try await store.addSession()
  let turn = try await store.addRunningTurn(session)
  let failure = TurnFailure(code: "rate_limited", detail: "Try later.", retryAfter: 60)
  _ = try await store.finishTurn(
    turn.id, TurnOutcome(state: .failed, finishedAt: time(3), failure: failure))
  #expect(try await store.turn(turn.id).failure == failure)
}

@Sendable private func lastusedNeverGoesBack(_ store: any SessionStore) async throws {
  let session = try await store.addSession(at: 100)
  let turn = try await store.addTurn(session, at: 50)
  _ = try await store.finishTurn(turn.id, TurnOutcome(state: .cancelled, finishedAt: time(60)))
  #expect(try await store.session(session.id).lastUsed == time(100))
}

@Sendable private func aChangeOfStateThatIsNotAllowedChangesNothing(_ store: any SessionStore) async throws {
  let session = try await store.addSession()
  let first = try await store.addTurn(session)
  let second = try await store.addTurn(session)
  _ = try await store.startTurn(first.id, at: time(2))
  await expect(.conflict(.sessionBusy(runningTurn: first.id))) {
    try await store.startTurn(second.id, at: time(3), events: makeEvents("a"))
  }
  await expect(.conflict(.turnState(.running))) {
    try await store.startTurn(first.id, at: time(3), events: makeEvents("a"))
  }
  await expect(.conflict(.turnState(.queued))) {
    try await store.finishTurn(first.id, TurnOutcome(state: .queued, finishedAt: time(3)))
  }
  _ = try await store.finishTurn(first.id, TurnOutcome(state: .completed, finishedAt: time(4)))
  await expect(.conflict(.turnState(.completed))) {
    try await store.finishTurn(
      first.id, TurnOutcome(state: .failed, finishedAt: time(5)), events: makeEvents("a"))
  }
  #expect(try await store.turn(first.id).finishedAt == time(4))
  let cancelled = try await store.finishTurn(
    second.id, TurnOutcome(state: .cancelled, finishedAt: time(5)))
  #expect(cancelled.turn.startedAt == nil)
  await expect(.conflict(.turnState(.cancelled))) { try await store.startTurn(second.id, at: time(6)) }
  #expect(try await store.log(session).isEmpty)
}

@Sendable private func theQueueHasALimitThatDoesntCountTheTurnInFront(_ store: any SessionStore) async throws {
  let session = try await store.addSession()
  func enqueue(limit: Int) async throws -> TurnAdmission {
    try await store.enqueueTurn(
      NewTurn(sessionID: session.id, prompt: "x", createdAt: time(1)), events: makeEvents("user.message"),
      idempotency: nil, queueLimit: limit)
  }
  guard case .created(let first, _) = try await enqueue(limit: 0) else { throw Unexpected("refused") }
  #expect(try await enqueue(limit: 0) == .queueFull(unfinished: 1))
  _ = try await store.startTurn(first.id, at: time(2))
  #expect(try await enqueue(limit: 0) == .queueFull(unfinished: 1))
  for _ in 0..<2 {
    guard case .created = try await enqueue(limit: 2) else { throw Unexpected("refused") }
  }
  #expect(try await enqueue(limit: 2) == .queueFull(unfinished: 3))
  #expect(try await store.log(session).count == 3)
  _ = try await store.finishTurn(first.id, TurnOutcome(state: .completed, finishedAt: time(3)))
  guard case .created(let last, _) = try await enqueue(limit: 2) else { throw Unexpected("refused") }
  #expect(last.number == 4)
}

@Sendable private func aMessageForASessionAtRestStartsAtOnce(_ store: any SessionStore) async throws {
  let session = try await store.addSession(owner: "k")
  let budget = KeyAccount(key: "k", limits: KeyLimits([.usdPerDay: .maximum(KeyLimit.dollar)]))
  let claim = IdempotencyClaim(key: IdempotencyKey(scope: "s", key: "k"), digest: [1])
  func send(_ claim: IdempotencyClaim? = nil) async throws -> TurnAdmission {
    try await store.enqueueTurn(
      NewTurn(sessionID: session.id, prompt: "x", owner: "k", createdAt: time(1)), events: makeEvents("user.message"),
      idempotency: claim, queueLimit: 1, accounts: [budget], starting: makeEvents("session.status_running"))
  }
  guard case .started(let first) = try await send(claim) else { throw Unexpected("not started") }
  #expect(first.turn.state == .running && first.turn.startedAt == time(1) && first.turn.prompt == "x")
  #expect(first.allowance == KeyLimit.dollar / 2)
  #expect(first.events.map(\.type) == ["user.message", "session.status_running"])
  #expect(try await store.log(session) == first.events)
  #expect(try await store.turn(first.turn.id) == first.turn)
  #expect(try await store.usage(of: "k", at: time(1)).reserved == KeyLimit.dollar / 2)
  #expect(try await send(claim) == .replayed(first.turn))
  // Behind it, and behind one that waits, it is queued.
  guard case .created(let second, let events) = try await send() else { throw Unexpected("not queued") }
  #expect(second.state == .queued && events.map(\.type) == ["user.message"])
  #expect(try await send() == .queueFull(unfinished: 2))
  _ = try await store.finishTurn(first.turn.id, TurnOutcome(state: .completed, finishedAt: time(2)))
  guard case .created(let third, _) = try await send() else { throw Unexpected("not queued") }
  for turn in [second, third] {
    _ = try await store.finishTurn(turn.id, TurnOutcome(state: .cancelled, finishedAt: time(3)))
  }
  guard case .started(let last) = try await send() else { throw Unexpected("not started") }
  #expect(last.turn.number == 4)
}

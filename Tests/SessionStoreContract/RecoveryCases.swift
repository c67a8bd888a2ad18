internal import Foundation
internal import Sessions
internal import Testing

let recoveryCases: [ContractCase] = [
  ContractCase(
    "recovery interrupts what ran, keeps what waits and finds unfinished deletions",
    recoveryInterruptsWhatRanKeepsWhatWaitsAndFindsUnfinishedDeletions),
  ContractCase("recovery of a store in order changes nothing", recoveryOfAStoreInOrderChangesNothing),
]

@Sendable private func recoveryInterruptsWhatRanKeepsWhatWaitsAndFindsUnfinishedDeletions(
  _ store: any SessionStore
) async throws {
  let idle = try await store.addSession("idle")
  let busy = try await store.addSession("busy")
  let waiting = try await store.addSession("waiting")
  let leaving = try await store.addSession("leaving")
  let running = try await store.addRunningTurn(busy)
  let approval = makeApproval(running)
  _ = try await store.addApproval(approval, events: makeEvents("ask"))
  let queued = [try await store.addTurn(waiting), try await store.addTurn(busy)]
  let gone = try await store.addRunningTurn(leaving)
  _ = try await store.addApproval(makeApproval(gone), events: [])
  _ = try await store.addTurn(leaving)
  let deleting = try await store.beginDeletion(of: leaving.id, at: time(20))

  let recovery = try await store.recoverInterrupted(at: time(100)) { session in
    session.turns.map { NewEvent(type: "session.error", turnID: $0.id, processedAt: time(100)) }
      + session.approvals.map { _ in NewEvent(type: "void", processedAt: time(100)) }
  }
  var stopped = running
  stopped.state = .interrupted
  stopped.finishedAt = time(100)
  stopped.failure = .serverStopped
  var void = approval
  void.state = .void
  void.resolvedAt = time(100)
  #expect(
    recovery.interrupted == [InterruptedSession(sessionID: busy.id, turns: [stopped], approvals: [void])])
  #expect(recovery.queued == queued.map(\.withoutPrompt))
  #expect(recovery.deletions == [deleting])
  #expect(try await store.turn(running.id) == stopped)
  #expect(stopped.failure?.code == "interrupted")
  #expect(try await store.approval(approval.id) == void)
  let log = try await store.log(busy)
  #expect(log.map(\.type) == ["ask", "session.error", "void"])
  #expect(log.map(\.sequence) == [1, 2, 3])
  #expect(try await store.log(idle).isEmpty)
  #expect(try await store.log(waiting).isEmpty)

  // The session goes on with what waits.
  #expect(try await store.startTurn(queued[1].id, at: time(101)).turn.state == .running)
}

@Sendable private func recoveryOfAStoreInOrderChangesNothing(_ store: any SessionStore) async throws {
  let session = try await store.addSession()
  let turn = try await store.addRunningTurn(session)
  let finished = try await store.finishTurn(turn.id, TurnOutcome(state: .completed, finishedAt: time(3)))
    .turn
  let recovery = try await store.recoverInterrupted(at: time(9)) { _ in makeEvents("a") }
  #expect(recovery == Recovery(interrupted: [], queued: [], deletions: []))
  #expect(try await store.turn(turn.id) == finished)
  #expect(try await store.log(session).isEmpty)
}

let raceCases: [ContractCase] = [
  ContractCase(
    "appends at the same time leave no gap and lose nothing", appendsAtTheSameTimeLeaveNoGapAndLoseNothing),
  ContractCase("of many retries of one message, one is accepted", ofManyRetriesOfOneMessageOneIsAccepted),
  ContractCase("of many decisions on one approval, one holds", ofManyDecisionsOnOneApprovalOneHolds),
  ContractCase(
    "of many messages to one session, as many wait as may, and one runs",
    ofManyMessagesToOneSessionAsManyWaitAsMayAndOneRuns),
]

@Sendable private func appendsAtTheSameTimeLeaveNoGapAndLoseNothing(_ store: any SessionStore) async throws {
  var sessions: [Session] = []
  for _ in 0..<5 { sessions.append(try await store.addSession()) }
  let missing = UUID()
  let appended = try await withThrowingTaskGroup(of: [Event].self) { group in
    for task in 0..<40 {
      let session = sessions[task % 5].id
      group.addTask {
        var events: [Event] = []
        for index in 0..<25 {
          events += try await store.appendEvents(
            [
              NewEvent(type: "t", processedAt: time(index), payload: "[\(task),\(index)]"),
              NewEvent(type: "u", processedAt: time(index), payload: "[\(task),\(index)]"),
            ], to: session)
        }
        return events
      }
      // Failing calls among them do no harm.
      group.addTask {
        await expect(.sessionNotFound(missing)) {
          try await store.appendEvents(makeEvents("x"), to: missing)
        }
        return []
      }
    }
    return try await group.reduce(into: []) { $0 += $1 }
  }
  #expect(appended.count == 2000)
  for session in sessions {
    let log = try await store.log(session)
    #expect(log.map(\.sequence) == Array(1...400))
    #expect(Set(log) == Set(appended.filter { $0.sessionID == session.id }))
    // Two events of one call are neighbours.
    for index in stride(from: 0, to: 400, by: 2) { #expect(log[index].payload == log[index + 1].payload) }
    // A task's calls are in its order.
    let byTask = Dictionary(grouping: log, by: { $0.payload.split(separator: ",")[0] })
    for events in byTask.values { #expect(events.map(\.processedAt) == events.map(\.processedAt).sorted()) }
  }
}

@Sendable private func ofManyRetriesOfOneMessageOneIsAccepted(_ store: any SessionStore) async throws {
  let session = try await store.addSession()
  let claim = IdempotencyClaim(key: IdempotencyKey(scope: "POST /m", key: "k"), digest: [1])
  let results = try await race(20) { _ in
    try await store.enqueueTurn(
      NewTurn(sessionID: session.id, prompt: "x", createdAt: time(1)), events: makeEvents("a"),
      idempotency: claim, queueLimit: 3)
  }
  let turn = try #require(try await store.turns(of: session.id).first)
  #expect(results.count { if case .created(turn, _) = $0 { true } else { false } } == 1)
  #expect(results.count { $0 == .replayed(turn) } == 19)
  #expect(try await store.unfinishedTurns().count == 1)
  #expect(try await store.lastSequence(of: session.id) == 1)
}

@Sendable private func ofManyDecisionsOnOneApprovalOneHolds(_ store: any SessionStore) async throws {
  let session = try await store.addSession()
  let turn = try await store.addRunningTurn(session)
  let approval = makeApproval(turn)
  _ = try await store.addApproval(approval, events: [])
  let results = try await race(20) { index in
    try await store.resolveApproval(
      approval.id,
      ApprovalDecision(
        state: index % 2 == 0 ? .allowed : .denied, resolvedAt: time(index), message: "\(index)"),
      events: makeEvents("decision"))
  }
  let decided = try await store.approval(approval.id)
  #expect(results.count { if case .resolved(decided, _) = $0 { true } else { false } } == 1)
  #expect(results.count { $0 == .alreadyResolved(decided) } == 19)
  #expect(try await store.lastSequence(of: session.id) == 1)
}

@Sendable private func ofManyMessagesToOneSessionAsManyWaitAsMayAndOneRuns(_ store: any SessionStore)
  async throws
{
  let session = try await store.addSession()
  let results = try await race(20) { _ in
    try await store.enqueueTurn(
      NewTurn(sessionID: session.id, prompt: "x", createdAt: time(1)), events: [], idempotency: nil,
      queueLimit: 4)
  }
  let turns = results.compactMap { if case .created(let turn, _) = $0 { turn } else { nil } }
  try #require(turns.map(\.number).sorted() == [1, 2, 3, 4, 5])
  let started = try await race(5) { index in
    do {
      return try await store.startTurn(turns[index].id, at: time(2)).turn.state
    } catch SessionStoreError.conflict(.sessionBusy) {
      return Turn.State.queued
    }
  }
  #expect(started.count { $0 == .running } == 1)
}

private func race<Value: Sendable>(
  _ count: Int, _ body: @escaping @Sendable (Int) async throws -> Value
) async throws -> [Value] {
  try await withThrowingTaskGroup(of: Value.self) { group in
    for index in 0..<count { group.addTask { try await body(index) } }
    return try await group.reduce(into: []) { $0.append($1) }
  }
}

let operationCases: [ContractCase] = [
  ContractCase("statistics count what is visible", statisticsCountWhatIsVisible),
  ContractCase(
    "a call is finished although its task was cancelled", aCallIsFinishedAlthoughItsTaskWasCancelled),
  ContractCase("a closed store refuses", aClosedStoreRefuses),
]

@Sendable private func statisticsCountWhatIsVisible(_ store: any SessionStore) async throws {
  let empty = try await store.statistics()
  #expect(empty.sessions == 0)
  #expect(empty.events == 0)
  #expect(empty.turns == Dictionary(uniqueKeysWithValues: Turn.State.allCases.map { ($0, 0) }))
  let session = try await store.addSession()
  let leaving = try await store.addSession()
  let turn = try await store.addRunningTurn(session)
  _ = try await store.addTurn(session)
  _ = try await store.addTurn(leaving)
  _ = try await store.addApproval(makeApproval(turn), events: makeEvents("a", "b"))
  _ = try await store.beginDeletion(of: leaving.id, at: time(9))
  let statistics = try await store.statistics()
  #expect(statistics.sessions == 1)
  #expect(statistics.turns[.running] == 1)
  #expect(statistics.turns[.queued] == 1)
  #expect(statistics.turns[.completed] == 0)
  #expect(statistics.events == 2)
  #expect(statistics.pendingApprovals == 1)
  try await store.checkWritable()
  try await store.checkWritable()
}

@Sendable private func aCallIsFinishedAlthoughItsTaskWasCancelled(_ store: any SessionStore) async throws {
  let session = try await store.addSession()
  let task = Task {
    withUnsafeCurrentTask { $0?.cancel() }
    return try await store.appendEvents(makeEvents("a"), to: session.id)
  }
  #expect(try await task.value.count == 1)
  let reading = Task {
    withUnsafeCurrentTask { $0?.cancel() }
    return try await store.session(session.id)
  }
  #expect(try await reading.value == session)
}

@Sendable private func aClosedStoreRefuses(_ store: any SessionStore) async throws {
  let session = try await store.addSession()
  await store.close()
  await store.close()
  await expect(.io("the store is closed")) { try await store.session(session.id) }
  await expect(.io("the store is closed")) { try await store.appendEvents(makeEvents("a"), to: session.id) }
  await expect(.io("the store is closed")) { try await store.checkWritable() }
  await expect(.io("the store is closed")) { try await store.sessions() }
}

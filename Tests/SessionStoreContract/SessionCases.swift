internal import Foundation
internal import Sessions
internal import Testing

let sessionCases: [ContractCase] = [
  ContractCase("a session comes back as it was created", aSessionComesBackAsItWasCreated),
  ContractCase(
    "a session is created with its first turn and events", aSessionIsCreatedWithItsFirstTurnAndEvents),
  ContractCase(
    "ids are used once, and a refused creation leaves nothing", idsAreUsedOnceAndARefusedCreationLeavesNothing
  ),
  ContractCase("what isn't there is not found", whatIsntThereIsNotFound),
  ContractCase(
    "an update changes what it names and adds its events", anUpdateChangesWhatItNamesAndAddsItsEvents),
  ContractCase(
    "sessions are listed in the order of creation, by pages and filters",
    sessionsAreListedInTheOrderOfCreationByPagesAndFilters),
  ContractCase("a cursor stays valid when sessions come and go", aCursorStaysValidWhenSessionsComeAndGo),
  ContractCase(
    "a deletion hides the session at once and removes it at its end",
    aDeletionHidesTheSessionAtOnceAndRemovesItAtItsEnd),
  ContractCase("a session with a long log is removed as a whole", aSessionWithALongLogIsRemovedAsAWhole),
]

@Sendable private func aSessionComesBackAsItWasCreated(_ store: any SessionStore) async throws {
  let parent = UUID()
  let session = Session(
    id: UUID(), name: "Été \u{0} 1", createdAt: time(0), lastUsed: time(9), workspace: "/w/ä",
    owner: "key_1",
    parentID: parent, options: #"{"model":"x"}"#, metadata: #"{"a":[1]}"#, hasConversation: true)
  #expect(try await store.createSession(session) == .created(session, firstTurn: nil, events: []))
  #expect(try await store.session(session.id) == session)
  #expect(try await store.sessions() == [session])
}

@Sendable private func aSessionIsCreatedWithItsFirstTurnAndEvents(_ store: any SessionStore) async throws {
  let session = makeSession()
  let turn = NewTurn(
    sessionID: session.id, prompt: "hello", options: #"{"m":1}"#, owner: "k", createdAt: time(0))
  let admission = try await store.createSession(
    session, firstTurn: turn, events: makeEvents("a", "b", turn: turn.id))
  guard case .created(session, let first?, let events) = admission else {
    throw Unexpected("\(admission)")
  }
  #expect(first.number == 1)
  #expect(first.state == .queued)
  #expect(first.prompt == "hello")
  #expect(first.options == #"{"m":1}"#)
  #expect(first.owner == "k")
  #expect(events.map(\.sequence) == [1, 2])
  #expect(try await store.turn(turn.id) == first)
  #expect(try await store.log(session) == events)
}

@Sendable private func idsAreUsedOnceAndARefusedCreationLeavesNothing(_ store: any SessionStore) async throws {
  let session = try await store.addSession()
  let turn = try await store.addTurn(session)
  await expect(.alreadyExists("Session \(session.id.lowercaseString)")) {
    try await store.createSession(session)
  }
  let other = makeSession()
  await expect(.alreadyExists("Turn \(turn.id.lowercaseString)")) {
    try await store.createSession(
      other, firstTurn: NewTurn(id: turn.id, sessionID: other.id, prompt: "x", createdAt: time(0)))
  }
  await expect(.sessionNotFound(other.id)) { try await store.session(other.id) }
  #expect(try await store.sessions() == [try await store.session(session.id)])
}

@Sendable private func whatIsntThereIsNotFound(_ store: any SessionStore) async throws {
  let id = UUID()
  await expect(.sessionNotFound(id)) { try await store.session(id) }
  await expect(.sessionNotFound(id)) { try await store.updateSession(id, SessionUpdate(name: "x")) }
  await expect(.sessionNotFound(id)) { try await store.beginDeletion(of: id, at: time(0)) }
  await expect(.sessionNotFound(id)) { try await store.appendEvents(makeEvents("a"), to: id) }
  await expect(.sessionNotFound(id)) { try await store.events(of: id, after: 0, limit: 1, types: nil) }
  await expect(.sessionNotFound(id)) { try await store.lastSequence(of: id) }
  await expect(.sessionNotFound(id)) { try await store.turns(of: id, after: 0, limit: 1, states: nil) }
  await expect(.sessionNotFound(id)) { try await store.approvals(of: id, after: nil, limit: 1, states: nil) }
  await expect(.sessionNotFound(id)) {
    try await store.enqueueTurn(NewTurn(sessionID: id, prompt: "x", createdAt: time(0)))
  }
  await expect(.turnNotFound(id)) { try await store.turn(id) }
  await expect(.turnNotFound(id)) { try await store.startTurn(id, at: time(0)) }
  await expect(.turnNotFound(id)) {
    try await store.finishTurn(id, TurnOutcome(state: .failed, finishedAt: time(0)))
  }
  await expect(.approvalNotFound(id)) { try await store.approval(id) }
  await expect(.approvalNotFound(id)) {
    try await store.resolveApproval(id, ApprovalDecision(state: .denied, resolvedAt: time(0)), events: [])
  }
  try await store.finishDeletion(of: id)
}

@Sendable private func anUpdateChangesWhatItNamesAndAddsItsEvents(_ store: any SessionStore) async throws {
  let session = try await store.addSession()
  var expected = session
  expected.name = hardTexts[3]
  #expect(try await store.updateSession(session.id, SessionUpdate(name: hardTexts[3])) == expected)
  expected.options = #"{"a":1}"#
  expected.metadata = #"{"b":2}"#
  expected.lastUsed = time(50)
  expected.hasConversation = true
  let change = try await store.updateSession(
    session.id,
    SessionUpdate(
      lastUsed: time(50), options: #"{"a":1}"#, metadata: #"{"b":2}"#, hasConversation: true),
    events: makeEvents("session.updated"))
  #expect(change.session == expected)
  #expect(try await store.session(session.id) == expected)
  #expect(try await store.log(session) == change.events)
}

@Sendable private func sessionsAreListedInTheOrderOfCreationByPagesAndFilters(_ store: any SessionStore)
  async throws
{
  var sessions: [Session] = []
  for index in 0..<7 {
    sessions.append(
      try await store.addSession("Name \(index)", at: 100 - index, owner: index % 2 == 0 ? "even" : nil))
  }
  #expect(try await store.sessions() == sessions)
  var seen: [Session] = []
  var cursor: SessionCursor?
  var pages = 0
  repeat {
    let page = try await store.sessions(SessionQuery(after: cursor, limit: 3))
    seen += page.sessions
    cursor = page.next
    pages += 1
  } while cursor != nil
  #expect(seen == sessions)
  #expect(pages == 3)
  #expect(try await store.sessions(SessionQuery(limit: 7)).next == nil)
  #expect(try await store.sessions(SessionQuery(limit: 0)).sessions.isEmpty)
  #expect(try await store.sessions(SessionQuery(limit: .max)).sessions == sessions)
  #expect(try await store.sessions(SessionQuery(limit: -1)).sessions.isEmpty)
  #expect(try await store.sessions(SessionQuery(nameContains: "nAmE 3")).sessions == [sessions[3]])
  #expect(try await store.sessions(SessionQuery(nameContains: "%")).sessions.isEmpty)
  #expect(try await store.sessions(SessionQuery(owner: "even")).sessions.count == 4)
  #expect(try await store.sessions(SessionQuery(owner: "odd")).sessions.isEmpty)

  let turn = try await store.addTurn(sessions[5])
  let running = SessionQuery(activity: .running)
  #expect(try await store.sessions(running).sessions.map(\.id) == [sessions[5].id])
  #expect(try await store.sessions(SessionQuery(activity: .idle)).sessions.count == 6)
  _ = try await store.startTurn(turn.id, at: time(2))
  #expect(try await store.sessions(running).sessions.count == 1)
  _ = try await store.finishTurn(turn.id, TurnOutcome(state: .completed, finishedAt: time(3)))
  #expect(try await store.sessions(running).sessions.isEmpty)
}

@Sendable private func aCursorStaysValidWhenSessionsComeAndGo(_ store: any SessionStore) async throws {
  var sessions: [Session] = []
  for _ in 0..<4 { sessions.append(try await store.addSession()) }
  let first = try await store.sessions(SessionQuery(limit: 2))
  // The last of the page goes and all behind it; what is new is still found after the cursor.
  for session in sessions[1...] {
    _ = try await store.beginDeletion(of: session.id, at: time(9))
    try await store.finishDeletion(of: session.id)
  }
  let late = try await store.addSession()
  let rest = try await store.sessions(SessionQuery(after: first.next, limit: 10))
  #expect(rest.sessions == [late])
}

@Sendable private func aDeletionHidesTheSessionAtOnceAndRemovesItAtItsEnd(_ store: any SessionStore)
  async throws
{
  let session = try await store.addSession()
  let kept = try await store.addSession()
  let turn = try await store.addRunningTurn(session)
  let queued = try await store.addTurn(session)
  let approval = makeApproval(turn)
  _ = try await store.addApproval(approval, events: [])
  let deleting = try await store.beginDeletion(of: session.id, at: time(30))
  #expect(deleting.deletedAt == time(30))
  #expect(deleting.id == session.id)
  await expect(.sessionNotFound(session.id)) { try await store.session(session.id) }
  await expect(.sessionNotFound(session.id)) { try await store.beginDeletion(of: session.id, at: time(31)) }
  await expect(.sessionNotFound(session.id)) { try await store.addTurn(session) }
  await expect(.turnNotFound(turn.id)) { try await store.turn(turn.id) }
  await expect(.turnNotFound(queued.id)) { try await store.startTurn(queued.id, at: time(31)) }
  await expect(.turnNotFound(turn.id)) { try await store.addApproval(makeApproval(turn), events: []) }
  await expect(.approvalNotFound(approval.id)) { try await store.approval(approval.id) }
  #expect(try await store.sessions() == [kept])
  #expect(try await store.unfinishedTurns().isEmpty)
  #expect(try await store.unfinishedDeletions() == [deleting])

  // The turn that is being stopped comes to its end without errors.
  #expect(try await store.appendEvents(makeEvents("a"), to: session.id).count == 1)
  let resolution = try await store.resolveApproval(
    approval.id, ApprovalDecision(state: .denied, resolvedAt: time(32)), events: [])
  guard case .resolved = resolution else { throw Unexpected("\(resolution)") }
  let change = try await store.finishTurn(turn.id, TurnOutcome(state: .interrupted, finishedAt: time(33)))
  #expect(change.turn.state == .interrupted)

  try await store.finishDeletion(of: session.id)
  try await store.finishDeletion(of: session.id)
  #expect(try await store.unfinishedDeletions().isEmpty)
  await expect(.turnNotFound(turn.id)) {
    try await store.finishTurn(turn.id, TurnOutcome(state: .failed, finishedAt: time(34)))
  }
  await expect(.sessionNotFound(session.id)) {
    try await store.appendEvents(makeEvents("a"), to: session.id)
  }
  let again = makeSession()
  #expect(try await store.createSession(again) == .created(again, firstTurn: nil, events: []))
  #expect(try await store.log(again).isEmpty)
  #expect(try await store.sessions() == [kept, again])
}

@Sendable private func aSessionWithALongLogIsRemovedAsAWhole(_ store: any SessionStore) async throws {
  let session = try await store.addSession()
  let batch = (0..<1000).map { NewEvent(type: "t", processedAt: time($0)) }
  for _ in 0..<5 { _ = try await store.appendEvents(batch, to: session.id) }
  #expect(try await store.statistics().events == 5000)
  _ = try await store.beginDeletion(of: session.id, at: time(1))
  try await store.finishDeletion(of: session.id)
  #expect(try await store.statistics().events == 0)
}

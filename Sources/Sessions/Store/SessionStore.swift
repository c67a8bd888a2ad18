#if canImport(FoundationEssentials)
  public import FoundationEssentials
#else
  public import Foundation
#endif

/// Where the logs of sessions are read.
public protocol EventLogReader: Sendable {
  /// A page of the events of a session by number, ascending.
  ///
  /// - Parameters:
  ///   - after: only numbers greater than this; 0 for all.
  ///   - limit: at most so many.
  ///   - types: only events of these types; nil for all.
  /// - Throws: `sessionNotFound`.
  func events(
    of sessionID: UUID, after: Int64, limit: Int, types: Set<String>?
  ) async throws(SessionStoreError) -> StorePage<Event>

  /// The number of the latest event; 0 if there is none.
  ///
  /// - Throws: `sessionNotFound`.
  func lastSequence(of sessionID: UUID) async throws(SessionStoreError) -> Int64
}

/// Where sessions, turns, events and approvals are kept.
///
/// Every call is one transaction: it happens as a whole or not at all, and when it returns, it is visible to
/// every later call. When a call that accepts, starts or ends something has returned (sessions, turns,
/// approvals, deletions), it survives the loss of power; `appendEvents` survives the end of the process at any
/// moment, and the loss of power as soon as any later call of the former kind has returned.
///
/// A call is not cancelled with the task that makes it. Calls may be made from any task, any number at once.
/// A session whose deletion has begun is not found by any call, with three exceptions that let a turn that is
/// being stopped come to its end: `appendEvents`, `finishTurn` and `resolveApproval`.
public protocol SessionStore: EventLogReader {
  // MARK: Sessions

  /// Creates a session, with its first turn and events if there are any.
  ///
  /// - Parameters:
  ///   - firstTurn: a turn of this session, to be queued as number 1.
  ///   - events: the beginning of the session's log.
  ///   - idempotency: if a session was created with this claim in the last 24 hours before
  ///     `session.createdAt`, nothing is created.
  ///   - accounts: whose limits hold for it. This is looked at after `idempotency`.
  /// - Throws: `alreadyExists` if the id of the session or turn is in use, `limited`.
  func createSession(
    _ session: Session, firstTurn: NewTurn?, events: [NewEvent], idempotency: IdempotencyClaim?,
    accounts: [KeyAccount]
  ) async throws(SessionStoreError) -> SessionAdmission

  /// - Throws: `sessionNotFound`.
  func session(_ id: UUID) async throws(SessionStoreError) -> Session

  /// Lists sessions in the order of their creation.
  func sessions(_ query: SessionQuery) async throws(SessionStoreError) -> SessionPage

  /// Changes a session and adds events to its log.
  ///
  /// - Throws: `sessionNotFound`.
  func updateSession(
    _ id: UUID, _ update: SessionUpdate, events: [NewEvent]
  ) async throws(SessionStoreError) -> (session: Session, events: [Event])

  /// Marks a session as being deleted, which hides it.
  ///
  /// The rest (ending its processes, removing its directories) is the caller's, who ends with `finishDeletion`.
  /// If the server stops in between, `unfinishedDeletions` tells the next one.
  ///
  /// - Throws: `sessionNotFound`, also if the deletion has begun before.
  func beginDeletion(of id: UUID, at now: Timestamp) async throws(SessionStoreError) -> Session

  /// Removes a session and everything that belongs to it; does nothing if it is gone.
  ///
  /// Idempotency records stay for their 24 hours. A long log is removed in several transactions, so that others
  /// can write in between.
  func finishDeletion(of id: UUID) async throws(SessionStoreError)

  /// Sessions whose deletion has begun and not ended, in the order of their creation.
  func unfinishedDeletions() async throws(SessionStoreError) -> [Session]

  // MARK: Turns

  /// Puts a message at the end of its session's queue and makes its time the session's `lastUsed`.
  ///
  /// - Parameters:
  ///   - events: added to the session's log.
  ///   - idempotency: if a turn was accepted with this claim in the last 24 hours before `turn.createdAt`,
  ///     nothing is added. This is looked at before the queue's length.
  ///   - queueLimit: how many turns may wait behind the running one (or the one that is next to run). 0 accepts
  ///     a message only for an idle session; nil sets no limit.
  ///   - accounts: whose limits hold for it. This is looked at last.
  ///   - starting: if the session has no other unfinished turn, this one is started at the same time, as by `startTurn`
  ///     with these events. Nil has it queued.
  /// - Throws: `sessionNotFound`, `alreadyExists` if the turn's id is in use, `limited`.
  func enqueueTurn(
    _ turn: NewTurn, events: [NewEvent], idempotency: IdempotencyClaim?, queueLimit: Int?, accounts: [KeyAccount],
    starting: [NewEvent]?
  ) async throws(SessionStoreError) -> TurnAdmission

  /// Makes a queued turn the running one of its session, and reserves what it may spend.
  ///
  /// - Parameter accounts: whose budgets hold for it.
  /// - Throws: `turnNotFound`, `conflict(.turnState)` if it isn't queued, `conflict(.sessionBusy)`, `limited`.
  func startTurn(
    _ id: UUID, at now: Timestamp, events: [NewEvent], accounts: [KeyAccount]
  ) async throws(SessionStoreError) -> TurnChange

  /// Ends a running or queued turn, writes what came of it, adds events, makes approvals void that are still
  /// pending for it, makes its end the session's `lastUsed`, and adds what it used to the books of its keys, from
  /// which it doesn't go when the session is deleted.
  ///
  /// - Throws: `turnNotFound`, `conflict(.turnState)` if it has ended before, or if `outcome.state` isn't final.
  func finishTurn(
    _ id: UUID, _ outcome: TurnOutcome, events: [NewEvent]
  ) async throws(SessionStoreError) -> TurnChange

  /// - Throws: `turnNotFound`.
  func turn(_ id: UUID) async throws(SessionStoreError) -> Turn

  /// A page of the turns of a session by number, ascending.
  ///
  /// - Parameters:
  ///   - after: only numbers greater than this; 0 for all.
  ///   - limit: at most so many.
  ///   - states: only turns in these states; nil for all.
  /// - Throws: `sessionNotFound`.
  func turns(
    of sessionID: UUID, after: Int, limit: Int, states: Set<Turn.State>?
  ) async throws(SessionStoreError) -> StorePage<Turn>

  /// Queued and running turns of all sessions in the order of their acceptance, without their prompts, which might take
  /// more memory than there is.
  func unfinishedTurns() async throws(SessionStoreError) -> [Turn]

  /// Puts in order what the end of an earlier process left, before the first request is served.
  ///
  /// Running turns become interrupted (failure code `interrupted`) and count with what they had reserved, pending
  /// approvals become void. Queued turns stay.
  ///
  /// - Parameter events: gives the events to add to the log of a session that was interrupted. It is called
  ///   within the transaction, possibly more than once, and must not call the store.
  func recoverInterrupted(
    at now: Timestamp, events: @escaping @Sendable (InterruptedSession) -> [NewEvent]
  ) async throws(SessionStoreError) -> Recovery

  // MARK: Events

  /// Adds events to the end of a session's log and returns them with their numbers.
  ///
  /// Calls that are made at the same time share a transaction on disk; each succeeds or fails for itself. The
  /// order of calls that a task makes one after the other is kept.
  ///
  /// - Throws: `sessionNotFound`.
  func appendEvents(_ events: [NewEvent], to sessionID: UUID) async throws(SessionStoreError) -> [Event]

  // MARK: Approvals

  /// Adds a pending approval and events to the log of its session.
  ///
  /// - Throws: `turnNotFound`, `conflict(.turnState)` if the turn isn't running, `alreadyExists`.
  func addApproval(
    _ approval: Approval, events: [NewEvent]
  ) async throws(SessionStoreError) -> [Event]

  /// Decides a pending approval. Of several decisions the first holds, and only its events are written.
  ///
  /// - Throws: `approvalNotFound`.
  func resolveApproval(
    _ id: UUID, _ decision: ApprovalDecision, events: [NewEvent]
  ) async throws(SessionStoreError) -> ApprovalResolution

  /// - Throws: `approvalNotFound`.
  func approval(_ id: UUID) async throws(SessionStoreError) -> Approval

  /// A page of the approvals of a session in the order in which they were added.
  ///
  /// - Parameters:
  ///   - after: only those that were added after this one of the session; nil for all.
  ///   - limit: at most so many.
  ///   - states: only approvals in these states; nil for all.
  /// - Throws: `sessionNotFound`, `approvalNotFound`.
  func approvals(
    of sessionID: UUID, after: UUID?, limit: Int, states: Set<Approval.State>?
  ) async throws(SessionStoreError) -> StorePage<Approval>

  // MARK: Room on the disk

  /// What is known of the files of a key's sessions, those in deletion left out.
  ///
  /// - Parameter key: the id of a key; empty for the sessions that nobody owns.
  func filesOfSessions(of key: String) async throws(SessionStoreError) -> [SessionFiles]

  /// Notes how much the files of a session take; does nothing if there is no such session.
  func noteFiles(_ size: FilesSize, of sessionID: UUID) async throws(SessionStoreError)

  // MARK: Usage

  /// What counts for a key; zeros for one that is not known.
  ///
  /// - Parameter key: the id of a key; empty for use without one.
  func usage(of key: String, at now: Timestamp) async throws(SessionStoreError) -> KeyUsage

  /// Counts what has passed the model's gateway. Each session has an account of that, from which is taken what its turns
  /// are charged with when they end; what is more than that is charged to the key, and to the one that sent the turn,
  /// as soon as no turn of the session runs.
  ///
  /// - Parameter mark: how far the gateway's log was read, for ``gatewayMark()``. Until there was a first one, no turn is
  ///   taken from an account.
  func countGateway(_ uses: [GatewayUse], mark: String, at now: Timestamp) async throws(SessionStoreError)

  /// Takes from the account of a session what its turns have told of beyond what has passed the gateway, unless one of
  /// them runs. To be called when the gateway's log has been read to its end after the last of them ended.
  func forgetGatewayCredit(of sessionID: UUID) async throws(SessionStoreError)

  /// The mark of the last `countGateway`; nil if there was none.
  func gatewayMark() async throws(SessionStoreError) -> String?

  // MARK: Idempotency

  /// The record of a key that still answers at `now`, if there is one.
  func idempotencyRecord(
    for key: IdempotencyKey, at now: Timestamp
  ) async throws(SessionStoreError) -> IdempotencyRecord?

  /// Removes the records that are expired at `now` and returns how many.
  @discardableResult
  func purgeIdempotencyRecords(at now: Timestamp) async throws(SessionStoreError) -> Int

  // MARK: Operation

  /// Writes something of no meaning, to see whether writing works.
  ///
  /// - Throws: what stops the store from writing.
  func checkWritable() async throws(SessionStoreError)

  func statistics() async throws(SessionStoreError) -> StoreStatistics

  /// Writes a copy of the store as it is at one moment, while it stays in use.
  ///
  /// - Parameter path: a file that doesn't exist. It appears when it is complete.
  /// - Throws: `alreadyExists`; `io` from a store that has no file.
  func backup(to path: String) async throws(SessionStoreError)

  /// Ends everything that is under way and lets go of the files. Calls after this fail with `io`.
  func close() async
}

extension SessionStore {
  public func createSession(
    _ session: Session, firstTurn: NewTurn? = nil, events: [NewEvent] = []
  ) async throws(SessionStoreError) -> SessionAdmission {
    try await createSession(session, firstTurn: firstTurn, events: events, idempotency: nil, accounts: [])
  }

  public func createSession(
    _ session: Session, firstTurn: NewTurn?, events: [NewEvent], idempotency: IdempotencyClaim?
  ) async throws(SessionStoreError) -> SessionAdmission {
    try await createSession(session, firstTurn: firstTurn, events: events, idempotency: idempotency, accounts: [])
  }

  @discardableResult
  public func updateSession(
    _ id: UUID, _ update: SessionUpdate
  ) async throws(SessionStoreError) -> Session {
    try await updateSession(id, update, events: []).session
  }

  /// All sessions in the order of their creation.
  public func sessions() async throws(SessionStoreError) -> [Session] {
    try await sessions(SessionQuery()).sessions
  }

  public func enqueueTurn(
    _ turn: NewTurn, events: [NewEvent] = []
  ) async throws(SessionStoreError) -> TurnAdmission {
    try await enqueueTurn(turn, events: events, idempotency: nil, queueLimit: nil)
  }

  public func enqueueTurn(
    _ turn: NewTurn, events: [NewEvent], idempotency: IdempotencyClaim?, queueLimit: Int?, accounts: [KeyAccount] = []
  ) async throws(SessionStoreError) -> TurnAdmission {
    try await enqueueTurn(
      turn, events: events, idempotency: idempotency, queueLimit: queueLimit, accounts: accounts, starting: nil)
  }

  public func startTurn(
    _ id: UUID, at now: Timestamp, events: [NewEvent] = []
  ) async throws(SessionStoreError) -> TurnChange {
    try await startTurn(id, at: now, events: events, accounts: [])
  }

  public func finishTurn(_ id: UUID, _ outcome: TurnOutcome) async throws(SessionStoreError) -> TurnChange {
    try await finishTurn(id, outcome, events: [])
  }
}

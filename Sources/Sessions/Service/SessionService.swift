import JSONSupport
public import Logging
import Synchronization
public import Workspaces

#if canImport(FoundationEssentials)
  public import FoundationEssentials
#else
  public import Foundation
#endif

/// The bounds of a ``SessionService``.
public struct SessionServiceConfiguration: Sendable {
  /// Messages that may wait behind a session's running one. Default 16.
  public var queueLimit = 16

  /// How often idempotency records that have expired are removed. Default 1 h.
  public var purgeInterval: Duration = .seconds(3600)

  /// How long the writing of what changed in a workspace, or of what the turn of a deleted session used, is tried again
  /// when the store can't be written, for example because the disk is full. Default 30 s. A turn's start, events and end
  /// are tried until they are written, or the server ends.
  public var storePatience: Duration = .seconds(30)

  /// How long an approval waits for a decision before it becomes a denial. Default 10 min.
  public var approvalTimeout: Duration = .seconds(600)

  /// Bytes of events that the agent of one turn may leave in the log; a turn that has more is ended. Default 128 MiB.
  public var maximumTurnLog = 128 << 20

  /// Questions for permission of one turn that wait at one time; more are denied. Default 64: that many tool calls no
  /// model makes at once, but a tool could ask in the CLI's name.
  public var maximumPendingApprovals = 64
  /// Bytes of their tool calls' input, which are kept in memory.
  public var maximumPendingApprovalBytes = 16 << 20

  /// Turns that run at one time; others wait, those of different keys in fair order. Default: no bound.
  public var maximumRunningTurns = Int.max

  /// Whether there is room for one more turn beside those that run; asked at least every ``roomInterval`` while some
  /// wait for it. Default: always.
  public var hasRoom: @Sendable () -> Bool = { true }

  /// Has the store know all that the model was used until now; awaited before the budget of a key is looked at. Default:
  /// it does.
  public var bringUseUpToDate: @Sendable () async -> Void = {}

  /// How often to ask for room. Default 0.5 s.
  public var roomInterval: Duration = .milliseconds(500)

  /// Streams that are open at one time, of all keys together. Default: no bound.
  public var maximumStreams = Int.max

  /// How long a turn has for its end when its session is deleted, so that what it used is known. Default 3 s.
  public var deletionPatience: Duration = .seconds(3)

  /// How often it is looked whether the key that sent a running turn's message is still good, and whether the turn's log
  /// has room. Default 1 s.
  public var keyInterval: Duration = .seconds(1)

  /// The shortest pause between two looks at the workspace of a running turn. Default 1 s.
  public var watchInterval: Duration = .seconds(1)

  /// The pause between two looks at sessions that have a process and no turn, and at the budgets of turns that run.
  /// Default 15 s.
  public var restInterval: Duration = .seconds(15)

  public init() {}
}

/// What a session is created with.
public struct NewSession: Sendable {
  /// The default is "Session " and the first eight characters of the id.
  public var name: String?
  public var initialPrompt: String?
  public var owner: String?
  public var options: JSONText
  public var metadata: JSONText
  /// Makes repetitions of the request give the same session.
  public var idempotency: IdempotencyClaim?

  public init(
    name: String? = nil, initialPrompt: String? = nil, owner: String? = nil, options: JSONText = "{}",
    metadata: JSONText = "{}", idempotency: IdempotencyClaim? = nil
  ) {
    self.name = name
    self.initialPrompt = initialPrompt
    self.owner = owner
    self.options = options
    self.metadata = metadata
    self.idempotency = idempotency
  }
}

/// A session that was created, now or by an earlier request with the same idempotency key.
public struct CreatedSession: Hashable, Sendable {
  public let session: Session
  /// The first turn, if there is an initial prompt.
  public let turn: Turn?
  public let isReplay: Bool
}

/// A message that was accepted, now or by an earlier request with the same idempotency key.
public struct AcceptedMessage: Hashable, Sendable {
  public let turn: Turn
  public let isReplay: Bool
  /// The number of the event before the turn's first one.
  public let precedingSequence: Int64
}

/// Sessions and their turns.
///
/// A message is in the store before this returns it as a turn, and the agent sees it only after that. A turn
/// belongs to its session: it goes on when the task that sent the message is cancelled. The turns of a session run
/// one after the other in the order of acceptance; those of different sessions at the same time.
public actor SessionService {
  /// Tells readers of events; see ``eventStream(of:_:)``.
  public nonisolated let hub: EventHub
  /// Takes what clients have changed in workspaces.
  public nonisolated let workspaceLog: WorkspaceLog

  /// A session that has unfinished turns.
  struct Work {
    var queue: [Turn]
    var running: Turn?
    var task: Task<Void, Never>?
    /// Ends the running turn.
    var interruption: Task<Void, Never>?
    /// Writes down what the running turn says.
    var recorder: TurnRecorder?
    /// How many times in a row the next turn could not be started, because the store can't be used.
    var attempts = 0
    /// The pause before the next attempt.
    var rest: Task<Void, Never>?
    /// Set when the session is being deleted; its turns fail with this.
    var isDeleted = false
  }

  let store: any SessionStore
  let workspaces: Workspaces
  let runner: any TurnRunner
  let configuration: SessionServiceConfiguration
  let observer: (any TurnObserver)?
  let logger: Logger
  let cache = SessionCache()
  let approvalDesk: ApprovalDesk
  var work: [UUID: Work] = [:]
  /// Sessions whose turns wait although none runs; see `held(_:_:)`.
  var heldSessions: Set<UUID> = []
  /// The latest change to the options of a session, for which the next one waits.
  var changes: [UUID: Task<Void, Never>] = [:]
  /// Turns that may be in the store already, where others find them, but not yet in ``work``.
  private var arriving: Set<UUID> = []
  /// Turns that are being taken out of their queues.
  private var cancelling: Set<UUID> = []
  private(set) var waiters: [UUID: [UInt64: CheckedContinuation<Turn, any Error>]] = [:]
  private var lastWaiter: UInt64 = 0
  /// No turn starts any more; see ``shutdown(patience:)``.
  var isDraining = false
  /// Nor is anything waited for.
  private var isShuttingDown = false
  let limits: KeyLimitPolicy
  nonisolated let room: RoomLedger
  /// Places for streams; see ``leaseStream(for:over:)``.
  public nonisolated let streams: StreamPlaces
  /// The right to run.
  private var places: FairQueue
  /// Between two attempts to start a turn when the store can't be used.
  private static let longestRest = Duration.seconds(5)
  /// Asks for room again while some turn waits for it.
  private var roomWatch: Task<Void, Never>?
  private var purging: Task<Void, Never>?

  public init(
    store: any SessionStore, workspaces: Workspaces, runner: any TurnRunner, hub: EventHub = EventHub(),
    limits: KeyLimitPolicy = KeyLimitPolicy(),
    configuration: SessionServiceConfiguration = SessionServiceConfiguration(),
    observer: (any TurnObserver)? = nil, logger: Logger
  ) {
    self.limits = limits
    streams = StreamPlaces(maximum: configuration.maximumStreams)
    places = FairQueue(places: configuration.maximumRunningTurns)
    self.hub = hub
    self.store = store
    self.workspaces = workspaces
    workspaceLog = WorkspaceLog(store: store, hub: hub, patience: configuration.storePatience, logger: logger)
    let room = RoomLedger(store: store, workspaces: workspaces, limits: limits, logger: logger)
    self.room = room
    let resting = RestingSessions(
      runner, workspaces: workspaces, room: room, interval: configuration.restInterval,
      reasonToEnd: { await Self.reasonToEnd($0, limits, store, configuration, logger) }, logger: logger)
    let runner = WatchingRunner(
      runner, workspaces: workspaces, log: workspaceLog, room: room, interval: configuration.watchInterval,
      resting: resting)
    self.runner = runner
    self.configuration = configuration
    self.observer = observer
    self.logger = logger
    approvalDesk = ApprovalDesk(
      store: store, runner: runner, hub: hub, timeout: configuration.approvalTimeout,
      maximumPending: configuration.maximumPendingApprovals,
      maximumPendingBytes: configuration.maximumPendingApprovalBytes, observer: observer, logger: logger)
  }

  // MARK: Start and end

  /// Puts in order what an earlier process left: turns that ran are marked as interrupted, and messages that had been
  /// accepted start to run. Deletions that had begun are finished afterwards, as a large workspace takes its time.
  public func start() async throws(SessionServiceError) {
    let recovery = try await fromStore { () throws(SessionStoreError) in
      try await self.store.recoverInterrupted(at: .now(), events: EventLog.recovery)
    }
    if !recovery.interrupted.isEmpty {
      logger.notice(
        "Marked turns as interrupted that ran when the server stopped",
        metadata: ["turns": "\(recovery.interrupted.reduce(0) { $0 + $1.turns.count })"])
    }
    for turn in recovery.queued { schedule(turn) }
    Task {
      for session in recovery.deletions where !isShuttingDown { await finishDeletion(session.id) }
    }
    await room.startRound()
    purging = Task { [weak self, interval = configuration.purgeInterval] in
      while true {
        await self?.purge()
        do { try await Task.sleep(for: interval) } catch { return }
      }
    }
  }

  private func purge() async {
    do throws(SessionStoreError) {
      try await store.purgeIdempotencyRecords(at: .now())
    } catch {
      logger.warning("Old idempotency records could not be removed", metadata: ["error": "\(error)"])
    }
  }

  /// Ends the streams of events, which would otherwise keep a server from coming to its end. To be called when the
  /// shutdown begins; clients come back with their cursors.
  public nonisolated func endStreams() { hub.endAll() }

  /// Starts no more turns and lets those that run come to their end. What still runs after `patience` is ended and
  /// kept as interrupted. Messages that wait, and those that still come, are kept and run after the next start; who
  /// waits for one of them is told so. Returns when no turn runs.
  public func shutdown(patience: Duration = .zero) async {
    isDraining = true
    purging?.cancel()
    await room.endRound()
    roomWatch?.cancel()
    for waiter in places.removeAll() { waiter.continuation.resume(returning: false) }
    for turn in work.values.flatMap(\.queue) { resumeWaiters(turn.id, .failure(SessionServiceError.postponed(turn))) }
    for work in work.values { work.rest?.cancel() }
    let limit = Task {
      do { try await Task.sleep(for: patience) } catch { return }
      // More than once, as a turn may not have reached the runner yet.
      while true {
        await self.interruptAll()
        do { try await Task.sleep(for: .milliseconds(100)) } catch { return }
      }
    }
    for task in work.values.compactMap(\.task) { await task.value }
    limit.cancel()
    await limit.value
    isShuttingDown = true
    hub.endAll()
  }

  private func interruptAll() async {
    isShuttingDown = true
    for work in work.values { work.recorder?.giveUp() }
    for (id, work) in work where work.running != nil { await runner.interrupt(id) }
  }

  // MARK: Sessions

  /// Creates a session with its directories and, if there is an initial prompt, its first turn.
  public func create(_ new: NewSession) async throws(SessionServiceError) -> CreatedSession {
    if let earlier = try await earlierSession(new) { return earlier }
    let id = UUID()
    // The directories come first: a session in the store always has them. A crash in between leaves empty ones.
    try await onDisk { try await self.workspaces.create(id) }
    return try await insert(new, id)
  }

  /// Creates a session whose workspace is filled before anybody sees it.
  ///
  /// - Parameter fill: is given the new session's id, and what it has to ask for room. It isn't called if an earlier
  ///   request made the session.
  /// - Throws: ``SessionServiceError``, or what `fill` throws; then there is no session.
  public func create(
    _ new: NewSession, filling fill: @Sendable (UUID, FilesChange) async throws -> Void
  ) async throws -> CreatedSession {
    if let earlier = try await earlierSession(new) { return earlier }
    let id = UUID()
    try await onDisk { try await self.workspaces.create(id) }
    return try await FilesChange.make(to: id, of: new.owner, room) { change in
      do {
        try await fill(id, change)
      } catch {
        await self.removeDirectories(id)
        throw error
      }
      return try await self.insert(new, id)
    }
  }

  private func earlierSession(_ new: NewSession) async throws(SessionServiceError) -> CreatedSession? {
    guard let claim = new.idempotency else { return nil }
    return try await earlierSession(claim, .now())
  }

  /// Puts a session whose directories are there into the store.
  private func insert(_ new: NewSession, _ id: UUID) async throws(SessionServiceError) -> CreatedSession {
    let now = Timestamp.now()
    let session = Session(
      id: id, name: new.name ?? "Session \(id.lowercaseString.prefix(8))", createdAt: now,
      workspace: workspaces.workspacePath(of: id), owner: new.owner, options: new.options, metadata: new.metadata)
    let firstTurn = new.initialPrompt.map {
      NewTurn(sessionID: id, prompt: $0, owner: new.owner, createdAt: now)
    }
    if let firstTurn { arriving.insert(firstTurn.id) }
    defer { if let firstTurn { arriving.remove(firstTurn.id) } }
    let generation = cache.generation
    let admission: SessionAdmission
    do throws(SessionStoreError) {
      let accounts = try await self.accounts(owner: new.owner, sender: new.owner, spending: firstTurn != nil)
      admission = try await withRoom(for: accounts) { () throws(SessionStoreError) in
        try await self.store.createSession(
          session, firstTurn: firstTurn, events: firstTurn.map { EventLog.accepted($0) } ?? [],
          idempotency: new.idempotency, accounts: accounts)
      }
    } catch {
      await removeDirectories(id)
      throw SessionServiceError(error)
    }
    if case .created(let created, let turn, let events) = admission {
      cache.insert(created, readAt: generation)
      hub.publish(events)
      if let turn { schedule(turn) }
      return CreatedSession(session: created, turn: turn, isReplay: false)
    }
    // The same request came at the same time.
    await removeDirectories(id)
    switch admission {
    case .created(let session, let turn, _), .replayed(let session, let turn):
      return CreatedSession(session: session, turn: turn, isReplay: true)
    case .replayedButDeleted: throw .sessionDeleted
    case .mismatch: throw .idempotencyMismatch
    }
  }

  /// The session of an earlier request with the same key, which makes directories for another one needless.
  func earlierSession(
    _ claim: IdempotencyClaim, _ now: Timestamp
  ) async throws(SessionServiceError) -> CreatedSession? {
    guard let record = try await record(of: claim, now) else { return nil }
    do throws(SessionServiceError) {
      let session = try await session(record.sessionID)
      let turn: Turn? = if let id = record.turnID { try await self.turn(id, of: session.id) } else { nil }
      return CreatedSession(session: session, turn: turn, isReplay: true)
    } catch .sessionNotFound, .turnNotFound {
      throw .sessionDeleted
    }
  }

  private func record(
    of claim: IdempotencyClaim, _ now: Timestamp
  ) async throws(SessionServiceError) -> IdempotencyRecord? {
    let record = try await fromStore { () throws(SessionStoreError) in
      try await self.store.idempotencyRecord(for: claim.key, at: now)
    }
    if let record, record.digest != claim.digest { throw .idempotencyMismatch }
    return record
  }

  /// A session that was used lately, without waiting; nil if it has to be read from the store.
  public nonisolated func cachedSession(_ id: UUID) -> Session? { cache[id] }

  public func session(_ id: UUID) async throws(SessionServiceError) -> Session {
    if let session = cache[id] { return session }
    let generation = cache.generation
    let session = try await fromStore { () throws(SessionStoreError) in try await self.store.session(id) }
    cache.insert(session, readAt: generation)
    return session
  }

  public func sessions(_ query: SessionQuery = SessionQuery()) async throws(SessionServiceError) -> SessionPage {
    try await fromStore { () throws(SessionStoreError) in try await self.store.sessions(query) }
  }

  /// Deletes a session with its workspace and conversation. A running turn is ended and fails, as do those that
  /// wait. Once this has begun it is finished, after a restart if need be.
  public func delete(_ id: UUID) async throws(SessionServiceError) {
    _ = try await fromStore { () throws(SessionStoreError) in
      try await self.store.beginDeletion(of: id, at: .now())
    }
    cache.remove(id)
    work[id]?.isDeleted = true
    work[id]?.recorder?.giveUp()
    withdraw(id)
    await endTurn(of: id)
    await finishDeletion(id)
  }

  /// Gives the running turn of a session the time to end by itself and to say what it used.
  private func endTurn(of id: UUID) async {
    let end = ContinuousClock.now + configuration.deletionPatience
    while let turn = work[id]?.running, ContinuousClock.now < end {
      await runner.interrupt(id)
      if work[id]?.running?.id != turn.id { return }
      do { try await Task.sleep(for: .milliseconds(50)) } catch { return }
    }
  }

  private func finishDeletion(_ id: UUID) async {
    // Ends the turn that runs, and a process that waits for one.
    await runner.stop(id)
    if let task = work[id]?.task {
      // One that was just about to begin comes to the runner only now.
      let stopping = Task {
        while await Self.pause(.milliseconds(200)) { await runner.stop(id) }
      }
      await task.value
      stopping.cancel()
      await stopping.value
    }
    hub.end(id)
    do {
      try await workspaces.remove(id)
      await room.forget(id)
      try await store.finishDeletion(of: id)
    } catch {
      // The session stays hidden and marked; the next start tries again.
      logger.error(
        "The deletion of a session could not be finished",
        metadata: ["session": "\(id.lowercaseString)", "error": "\(error)"])
    }
  }

  /// - Returns: false if the task was cancelled.
  static func pause(_ time: Duration) async -> Bool {
    do { try await Task.sleep(for: time) } catch { return false }
    return true
  }

  func removeDirectories(_ id: UUID) async {
    do {
      try await workspaces.remove(id)
    } catch {
      logger.error(
        "The directories of a session that could not be created remain",
        metadata: ["session": "\(id.lowercaseString)", "error": "\(error)"])
    }
  }

  // MARK: Turns

  /// Accepts a message. When this returns, the message is in the store and runs when its turn comes.
  ///
  /// - Parameters:
  ///   - options: what holds for this message in place of the session's options; see ``SessionOptions/stored``.
  ///   - idempotency: if a message was accepted with this claim before, its turn is returned.
  public func accept(
    _ prompt: String, for id: UUID, options: JSONText = "{}", owner: String? = nil,
    idempotency: IdempotencyClaim? = nil
  ) async throws(SessionServiceError) -> AcceptedMessage {
    let new = NewTurn(sessionID: id, prompt: prompt, options: options, owner: owner, createdAt: .now())
    arriving.insert(new.id)
    defer { arriving.remove(new.id) }
    let admission: TurnAdmission
    do throws(SessionStoreError) {
      admission = try await admit(new, idempotency)
    } catch {
      if case .sessionNotFound = error, let idempotency, try await record(of: idempotency, new.createdAt) != nil {
        throw .sessionDeleted
      }
      throw SessionServiceError(error)
    }
    switch admission {
    case .created(let turn, let events):
      cache.touch(id, at: turn.createdAt)
      hub.publish(events)
      schedule(turn)
      return AcceptedMessage(turn: turn, isReplay: false, precedingSequence: (events.first?.sequence ?? 1) - 1)
    case .started(let change):
      return AcceptedMessage(
        turn: change.turn, isReplay: false, precedingSequence: (change.events.first?.sequence ?? 1) - 1)
    case .replayed(let turn):
      return AcceptedMessage(turn: turn, isReplay: true, precedingSequence: try await sequence(before: turn))
    case .mismatch:
      throw .idempotencyMismatch
    case .queueFull:
      throw .queueFull(limit: configuration.queueLimit, retryAfter: 5)
    }
  }

  private func admit(
    _ new: NewTurn, _ idempotency: IdempotencyClaim?
  ) async throws(SessionStoreError) -> TurnAdmission {
    let accounts = try await self.accounts(owner: try await self.owner(of: new.sessionID), sender: new.owner)
    if let admission = try await open(new, idempotency, accounts) { return admission }
    return try await enqueue(new, idempotency, accounts, starting: nil)
  }

  private func enqueue(
    _ new: NewTurn, _ idempotency: IdempotencyClaim?, _ accounts: [KeyAccount], starting: [NewEvent]?
  ) async throws(SessionStoreError) -> TurnAdmission {
    try await withRoom(for: accounts) { () throws(SessionStoreError) in
      try await self.store.enqueueTurn(
        new, events: EventLog.accepted(new), idempotency: idempotency, queueLimit: self.configuration.queueLimit,
        accounts: accounts, starting: starting)
    }
  }

  /// Accepts a message, as ``accept(_:for:owner:idempotency:)`` does.
  public func send(_ prompt: String, to id: UUID, owner: String? = nil) async throws(SessionServiceError) -> Turn {
    try await accept(prompt, for: id, owner: owner).turn
  }

  /// A turn as it is now.
  public func turn(_ id: UUID, of sessionID: UUID) async throws(SessionServiceError) -> Turn {
    do throws(SessionStoreError) {
      let turn = try await store.turn(id)
      guard turn.sessionID == sessionID else { throw .turnNotFound(id) }
      return turn
    } catch {
      // Which of the two is missing makes a difference to the client.
      if case .turnNotFound = error { _ = try await session(sessionID) }
      throw SessionServiceError(error)
    }
  }

  /// A page of the turns of a session by number, ascending.
  public func turns(of id: UUID, after: Int, limit: Int) async throws(SessionServiceError) -> StorePage<Turn> {
    try await fromStore { () throws(SessionStoreError) in
      try await self.store.turns(of: id, after: after, limit: limit, states: nil)
    }
  }

  /// Which place a queued turn has, from 1; nil if it doesn't wait. It counts the turns of its session before it, and
  /// if none of the session runs, the sessions of the same key whose turns are to run before.
  public func position(of turn: Turn) -> Int? {
    guard let index = work[turn.sessionID]?.queue.firstIndex(where: { $0.id == turn.id }) else { return nil }
    return index + 1 + (places.position(of: turn.sessionID) ?? 0)
  }

  /// Waits for the end of a turn, but not longer than `patience`, and returns the turn as it is then. One that runs
  /// only after the next start isn't waited for.
  public func outcome(of turn: Turn, within patience: Duration) async throws -> Turn {
    if turn.state.isFinal { return turn }
    do {
      return try await endedTurn(turn, within: patience)
    } catch SessionServiceError.postponed(let turn) {
      // Whole: what waits has no prompt.
      return try await self.turn(turn.id, of: turn.sessionID)
    }
  }

  private func endedTurn(_ turn: Turn, within patience: Duration) async throws -> Turn {
    let ended: Turn? = try await withThrowingTaskGroup(of: Turn?.self) { group in
      group.addTask { try await self.outcome(of: turn) }
      group.addTask {
        try await Task.sleep(for: patience)
        return nil
      }
      defer { group.cancelAll() }
      return try await group.next() ?? nil
    }
    if let ended { return ended }
    return try await self.turn(turn.id, of: turn.sessionID)
  }

  /// Takes a turn that waits out of its queue.
  ///
  /// - Throws: `turnState` with the turn's state if it doesn't wait.
  public func cancel(_ id: UUID, of sessionID: UUID) async throws(SessionServiceError) -> Turn {
    // Who lists the turns may know of it before the queue does.
    while arriving.contains(id), await Self.pause(.milliseconds(5)) {}
    guard let index = work[sessionID]?.queue.firstIndex(where: { $0.id == id }),
      let turn = work[sessionID]?.queue.remove(at: index)
    else {
      if work[sessionID]?.running?.id == id { throw .turnState(.running) }
      let turn = try await turn(id, of: sessionID)
      // After its place in the queue was looked for it may have begun to wait: then the server is about to end.
      throw turn.state == .queued && isDraining ? .shuttingDown : .turnState(turn.state)
    }
    if work[sessionID]?.queue.isEmpty == true { withdraw(sessionID) }
    cancelling.insert(id)
    defer { cancelling.remove(id) }
    let outcome = TurnOutcome(state: .cancelled, finishedAt: .now(), failure: .cancelled)
    do throws(SessionStoreError) {
      let change = try await store.finishTurn(id, outcome, events: [EventLog.ended(turn, outcome)])
      hub.publish(change.events)
      noteEnd(change.turn)
      resumeWaiters(id, .success(change.turn))
      return change.turn
    } catch {
      if work[sessionID]?.isDeleted == true {
        resumeWaiters(id, .failure(SessionServiceError.sessionDeleted))
      } else {
        schedule(turn)
      }
      throw SessionServiceError(error)
    }
  }

  /// Waits for the end of a turn. When the waiting task is cancelled, the turn goes on.
  ///
  /// - Throws: ``SessionServiceError``, such as `postponed` if the server ends before the turn begins, or
  ///   `CancellationError`.
  public func outcome(of turn: Turn) async throws -> Turn {
    if turn.state.isFinal { return turn }
    guard isUnfinished(turn) else {
      let current = try await fromStore { () throws(SessionStoreError) in try await self.store.turn(turn.id) }
      // It may have ended, or begun to wait again, in the meantime.
      if current.state.isFinal { return current }
      guard isUnfinished(turn) else { throw SessionServiceError.postponed(current) }
      return try await wait(for: turn)
    }
    return try await wait(for: turn)
  }

  private func isUnfinished(_ turn: Turn) -> Bool {
    if arriving.contains(turn.id) || cancelling.contains(turn.id) { return true }
    guard let work = work[turn.sessionID] else { return false }
    return work.running?.id == turn.id || (!isDraining && work.queue.contains { $0.id == turn.id })
  }

  private func wait(for turn: Turn) async throws -> Turn {
    lastWaiter += 1
    let number = lastWaiter
    return try await withTaskCancellationHandler {
      try await withCheckedThrowingContinuation { (continuation: CheckedContinuation<Turn, any Error>) in
        if Task.isCancelled {
          continuation.resume(throwing: CancellationError())
        } else {
          waiters[turn.id, default: [:]][number] = continuation
        }
      }
    } onCancel: {
      Task { await self.cancelWaiter(number, of: turn.id) }
    }
  }

  private func cancelWaiter(_ number: UInt64, of turn: UUID) {
    guard let continuation = waiters[turn]?.removeValue(forKey: number) else { return }
    if waiters[turn]?.isEmpty == true { waiters[turn] = nil }
    continuation.resume(throwing: CancellationError())
  }

  private func resumeWaiters(_ turn: UUID, _ result: Result<Turn, any Error>) {
    guard let waiting = waiters.removeValue(forKey: turn) else { return }
    for continuation in waiting.values { continuation.resume(with: result) }
  }

  // MARK: Work

  private func schedule(_ turn: Turn) {
    arriving.remove(turn.id)
    if isDraining { return resumeWaiters(turn.id, .failure(SessionServiceError.postponed(turn))) }
    let id = turn.sessionID
    enqueue(turn)
    guard work[id]?.task == nil, !heldSessions.contains(id) else { return }
    work[id]?.task = Task { await self.workOff(id) }
  }

  /// Puts a turn at its place in the queue: the answers of the store may come in another order than its turns.
  private func enqueue(_ turn: Turn) {
    var queue = work[turn.sessionID]?.queue ?? []
    // The store has the prompt.
    queue.insert(turn.withoutPrompt, at: queue.lastIndex { $0.number < turn.number }.map { $0 + 1 } ?? 0)
    work[turn.sessionID, default: Work(queue: [])].queue = queue
  }

  /// Accepts a message and starts its turn in the same transaction, so that the disk is waited for once and not twice.
  ///
  /// - Returns: nil if the turn would have to wait, or it has to be found out why it doesn't run.
  private func open(
    _ new: NewTurn, _ idempotency: IdempotencyClaim?, _ accounts: [KeyAccount]
  ) async throws(SessionStoreError) -> TurnAdmission? {
    let id = new.sessionID
    guard let session = cache[id], try await limits.upholds(sender: new.owner) else { return nil }
    let network = try await limits.network(of: session, sender: new.owner)
    let account = try await limits.account(session.owner ?? "")
    guard work[id] == nil, !heldSessions.contains(id), !isDraining,
      places.take(for: account.key, limit: account.limits[.runningTurns], hasRoom: configuration.hasRoom)
    else { return nil }
    let admission: Result<TurnAdmission, SessionStoreError> = await withCheckedContinuation { continuation in
      // What comes to the session meanwhile waits for this, and so do its deletion and the server's end.
      work[id] = Work(queue: [])
      work[id]?.task = Task {
        let admission: Result<TurnAdmission, SessionStoreError>
        do throws(SessionStoreError) {
          admission = .success(
            try await enqueue(new, idempotency, accounts, starting: EventLog.running(new.id)))
        } catch {
          admission = .failure(error)
        }
        if case .success(.started(let change)) = admission {
          let turn = change.turn.withoutPrompt
          cache.touch(id, at: turn.createdAt)
          hub.publish(change.events)
          arriving.remove(turn.id)
          work[id]?.running = turn
          continuation.resume(returning: admission)
          await leave(turn, await run(request(change, session, network)), account)
        } else {
          giveBack(account)
          continuation.resume(returning: admission)
        }
        await workOff(id)
      }
    }
    return try admission.get()
  }

  /// Runs the turns of a session until none is left.
  func workOff(_ id: UUID) async {
    while let next = work[id]?.queue.first {
      if work[id]?.isDeleted == true {
        work[id]?.queue.removeFirst()
        resumeWaiters(next.id, .failure(SessionServiceError.sessionDeleted))
        continue
      }
      // What waits is in the store and runs after the next start.
      if isDraining { break }
      await runNext(id)
    }
    work[id] = nil
  }

  private func runNext(_ id: UUID) async {
    let account = await account(of: id)
    guard await takePlace(id, account) else { return }
    // Much may have happened meanwhile.
    guard let next = work[id]?.queue.first, work[id]?.isDeleted == false, !isDraining else {
      return giveBack(account)
    }
    work[id]?.queue.removeFirst()
    work[id]?.running = next
    await leave(next, await run(next), account)
  }

  /// Goes on after a turn.
  ///
  /// - Parameter result: nil if it could not be started.
  private func leave(_ turn: Turn, _ result: Result<Turn, any Error>?, _ account: KeyAccount) async {
    let id = turn.sessionID
    work[id]?.running = nil
    if result == nil { putBack(turn) }
    giveBack(account)
    if let interruption = work[id]?.interruption {
      // It must not go on to the next turn.
      interruption.cancel()
      await interruption.value
      work[id]?.interruption = nil
    }
    if let result {
      resumeWaiters(turn.id, result)
    } else {
      await rest(id)
    }
  }

  /// Lets a turn wait that could not be started.
  private func putBack(_ turn: Turn) {
    enqueue(turn)
    if isDraining { resumeWaiters(turn.id, .failure(SessionServiceError.postponed(turn))) }
  }

  /// Waits before the next attempt to start a turn.
  private func rest(_ id: UUID) async {
    guard let attempts = work[id]?.attempts, work[id]?.isDeleted == false, !isDraining else { return }
    let pause = min(.milliseconds(50) * (1 << min(attempts, 10)), Self.longestRest)
    let rest = Task { _ = try? await Task.sleep(for: pause) }
    work[id]?.rest = rest
    await rest.value
    work[id]?.rest = nil
  }

  /// Waits for the right to run a turn.
  ///
  /// - Returns: false if it was withdrawn.
  private func takePlace(_ id: UUID, _ account: KeyAccount) async -> Bool {
    guard work[id]?.isDeleted == false, work[id]?.queue.isEmpty == false, !isDraining else { return false }
    return await withCheckedContinuation { continuation in
      places.add(
        FairQueue.Waiter(
          id: id, account: account.key, limit: account.limits[.runningTurns], continuation: continuation))
      givePlaces()
    }
  }

  private func giveBack(_ account: KeyAccount) {
    places.release(account.key)
    givePlaces()
  }

  private func givePlaces() {
    while let waiter = places.next(hasRoom: configuration.hasRoom) { waiter.continuation.resume(returning: true) }
    guard places.waitingCount > 0, roomWatch == nil, !isDraining, !configuration.hasRoom() else { return }
    roomWatch = Task { [weak self, interval = configuration.roomInterval] in
      do { try await Task.sleep(for: interval) } catch { return }
      await self?.askForRoom()
    }
  }

  private func askForRoom() {
    roomWatch = nil
    givePlaces()
  }

  /// Lets a session wait no more, for its place or for the store; its work goes on and sees why.
  private func withdraw(_ id: UUID) {
    places.remove(id)?.continuation.resume(returning: false)
    work[id]?.rest?.cancel()
  }

  /// For whom the turns of a session run. What the store can't say now, the turn's own start will find out.
  private func account(of id: UUID) async -> KeyAccount {
    do throws(SessionStoreError) {
      return try await limits.account(try await owner(of: id) ?? "")
    } catch {
      return KeyAccount(key: "")
    }
  }

  /// The accounts that a turn counts for. If they have budgets, the store knows what was used of them.
  private func accounts(
    owner: String?, sender: String?, spending: Bool = true
  ) async throws(SessionStoreError) -> [KeyAccount] {
    let accounts = try await limits.accounts(owner: owner, sender: sender)
    if spending && accounts.contains(where: \.limits.haveBudget) { await configuration.bringUseUpToDate() }
    return accounts
  }

  /// The key that owns a session; nil if there is none, or no such session.
  private func owner(of id: UUID) async throws(SessionStoreError) -> String? {
    if let session = cache[id] { return session.owner }
    do throws(SessionStoreError) {
      return try await store.session(id).owner
    } catch .sessionNotFound {
      return nil
    }
  }

  /// Why a turn isn't run.
  private enum Obstacle: Error {
    /// It fails with this.
    case refused(TurnFailure)
    case failed(SessionServiceError)
  }

  /// Runs a turn to its end.
  ///
  /// - Returns: nil if it could not be started because the store can't be used at the moment.
  private func run(_ queued: Turn) async -> Result<Turn, any Error>? {
    let id = queued.sessionID
    let request: TurnRequest
    do throws(Obstacle) {
      request = try await begin(queued)
    } catch {
      switch error {
      case .refused(let failure):
        return await finish(queued, TurnOutcome(state: .failed, finishedAt: .now(), failure: failure))
      case .failed(let error):
        if work[id]?.isDeleted == true { return .failure(SessionServiceError.sessionDeleted) }
        guard error.isPassing else { return .failure(error) }
        if work[id]?.attempts == 0 {
          logger.warning(
            "A turn waits because the store can't be used",
            metadata: queued.logMetadata.merging(["error": "\(error)"]) { $1 })
        }
        work[id]?.attempts += 1
        return nil
      }
    }
    work[id]?.attempts = 0
    return await run(request)
  }

  private func run(_ request: TurnRequest) async -> Result<Turn, any Error> {
    let turn = request.turn
    let id = turn.sessionID
    let recorder = TurnRecorder(
      turn, maximumBytes: configuration.maximumTurnLog, store: store, hub: hub, logger: logger)
    work[id]?.recorder = recorder
    let end = Task { await self.endWhatMayNotGoOn(turn, request.session.owner, recorder) }
    noteStart(turn)
    let firstWord = FirstWord(turn, observer)
    var outcome: TurnOutcome
    do throws(TurnRunFailure) {
      outcome = TurnOutcome(
        try await runner.run(request) { [approvalDesk] message in
          firstWord.listen(message)
          if ApprovalDesk.concerns(message) {
            await approvalDesk.receive(message, turn, recorder)
          } else {
            await recorder.record(message)
          }
        })
    } catch {
      outcome = TurnOutcome(error)
    }
    end.cancel()
    if let reason = await end.value {
      // Nor may it go on in the background.
      await runner.stop(id)
      if outcome.state == .interrupted {
        outcome.state = .failed
        outcome.failure = reason
      }
    }
    if recorder.isFull {
      // Whatever it came to: its log isn't whole.
      outcome.state = .failed
      outcome.failure = .logFull(configuration.maximumTurnLog)
    }
    await recorder.finish()
    work[id]?.recorder = nil
    await approvalDesk.turnEnded(turn)
    return await finish(turn, outcome)
  }

  private func begin(_ queued: Turn) async throws(Obstacle) -> TurnRequest {
    do throws(SessionServiceError) {
      let isUpheld = try await fromStore { () throws(SessionStoreError) in
        try await self.limits.upholds(sender: queued.owner)
      }
      if isUpheld { return try await start(queued) }
    } catch .limited(let excess) {
      throw .refused(TurnFailure(excess))
    } catch {
      throw .failed(error)
    }
    throw .refused(.keyRevoked)
  }

  private func start(_ queued: Turn) async throws(SessionServiceError) -> TurnRequest {
    let session = try await session(queued.sessionID)
    let network = try await fromStore { () throws(SessionStoreError) in
      try await self.limits.network(of: session, sender: queued.owner)
    }
    let change = try await fromStore { () throws(SessionStoreError) in
      let accounts = try await self.accounts(owner: session.owner, sender: queued.owner)
      return try await self.withRoom(for: accounts) { () throws(SessionStoreError) in
        try await self.store.startTurn(
          queued.id, at: .now(), events: EventLog.running(queued.id), accounts: accounts)
      }
    }
    hub.publish(change.events)
    return request(change, session, network)
  }

  private func request(_ change: TurnChange, _ session: Session, _ network: AgentNetwork?) -> TurnRequest {
    TurnRequest(
      session: session, turn: change.turn, configurationDirectory: workspaces.configurationPath(of: session.id),
      allowanceUSD: change.allowance.map { Double($0) / Double(KeyLimit.dollar) }, network: network)
  }

  /// Interrupts a turn when it may not go on, until the task is cancelled.
  ///
  /// - Parameter owner: the key that owns its session.
  /// - Returns: why it has done so; nil if it hasn't.
  private func endWhatMayNotGoOn(_ turn: Turn, _ owner: String?, _ recorder: TurnRecorder) async -> TurnFailure? {
    var looksAtBudgets = ContinuousClock.now + configuration.restInterval
    var reason: TurnFailure?
    while reason == nil {
      do { try await Task.sleep(for: min(configuration.keyInterval, configuration.restInterval)) } catch { return nil }
      do throws(SessionStoreError) {
        if recorder.isFull {
          reason = .logFull(configuration.maximumTurnLog)
        } else if try await !limits.upholds(sender: turn.owner) {
          reason = .keyRevoked
        } else if .now >= looksAtBudgets {
          reason = try await budgetExcess(owner: owner, sender: turn.owner).map { TurnFailure($0) }
          looksAtBudgets = .now + configuration.restInterval
        }
      } catch {
        logger.error("The key of a turn could not be looked up", metadata: turn.logMetadata(with: error))
      }
    }
    guard let reason else { return nil }
    logger.notice(
      "Stopping a turn that may not go on", metadata: turn.logMetadata.merging(["code": "\(reason.code)"]) { $1 })
    // More than once, as the turn may not have reached the runner yet.
    while !Task.isCancelled {
      await runner.interrupt(turn.sessionID)
      do { try await Task.sleep(for: .milliseconds(100)) } catch { break }
    }
    return reason
  }

  /// The budget of a running turn's keys that is used up, with what has passed the gateway until now; nil if none is.
  private func budgetExcess(owner: String?, sender: String?) async throws(SessionStoreError) -> LimitExcess? {
    for account in try await accounts(owner: owner, sender: sender) where account.limits.haveBudget {
      let now = Timestamp.now()
      let usage = try await store.usage(of: account.key, at: now)
      if let excess = Admission.excessWhileRunning(account, usage, at: now) { return excess }
    }
    return nil
  }

  /// Writes what a turn used whose session is being deleted.
  private func account(for turn: Turn, _ outcome: TurnOutcome) async {
    do throws(SessionStoreError) {
      _ = try await withPatience(configuration.storePatience, while: { !self.isShuttingDown }) {
        () throws(SessionStoreError) in try await self.store.finishTurn(turn.id, outcome)
      }
    } catch {
      logger.error(
        "What a turn used could not be stored",
        metadata: ["turn": "\(turn.id.lowercaseString)", "error": "\(error)"])
    }
  }

  /// Writes a turn's end, and tries until it is written or the server ends: it can't be had a second time.
  private func finish(_ turn: Turn, _ outcome: TurnOutcome) async -> Result<Turn, any Error> {
    let id = turn.sessionID
    if work[id]?.isDeleted == true {
      await account(for: turn, outcome)
      return .failure(SessionServiceError.sessionDeleted)
    }
    do throws(SessionStoreError) {
      let change = try await withPatience(
        nil, while: { !self.isShuttingDown && self.work[id]?.isDeleted != true },
        onFailure: { self.noteUnstored(turn, $0) }
      ) { () throws(SessionStoreError) in
        try await self.store.finishTurn(turn.id, outcome, events: EventLog.finished(turn, outcome))
      }
      cache.touch(id, at: outcome.finishedAt)
      hub.publish(change.events)
      noteEnd(change.turn)
      if outcome.state == .completed { await noteConversation(id) }
      return .success(change.turn)
    } catch {
      if work[id]?.isDeleted == true {
        await account(for: turn, outcome)
        return .failure(SessionServiceError.sessionDeleted)
      }
      logger.error(
        "The end of a turn is lost, which will be shown as interrupted", metadata: turn.logMetadata(with: error))
      return .failure(SessionServiceError(error))
    }
  }

  private func noteUnstored(_ turn: Turn, _ error: SessionStoreError) {
    logger.error(
      "The end of a turn can't be stored yet, which is tried again", metadata: turn.logMetadata(with: error))
  }

  // MARK: What operators see

  /// Turns that run and turns that wait, of all sessions.
  public var load: (running: Int, queued: Int) {
    work.values.reduce(into: (running: 0, queued: 0)) { load, work in
      load.queued += work.queue.count
      if work.running != nil { load.running += 1 }
    }
  }

  private func noteStart(_ turn: Turn) {
    logger.debug("Turn started", metadata: turn.logMetadata)
    observer?.turnStarted(turn, waited: (turn.startedAt ?? .now()).duration(since: turn.createdAt))
  }

  private func noteEnd(_ turn: Turn) {
    observer?.turnEnded(turn)
    var metadata = turn.logMetadata
    metadata["state"] = "\(turn.state.rawValue)"
    if let failure = turn.failure { metadata["code"] = "\(failure.code)" }
    if let startedAt = turn.startedAt, let finishedAt = turn.finishedAt {
      metadata["queue_ms"] = "\(Int64(startedAt.duration(since: turn.createdAt) / .milliseconds(1)))"
      metadata["ms"] = "\(Int64(finishedAt.duration(since: startedAt) / .milliseconds(1)))"
    }
    logger.info("Turn ended", metadata: metadata)
  }

  // MARK: Events

  /// The events of a session from a place in its log on, as they come.
  ///
  /// Whether the session exists is the caller's to find out; the stream of one that doesn't ends at once.
  ///
  /// - Parameter lease: see ``leaseStream(for:over:)``.
  public nonisolated func eventStream(
    of id: UUID, _ selection: EventStream.Selection, lease: StreamPlaces.Lease? = nil
  ) -> EventStream {
    EventStream(session: id, selection: selection, log: store, hub: hub, lease: lease)
  }

  /// A page of the events of a session by number, ascending, after one of them.
  public nonisolated func events(
    of id: UUID, after: Int64, limit: Int, types: Set<String>? = nil
  ) async throws(SessionServiceError) -> StorePage<Event> {
    do throws(SessionStoreError) {
      return try await store.events(of: id, after: after, limit: limit, types: types)
    } catch {
      throw SessionServiceError(error)
    }
  }

  /// The number of a session's latest event; 0 if there is none.
  public nonisolated func lastSequence(of id: UUID) async throws(SessionServiceError) -> Int64 {
    do throws(SessionStoreError) {
      return try await store.lastSequence(of: id)
    } catch {
      throw SessionServiceError(error)
    }
  }

  /// The number of the event before a turn's first one. The message is its first; messages are looked through.
  private func sequence(before turn: Turn) async throws(SessionServiceError) -> Int64 {
    var last: Int64 = 0
    while true {
      let messages = try await events(of: turn.sessionID, after: last, limit: 200, types: ["user.message"])
      if let message = messages.items.first(where: { $0.turnID == turn.id }) { return message.sequence - 1 }
      guard messages.hasMore, let next = messages.items.last?.sequence else { return last }
      last = next
    }
  }

  /// Remembers that the agent has a conversation to go on with, so that its loss would be noticed.
  private func noteConversation(_ id: UUID) async {
    do {
      let session = try await session(id)
      guard !session.hasConversation else { return }
      try await store.updateSession(id, SessionUpdate(hasConversation: true))
      // Read again by whoever needs it: another change may have come after this one.
      cache.remove(id)
    } catch {
      // The next completed turn tries again; until then a lost conversation would go unnoticed.
      logger.warning(
        "A session's conversation could not be noted",
        metadata: ["session": "\(id.lowercaseString)", "error": "\(error)"])
    }
  }

  // MARK: Errors

  func fromStore<T: Sendable>(
    _ body: () async throws(SessionStoreError) -> T
  ) async throws(SessionServiceError) -> T {
    do throws(SessionStoreError) {
      return try await body()
    } catch {
      throw SessionServiceError(error)
    }
  }

  func onDisk(_ body: () async throws -> Void) async throws(SessionServiceError) {
    do {
      try await body()
    } catch let error as WorkspaceError where error.isDiskFull {
      throw .diskFull
    } catch {
      throw .workspace("\(error)")
    }
  }
}

extension Turn {
  /// What each line of the log about a turn says of it; never what was said in it.
  var logMetadata: Logger.Metadata {
    ["session": "\(sessionID.lowercaseString)", "turn": "\(id.lowercaseString)", "key": "\(owner ?? "-")"]
  }

  func logMetadata(with error: SessionStoreError) -> Logger.Metadata {
    logMetadata.merging(["error": "\(error)"]) { $1 }
  }
}

/// Notices when the agent speaks for the first time in a turn.
private final class FirstWord: Sendable {
  private let turn: Turn
  private let observer: (any TurnObserver)?
  private let start = ContinuousClock.now
  private let isOver = Atomic(false)

  init(_ turn: Turn, _ observer: (any TurnObserver)?) {
    self.turn = turn
    self.observer = observer
  }

  func listen(_ message: JSONValue) {
    guard let observer, !isOver.load(ordering: .relaxed) else { return }
    switch message["type"]?.stringValue {
    case "assistant", "stream_event": break
    default: return
    }
    if !isOver.exchange(true, ordering: .relaxed) { observer.turnSpoke(turn, after: .now - start) }
  }
}

extension TurnOutcome {
  fileprivate init(_ result: TurnResult) {
    self.init(
      state: .completed, finishedAt: .now(), result: result.text,
      structuredOutput: result.structuredOutput.map { String(decoding: $0.encoded(), as: UTF8.self) },
      accounts: result.accounts)
  }

  fileprivate init(_ failure: TurnRunFailure) {
    self.init(
      state: failure.isInterruption ? .interrupted : .failed, finishedAt: .now(), result: failure.partialText,
      failure: failure.failure, accounts: failure.accounts)
  }

  private init(
    state: Turn.State, finishedAt: Timestamp, result: String?, structuredOutput: JSONText? = nil,
    failure: TurnFailure? = nil, accounts: TurnAccounts
  ) {
    self.init(
      state: state, finishedAt: finishedAt, result: result, structuredOutput: structuredOutput, failure: failure,
      usage: accounts.usage, costUSD: accounts.costUSD, durationMilliseconds: accounts.durationMilliseconds,
      modelTurns: accounts.modelTurns, isCostUnknown: accounts.isIncomplete)
  }
}

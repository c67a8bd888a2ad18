import JSONSupport
public import Logging
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

  /// How long the writing of a turn's end is tried again when the store can't be written, for example because the
  /// disk is full. Default 30 s.
  public var storePatience: Duration = .seconds(30)

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

  public init(
    name: String? = nil, initialPrompt: String? = nil, owner: String? = nil, options: JSONText = "{}",
    metadata: JSONText = "{}"
  ) {
    self.name = name
    self.initialPrompt = initialPrompt
    self.owner = owner
    self.options = options
    self.metadata = metadata
  }
}

/// Sessions and their turns.
///
/// A message is in the store before this returns it as a turn, and the agent sees it only after that. A turn
/// belongs to its session: it goes on when the task that sent the message is cancelled. The turns of a session run
/// one after the other in the order of acceptance; those of different sessions at the same time.
public actor SessionService {
  /// A session that has unfinished turns.
  private struct Work {
    var queue: [Turn]
    var running: Turn?
    var task: Task<Void, Never>?
    /// Set when the session is being deleted; its turns fail with this.
    var isDeleted = false
  }

  private let store: any SessionStore
  private let workspaces: Workspaces
  private let runner: any TurnRunner
  private let configuration: SessionServiceConfiguration
  private let logger: Logger
  private let cache = SessionCache()
  private var work: [UUID: Work] = [:]
  private var waiters: [UUID: [UInt64: CheckedContinuation<Turn, any Error>]] = [:]
  private var lastWaiter: UInt64 = 0
  private var isShuttingDown = false

  public init(
    store: any SessionStore, workspaces: Workspaces, runner: any TurnRunner,
    configuration: SessionServiceConfiguration = SessionServiceConfiguration(), logger: Logger
  ) {
    self.store = store
    self.workspaces = workspaces
    self.runner = runner
    self.configuration = configuration
    self.logger = logger
  }

  // MARK: Start and end

  /// Puts in order what an earlier process left: turns that ran are marked as interrupted, deletions that had begun
  /// are finished, and messages that had been accepted start to run.
  public func start() async throws(SessionServiceError) {
    let recovery = try await fromStore { () throws(SessionStoreError) in
      try await self.store.recoverInterrupted(at: .now(), events: EventLog.recovery)
    }
    if !recovery.interrupted.isEmpty {
      logger.notice(
        "Marked turns as interrupted that ran when the server stopped",
        metadata: ["turns": "\(recovery.interrupted.reduce(0) { $0 + $1.turns.count })"])
    }
    for session in recovery.deletions {
      await finishDeletion(session.id)
    }
    for turn in recovery.queued { schedule(turn) }
  }

  /// Takes no more messages and ends the running turns, which are kept as interrupted. Messages that wait stay
  /// accepted and run after the next start. Returns when no turn runs.
  public func shutdown() async {
    isShuttingDown = true
    for (id, work) in work where work.running != nil { await runner.interrupt(id) }
    for task in work.values.compactMap(\.task) { await task.value }
    let left = waiters
    waiters = [:]
    for continuation in left.values.flatMap(\.values) {
      continuation.resume(throwing: SessionServiceError.shuttingDown)
    }
  }

  // MARK: Sessions

  /// Creates a session with its directories and, if there is an initial prompt, its first turn.
  public func create(_ new: NewSession) async throws(SessionServiceError) -> (session: Session, turn: Turn?) {
    guard !isShuttingDown else { throw .shuttingDown }
    let id = UUID()
    let now = Timestamp.now()
    let session = Session(
      id: id, name: new.name ?? "Session \(id.lowercaseString.prefix(8))", createdAt: now,
      workspace: workspaces.workspacePath(of: id), owner: new.owner, options: new.options, metadata: new.metadata)
    // The directories come first: a session in the store always has them. A crash in between leaves empty ones.
    try await onDisk { try await self.workspaces.create(id) }
    let firstTurn = new.initialPrompt.map {
      NewTurn(sessionID: id, prompt: $0, owner: new.owner, createdAt: now)
    }
    let admission: SessionAdmission
    do throws(SessionStoreError) {
      admission = try await store.createSession(
        session, firstTurn: firstTurn, events: firstTurn.map { [EventLog.accepted($0)] } ?? [])
    } catch {
      await removeDirectories(id)
      throw SessionServiceError(error)
    }
    guard case .created(let created, let turn, _) = admission else { throw .idempotencyMismatch }
    cache.insert(created)
    if let turn { schedule(turn) }
    return (created, turn)
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
    await finishDeletion(id)
  }

  private func finishDeletion(_ id: UUID) async {
    // Ends the turn that runs, and a process that waits for one.
    await runner.stop(id)
    if let task = work[id]?.task { await task.value }
    do {
      try await workspaces.remove(id)
      try await store.finishDeletion(of: id)
    } catch {
      // The session stays hidden and marked; the next start tries again.
      logger.error(
        "The deletion of a session could not be finished",
        metadata: ["session": "\(id.lowercaseString)", "error": "\(error)"])
    }
  }

  private func removeDirectories(_ id: UUID) async {
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
  public func send(_ prompt: String, to id: UUID, owner: String? = nil) async throws(SessionServiceError) -> Turn {
    guard !isShuttingDown else { throw .shuttingDown }
    let turn = NewTurn(sessionID: id, prompt: prompt, owner: owner, createdAt: .now())
    let admission = try await fromStore { () throws(SessionStoreError) in
      try await self.store.enqueueTurn(
        turn, events: [EventLog.accepted(turn)], idempotency: nil, queueLimit: self.configuration.queueLimit)
    }
    switch admission {
    case .created(let turn, _):
      cache.touch(id, at: turn.createdAt)
      schedule(turn)
      return turn
    case .replayed(let turn):
      return turn
    case .mismatch:
      throw .idempotencyMismatch
    case .queueFull:
      throw .queueFull(limit: configuration.queueLimit, retryAfter: 5)
    }
  }

  /// Waits for the end of a turn. When the waiting task is cancelled, the turn goes on.
  ///
  /// - Throws: ``SessionServiceError``, or `CancellationError`.
  public func outcome(of turn: Turn) async throws -> Turn {
    if turn.state.isFinal { return turn }
    guard isUnfinished(turn) else {
      let current = try await fromStore { () throws(SessionStoreError) in try await self.store.turn(turn.id) }
      // It may have ended, or begun to wait again, in the meantime.
      if current.state.isFinal { return current }
      guard isUnfinished(turn) else { throw SessionServiceError.shuttingDown }
      return try await wait(for: turn)
    }
    return try await wait(for: turn)
  }

  private func isUnfinished(_ turn: Turn) -> Bool {
    guard let work = work[turn.sessionID] else { return false }
    return work.running?.id == turn.id || work.queue.contains { $0.id == turn.id }
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
    let id = turn.sessionID
    work[id, default: Work(queue: [])].queue.append(turn)
    guard work[id]?.task == nil else { return }
    work[id]?.task = Task { await self.workOff(id) }
  }

  /// Runs the turns of a session until none is left.
  private func workOff(_ id: UUID) async {
    while let next = work[id]?.queue.first {
      if work[id]?.isDeleted == true {
        work[id]?.queue.removeFirst()
        resumeWaiters(next.id, .failure(SessionServiceError.sessionDeleted))
        continue
      }
      // What waits is in the store and runs after the next start.
      if isShuttingDown { break }
      work[id]?.queue.removeFirst()
      work[id]?.running = next
      let result = await run(next)
      work[id]?.running = nil
      resumeWaiters(next.id, result)
    }
    work[id] = nil
  }

  private func run(_ queued: Turn) async -> Result<Turn, any Error> {
    let id = queued.sessionID
    let session: Session
    let turn: Turn
    do throws(SessionServiceError) {
      session = try await self.session(id)
      turn = try await fromStore { () throws(SessionStoreError) in
        try await self.store.startTurn(queued.id, at: .now(), events: [EventLog.running(queued)])
      }.turn
    } catch {
      return .failure(work[id]?.isDeleted == true ? .sessionDeleted : error)
    }
    let request = TurnRequest(
      session: session, turn: turn, configurationDirectory: workspaces.configurationPath(of: id))
    let outcome: TurnOutcome
    do throws(TurnRunFailure) {
      outcome = TurnOutcome(try await runner.run(request, onMessage: { _ in }))
    } catch {
      outcome = TurnOutcome(error)
    }
    if work[id]?.isDeleted == true { return .failure(SessionServiceError.sessionDeleted) }
    return await finish(turn, outcome)
  }

  /// Writes a turn's end, with patience: it can't be had a second time.
  private func finish(_ turn: Turn, _ outcome: TurnOutcome) async -> Result<Turn, any Error> {
    let deadline = ContinuousClock.now + configuration.storePatience
    var pause = Duration.milliseconds(50)
    while true {
      do throws(SessionStoreError) {
        let change = try await store.finishTurn(
          turn.id, outcome, events: EventLog.finished(turn, outcome))
        cache.touch(turn.sessionID, at: outcome.finishedAt)
        if outcome.state == .completed { await noteConversation(turn.sessionID) }
        return .success(change.turn)
      } catch {
        let isHopeless =
          switch error {
          case .diskFull, .busy, .io: ContinuousClock.now >= deadline || isShuttingDown
          default: true
          }
        if isHopeless {
          if work[turn.sessionID]?.isDeleted == true { return .failure(SessionServiceError.sessionDeleted) }
          logger.error(
            "The end of a turn could not be stored",
            metadata: ["turn": "\(turn.id.lowercaseString)", "error": "\(error)"])
          return .failure(SessionServiceError(error))
        }
      }
      // Only a cancelled task can't sleep, and this one is never cancelled.
      try? await Task.sleep(for: pause)
      pause = min(pause * 2, .seconds(2))
    }
  }

  /// Remembers that the agent has a conversation to go on with, so that its loss would be noticed.
  private func noteConversation(_ id: UUID) async {
    do {
      let session = try await session(id)
      guard !session.hasConversation else { return }
      cache.insert(try await store.updateSession(id, SessionUpdate(hasConversation: true)))
    } catch {
      // The next completed turn tries again; until then a lost conversation would go unnoticed.
      logger.warning(
        "A session's conversation could not be noted",
        metadata: ["session": "\(id.lowercaseString)", "error": "\(error)"])
    }
  }

  // MARK: Errors

  private func fromStore<T: Sendable>(
    _ body: () async throws(SessionStoreError) -> T
  ) async throws(SessionServiceError) -> T {
    do throws(SessionStoreError) {
      return try await body()
    } catch {
      throw SessionServiceError(error)
    }
  }

  private func onDisk(_ body: () async throws -> Void) async throws(SessionServiceError) {
    do {
      try await body()
    } catch let error as WorkspaceError where error.isDiskFull {
      throw .diskFull
    } catch {
      throw .workspace("\(error)")
    }
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
      modelTurns: accounts.modelTurns)
  }
}

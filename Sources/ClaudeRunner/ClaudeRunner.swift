import Glibc
import JSONSupport
public import Logging
public import NIOCore
public import NIOPosix

/// Runs the turns of many sessions on a bounded number of CLI processes.
///
/// A session has a process from its first turn on; it is kept for the next turn and ended when it was idle for
/// too long or when another session needs its place. Which of that happened is invisible: the conversation is
/// resumed by a new process.
///
/// Call ``shutdown(grace:)`` at the end; processes live on until then.
public actor ClaudeRunner {
  private final class Session {
    var process: ClaudeProcess?
    /// Whether a turn is waiting or running.
    var isBusy = false
    /// The wait for a place, to be cancelled when the session is stopped.
    var wait: Task<Bool, Never>?
    /// Set when the turn is to end before the CLI has it.
    var abort: ClaudeFailure?
    var lastUsed = ContinuousClock.now
    var lastTurn = ContinuousClock.now
    var isEvicting = false
  }

  private let configuration: ClaudeRunnerConfiguration
  private let eventLoopGroup: any EventLoopGroup
  private let logger: Logger
  private let unsolicited: @Sendable (_ sessionID: String, ClaudeMessage) async -> Void

  private var sessions: [String: Session] = [:]
  private let places: FairSemaphore
  /// The processes that have been started; each one holds one of the places.
  private var placeHolders: Set<ObjectIdentifier> = []
  private let startingPermits: FairSemaphore
  private var starting = 0
  private var started = 0
  private var evicted = 0
  private var evictor: Task<Void, Never>?
  private var isShuttingDown = false
  private var probed: (identity: String, probe: ClaudeProbe)?

  /// - Parameters:
  ///   - eventLoopGroup: reads the output of the processes, and runs what it is handed to.
  ///   - unsolicited: gets what a CLI says when its session has no turn in flight, such as the turn it begins
  ///     by itself when background work has finished. It should return soon; the CLI waits for it.
  public init(
    configuration: ClaudeRunnerConfiguration,
    eventLoopGroup: any EventLoopGroup = MultiThreadedEventLoopGroup.singleton,
    logger: Logger = Logger(label: "claude-runner"),
    unsolicited: @escaping @Sendable (_ sessionID: String, ClaudeMessage) async -> Void = { _, _ in }
  ) {
    self.configuration = configuration
    self.eventLoopGroup = eventLoopGroup
    self.logger = logger
    self.unsolicited = unsolicited
    places = FairSemaphore(permits: max(1, configuration.maximumProcesses))
    startingPermits = FairSemaphore(permits: max(1, configuration.maximumStarting))
    // A write to a process that has just ended is an error like any other.
    Glibc.signal(SIGPIPE, SIG_IGN)
  }

  // MARK: turns

  /// Runs one turn and waits for its end.
  ///
  /// The turn goes on if the calling task is cancelled, unless it still waits for a place; to stop it use
  /// ``interrupt(session:)``.
  ///
  /// - Parameter onMessage: gets each message of the CLI in order; the CLI waits while it runs. The last one is
  ///   the result, if there is one.
  /// - Throws: ``ClaudeFailure``; the session can go on with another turn afterwards, whatever it was.
  public func run(
    _ turn: ClaudeTurn, onMessage: @escaping @Sendable (ClaudeMessage) async -> Void = { _ in }
  ) async throws(ClaudeFailure) -> ClaudeTurnResult {
    guard !isShuttingDown else { throw Self.shuttingDown }
    guard turn.session.hasValidID else {
      throw ClaudeFailure(.startFailed, "The id of a session must be a UUID in lower case.")
    }
    let session = sessions[turn.session.id] ?? Session()
    sessions[turn.session.id] = session
    guard !session.isBusy else { throw ClaudeFailure(.busy, "The session has a turn in flight.") }
    session.isBusy = true
    session.abort = nil
    defer { finish(session, turn.session.id) }
    while true {
      let process = try await process(for: turn, session)
      if let abort = session.abort { throw abort }
      let isNew = await process.turnsRun == 0
      do {
        return try await process.run(turn.prompt, onMessage: onMessage)
      } catch {
        // A process that had died before it could read the prompt says nothing about the prompt.
        guard error.code == .crashed, !isNew, await process.wasLastTurnSilent, session.abort == nil,
          !isShuttingDown
        else { throw Self.explained(error, turn, process) }
      }
    }
  }

  /// The CLI's own words about a budget name one that the client doesn't know, unless it is the client's.
  private static func explained(
    _ failure: ClaudeFailure, _ turn: ClaudeTurn, _ process: ClaudeProcess
  ) -> ClaudeFailure {
    guard failure.code == .budgetExhausted, turn.allowanceUSD != nil,
      process.command.budgetUSD != turn.options.maxBudgetUSD
    else { return failure }
    var failure = failure
    failure.message = "The turn has spent what its key's budget allowed for it; GET /usage shows what is left."
    return failure
  }

  private static let shuttingDown = ClaudeFailure(.shuttingDown, "The server is shutting down.")

  private func finish(_ session: Session, _ id: String) {
    session.isBusy = false
    session.wait = nil
    session.lastUsed = .now
    session.lastTurn = .now
    if session.process == nil { sessions[id] = nil }
    makeRoom()
  }

  /// A process that is ready for the turn: the one the session has, or a new one.
  private func process(for turn: ClaudeTurn, _ session: Session) async throws(ClaudeFailure) -> ClaudeProcess {
    if let process = session.process {
      let isGone = await process.isGone
      if !isGone, !session.isEvicting, process.command.session.network == turn.session.network,
        await process.allows(turn.allowanceUSD), await process.adopt(turn.options)
      {
        return process
      }
      // It is on its way out, or can't become what is wanted.
      await process.end(.closeInput, ClaudeFailure(.cancelled, "The process is being replaced."))
      await process.waitUntilGone()
    }
    if let abort = session.abort { throw abort }
    try await acquire(places, turn.owner, session)
    var hasPlace = true
    defer { if hasPlace { places.release() } }
    try await acquire(startingPermits, turn.owner, session)
    starting += 1
    defer {
      starting -= 1
      startingPermits.release()
    }
    let executable = try await usableExecutable()
    let transcripts = Transcripts(session: turn.session)
    var (start, triesLeft) = (try await chooseStart(turn, transcripts), 3)
    while true {
      let cost = await blocking { [start] in turn.allowanceUSD == nil ? 0 : transcripts.recordedCost(start) }
      var command = ClaudeCommand(
        session: turn.session, options: turn.options, budgetUSD: Self.budget(turn, cost), costAtStart: cost,
        start: start, configuration: configuration, executable: executable)
      try await blocking { [command] () throws(ClaudeFailure) in try command.writeFiles() }
      command.access = try await configuration.gateway?.admit(turn.session)
      if let abort = session.abort {
        await dismiss(command)
        throw abort
      }
      let process = ClaudeProcess(
        command: command, eventLoop: eventLoopGroup.next(),
        unsolicited: { [weak self, unsolicited] message in
          await self?.noteUse(of: turn.session.id)
          await unsolicited(turn.session.id, message)
        },
        onGone: { [weak self] process in await self?.processIsGone(process) })
      session.process = process
      session.isEvicting = false
      started += 1
      startEvictor()
      do throws(ClaudeProcess.StartError) {
        try await process.start()
        logger.debug(
          "Started a process",
          metadata: ["session": "\(turn.session.id)", "turn": "\(turn.id)", "start": "\(start)"])
        // From here on the place belongs to the process, unless it is gone already.
        if session.process === process {
          placeHolders.insert(ObjectIdentifier(process))
          hasPlace = false
        }
        return process
      } catch {
        switch error {
        case .failed(let failure): throw session.abort ?? failure
        case .conversationExists: start = .resume
        case .unknownConversation: start = try await startWithout(turn, transcripts)
        }
      }
      triesLeft -= 1
      guard triesLeft > 0 else {
        throw ClaudeFailure(
          .conversationLost, "The Claude Code CLI neither resumes the conversation nor begins it anew.")
      }
    }
  }

  /// What the CLI is told that the conversation may cost: what its options say, or less if the turn may cost less.
  private static func budget(_ turn: ClaudeTurn, _ spent: Double) -> Double? {
    guard let allowance = turn.allowanceUSD else { return turn.options.maxBudgetUSD }
    return min(turn.options.maxBudgetUSD ?? .infinity, spent + allowance)
  }

  /// Decides by what the CLI has on disk, and not by what should be there.
  private func chooseStart(
    _ turn: ClaudeTurn, _ transcripts: Transcripts
  ) async throws(ClaudeFailure) -> ConversationStart {
    if await blocking({ transcripts.hasOwn }) { return .resume }
    if !turn.expectsHistory { return .new }
    return try await latest(transcripts)
  }

  /// What to do when the CLI does not know the conversation although it has a file of it.
  private func startWithout(
    _ turn: ClaudeTurn, _ transcripts: Transcripts
  ) async throws(ClaudeFailure) -> ConversationStart {
    guard !turn.expectsHistory else { return try await latest(transcripts) }
    // No turn got so far as to be recorded.
    await blocking { transcripts.removeOwn() }
    return .new
  }

  private func latest(_ transcripts: Transcripts) async throws(ClaudeFailure) -> ConversationStart {
    // Without any, the CLI would silently begin a new conversation.
    if await blocking({ transcripts.hasOthers }) { return .latest }
    throw ClaudeFailure(
      .conversationLost,
      "The Claude Code CLI has no record of this conversation any more. Create a new session to go on.")
  }

  private func acquire(
    _ semaphore: FairSemaphore, _ owner: String, _ session: Session
  ) async throws(ClaudeFailure) {
    let wait = Task { await semaphore.acquire(for: owner) { Task { await self.makeRoom() } } }
    session.wait = wait
    let granted = await withTaskCancellationHandler {
      await wait.value
    } onCancel: {
      wait.cancel()
    }
    session.wait = nil
    if let abort = session.abort {
      if granted { semaphore.release() }
      throw abort
    }
    guard granted else { throw ClaudeFailure(.cancelled, "The caller gave up before the turn began.") }
  }

  private func blocking<T: Sendable>(_ body: @escaping @Sendable () -> T) async -> T {
    await withCheckedContinuation { continuation in
      NIOThreadPool.singleton.submit { _ in continuation.resume(returning: body()) }
    }
  }

  private func blocking<T: Sendable>(
    _ body: @escaping @Sendable () throws(ClaudeFailure) -> T
  ) async throws(ClaudeFailure) -> T {
    let result = await blocking { () -> Result<T, ClaudeFailure> in
      Result { () throws(ClaudeFailure) in try body() }
    }
    return try result.get()
  }

  // MARK: control

  /// Stops the running turn, its tools included; it fails with `interrupted` and keeps what it had produced.
  ///
  /// Does nothing without a turn. It returns when the CLI has been asked; the turn ends within
  /// ``ClaudeRunnerConfiguration/interruptTimeout`` and a little.
  public func interrupt(session id: String) async {
    guard let session = sessions[id], session.isBusy else { return }
    session.abort = ClaudeFailure(.interrupted, "The turn was interrupted before it began.")
    session.wait?.cancel()
    guard let process = session.process, await !process.interrupt() else { return }
    // It has not got the prompt yet: most likely it is being started, and that may take longer than is allowed.
    await process.end(.kill, ClaudeFailure(.interrupted, "The turn was interrupted before it began."))
  }

  /// Answers a permission request (a message of kind `controlRequest("can_use_tool")`, by its `request_id`).
  ///
  /// - Returns: false if there is no such request any more.
  @discardableResult
  public func answerPermission(
    session id: String, requestID: String, decision: ClaudePermissionDecision
  ) async -> Bool {
    await sessions[id]?.process?.answerPermission(requestID, decision) ?? false
  }

  /// Whether the session has a process.
  public func hasProcess(session id: String) -> Bool { sessions[id]?.process != nil }

  /// Ends the session's process now and returns when nothing of it is left; a turn fails with `killed`.
  public func stop(session id: String) async {
    if let session = sessions[id] {
      let failure = ClaudeFailure(.killed, "The session was stopped.")
      session.abort = failure
      session.wait?.cancel()
      if let process = session.process {
        await process.end(.kill, failure)
        await process.waitUntilGone()
      }
    }
    await StrayProcesses.ofSession(id).kill()
  }

  /// Ends all processes: idle ones at once, working ones when their turn is over or `grace` is.
  public func shutdown(grace: Duration) async {
    isShuttingDown = true
    evictor?.cancel()
    for session in sessions.values where session.isBusy {
      session.wait?.cancel()
      if session.process == nil { session.abort = Self.shuttingDown }
    }
    let end = ContinuousClock.now + grace
    await withTaskGroup { group in
      for (id, session) in sessions {
        guard let process = session.process else { continue }
        group.addTask { await self.shutDown(id, process, by: end) }
      }
    }
    await StrayProcesses.ofInstance(configuration.instance).kill()
  }

  private func shutDown(_ id: String, _ process: ClaudeProcess, by end: ContinuousClock.Instant) async {
    while sessions[id]?.isBusy == true, ContinuousClock.now < end {
      do { try await Task.sleep(for: .milliseconds(50)) } catch { break }
    }
    let isBusy = sessions[id]?.isBusy == true
    await process.end(isBusy ? .terminate : .closeInput, Self.shuttingDown)
    await process.waitUntilGone()
  }

  /// Kills what an earlier run of this server (``ClaudeRunnerConfiguration/instance``) left running when it was
  /// killed itself. Call it before the first turn.
  ///
  /// - Returns: how many processes there were.
  @discardableResult
  public func killStrays() async -> Int {
    await StrayProcesses.ofInstance(configuration.instance).kill()
  }

  // MARK: the pool

  private func processIsGone(_ process: ClaudeProcess) async {
    await dismiss(process.command)
    if placeHolders.remove(ObjectIdentifier(process)) != nil { places.release() }
    let id = process.command.session.id
    guard let session = sessions[id], session.process === process else { return }
    session.process = nil
    session.isEvicting = false
    if !session.isBusy { sessions[id] = nil }
  }

  /// From now on the process's token is none, and its socket is closed.
  private func dismiss(_ command: ClaudeCommand) async {
    guard let gateway = configuration.gateway, let access = command.access else { return }
    do throws(ClaudeFailure) {
      try await gateway.dismiss(access)
    } catch {
      logger.error(
        "A process's way to the model could not be closed",
        metadata: ["session": "\(command.session.id)", "reason": "\(error.message)"])
    }
  }

  /// A process that works of its own accord is not idle, for as long as a turn may take.
  private func noteUse(of id: String) {
    sessions[id]?.lastUsed = .now
  }

  /// Ends the least recently used idle processes, as many as turns wait for a place.
  private func makeRoom() {
    var missing = places.waiterCount - sessions.values.count { $0.isEvicting }
    let idle = sessions.values.filter { !$0.isBusy && !$0.isEvicting && $0.process != nil }
      .sorted { $0.lastUsed < $1.lastUsed }
    for session in idle {
      guard missing > 0 else { return }
      missing -= 1
      evict(session)
    }
  }

  private func evict(_ session: Session) {
    guard let process = session.process else { return }
    session.isEvicting = true
    evicted += 1
    Task { await process.end(.closeInput, ClaudeFailure(.cancelled, "The process was not used.")) }
  }

  private func startEvictor() {
    guard evictor == nil else { return }
    evictor = Task { [weak self, interval = configuration.evictionInterval] in
      while !Task.isCancelled {
        do { try await Task.sleep(for: interval) } catch { return }
        guard let self, await self.evictIdle() else { return }
      }
    }
  }

  /// - Returns: whether there is anything left to look after.
  private func evictIdle() -> Bool {
    let now = ContinuousClock.now
    for session in sessions.values where !session.isBusy && !session.isEvicting {
      let isIdle = session.lastUsed < now - configuration.idleTimeout
      if isIdle || session.lastTurn < now - max(configuration.turnTimeout, configuration.idleTimeout) { evict(session) }
    }
    makeRoom()
    guard sessions.isEmpty else { return true }
    evictor = nil
    return false
  }

  /// The state of the pool.
  public var statistics: ClaudeRunnerStatistics {
    ClaudeRunnerStatistics(
      live: sessions.values.count { $0.process != nil }, starting: starting,
      working: sessions.values.count { $0.isBusy && $0.process != nil }, waiting: places.waiterCount,
      started: started, evicted: evicted)
  }

  // MARK: the executable

  /// Finds the CLI and checks its version; call it at the start of the server to know in time.
  ///
  /// - Throws: ``ClaudeFailure`` with `cli_missing`, `cli_not_executable` or `cli_incompatible` and what to do.
  public func probe() async throws(ClaudeFailure) -> ClaudeProbe {
    _ = try await usableExecutable()
    guard let probed else { throw ClaudeFailure(.cliIncompatible, "The CLI could not be examined.") }
    return probed.probe
  }

  private func usableExecutable() async throws(ClaudeFailure) -> String {
    let configuration = configuration
    let path = try await blocking { () throws(ClaudeFailure) in try ClaudeExecutable.find(configuration) }
    let identity = await blocking { ClaudeExecutable.identity(path) }
    if probed?.identity == identity { return path }
    let probe = try await ClaudeProbe.examine(path, configuration, eventLoopGroup)
    probed = (identity, probe)
    return path
  }
}

/// How busy a runner is.
public struct ClaudeRunnerStatistics: Sendable, Hashable {
  /// Processes there are.
  public var live: Int
  /// Processes that are being started.
  public var starting: Int
  /// Processes with a turn.
  public var working: Int
  /// Turns that wait for a place.
  public var waiting: Int
  /// Processes ever started, and ended for want of use or room.
  public var started: Int
  public var evicted: Int
}

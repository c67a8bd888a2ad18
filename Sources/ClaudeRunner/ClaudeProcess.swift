import CLinux
import Glibc
import JSONSupport
import NIOCore
import NIOPosix

/// One process of the CLI, from its start to the end of everything it left behind.
///
/// It runs on the event loop that reads its output; see ``ProcessExecutor``.
actor ClaudeProcess {
  typealias Handler = @Sendable (ClaudeMessage) async -> Void

  /// Why a start failed, as far as the way to start decides what to do next.
  enum StartError: Error {
    /// The CLI doesn't know the conversation it was to resume.
    case unknownConversation
    /// The CLI has a conversation of this id already.
    case conversationExists
    case failed(ClaudeFailure)
  }

  /// How to end a process: each way goes on to the next one if the process takes too long.
  enum Ending {
    case closeInput
    case terminate
    case kill
  }

  private struct Turn {
    var number: UInt64
    var started = ContinuousClock.now
    /// The same for the processes that it starts.
    var startTick = ProcFS.now
    var onMessage: Handler
    /// What the model said so far: whole messages, and the piece of one that is still coming.
    var texts: [String] = []
    var unfinishedText = ""
    var textBytes = 0
    var model: String?
    var wasInterrupted = false
    /// Whether the CLI has ended the turn.
    var hasResult = false
    var retryAfter: Duration?
    /// When the model had finished, as far as can be told before the result comes.
    var finalAnswer: ContinuousClock.Instant?
    var isSilent = true
    var outcome: Result<ClaudeTurnResult, ClaudeFailure>?
    var continuation: CheckedContinuation<Result<ClaudeTurnResult, ClaudeFailure>, Never>?

    /// Whether so many more bytes of what the model says are kept for a turn that may fail.
    mutating func keepsTextBytes(_ count: Int) -> Bool {
      guard textBytes + count <= ClaudeProcess.keptText else { return false }
      textBytes += count
      return true
    }
  }

  let command: ClaudeCommand
  private let configuration: ClaudeRunnerConfiguration
  private let executor: ProcessExecutor
  private let unsolicited: Handler
  private let onGone: @Sendable (ClaudeProcess) async -> Void

  /// The options as they are in the process now, live changes included.
  private(set) var options: ClaudeOptions

  private var pid: pid_t?
  private var input: (any Channel)?
  private var errorChannel: (any Channel)?
  private let errorOutput: ErrorOutput
  private var reader: Task<Void, Never>?
  private var hasOutputEnded = false
  private var hasErrorOutputEnded = false
  private var outOfMemoryKillsBefore = 0

  /// Answers to the CLI that its pipe hasn't taken yet.
  private var unreadAnswers = 0
  /// Why the process is being ended by this side; nil as long as it isn't.
  private var endReason: ClaudeFailure?
  private var exit: ClaudeExit?
  private(set) var isGone = false
  /// Whether the owner knows that it is gone, too.
  private var isFinished = false
  private var waiters: [UInt64: (event: Event, continuation: CheckedContinuation<Bool, Never>)] = [:]
  private enum Event { case exit, outputEnd, errorOutputEnd, gone }

  private var nextNumber: UInt64 = 0
  private var controlRequests: [String: CheckedContinuation<Result<JSONValue, ClaudeFailure>, Never>] = [:]
  private var isStarting = false
  private var startError: StartError?

  private var turn: Turn?
  /// How many turns have ended, and whether the last one ended without a word from the CLI.
  private(set) var turnsRun = 0
  private(set) var wasLastTurnSilent = false
  private var pendingPermissions: [String: JSONValue] = [:]
  private var lastActivity = ContinuousClock.now
  private var isDelivering = false
  private var garbageCount = 0
  private var firstGarbage = ""
  private var hasPartialLine = false
  /// The CLI's own id of the conversation.
  private var cliSessionID: String?
  /// The total the CLI last reported, and what it cost between turns, which the next turn is charged with.
  private var lastTotalCost: Double?
  private var uncharged = 0.0
  private var unchargedUsage = ClaudeUsage()

  /// How much of what the model says in one turn is kept in memory, each text and its pieces counted: 16 MiB.
  private static let keptText = 16 << 20
  /// How long the tools of an interrupted turn may take to end before they are killed.
  private static let toolGrace = Duration.milliseconds(200)
  /// How many lines that are no messages are handed on; the rest is only counted.
  private static let garbageHandedOn = 100
  /// Far more than a CLI asks before it reads an answer.
  private static let maximumUnreadAnswers = 256

  /// - Parameters:
  ///   - unsolicited: gets what the CLI says between turns.
  ///   - onGone: called once, when nothing of the process is left, also if it never started.
  init(
    command: ClaudeCommand, eventLoop: any EventLoop, unsolicited: @escaping Handler,
    onGone: @escaping @Sendable (ClaudeProcess) async -> Void
  ) {
    self.command = command
    configuration = command.configuration
    options = command.options
    executor = ProcessExecutor(eventLoop)
    self.unsolicited = unsolicited
    self.onGone = onGone
    errorOutput = ErrorOutput(limit: command.configuration.errorOutputLimit)
  }

  nonisolated var unownedExecutor: UnownedSerialExecutor { executor.asUnownedSerialExecutor() }

  // MARK: start

  /// Starts the process and waits until it answers.
  ///
  /// If it throws, nothing of the process is left.
  func start() async throws(StartError) {
    isStarting = true
    defer { isStarting = false }
    do {
      try await spawn()
    } catch {
      if !isGone {
        isGone = true
        await onGone(self)
        isFinished = true
        signalEvent(.gone)
      }
      throw .failed(error)
    }
    do {
      _ = try await control(["subtype": "initialize"], timeout: configuration.startTimeout)
    } catch {
      let failure = startFailure(error)
      // Once it has something to say the CLI ends by itself, and its error output is complete only then.
      if exit == nil { await end(.terminate, failure) }
      await wait(for: .gone, atMost: nil)
      if let startError { throw startError }
      if errorOutput.text.contains("is already in use") { throw .conversationExists }
      throw .failed(endReason ?? failure)
    }
  }

  private func startFailure(_ failure: ClaudeFailure) -> ClaudeFailure {
    guard failure.code == .stalled else { return failure }
    if garbageCount > 0 || hasPartialLine {
      let what = garbageCount > 0 ? "\(garbageCount) lines, the first: \(firstGarbage)" : "half a line"
      return ClaudeFailure(
        .cliProtocolError, "The Claude Code CLI doesn't speak its protocol. It printed \(what)",
        errorOutput: errorOutput.text)
    }
    return ClaudeFailure(
      .stalled, "The Claude Code CLI gave no sign of life within \(configuration.startTimeout) of its start.",
      errorOutput: errorOutput.text)
  }

  private func spawn() async throws(ClaudeFailure) {
    let commandLine = try command.commandLine()
    outOfMemoryKillsBefore = outOfMemoryKills
    var descriptors: [CInt] = []
    defer { for descriptor in descriptors { close(descriptor) } }
    for _ in 0..<3 {
      var ends: [CInt] = [-1, -1]
      let number = clinux_pipe(&ends)
      guard number == 0 else {
        throw ClaudeFailure(.startFailed, "No pipe for a process: \(String(cString: strerror(number)))")
      }
      descriptors += ends
    }
    let (childInput, ownInput) = (descriptors[0], descriptors[1])
    let (ownOutput, childOutput) = (descriptors[2], descriptors[3])
    let (ownError, childError) = (descriptors[4], descriptors[5])
    let spawned: pid_t
    do {
      spawned = try await ProcessSupervisor.shared.spawn(
        ProcessSupervisor.Request(
          executable: commandLine[0], arguments: commandLine, environment: command.environment,
          workingDirectory: command.session.workingDirectory, input: childInput, output: childOutput,
          errorOutput: childError, onExit: { exit in Task { await self.didExit(exit) } }))
    } catch {
      throw Self.failure(error, executable: commandLine[0])
    }
    pid = spawned
    lastActivity = .now
    for descriptor in [childInput, childOutput, childError] { close(descriptor) }
    descriptors = []
    await openChannels(input: ownInput, output: ownOutput, error: ownError)
    if let endReason {
      // Ended while it was being started.
      ProcessSupervisor.shared.signal(spawned, SIGKILL, group: true)
      await wait(for: .gone, atMost: nil)
      throw endReason
    }
  }

  /// Takes the descriptors over. If a channel can't be made, the process sees its pipe close and ends.
  private func openChannels(input: CInt, output: CInt, error: CInt) async {
    do {
      self.input = try await NIOPipeBootstrap(group: executor.eventLoop)
        .takingOwnershipOfDescriptor(output: input).get()
    } catch {
      close(input)
    }
    do {
      let errorOutput = errorOutput
      let channel = try await NIOPipeBootstrap(group: executor.eventLoop)
        .channelInitializer { channel in channel.pipeline.addHandler(errorOutput) }
        .takingOwnershipOfDescriptor(input: error).get()
      errorChannel = channel
      channel.closeFuture.whenComplete { _ in Task { await self.errorOutputEnded() } }
    } catch _ {
      close(error)
      errorOutputEnded()
    }
    do {
      let channel = try await NIOPipeBootstrap(group: executor.eventLoop)
        .takingOwnershipOfDescriptor(input: output) { channel in
          channel.eventLoop.makeCompletedFuture {
            try NIOAsyncChannel<ByteBuffer, Never>(wrappingChannelSynchronously: channel)
          }
        }
      reader = Task(executorPreference: executor) { await self.read(channel) }
    } catch {
      close(output)
      outputEnded()
    }
  }

  private static func failure(_ error: ProcessSupervisor.SpawnError, executable: String) -> ClaudeFailure {
    switch (error.stage, error.number) {
    case (.executable, ENOENT):
      ClaudeFailure(.cliMissing, "\(executable) can't be run: it, or what it needs to run, doesn't exist.")
    case (.executable, E2BIG):
      ClaudeFailure(.startFailed, "The session's options are too long for a command line.")
    case (.executable, _):
      ClaudeFailure(.cliNotExecutable, "\(executable) can't be run: \(error.text).")
    case (.workingDirectory, _):
      ClaudeFailure(.startFailed, "The session's workspace can't be entered: \(error.text).")
    case (.system, _):
      ClaudeFailure(.startFailed, "The system can't start a process: \(error.text).")
    }
  }

  // MARK: turns

  /// Sends a prompt and waits for its result. One at a time.
  func run(_ prompt: String, onMessage: @escaping Handler) async throws(ClaudeFailure) -> ClaudeTurnResult {
    if let endReason { throw endReason }
    if exit != nil {
      wasLastTurnSilent = true
      throw await failureOfGone()
    }
    guard turn == nil else { throw ClaudeFailure(.busy, "The session has a turn in flight.") }
    wasLastTurnSilent = false
    nextNumber += 1
    let number = nextNumber
    turn = Turn(number: number, onMessage: onMessage)
    lastActivity = .now
    write([
      "type": "user",
      "message": ["role": "user", "content": .string(prompt)],
      "parent_tool_use_id": nil,
      // The text is somebody's own words: no command of the CLI, no mention of a file to be expanded.
      "client_composed": true,
    ])
    let watchdog = Task { await self.watch(number) }
    defer { watchdog.cancel() }
    let outcome = await withCheckedContinuation { continuation in
      if let outcome = turn?.outcome {
        continuation.resume(returning: outcome)
      } else {
        turn?.continuation = continuation
      }
    }
    wasLastTurnSilent = turn?.isSilent ?? false
    turn = nil
    turnsRun += 1
    pendingPermissions = [:]
    var result: ClaudeTurnResult
    do {
      result = try outcome.get()
    } catch {
      var error = error
      error.partial?.startedProcess = turnsRun == 1
      throw error
    }
    result.startedProcess = turnsRun == 1
    return result
  }

  /// Asks the CLI to stop the turn, and ends the process if it doesn't obey.
  ///
  /// - Returns: false if there is no turn.
  func interrupt() -> Bool {
    guard let turn, turn.outcome == nil else { return false }
    guard !turn.wasInterrupted else { return true }
    let number = turn.number
    self.turn?.wasInterrupted = true
    write(controlRequest(["subtype": "interrupt"], id: "interrupt-\(number)"))
    Task {
      do { try await Task.sleep(for: configuration.interruptTimeout) } catch { return }
      await self.forceInterrupt(number)
    }
    return true
  }

  private func forceInterrupt(_ number: UInt64) async {
    guard let turn, turn.number == number, !turn.hasResult, turn.outcome == nil else { return }
    await end(.kill, ClaudeFailure(.interrupted, "The turn was interrupted.", partial: partial))
  }

  /// - Returns: whether there was such a request.
  func answerPermission(_ requestID: String, _ decision: ClaudePermissionDecision) -> Bool {
    guard let input = pendingPermissions.removeValue(forKey: requestID) else { return false }
    var response: [String: JSONValue]
    switch decision {
    case .allow(let updatedInput, let updatedPermissions):
      response = ["behavior": "allow", "updatedInput": updatedInput ?? input]
      if let updatedPermissions { response["updatedPermissions"] = updatedPermissions }
    case .deny(let message):
      response = ["behavior": "deny", "message": .string(message)]
    }
    lastActivity = .now
    writeControlResponse(requestID, ["subtype": "success", "response": .object(response)])
    return true
  }

  /// Makes the process fit other options, if that is possible without a new process.
  ///
  /// - Returns: whether it fits now.
  func adopt(_ wanted: ClaudeOptions) async -> Bool {
    guard endReason == nil, exit == nil else { return false }
    guard wanted != options else { return true }
    var reachable = options
    reachable.model = wanted.model
    reachable.permissionMode = wanted.permissionMode
    // Into this mode the CLI can only be started.
    guard reachable == wanted, options.permissionMode != .bypassPermissions,
      wanted.permissionMode != .bypassPermissions
    else { return false }
    do {
      if wanted.model != options.model {
        _ = try await control(
          ["subtype": "set_model", "model": wanted.model.map { .string($0) } ?? nil],
          timeout: configuration.controlTimeout)
      }
      if wanted.permissionMode != options.permissionMode {
        _ = try await control(
          ["subtype": "set_permission_mode", "mode": .string(wanted.permissionMode.rawValue)],
          timeout: configuration.controlTimeout)
      }
    } catch {
      return false
    }
    options = wanted
    return true
  }

  /// Whether a turn may run in this process that may cost so much: it must not be able to cost more, and its bound
  /// must leave it at least half of that.
  ///
  /// - Parameter allowance: US dollars; nil for no bound but that of the options.
  func allows(_ allowance: Double?) -> Bool {
    guard let allowance else { return command.budgetUSD == options.maxBudgetUSD }
    guard let budget = command.budgetUSD else { return false }
    let spent = lastTotalCost ?? command.costAtStart
    // A bound that the client has chosen may be as tight as it likes.
    let wanted = min(spent + allowance / 2, options.maxBudgetUSD ?? .infinity)
    return budget <= spent + allowance * 1.000_001 && budget >= wanted
  }

  // MARK: the end

  /// Ends the process and waits until nothing of it is left.
  ///
  /// - Parameter reason: the failure of the running turn, unless it ends properly before.
  func end(_ ending: Ending, _ reason: ClaudeFailure) async {
    if endReason == nil { endReason = reason }
    // One that is just being started sees the reason when it has been.
    guard let pid else { return await waitUntilGone() }
    let supervisor = ProcessSupervisor.shared
    if ending == .closeInput {
      input?.close(promise: nil)
      if await wait(for: .exit, atMost: configuration.exitTimeout) { return await waitUntilGone() }
    }
    if ending != .kill {
      supervisor.signal(pid, SIGTERM, group: true)
      if await wait(for: .exit, atMost: configuration.terminateTimeout) { return await waitUntilGone() }
    }
    supervisor.signal(pid, SIGKILL, group: true)
    await waitUntilGone()
  }

  func waitUntilGone() async {
    await wait(for: .gone, atMost: nil)
  }

  private func didExit(_ exit: ClaudeExit) async {
    self.exit = exit
    signalEvent(.exit)
    // What is left of it may hold the output open.
    await StrayProcesses.ofSession(command.session.id).kill()
    if !(await wait(for: .outputEnd, atMost: .seconds(10))) { reader?.cancel() }
    // The reason may be among the last that it says.
    await wait(for: .errorOutputEnd, atMost: .seconds(1))
    finishTurn(.failure(exitFailure(partial: partial)))
    failControlRequests(exitFailure(partial: nil))
    input?.close(promise: nil)
    errorChannel?.close(promise: nil)
    isGone = true
    await onGone(self)
    isFinished = true
    signalEvent(.gone)
  }

  /// Why a process ended, known once all that it said is there.
  private func failureOfGone() async -> ClaudeFailure {
    await waitUntilGone()
    return exitFailure(partial: nil)
  }

  private func exitFailure(partial: ClaudeTurnResult?) -> ClaudeFailure {
    if var reason = endReason {
      reason.partial = partial ?? reason.partial
      if reason.errorOutput.isEmpty { reason.errorOutput = errorOutput.text }
      return reason
    }
    if turn?.wasInterrupted == true {
      return ClaudeFailure(.interrupted, "The turn was interrupted.", exit: exit, partial: partial)
    }
    let wasOutOfMemory = outOfMemoryKills > outOfMemoryKillsBefore
    return Classification.failure(
      ofExit: exit ?? .code(0), errorOutput: errorOutput.text, partial: partial,
      wasOutOfMemory: wasOutOfMemory)
  }

  /// Those of the session where they are counted, else those of the machine.
  private var outOfMemoryKills: Int {
    configuration.sandbox?.outOfMemoryKills(ofSession: command.session.id) ?? ProcFS.outOfMemoryKills()
  }

  /// - Returns: whether it happened in time; nil waits as long as it takes.
  @discardableResult
  private func wait(for event: Event, atMost time: Duration?) async -> Bool {
    if hasHappened(event) { return true }
    nextNumber += 1
    let number = nextNumber
    var timer: Task<Void, Never>?
    defer { timer?.cancel() }
    return await withCheckedContinuation { continuation in
      // Looked at once more, since coming here may have taken a turn of the executor, in which it happened.
      guard !hasHappened(event) else { return continuation.resume(returning: true) }
      waiters[number] = (event, continuation)
      guard let time else { return }
      timer = Task {
        do { try await Task.sleep(for: time) } catch { return }
        self.giveUp(number)
      }
    }
  }

  private func hasHappened(_ event: Event) -> Bool {
    switch event {
    case .exit: exit != nil
    case .outputEnd: hasOutputEnded
    case .errorOutputEnd: hasErrorOutputEnded
    case .gone: isFinished
    }
  }

  private func giveUp(_ number: UInt64) {
    waiters.removeValue(forKey: number)?.continuation.resume(returning: false)
  }

  private func signalEvent(_ event: Event) {
    for (number, waiter) in waiters where waiter.event == event {
      waiters[number] = nil
      waiter.continuation.resume(returning: true)
    }
  }

  // MARK: watching

  /// Ends the process when one of the bounds of a turn is reached.
  private func watch(_ number: UInt64) async {
    while let turn, turn.number == number, turn.outcome == nil, endReason == nil {
      let (deadline, failure) = nextDeadline(of: turn)
      if deadline <= .now {
        await end(.terminate, failure)
        return
      }
      do { try await Task.sleep(until: deadline, clock: .continuous) } catch { return }
    }
  }

  private func nextDeadline(of turn: Turn) -> (ContinuousClock.Instant, ClaudeFailure) {
    var deadline = turn.started + configuration.turnTimeout
    var failure = ClaudeFailure(.turnTimeout, "The turn took longer than \(configuration.turnTimeout).")
    // While this side is at work, or a person, the silence of the CLI means nothing.
    if !isDelivering && pendingPermissions.isEmpty {
      let stall = lastActivity + configuration.stallTimeout
      if stall < deadline {
        deadline = stall
        failure = ClaudeFailure(
          .stalled,
          "The Claude Code CLI was silent for \(configuration.stallTimeout)\(hasPartialLine ? ", in the middle of a line" : "")."
        )
      }
      if let hang = turn.finalAnswer.map({ $0 + configuration.resultTimeout }), hang < deadline {
        deadline = hang
        failure = ClaudeFailure(
          .postResultHang, "The model had finished, but the Claude Code CLI didn't end the turn.")
      }
    }
    failure.errorOutput = errorOutput.text
    // Looked at again soon enough even if the next deadline only comes into being meanwhile.
    let latest = ContinuousClock.now + min(configuration.resultTimeout, configuration.stallTimeout)
    return deadline < latest ? (deadline, failure) : (max(latest, .now + .milliseconds(10)), failure)
  }

  // MARK: reading

  private func read(_ channel: NIOAsyncChannel<ByteBuffer, Never>) async {
    var framer = LineFramer(limit: configuration.lineLimit)
    do {
      try await channel.executeThenClose { inbound in
        for try await chunk in inbound {
          lastActivity = .now
          framer.append(chunk)
          while let line = try framer.next() { await receive(line) }
          hasPartialLine = framer.hasPartialLine
        }
      }
    } catch let error as LineFramer.LineTooLong {
      let failure = ClaudeFailure(
        .lineTooLong, "The Claude Code CLI printed a line of more than \(error.limit) bytes.",
        partial: partial)
      // Not awaited: the end of the process waits for the end of this reader.
      Task { await self.end(.kill, failure) }
    } catch {
      // The pipe broke or the reader was cancelled: the same as the end of the output.
    }
    outputEnded()
  }

  private func outputEnded() {
    hasOutputEnded = true
    signalEvent(.outputEnd)
  }

  private func errorOutputEnded() {
    hasErrorOutputEnded = true
    signalEvent(.errorOutputEnd)
  }

  private func receive(_ line: ByteBuffer) async {
    guard line.readableBytes > 0 else { return }
    let message = ClaudeMessage(line: line.readableBytesView)
    if message.kind == .notJSON {
      garbageCount += 1
      if firstGarbage.isEmpty { firstGarbage = String((message.json.stringValue ?? "").prefix(200)) }
      if garbageCount <= Self.garbageHandedOn { await deliver(message) }
      return
    }
    if let id = message.json["session_id"]?.stringValue, message.kind == .system("init") { cliSessionID = id }

    switch message.kind {
    case .controlResponse:
      finishControlRequest(message.json["response"])
      return
    case .controlRequest(let subtype):
      let id = message.json["request_id"]?.stringValue ?? ""
      guard subtype == "can_use_tool" else {
        writeControlResponse(id, ["subtype": "error", "error": "not supported"])
        return
      }
      guard turn != nil, options.asksForPermission else {
        let denial: JSONValue = ["behavior": "deny", "message": "Nobody is there to allow it."]
        writeControlResponse(id, ["subtype": "success", "response": denial])
        return
      }
      pendingPermissions[id] = message.json["request"]?["input"] ?? [:]
    case .controlCancelRequest:
      pendingPermissions[message.json["request_id"]?.stringValue ?? ""] = nil
    case .result where isStarting && turn == nil:
      if Classification.isUnknownConversation(message.json) { startError = .unknownConversation }
      let failure = Classification.failure(
        of: message.json, partial: ClaudeTurnResult(), wasInterrupted: false, retryAfter: nil)
      failControlRequests(
        failure ?? ClaudeFailure(.cliProtocolError, "The CLI ended a turn before there was one."))
      return
    default: break
    }

    observe(message)
    await deliver(message)
    guard message.kind == .result else { return }
    if turn == nil || message.isResultOfOwnAccord {
      // A turn of its own, after background work: its cost is charged to the next turn that somebody asked for.
      unchargedUsage += usage(of: message.json)
      uncharged = min(uncharged + cost(of: message.json), ClaudeMessage.mostDollars)
      turn?.texts = []
      turn?.finalAnswer = nil
    } else {
      turn?.hasResult = true
      if turn?.wasInterrupted == true { await endTools() }
      finishTurn(with: message.json)
    }
  }

  /// The CLI tells its tools to end when it is interrupted, but doesn't wait until they have. Who is told that the turn
  /// has been interrupted must not meet them any more.
  private func endTools() async {
    guard let turn, let pid else { return }
    await StrayProcesses.ofTools(ofSession: command.session.id, cli: pid, since: turn.startTick)
      .kill(grace: Self.toolGrace)
  }

  private func deliver(_ message: ClaudeMessage) async {
    isDelivering = true
    turn?.isSilent = false
    if let turn, turn.outcome == nil {
      await turn.onMessage(message)
    } else {
      await unsolicited(message)
    }
    isDelivering = false
    lastActivity = .now
  }

  /// Keeps what the turn needs of a message: the text so far, and whether the model has finished.
  private func observe(_ message: ClaudeMessage) {
    guard turn != nil, !message.isFromSubagent else { return }
    switch message.kind {
    case .assistant:
      turn?.unfinishedText = ""
      turn?.finalAnswer = nil
      if let text = message.assistantText, turn?.keepsTextBytes(text.utf8.count) == true { turn?.texts.append(text) }
      if let model = message.json["message"]?["model"]?.stringValue { turn?.model = model }
    case .streamEvent:
      let event = message.json["event"]
      switch event?["type"]?.stringValue {
      case "content_block_delta":
        if let text = event?["delta"]?["text"]?.stringValue, turn?.keepsTextBytes(text.utf8.count) == true {
          turn?.unfinishedText += text
        }
      case "message_delta":
        let reason = event?["delta"]?["stop_reason"]?.stringValue
        turn?.finalAnswer = reason != nil && reason != "tool_use" && reason != "pause_turn" ? .now : nil
      case "message_start": turn?.finalAnswer = nil
      default: break
      }
    case .user: turn?.finalAnswer = nil
    case .system("api_retry"):
      turn?.finalAnswer = nil
      if let wait = message.retryAfter(now: time(nil)) { turn?.retryAfter = wait }
    case .rateLimit:
      if let wait = message.retryAfter(now: time(nil)) { turn?.retryAfter = wait }
    default: break
    }
  }

  private var partial: ClaudeTurnResult? {
    guard let turn else { return nil }
    var partial = ClaudeTurnResult()
    partial.text = (turn.texts + [turn.unfinishedText]).filter { !$0.isEmpty }.joined(separator: "\n\n")
    partial.duration = .now - turn.started
    partial.model = turn.model
    partial.cliSessionID = cliSessionID
    return partial
  }

  private func finishTurn(with json: JSONValue) {
    guard let turn, var result = partial else { return }
    result.raw = json
    result.usage = usage(of: json)
    result.usage += unchargedUsage
    result.costUSD = min(cost(of: json) + uncharged, ClaudeMessage.mostDollars)
    unchargedUsage = ClaudeUsage()
    uncharged = 0
    result.numTurns = Int(ClaudeMessage.count(json["num_turns"]))
    result.stopReason = json["stop_reason"]?.stringValue
    result.structuredOutput = json["structured_output"]
    result.permissionDenials = json["permission_denials"]?.arrayValue ?? []
    result.cliSessionID = json["session_id"]?.stringValue ?? cliSessionID
    let failure = Classification.failure(
      of: json, partial: result, wasInterrupted: turn.wasInterrupted, retryAfter: turn.retryAfter)
    if let failure { return finishTurn(.failure(failure)) }
    result.text = json["result"]?.stringValue ?? result.text
    if options.jsonSchema != nil && result.structuredOutput == nil {
      return finishTurn(
        .failure(
          ClaudeFailure(
            .structuredOutputMissing, "The model gave no output that fits the schema.", partial: result)))
    }
    finishTurn(.success(result))
  }

  private func finishTurn(_ outcome: Result<ClaudeTurnResult, ClaudeFailure>) {
    guard turn != nil, turn?.outcome == nil else { return }
    turn?.outcome = outcome
    turn?.continuation?.resume(returning: outcome)
    turn?.continuation = nil
  }

  /// The tokens since the result before this one, those of subagents and of the CLI's own requests included. The
  /// `usage` of a result is the conversation's alone.
  private func usage(of result: JSONValue) -> ClaudeUsage {
    ClaudeUsage(models: result["model_usage_since_last_result"]) ?? ClaudeUsage(result["usage"])
  }

  /// What was spent since the result before this one.
  ///
  /// The total goes on over a resume, but not reliably so after a crash; the usage since the last result is
  /// exact, so the total only serves a CLI that doesn't report it.
  private func cost(of result: JSONValue) -> Double {
    let total = ClaudeMessage.dollars(result["total_cost_usd"])
    defer { lastTotalCost = total }
    if let usage = result["model_usage_since_last_result"]?.objectValue {
      return min(usage.values.reduce(0) { $0 + ClaudeMessage.dollars($1["costUSD"]) }, ClaudeMessage.mostDollars)
    }
    guard let lastTotalCost, total >= lastTotalCost else { return total }
    return total - lastTotalCost
  }

  // MARK: writing

  /// - Returns: when the pipe has taken it; nil if there is no pipe.
  @discardableResult
  private func write(_ message: JSONValue) -> EventLoopFuture<Void>? {
    var bytes = ByteBuffer()
    bytes.writeBytes(message.encoded())
    bytes.writeInteger(UInt8(ascii: "\n"))
    // If it can't be written the process is at its end, and that is noticed as such.
    return input?.writeAndFlush(bytes)
  }

  private func controlRequest(_ request: [String: JSONValue], id: String) -> JSONValue {
    ["type": "control_request", "request_id": .string(id), "request": .object(request)]
  }

  private func writeControlResponse(_ requestID: String, _ response: [String: JSONValue]) {
    // A tool can stop the CLI and ask in its name, and the answers would pile up here.
    guard unreadAnswers < Self.maximumUnreadAnswers else { return endUnread() }
    var response = response
    response["request_id"] = .string(requestID)
    guard let written = write(["type": "control_response", "response": .object(response)]) else { return }
    unreadAnswers += 1
    // On the event loop of the pipe, which is this actor's.
    written.whenComplete { [weak self] _ in self?.assumeIsolated { $0.unreadAnswers -= 1 } }
  }

  private func endUnread() {
    guard endReason == nil else { return }
    let failure = ClaudeFailure(
      .cliProtocolError, "The Claude Code CLI asks and doesn't read the answers.", partial: partial)
    endReason = failure
    // Not awaited: the end of the process waits for the end of the reader, which may have come here.
    Task { await self.end(.kill, failure) }
  }

  /// Asks the CLI for something and waits for its answer.
  private func control(
    _ request: [String: JSONValue], timeout: Duration
  ) async throws(ClaudeFailure) -> JSONValue {
    if exit != nil { throw await failureOfGone() }
    nextNumber += 1
    let id = "request-\(nextNumber)"
    let timer = Task {
      do { try await Task.sleep(for: timeout) } catch { return }
      self.expireControlRequest(id, timeout)
    }
    defer { timer.cancel() }
    let result = await withCheckedContinuation { continuation in
      controlRequests[id] = continuation
      write(controlRequest(request, id: id))
    }
    return try result.get()
  }

  private func expireControlRequest(_ id: String, _ timeout: Duration) {
    controlRequests.removeValue(forKey: id)?.resume(
      returning: .failure(
        ClaudeFailure(.stalled, "The Claude Code CLI did not answer a request within \(timeout).")))
  }

  private func failControlRequests(_ failure: ClaudeFailure) {
    let waiting = controlRequests.values
    controlRequests = [:]
    for continuation in waiting { continuation.resume(returning: .failure(failure)) }
  }

  private func finishControlRequest(_ response: JSONValue?) {
    guard let id = response?["request_id"]?.stringValue,
      let continuation = controlRequests.removeValue(forKey: id)
    else { return }
    if response?["subtype"]?.stringValue == "success" {
      continuation.resume(returning: .success(response?["response"] ?? nil))
    } else {
      let text = response?["error"]?.stringValue ?? "no reason given"
      continuation.resume(
        returning: .failure(ClaudeFailure(.turnFailed, "The Claude Code CLI refused a request: \(text)")))
    }
  }
}

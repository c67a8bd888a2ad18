import CLinux
import ClaudeAPI
import ClaudeRunner
import Foundation
import HummingbirdFastCGI
import Logging
import Monitoring
import NIOCore
import NIOPosix
import SQLiteStore
import Sandbox
import ServiceLifecycle
import Sessions
import Synchronization
import UnixSignals
import WebSockets
import Workspaces

/// Puts the parts of the responder together and runs them.
struct Responder {
  private let configuration: ServerConfiguration
  private let log: LogWriter
  private let logger: Logger

  init(_ configuration: ServerConfiguration) {
    self.configuration = configuration
    let level = Logger.Level(rawValue: configuration.logLevel) ?? .info
    let format = LogFormat(rawValue: configuration.logFormat) ?? .logfmt
    let log = LogWriter(descriptor: STDERR_FILENO, format: format)
    self.log = log
    LoggingSystem.bootstrap { label in
      StructuredLogHandler(label: label, format: format, level: level, writer: log)
    }
    logger = Logger(label: "claude-api")
  }

  func run() async throws {
    defer { log.flush() }
    // What agents send and get has a thread of its own.
    let modelLoops = MultiThreadedEventLoopGroup(numberOfThreads: 1)
    do {
      try await run(modelLoops)
    } catch {
      try await modelLoops.shutdownGracefully()
      throw error
    }
    try await modelLoops.shutdownGracefully()
  }

  private func run(_ modelLoops: MultiThreadedEventLoopGroup) async throws {
    let manager = try ServiceManager(environment: ProcessInfo.processInfo.environment)
    try Workspaces.makeDirectories(configuration.stateDirectory)
    // Only now is it certain that no other responder uses this state.
    let lock = try await StateLock(configuration.stateDirectory)
    defer { withExtendedLifetime(lock) {} }
    let workspaces = try Workspaces(
      root: configuration.workspaceRoot, configurationRoot: configuration.stateDirectory + "/claude-config",
      limits: configuration.files.limits)
    let address = try address(manager)
    var runnerConfiguration = runnerConfiguration
    let gateway = gateway(modelLoops, processes: runnerConfiguration.maximumProcesses)
    try Workspaces.makeDirectories(gateway.configuration.socketDirectory)
    try Workspaces.makeDirectories(gateway.configuration.tokenDirectory)
    let ledger = GatewayLedger(log: configuration.modelLog, prices: configuration.modelPrices, logger: logger)
    let metrics = ServerMetrics(ledger)
    let databasePath = configuration.stateDirectory + "/claude-api.sqlite"
    var storeConfiguration = SQLiteStoreConfiguration(path: databasePath)
    // No request runs on these threads. What the CLIs say is stored and shown without another one.
    let processLoops = MultiThreadedEventLoopGroup.singleton
    storeConfiguration.mayBlock = { processLoops.any().inEventLoop }
    storeConfiguration.onCall = { metrics.storeCall($0, $1) }
    let store = try await SQLiteSessionStore.open(storeConfiguration)
    let watchdog = Watchdog(manager, store, logger)
    let sandbox = try await Sandboxing(configuration, logger).sandbox()
    runnerConfiguration.sandbox = sandbox
    runnerConfiguration.gateway = gateway
    let used = runnerConfiguration
    let runner = ClaudeRunner(configuration: used, eventLoopGroup: processLoops, logger: logger)
    var options = ClaudeOptions()
    options.allowedTools = configuration.allowedTools
    var bounds = SessionServiceConfiguration()
    bounds.queueLimit = configuration.queueLength
    bounds.maximumTurnLog = configuration.maximumTurnLog
    bounds.approvalTimeout = configuration.approvalTimeout
    bounds.maximumRunningTurns = runnerConfiguration.maximumProcesses
    bounds.maximumStreams = configuration.maximumStreams
    let reserve = configuration.memoryReserve
    bounds.hasRoom = { Memory.available() ?? .max >= reserve }
    bounds.bringUseUpToDate = { await ledger.catchUp() }
    let keys = WatchedKeyStore(store, stateDirectory: configuration.stateDirectory)
    let service = SessionService(
      store: store, workspaces: workspaces,
      runner: ClaudeTurnRunner(
        runner: runner, defaults: options, isNetworkClosed: configuration.sandbox.network == .alwaysModelOnly),
      limits: limits(keys, places: runnerConfiguration.maximumProcesses), configuration: bounds, observer: metrics,
      logger: logger)
    let monitor = Monitor(
      metrics: metrics, runner: runner, service: service, store: store, log: log, gateway: gateway,
      databasePath: databasePath,
      directories: [configuration.stateDirectory, configuration.workspaceRoot],
      minimumFreeBytes: configuration.minimumFreeDisk)
    let start = AfterStart<WebSocketServer<SessionSockets>>.Start()
    let socketsListen = AfterStart<WebSocketServer<SessionSockets>>.Start()
    // The look at the CLI takes longer than the start may, and its outcome changes nothing of it.
    let examination = Mutex<Task<Void, Never>?>(nil)
    let api = API(
      service: service, configuration: apiConfiguration, keys: keys,
      files: FilesAPI(service: service, workspaces: workspaces, configuration: filesConfiguration(sandbox)),
      status: monitor)
    let server = FastCGIServer(
      responder: api.responder(), immediateResponder: api.immediateResponder,
      configuration: transportConfiguration(address, watchdog, metrics), logger: logger,
      onListening: {
        await runner.killStrays()
        try gateway.prepare()
        try await workspaces.removeLeftovers()
        // Before turns that were interrupted are charged with what they may have used.
        try await ledger.start(store)
        try await service.start()
        if try await !store.lookUpKey(nil).hasKeys {
          logger.warning(
            configuration.requiresKeys
              ? "There are no keys: nobody may use this server"
              : "There are no keys: every program on this machine may use this server, and nobody else",
            metadata: ["remedy": "claude-api-server keys create"])
          if sandbox == nil || configuration.sandbox.network == .open {
            logger.warning("That includes the agents, who reach this machine's network and so all sessions")
          }
        }
        examination.withLock { $0 = Task { await examine(runner, used, gateway, monitor) } }
        start.announce()
        // Whoever is told that this server is healthy may open a socket, too.
        await cancelWhenGracefulShutdown { await socketsListen.wait() }
        try manager.tell(.ready)
        logger.info("Listening", metadata: ["socket": "\(address)", "version": "\(Server.version)"])
      })
    let webSockets = WebSocketServer(
      application: api.sockets(socketConfiguration), configuration: try webSocketConfiguration(manager), logger: logger,
      onListening: { socketsListen.announce() })
    let watching = Task { await watchdog?.run() }
    defer { watching.cancel() }
    try await ServiceGroup(
      // They are stopped from the last to the first.
      services: [
        server, AfterStart(webSockets, start),
        StreamRevocationService(StreamRevocation(keys: keys, hub: service.hub, logger: logger)),
        Drain(
          service: service, monitor: monitor, manager: manager, patience: configuration.drainTimeout, logger: logger),
      ],
      gracefulShutdownSignals: [.sigterm, .sigint],
      logger: Logger(label: "services") { _ in SwiftLogNoOpLogHandler() }
    ).run()
    let examining = examination.withLock { $0 }
    examining?.cancel()
    await service.shutdown()
    await runner.shutdown(grace: .seconds(5))
    await examining?.value
    sandbox?.close()
    await ledger.stop()
    await store.close()
    logger.info("Stopped")
  }

  /// How long after a CLI was found wanting it is looked at again.
  private static let examinationInterval = Duration.seconds(30)

  /// Says at start what would otherwise be found out by the first message, and goes on looking as long as the CLI
  /// can't be used.
  private func examine(
    _ runner: ClaudeRunner, _ configuration: ClaudeRunnerConfiguration, _ gateway: ModelGateway, _ monitor: Monitor
  ) async {
    async let listening: Void = reportGateway(gateway)
    var told: String?
    while !Task.isCancelled {
      do {
        let probe = try await runner.probe()
        let rehearsal = Rehearsal(
          configuration: configuration, stateDirectory: self.configuration.stateDirectory, probe: probe)
        let isNew = try await rehearsal.run()
        monitor.rehearsed(nil)
        logger.info("Found the CLI", metadata: ["path": "\(probe.path)", "version": "\(probe.version)"])
        if isNew {
          logger.info("The CLI does all that is needed of it", metadata: ["version": "\(probe.version)"])
        }
        break
      } catch {
        guard !Task.isCancelled else { break }
        let failure = error as? ClaudeFailure
        let code = failure?.code ?? .startFailed
        monitor.rehearsed(code)
        let reason = failure?.message ?? "\(error)"
        if told != reason {
          logger.warning(
            "The CLI can't be used; messages will fail until this is put right",
            metadata: ["code": "\(code.rawValue)", "reason": "\(reason)"])
        }
        told = reason
      }
      do { try await Task.sleep(for: Self.examinationInterval) } catch { break }
    }
    await listening
  }

  private func reportGateway(_ gateway: ModelGateway) async {
    // nginx may start after the responder.
    for _ in 0..<20 where !gateway.isListening {
      do { try await Task.sleep(for: .milliseconds(500)) } catch { return }
    }
    if !gateway.isListening {
      logger.warning(
        "Nothing listens on the model's socket; messages will fail until nginx serves it",
        metadata: ["socket": "\(gateway.configuration.socket)"])
    }
  }

  private func gateway(_ eventLoopGroup: any EventLoopGroup, processes: Int) -> ModelGateway {
    let each = configuration.modelConnections(processes: processes, descriptors: clinux_raise_file_limit())
    if each < configuration.modelConnections {
      logger.info(
        "A process of the CLI may have fewer connections to the model than is set, as there may be so many processes",
        metadata: ["connections": "\(each)", "processes": "\(processes)"])
    }
    var gateway = ModelGatewayConfiguration(
      socket: configuration.modelSocket, tokenDirectory: configuration.modelTokenDirectory,
      socketDirectory: configuration.modelSocketDirectory, host: configuration.modelHost)
    gateway.maximumConnections = each
    return ModelGateway(gateway, eventLoopGroup: eventLoopGroup, logger: logger)
  }

  private var runnerConfiguration: ClaudeRunnerConfiguration {
    var runner = ClaudeRunnerConfiguration(instance: configuration.stateDirectory)
    if let path = configuration.claudePath { runner.executable = path }
    if let path = ProcessInfo.processInfo.environment["PATH"] { runner.searchPath = path }
    if let count = configuration.maximumProcesses { runner.maximumProcesses = count }
    runner.maximumStarting = configuration.maximumStarting
    runner.idleTimeout = configuration.idleTimeout
    runner.startTimeout = configuration.startTimeout
    runner.turnTimeout = configuration.turnTimeout
    runner.stallTimeout = configuration.stallTimeout
    runner.resultTimeout = configuration.resultTimeout
    runner.modelTimeout = configuration.modelTimeout
    runner.modelRetries = configuration.modelRetries
    runner.lineLimit = configuration.lineLimit
    return runner
  }

  /// One key alone can't take all places, unless the settings say so; without keys there is nobody to share with.
  private func limits(_ keys: any KeyStore, places: Int) -> KeyLimitPolicy {
    var defaults = configuration.keyLimits
    if defaults[setting: .runningTurns] == nil {
      defaults[setting: .runningTurns] = .maximum(Int64(max(1, places * 3 / 4)))
    }
    return KeyLimitPolicy(keys: keys, defaults: defaults, withoutKey: configuration.keyLimits)
  }

  private var apiConfiguration: APIConfiguration {
    var api = APIConfiguration(version: Server.version, model: model)
    api.maximumBodyBytes = configuration.maximumBody
    api.maximumPromptBytes = configuration.maximumPrompt
    api.requiresKeys = configuration.requiresKeys
    return api
  }

  private func filesConfiguration(_ sandbox: BubblewrapSandbox?) -> FilesConfiguration {
    var files = FilesConfiguration()
    if let rate = configuration.files.uploadRateOfKey { files.maximumUploadRateOfKey = rate }
    files.maximumShareLifetime = configuration.files.shareLifetime
    files.git.allowedSources = configuration.files.gitSources
    files.git.timeout = configuration.files.gitTimeout
    let variables = ["http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY"]
    files.git.environment = ProcessInfo.processInfo.environment.filter { variables.contains($0.key) }
    if let sandbox {
      // Its user's home is /tmp there, where ssh looks for keys and for the hosts that it knows.
      let keys = NSHomeDirectoryForUser(NSUserName()).map { $0 + "/.ssh" }
      files.git.sandbox = { command, directory, address in
        var readable: [(path: String, place: String)] = []
        if let path = address.localPath { readable.append((path, path)) }
        if address.scheme == .ssh, let keys { readable.append((keys, "/tmp/.ssh")) }
        return sandbox.wrap(command, in: directory, readable: readable)
      }
    }
    return files
  }

  private var model: APIConfiguration.Model {
    if configuration.demoModelURL != nil { return .demo }
    return .configured(host: configuration.modelURL == nil ? nil : configuration.modelHost)
  }

  private func address(_ manager: ServiceManager) throws -> FastCGIServerConfiguration.Address {
    if let descriptor = manager.sockets[.fastCGI] { return .inherited(descriptor: descriptor) }
    try Workspaces.makeDirectories(
      URL(filePath: configuration.socketPath).deletingLastPathComponent().path(percentEncoded: false))
    return .unixSocket(path: configuration.socketPath, mode: 0o660)
  }

  private func transportConfiguration(
    _ address: FastCGIServerConfiguration.Address, _ watchdog: Watchdog?, _ metrics: ServerMetrics
  ) -> FastCGIServerConfiguration {
    var transport = FastCGIServerConfiguration(address: address)
    transport.maximumBodyBytes = configuration.maximumBody
    transport.drainTimeout = Drain.requestPatience
    transport.onPulse = { metrics.pulse($0) }
    if let watchdog {
      transport.onHeartbeat = { watchdog.beat() }
      transport.heartbeatInterval = watchdog.heartbeatInterval
    }
    return transport
  }

  private func webSocketConfiguration(_ manager: ServiceManager) throws -> WebSocketServerConfiguration {
    let address: FastCGIServerConfiguration.Address
    if let descriptor = manager.sockets[.webSocket] {
      address = .inherited(descriptor: descriptor)
    } else {
      try Workspaces.makeDirectories(
        URL(filePath: configuration.webSocketPath).deletingLastPathComponent().path(percentEncoded: false))
      address = .unixSocket(path: configuration.webSocketPath, mode: 0o660)
    }
    var transport = WebSocketServerConfiguration(address: address)
    transport.maximumMessageBytes = configuration.webSocketMaximumMessage
    return transport
  }

  private var socketConfiguration: SessionSocketConfiguration {
    var sockets = SessionSocketConfiguration()
    sockets.allowedOrigins = Set(configuration.webSocketOrigins)
    return sockets
  }
}

/// Lets the running turns come to their end when a graceful shutdown begins, while requests are served as before.
/// The server, which comes after this, then finishes those that it has and takes no more.
private struct Drain: Service {
  /// How long requests may go on once no turn runs any more.
  static let requestPatience = Duration.seconds(30)
  /// For what comes after that: processes of the CLI that have to be killed, the closing of the store.
  private static let reserve = Duration.seconds(60)

  let service: SessionService
  let monitor: Monitor
  let manager: ServiceManager
  /// How long the turns may go on.
  let patience: Duration
  let logger: Logger

  func run() async throws {
    // They would keep the server from coming to its end.
    defer { service.endStreams() }
    try await gracefulShutdown()
    monitor.beginDraining()
    logger.info("Stopping; running turns have \(patience) to end, what waits runs after the next start")
    do throws(ServiceManager.Failure) {
      try manager.tell(.stopping(within: patience + Self.requestPatience + Self.reserve))
    } catch {
      logger.error("The service manager can't be reached", metadata: ["error": "\(error)"])
    }
    await service.shutdown(patience: patience)
  }
}

/// Runs a ``StreamRevocation`` until the end.
private struct StreamRevocationService: Service {
  let revocation: StreamRevocation

  init(_ revocation: StreamRevocation) {
    self.revocation = revocation
  }

  func run() async throws {
    await cancelWhenGracefulShutdown { await revocation.run() }
  }
}

import ClaudeAPI
import ClaudeRunner
import Foundation
import HummingbirdFastCGI
import Logging
import SQLiteStore
import Sandbox
import ServiceLifecycle
import Sessions
import Synchronization
import UnixSignals
import Workspaces

/// Puts the parts of the responder together and runs them.
struct Responder {
  private let configuration: ServerConfiguration
  private let logger: Logger

  init(_ configuration: ServerConfiguration) {
    self.configuration = configuration
    let level = Logger.Level(rawValue: configuration.logLevel) ?? .info
    LoggingSystem.bootstrap { label in
      var handler = StreamLogHandler.standardError(label: label)
      handler.logLevel = level
      return handler
    }
    logger = Logger(label: "claude-api")
  }

  func run() async throws {
    let workspaces = try Workspaces(
      root: configuration.workspaceRoot, configurationRoot: configuration.stateDirectory + "/claude-config",
      limits: configuration.files.limits)
    try Workspaces.makeDirectories(
      URL(filePath: configuration.socketPath).deletingLastPathComponent().path(percentEncoded: false))
    let gateway = gateway
    try Workspaces.makeDirectories(gateway.socketDirectory)
    try Workspaces.makeDirectories(gateway.tokenDirectory)
    let store = try await SQLiteSessionStore.open(
      SQLiteStoreConfiguration(path: configuration.stateDirectory + "/claude-api.sqlite"))
    let sandbox = try await Sandboxing(configuration, logger).sandbox()
    var runnerConfiguration = runnerConfiguration
    runnerConfiguration.sandbox = sandbox
    runnerConfiguration.gateway = gateway
    let runner = ClaudeRunner(configuration: runnerConfiguration, logger: logger)
    var options = ClaudeOptions()
    options.allowedTools = configuration.allowedTools
    var bounds = SessionServiceConfiguration()
    bounds.queueLimit = configuration.queueLength
    bounds.approvalTimeout = configuration.approvalTimeout
    let service = SessionService(
      store: store, workspaces: workspaces,
      runner: ClaudeTurnRunner(runner: runner, defaults: options),
      configuration: bounds, logger: logger)
    // The look at the CLI takes longer than the start may, and its outcome changes nothing of it.
    let examination = Mutex<Task<Void, Never>?>(nil)
    let keys = WatchedKeyStore(store, stateDirectory: configuration.stateDirectory)
    let api = API(
      service: service, configuration: apiConfiguration, keys: keys,
      files: FilesAPI(service: service, workspaces: workspaces, configuration: filesConfiguration(sandbox)))
    let server = FastCGIServer(
      responder: api.responder(),
      configuration: transportConfiguration, logger: logger,
      onListening: {
        // Only now is it certain that no other responder uses this state.
        await runner.killStrays()
        try gateway.prepare()
        try await workspaces.removeLeftovers()
        try await service.start()
        if try await !store.lookUpKey(nil).hasKeys {
          logger.warning(
            "There are no keys: every program on this machine may use this server, and nobody else",
            metadata: ["remedy": "claude-api-server keys create"])
          if sandbox == nil || configuration.sandbox.network == .open {
            logger.warning("That includes the agents, who reach this machine's network and so all sessions")
          }
        }
        examination.withLock { $0 = Task { await report(runner, gateway) } }
        logger.info(
          "Listening", metadata: ["socket": "\(configuration.socketPath)", "version": "\(Server.version)"])
      })
    try await ServiceGroup(
      // They are stopped from the last to the first.
      services: [
        server, StreamEnd(service: service),
        StreamRevocationService(StreamRevocation(keys: keys, hub: service.hub, logger: logger)),
      ],
      gracefulShutdownSignals: [.sigterm, .sigint],
      logger: Logger(label: "services") { _ in SwiftLogNoOpLogHandler() }
    ).run()
    logger.info("Stopping")
    examination.withLock { $0?.cancel() }
    await service.shutdown()
    await runner.shutdown(grace: .seconds(5))
    sandbox?.close()
    await store.close()
    logger.info("Stopped")
  }

  /// Says at start what would otherwise be found out by the first message.
  private func report(_ runner: ClaudeRunner, _ gateway: ModelGateway) async {
    do throws(ClaudeFailure) {
      let probe = try await runner.probe()
      logger.info("Found the CLI", metadata: ["path": "\(probe.path)", "version": "\(probe.version)"])
    } catch {
      guard !Task.isCancelled else { return }
      logger.warning(
        "The CLI can't be used; messages will fail until this is put right",
        metadata: ["code": "\(error.code.rawValue)", "reason": "\(error.message)"])
    }
    // nginx may start after the responder.
    for _ in 0..<20 where !gateway.isListening {
      do { try await Task.sleep(for: .milliseconds(500)) } catch { return }
    }
    if !gateway.isListening {
      logger.warning(
        "Nothing listens on the model's socket; messages will fail until nginx serves it",
        metadata: ["socket": "\(gateway.socket)"])
    }
  }

  private var gateway: ModelGateway {
    ModelGateway(
      socket: configuration.modelSocket, tokenDirectory: configuration.modelTokenDirectory,
      host: configuration.modelHost)
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
    runner.lineLimit = configuration.lineLimit
    return runner
  }

  private var apiConfiguration: APIConfiguration {
    var api = APIConfiguration(version: Server.version, model: model)
    api.maximumBodyBytes = configuration.maximumBody
    api.maximumPromptBytes = configuration.maximumPrompt
    return api
  }

  private func filesConfiguration(_ sandbox: BubblewrapSandbox?) -> FilesConfiguration {
    var files = FilesConfiguration()
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

  private var transportConfiguration: FastCGIServerConfiguration {
    var transport = FastCGIServerConfiguration(address: .unixSocket(path: configuration.socketPath, mode: 0o660))
    transport.maximumBodyBytes = configuration.maximumBody
    transport.drainTimeout = configuration.drainTimeout
    return transport
  }
}

/// Ends the streams of events when a graceful shutdown begins: they would keep the server from coming to its end.
private struct StreamEnd: Service {
  let service: SessionService

  func run() async throws {
    defer { service.endStreams() }
    try await gracefulShutdown()
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

import ClaudeRunner
import Glibc
import Logging
import Sandbox

/// Decides at start whether the CLI runs in a sandbox, and says so.
struct Sandboxing {
  private let settings: ServerConfiguration.Sandbox
  private let stateDirectory: String
  private let workspaceRoot: String
  private let logger: Logger

  init(_ configuration: ServerConfiguration, _ logger: Logger) {
    settings = configuration.sandbox
    stateDirectory = configuration.stateDirectory
    workspaceRoot = configuration.workspaceRoot
    self.logger = logger
  }

  /// - Returns: nil if there is to be none.
  /// - Throws: ``SandboxError`` if there must be one and it doesn't work.
  func sandbox() async throws(SandboxError) -> BubblewrapSandbox? {
    guard settings.mode != .off else {
      guard settings.network ?? .open == .open else {
        throw SandboxError("sandbox.network=model-only needs the sandbox, which is off.")
      }
      logger.warning("The sandbox is off: agents can do all that this server's user can, to all sessions")
      return nil
    }
    var configuration = SandboxConfiguration(supportDirectory: stateDirectory + "/sandbox")
    configuration.maximumProcesses = settings.maximumProcesses
    configuration.maximumMemory = settings.maximumMemory
    configuration.maximumProcessors =
      settings.maximumProcessors ?? ClaudeRunnerConfiguration.halfOfTheProcessors()
    configuration.maximumProcessorsOfKey =
      settings.maximumProcessorsOfKey ?? ClaudeRunnerConfiguration.threeQuartersOfTheProcessors()
    configuration.maximumDiskRateOfKey = settings.maximumDiskRateOfKey ?? 100_000_000
    configuration.agentDirectories = [workspaceRoot, stateDirectory + "/claude-config"]
    configuration.temporaryBytes = settings.temporaryBytes
    configuration.readOnlyPaths = settings.readOnlyPaths
    configuration.controlGroups = settings.controlGroups
    configuration.network = settings.network == .open ? .open : .modelOnly
    do {
      let sandbox = try await BubblewrapSandbox.prepare(configuration)
      report(sandbox, configuration.network)
      return sandbox
    } catch {
      guard settings.mode == .auto, !isAskedFor else { throw error }
      logger.warning(
        "There is no sandbox: agents can do all that this server's user can, to all sessions",
        metadata: ["reason": "\(error)"])
      return nil
    }
  }

  /// Settings that only a sandbox has are a wish for one, and may be what is wrong.
  private var isAskedFor: Bool {
    if case .directories = settings.controlGroups { return true }
    return !settings.readOnlyPaths.isEmpty || settings.network ?? .open != .open
  }

  private func report(_ sandbox: BubblewrapSandbox, _ network: ClaudeNetwork) {
    logger.info(
      "The sandbox works",
      metadata: [
        "network": "\(network.rawValue)", "bounds_memory": "\(sandbox.boundsMemory)",
        "bounds_processes": "\(sandbox.boundsProcesses || geteuid() != 0)",
        "bounds_processors": "\(sandbox.boundsProcessors)", "bounds_disk": "\(sandbox.boundsDisk)",
      ])
    if geteuid() == 0 && !sandbox.boundsProcesses {
      logger.warning("Root's processes are not counted: sandbox.max-processes has no effect without control groups")
    }
    if settings.maximumProcessors != nil || settings.maximumProcessorsOfKey != nil, !sandbox.boundsProcessors {
      logger.warning(
        "sandbox.max-processors and sandbox.max-processors-of-key have no effect without control groups")
    }
    if settings.maximumDiskRateOfKey != nil, !sandbox.boundsDisk {
      logger.warning(
        "sandbox.max-disk-rate-of-key has no effect without control groups of version 2 that bound these disks")
    }
  }
}

import Glibc
import Logging
import Sandbox

/// Decides at start whether the CLI runs in a sandbox, and says so.
struct Sandboxing {
  private let settings: ServerConfiguration.Sandbox
  private let stateDirectory: String
  private let logger: Logger

  init(_ configuration: ServerConfiguration, _ logger: Logger) {
    settings = configuration.sandbox
    stateDirectory = configuration.stateDirectory
    self.logger = logger
  }

  private func controlGroups() -> [String] {
    guard settings.controlGroups == [DelegatedControlGroup.setting] else { return settings.controlGroups }
    do {
      return [try DelegatedControlGroup.prepare()]
    } catch {
      // Without it the limits of processes hold.
      logger.warning("There is no control group for the sessions", metadata: ["reason": "\(error)"])
      return []
    }
  }

  /// - Returns: nil if there is to be none.
  /// - Throws: ``SandboxError`` if there must be one and it doesn't work.
  func sandbox() async throws(SandboxError) -> BubblewrapSandbox? {
    guard settings.mode != .off else {
      logger.warning("The sandbox is off: agents can do all that this server's user can, to all sessions")
      return nil
    }
    var configuration = SandboxConfiguration(supportDirectory: stateDirectory + "/sandbox")
    configuration.maximumProcesses = settings.maximumProcesses
    configuration.maximumMemory = settings.maximumMemory
    configuration.maximumProcessors = settings.maximumProcessors
    configuration.temporaryBytes = settings.temporaryBytes
    configuration.readOnlyPaths = settings.readOnlyPaths
    configuration.controlGroups = controlGroups()
    do {
      let sandbox = try await BubblewrapSandbox.prepare(configuration)
      logger.info("The sandbox works", metadata: ["control_groups": "\(sandbox.hasControlGroups)"])
      if geteuid() == 0 && !sandbox.hasControlGroups {
        logger.warning("Root's processes are not counted: sandbox.max-processes has no effect without control groups")
      }
      if settings.maximumProcessors != nil && !sandbox.hasControlGroups {
        logger.warning("sandbox.max-processors has no effect without control groups")
      }
      return sandbox
    } catch {
      // Settings that only a sandbox has are a wish for one, and may be what is wrong.
      guard settings.mode == .auto, settings.controlGroups.isEmpty, settings.readOnlyPaths.isEmpty else { throw error }
      logger.warning(
        "There is no sandbox: agents can do all that this server's user can, to all sessions",
        metadata: ["reason": "\(error)"])
      return nil
    }
  }
}

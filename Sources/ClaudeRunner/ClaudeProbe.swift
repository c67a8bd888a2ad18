import CLinux
import Glibc
import NIOCore
import NIOPosix

/// What is known of an installed CLI.
public struct ClaudeProbe: Sendable, Hashable {
  /// Absolute path.
  public var path: String
  /// Such as `2.1.330`.
  public var version: String

  /// The first version that reads a prompt as it is written, and never as a command of its own.
  public static let minimumVersion = "2.1.248"

  static func examine(
    _ path: String, _ configuration: ClaudeRunnerConfiguration, _ group: any EventLoopGroup
  ) async throws(ClaudeFailure) -> ClaudeProbe {
    let output = try await Self.output(of: path, configuration, group)
    // "2.1.330 (Claude Code)"
    let word = output.prefix { !$0.isWhitespace }
    guard let version = numbers(word), let minimum = numbers(Self.minimumVersion[...]) else {
      throw ClaudeFailure(
        .cliIncompatible,
        "\(path) doesn't seem to be the Claude Code CLI: --version printed '\(output.prefix(80))'.")
    }
    guard !version.lexicographicallyPrecedes(minimum) else {
      throw ClaudeFailure(
        .cliIncompatible,
        "\(path) is version \(word); at least \(Self.minimumVersion) is needed. Update the Claude Code CLI.")
    }
    return ClaudeProbe(path: path, version: String(word))
  }

  private static func numbers(_ version: Substring) -> [Int]? {
    let parts = version.split(separator: ".", omittingEmptySubsequences: false)
    let numbers = parts.compactMap { Int($0.prefix { $0.isNumber }) }
    return numbers.count == parts.count && numbers.count >= 3 ? numbers : nil
  }

  /// What `--version` prints, at most 4 KiB, within the start time-out.
  private static func output(
    of path: String, _ configuration: ClaudeRunnerConfiguration, _ group: any EventLoopGroup
  ) async throws(ClaudeFailure) -> String {
    var ends: [CInt] = [-1, -1]
    let number = clinux_pipe(&ends)
    guard number == 0 else {
      throw ClaudeFailure(.startFailed, "No pipe for a process: \(String(cString: strerror(number)))")
    }
    let nothing = open("/dev/null", O_RDWR | O_CLOEXEC)
    let (exits, exitSource) = AsyncStream<ClaudeExit>.makeStream()
    let output = ErrorOutput(limit: 4096)
    let closed: EventLoopFuture<Void>
    let pid: pid_t
    do {
      defer {
        close(nothing)
        close(ends[1])
      }
      let channel = try await NIOPipeBootstrap(group: group)
        .channelInitializer { channel in channel.pipeline.addHandler(output) }
        .takingOwnershipOfDescriptor(input: ends[0]).get()
      closed = channel.closeFuture
      pid = try await ProcessSupervisor.shared.spawn(
        ProcessSupervisor.Request(
          executable: path, arguments: [path, "--version"],
          environment: [
            "PATH": configuration.searchPath, "HOME": "/nonexistent", "LANG": "C.UTF-8",
            "DISABLE_AUTOUPDATER": "1", "DISABLE_TELEMETRY": "1", "DISABLE_ERROR_REPORTING": "1",
            "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
            StrayProcesses.instanceVariable: configuration.instance,
          ].merging(configuration.additionalEnvironment) { _, new in new },
          workingDirectory: "/", input: nothing, output: ends[1], errorOutput: nothing,
          onExit: { exit in
            exitSource.yield(exit)
            exitSource.finish()
          }))
    } catch let error as ProcessSupervisor.SpawnError {
      throw ClaudeFailure(.cliNotExecutable, "\(path) can't be run: \(error.text).")
    } catch {
      close(ends[0])
      throw ClaudeFailure(.startFailed, "\(path) can't be run: \(error)")
    }
    let timer = Task {
      do { try await Task.sleep(for: configuration.startTimeout) } catch { return }
      ProcessSupervisor.shared.signal(pid, SIGKILL, group: true)
    }
    defer { timer.cancel() }
    var exit = ClaudeExit.signal(SIGKILL)
    for await value in exits { exit = value }
    do {
      try await closed.get()
    } catch {
      // However the pipe closed, what came through it counts.
    }
    guard exit == .code(0) else {
      throw ClaudeFailure(
        .cliIncompatible, "\(path) --version ended with \(exit); it can't be the Claude Code CLI.", exit: exit
      )
    }
    return output.text
  }
}

import Foundation
import Synchronization

/// A child in a process group of its own.
///
/// When the child ends, whatever else is left of its group is killed.
public final class ChildProcess: Sendable {
  public enum Exit: Equatable, Sendable {
    case status(Int32)
    case signal(Int32)
  }

  private struct State {
    var exit: Exit?
    var waiters: [CheckedContinuation<Exit, Never>] = []
  }

  public let pid: Int32
  private let state = Mutex(State())

  /// Starts `arguments[0]`, which is looked up on PATH (and where Debian keeps servers).
  ///
  /// - Parameters:
  ///   - environment: changes to the environment of the test; nil removes a variable.
  ///   - output: file that takes standard output and standard error; it is created or appended to.
  ///   - descriptors: what the child gets as descriptor 3 and so on.
  public init(
    _ arguments: [String], environment: [String: String?] = [:], output: String, descriptors: [Int32] = []
  ) throws {
    var variables = ProcessInfo.processInfo.environment
    for (name, value) in environment { variables[name] = value }
    let search = (variables["PATH"] ?? "/usr/bin:/bin") + ":/usr/sbin:/sbin"
    variables["PATH"] = search
    let executable =
      arguments[0].contains("/")
      ? arguments[0]
      : search.split(separator: ":").map { "\($0)/\(arguments[0])" }.first { access($0, X_OK) == 0 }
        ?? arguments[0]

    // Not all that is open here would be closed for the child, such as the descriptors of event loops.
    for name in try FileManager.default.contentsOfDirectory(atPath: "/proc/self/fd") {
      if let descriptor = Int32(name), descriptor > 2 { _ = fcntl(descriptor, F_SETFD, FD_CLOEXEC) }
    }
    var actions = posix_spawn_file_actions_t()
    posix_spawn_file_actions_init(&actions)
    defer { posix_spawn_file_actions_destroy(&actions) }
    posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0)
    posix_spawn_file_actions_addopen(&actions, 1, output, O_WRONLY | O_CREAT | O_APPEND, 0o600)
    posix_spawn_file_actions_adddup2(&actions, 1, 2)
    // First out of the way of each other, then to their places.
    for (index, descriptor) in descriptors.enumerated() {
      posix_spawn_file_actions_adddup2(&actions, descriptor, 100 + Int32(index))
    }
    for index in descriptors.indices {
      posix_spawn_file_actions_adddup2(&actions, 100 + Int32(index), 3 + Int32(index))
      posix_spawn_file_actions_addclose(&actions, 100 + Int32(index))
    }

    var attributes = posix_spawnattr_t()
    posix_spawnattr_init(&attributes)
    defer { posix_spawnattr_destroy(&attributes) }
    var all = sigset_t()
    sigfillset(&all)
    var none = sigset_t()
    sigemptyset(&none)
    posix_spawnattr_setsigdefault(&attributes, &all)
    posix_spawnattr_setsigmask(&attributes, &none)
    posix_spawnattr_setpgroup(&attributes, 0)
    posix_spawnattr_setflags(
      &attributes, Int16(POSIX_SPAWN_SETPGROUP | POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETSIGMASK))

    var argv: [UnsafeMutablePointer<CChar>?] = arguments.map { strdup($0) } + [nil]
    var envp: [UnsafeMutablePointer<CChar>?] = variables.map { strdup("\($0)=\($1)") } + [nil]
    defer { for pointer in argv + envp { free(pointer) } }
    var child: pid_t = 0
    let code = posix_spawn(&child, executable, &actions, &attributes, &argv, &envp)
    guard code == 0 else { throw SystemError(call: "posix_spawn \(executable)", code: code) }
    pid = child
    Thread.detachNewThread { [self] in reap() }
  }

  /// Sends a signal to the child alone, unless it has ended.
  public func signal(_ number: Int32) {
    state.withLock { state in
      if state.exit == nil { _ = kill(pid, number) }
    }
  }

  /// How the child has ended, or nil if it hasn't.
  public var exit: Exit? { state.withLock { $0.exit } }

  /// Waits until the child has ended, and kills its group if the test may not wait any longer.
  public func waitForExit() async -> Exit {
    await withTaskCancellationHandler {
      await withCheckedContinuation { continuation in
        let exit = state.withLock { state in
          if state.exit == nil { state.waiters.append(continuation) }
          return state.exit
        }
        if let exit { continuation.resume(returning: exit) }
      }
    } onCancel: {
      signalGroup(SIGKILL)
    }
  }

  /// Ends the group: SIGTERM to all of it, and SIGKILL if the child is still there after `grace`.
  @discardableResult
  public func stop(grace: Duration = .seconds(10)) async -> Exit {
    signalGroup(SIGTERM)
    let killer = Task {
      try await Task.sleep(for: grace)
      signalGroup(SIGKILL)
    }
    defer { killer.cancel() }
    return await waitForExit()
  }

  private func signalGroup(_ number: Int32) {
    state.withLock { state in
      if state.exit == nil { _ = kill(-pid, number) }
    }
  }

  private func reap() {
    var information = siginfo_t()
    while waitid(P_PID, id_t(pid), &information, WEXITED | WNOWAIT) != 0, errno == EINTR {}
    // The child isn't reaped yet, so its number still belongs to its group.
    let (exit, waiters) = state.withLock { state in
      _ = kill(-pid, SIGKILL)
      var status: Int32 = 0
      while waitpid(pid, &status, 0) < 0, errno == EINTR {}
      let exit: Exit = status & 0x7f == 0 ? .status((status >> 8) & 0xff) : .signal(status & 0x7f)
      state.exit = exit
      defer { state.waiters = [] }
      return (exit, state.waiters)
    }
    for waiter in waiters { waiter.resume(returning: exit) }
  }
}

/// Runs `body` with a child, and ends the child and its group afterwards, also when `body` throws.
public func withChild<Result>(
  _ arguments: [String], environment: [String: String?] = [:], output: String,
  isolation: isolated (any Actor)? = #isolation, _ body: (ChildProcess) async throws -> Result
) async throws -> Result {
  let child = try ChildProcess(arguments, environment: environment, output: output)
  do {
    let result = try await body(child)
    await child.stop()
    return result
  } catch {
    await child.stop()
    throw error
  }
}

/// Runs a command to its end. Its output is in `output`.
public func run(
  _ arguments: [String], environment: [String: String?] = [:], output: String
) async throws -> ChildProcess.Exit {
  try await ChildProcess(arguments, environment: environment, output: output).waitForExit()
}

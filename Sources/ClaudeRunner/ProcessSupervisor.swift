import CLinux
import Glibc
import Synchronization

/// Starts all child processes from one thread, and notices and reaps their ends in the same one.
///
/// It must be one thread that lives as long as the process: the children ask for SIGKILL when the thread that
/// started them ends. And only a single place that reaps can never take the status of a child from its owner,
/// or send a signal to a number that belongs to someone else by now: every signal goes through here and is sent
/// before the child is reaped. Waiting costs nothing, however many children there are.
final class ProcessSupervisor: Sendable {
  static let shared = ProcessSupervisor()

  struct Request: Sendable {
    var executable: String
    var arguments: [String]
    var environment: [String: String]
    var workingDirectory: String
    var input: CInt
    var output: CInt
    var errorOutput: CInt
    /// Called once, on the supervisor's thread, when the child is gone and its process group with it.
    var onExit: @Sendable (ClaudeExit) -> Void
  }

  enum Stage: Sendable {
    /// There is no process at all.
    case system
    case workingDirectory
    case executable
  }

  struct SpawnError: Error {
    var stage: Stage
    var number: CInt
    var text: String { String(cString: strerror(number)) }
  }

  private enum Command: Sendable {
    case spawn(Request, @Sendable (Result<pid_t, SpawnError>) -> Void)
    case signal(pid_t, CInt, group: Bool)
    case reapOrphans
  }

  private struct Child {
    var pidfd: CInt
    var onExit: @Sendable (ClaudeExit) -> Void
  }

  private let commands = Mutex<[Command]>([])
  private let wakeup: CInt

  private init() {
    wakeup = clinux_wakeup()
    precondition(wakeup >= 0, "no descriptor left for the process supervisor")
    // Orphans of the CLI come to this process, where they can be found and reaped, and not to init.
    _ = clinux_become_subreaper()
    let start: @convention(c) (UnsafeMutableRawPointer?) -> UnsafeMutableRawPointer? = { context in
      if let context { Unmanaged<ProcessSupervisor>.fromOpaque(context).takeRetainedValue().run() }
      return nil
    }
    var thread = pthread_t()
    let error = pthread_create(&thread, nil, start, Unmanaged.passRetained(self).toOpaque())
    precondition(error == 0, "no thread for the process supervisor")
    pthread_detach(thread)
  }

  /// Starts a process; the descriptors may be closed by the caller afterwards.
  func spawn(_ request: Request) async throws(SpawnError) -> pid_t {
    let result = await withCheckedContinuation { continuation in
      send(.spawn(request) { continuation.resume(returning: $0) })
    }
    return try result.get()
  }

  /// Sends a signal to a child, or to its whole group, unless it has been reaped.
  func signal(_ pid: pid_t, _ number: CInt, group: Bool = false) {
    send(.signal(pid, number, group: group))
  }

  /// Reaps what was killed without being a child of its own.
  func reapOrphans() {
    send(.reapOrphans)
  }

  private func send(_ command: Command) {
    commands.withLock { $0.append(command) }
    var one: UInt64 = 1
    // It can only fail if the counter is full, and then the thread is awake anyway.
    _ = write(wakeup, &one, 8)
  }

  // MARK: on the thread

  private func run() {
    clinux_name_thread("supervisor")
    var children: [pid_t: Child] = [:]
    while true {
      var descriptors = [pollfd(fd: wakeup, events: Int16(POLLIN), revents: 0)]
      let order = Array(children.keys)
      for pid in order {
        descriptors.append(pollfd(fd: children[pid]?.pidfd ?? -1, events: Int16(POLLIN), revents: 0))
      }
      // Orphans give no notice when they end, so they are looked for now and then while there can be any.
      let timeout: CInt = children.isEmpty ? -1 : 10_000
      let ready = poll(&descriptors, nfds_t(descriptors.count), timeout)
      if ready < 0 { continue }
      if descriptors[0].revents != 0 {
        var count: UInt64 = 0
        _ = read(wakeup, &count, 8)
      }
      var someEnded = ready == 0
      for (index, pid) in order.enumerated() where descriptors[index + 1].revents != 0 {
        someEnded = reap(pid, from: &children) || someEnded
      }
      if someEnded { Self.reapAdopted() }
      let pending = commands.withLock { commands in
        defer { commands = [] }
        return commands
      }
      for command in pending { execute(command, &children) }
    }
  }

  private func execute(_ command: Command, _ children: inout [pid_t: Child]) {
    switch command {
    case .spawn(let request, let reply):
      let result = Self.spawnNow(request)
      switch result {
      case .success(let (pid, pidfd)):
        children[pid] = Child(pidfd: pidfd, onExit: request.onExit)
        reply(.success(pid))
      case .failure(let error): reply(.failure(error))
      }
    case .reapOrphans: Self.reapAdopted()
    case .signal(let pid, let number, let group):
      guard let child = children[pid] else { return }
      if group {
        _ = kill(-pid, number)
      } else {
        _ = clinux_pidfd_send_signal(child.pidfd, number)
      }
    }
  }

  private static func spawnNow(_ request: Request) -> Result<(pid_t, CInt), SpawnError> {
    func withCStrings<R>(
      _ strings: [String], _ body: (UnsafePointer<UnsafeMutablePointer<CChar>?>) -> R
    ) -> R {
      var pointers = strings.map { strdup($0) } + [nil]
      defer { for pointer in pointers { free(pointer) } }
      return body(&pointers)
    }
    let environment = request.environment.sorted { $0.key < $1.key }.map { "\($0.key)=\($0.value)" }
    let result = withCStrings(request.arguments) { arguments in
      withCStrings(environment) { environment in
        clinux_spawn(
          request.executable, arguments, environment, request.workingDirectory, request.input,
          request.output, request.errorOutput, oomScoreAdjustment)
      }
    }
    switch UInt32(bitPattern: result.stage) {
    case CLINUX_SPAWN_OK.rawValue: return .success((result.pid, result.pidfd))
    case CLINUX_SPAWN_CHDIR.rawValue:
      return .failure(SpawnError(stage: .workingDirectory, number: result.error))
    case CLINUX_SPAWN_EXEC.rawValue: return .failure(SpawnError(stage: .executable, number: result.error))
    default: return .failure(SpawnError(stage: .system, number: result.error))
    }
  }

  /// Memory pressure should end a CLI, which can be resumed, rather than the server.
  private static let oomScoreAdjustment: CInt = 500

  private func reap(_ pid: pid_t, from children: inout [pid_t: Child]) -> Bool {
    guard let child = children[pid] else { return false }
    // The group first: as long as the leader is not reaped, its number can't belong to anyone else.
    _ = kill(-pid, SIGKILL)
    var code: CInt = 0
    var status: CInt = 0
    guard clinux_pidfd_reap(child.pidfd, &code, &status) != 0 else { return false }
    close(child.pidfd)
    children[pid] = nil
    child.onExit(code == CInt(CLD_EXITED) ? .code(status) : .signal(status))
    return true
  }

  /// Reaps what became a child by adoption and has ended.
  ///
  /// A child that another part of this program started by other means than `clinux_spawn` is in this program's session
  /// and is left to it; those of the CLI never are.
  private static func reapAdopted() {
    let ownSession = getsid(0)
    for thread in ProcFS.numbers(in: "/proc/self/task") {
      for text in ProcFS.text("/proc/self/task/\(thread)/children").split(separator: " ") {
        guard let pid = pid_t(text), let status = ProcFS.status(of: pid), status.isZombie,
          status.session != ownSession
        else { continue }
        clinux_reap_orphan(pid)
      }
    }
  }
}

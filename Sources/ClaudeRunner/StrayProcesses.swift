import CLinux
import Glibc
import NIOPosix

/// Finds and kills what outlives the CLI: tools that left its process group (each one does) or lost their
/// parent. They are known by a variable of their environment.
struct StrayProcesses: Sendable {
  static let sessionVariable = "CLAUDE_API_SESSION_ID"
  static let instanceVariable = "CLAUDE_API_INSTANCE"

  /// A whole entry of the environment, `NAME=value`.
  private let marker: [UInt8]
  /// If only tools are meant: the CLI whose they are, and when the first of them can have begun.
  private var tools: (cli: pid_t, since: UInt64)?

  static func ofSession(_ id: String) -> StrayProcesses { StrayProcesses(sessionVariable, id) }
  static func ofInstance(_ id: String) -> StrayProcesses { StrayProcesses(instanceVariable, id) }

  /// What the tools of a session have started since a moment of ``ProcFS/now``.
  ///
  /// The CLI makes each tool the leader of a session in the system's sense. What it runs for itself, such as MCP
  /// servers, stays in its own.
  static func ofTools(ofSession id: String, cli: pid_t, since start: UInt64) -> StrayProcesses {
    var strays = ofSession(id)
    strays.tools = (cli, start)
    return strays
  }

  /// About 0.5 s.
  private static let undecidedRounds = 30

  private init(_ name: String, _ value: String) {
    marker = Array("\(name)=\(value)".utf8)
  }

  /// Kills them with SIGKILL until there are none, in some 2 s at most.
  ///
  /// - Parameter grace: how long they may take to end by themselves before that.
  /// - Returns: how many there were. One that the kernel does not let die is given up on.
  @discardableResult
  func kill(grace: Duration = .zero) async -> Int {
    // Reading /proc may block, so it happens in a thread that is there for it.
    do {
      return try await NIOThreadPool.singleton.runIfActive { killNow(grace) }
    } catch {
      return killNow(grace)
    }
  }

  private func killNow(_ grace: Duration) -> Int {
    let end = ContinuousClock.now + grace
    while grace > .zero, .now < end {
      let (found, undecided) = look()
      if found.isEmpty, !undecided { return 0 }
      usleep(10_000)
    }
    var killed: Set<pid_t> = []
    for round in 0..<100 {
      let (found, undecided) = look()
      // One that starts a program can be told apart soon. One that stays as it is has hidden its environment, and must not
      // keep the ends of all other sessions waiting.
      guard !found.isEmpty || (undecided && round < Self.undecidedRounds) else { break }
      for pid in found {
        let pidfd = clinux_pidfd_open(pid)
        guard pidfd >= 0 else { continue }
        defer { close(pidfd) }
        // Looked at once more: until now the number could have passed to another process.
        guard isMarked(ProcFS.environment(of: pid)) else { continue }
        if clinux_pidfd_send_signal(pidfd, SIGKILL) == 0 { killed.insert(pid) }
      }
      usleep(round < 5 ? 1000 : 20_000)
    }
    if !killed.isEmpty { ProcessSupervisor.shared.reapOrphans() }
    return killed.count
  }

  func find() -> [pid_t] { look().found }

  /// - Returns: also whether there is a process that can't be told yet, because it is starting a program.
  private func look() -> (found: [pid_t], undecided: Bool) {
    let own = getpid()
    let user = geteuid()
    var found: [pid_t] = []
    var undecided = false
    for pid in ProcFS.numbers(in: "/proc") where pid != own && ProcFS.owner(of: pid) == user {
      let environment = ProcFS.environment(of: pid)
      if isMarked(environment) {
        if isMeant(pid) { found.append(pid) }
      } else if environment.isEmpty, let status = ProcFS.status(of: pid), !status.isZombie,
        !status.hasEmptyEnvironment
      {
        undecided = true
      }
    }
    return (found, undecided)
  }

  private func isMeant(_ pid: pid_t) -> Bool {
    guard let tools else { return true }
    guard let status = ProcFS.status(of: pid), status.session != tools.cli else { return false }
    // Its own time counts where the tool has gone and left it behind.
    return (ProcFS.status(of: status.session)?.start ?? status.start) >= tools.since
  }

  private func isMarked(_ environment: [UInt8]) -> Bool {
    // A process that has ended but isn't reaped has no environment any more, so it is not found again.
    environment.split(separator: 0).contains { $0.elementsEqual(marker) }
  }
}

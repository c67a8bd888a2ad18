import CLinux
import Glibc
import NIOPosix
import Synchronization

/// How repositories are brought in.
public struct GitConfiguration: Sendable {
  /// Makes a command run in a sandbox, which has to reach the address.
  ///
  /// - Parameter directory: the directory in which it works, the only one that it may write to.
  public typealias Sandbox =
    @Sendable (
      _ command: [String], _ directory: String, _ address: GitURL
    ) throws -> [String]

  /// The places below which repositories may be; there are none at first.
  public var allowedSources: [GitURL] = []
  /// How long it may take. Default 5 min.
  public var timeout: Duration = .seconds(300)
  /// Nil for none.
  public var sandbox: Sandbox?
  public var executable = "/usr/bin/git"
  /// Variables of the server's environment that git is given: how to reach the network.
  public var environment: [String: String] = [:]

  public init() {}

  public func allows(_ url: GitURL) -> Bool {
    !url.components.isEmpty && allowedSources.contains { url.isWithin($0) }
  }
}

extension Workspaces {
  /// Threads that wait for git. They live as long as the process, which git doesn't outlive by this.
  private static let cloneThreads: NIOThreadPool = {
    let threads = NIOThreadPool(numberOfThreads: 4)
    threads.start()
    return threads
  }()

  /// Clones a repository beside the workspaces. It is ended when the task is cancelled.
  ///
  /// Git runs with an environment and configuration of its own: it asks nobody, runs no hook, follows no redirection,
  /// uses no protocol but that of the address, and brings no submodules. What it writes is counted meanwhile.
  ///
  /// - Throws: ``GitError`` or ``FileError``; nothing is left then.
  public func clone(_ source: GitSource, _ configuration: GitConfiguration) async throws -> StagedTree {
    guard configuration.allows(source.url) else { throw GitError.notAllowed }
    let isCancelled = Cancellation()
    return try await withTaskCancellationHandler {
      try await Self.cloneThreads.runIfActive { [self] in
        let name = StagedFile.newName()
        guard mkdirat(stagingDescriptor, name, 0o700) == 0 else { throw FileError("mkdir") }
        defer { _ = clinux_remove_tree(stagingDescriptor, name, .max) }
        let directory = try Descriptor(
          openat(stagingDescriptor, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC), "openat")
        let process = GitProcess(
          source, configuration, path: "\(root)/\(Self.staging)/\(name)", directory: directory.raw, limits: limits)
        try process.run { isCancelled.isSet }
        let tree = StagedFile.newName()
        let moved = GitProcess.target.withCString { clinux_rename(directory.raw, $0, stagingDescriptor, tree, 0) }
        guard moved == 0 else { throw FileError("rename") }
        do {
          let content = try Descriptor(
            openat(stagingDescriptor, tree, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC), "openat")
          return StagedTree(name: tree, usage: try GitProcess.usage(of: content.raw, limits), self)
        } catch {
          _ = clinux_remove_tree(stagingDescriptor, tree, .max)
          throw error
        }
      }
    } onCancel: {
      isCancelled.set()
    }
  }
}

private final class Cancellation: Sendable {
  private let value = Atomic(false)

  var isSet: Bool { value.load(ordering: .relaxed) }

  func set() { value.store(true, ordering: .relaxed) }
}

/// One run of git, by a thread that waits for it.
private struct GitProcess {
  /// The name of the clone in the directory that git runs in.
  static let target = "tree"
  private static let home = "home"
  private static let limiter = "/usr/bin/prlimit"
  /// Bytes of what it says that are kept, from the end.
  private static let keptOutput = 4096
  private static let poll: Int32 = 100

  let source: GitSource
  let configuration: GitConfiguration
  let path: String
  let directory: CInt
  let limits: WorkspaceLimits

  init(
    _ source: GitSource, _ configuration: GitConfiguration, path: String, directory: CInt, limits: WorkspaceLimits
  ) {
    self.source = source
    self.configuration = configuration
    self.path = path
    self.directory = directory
    self.limits = limits
  }

  private var arguments: [String] {
    var arguments = [configuration.executable]
    for setting in [
      "core.hooksPath=/dev/null", "core.fsmonitor=false", "credential.helper=", "http.followRedirects=false",
      "http.lowSpeedLimit=1000", "http.lowSpeedTime=60", "submodule.recurse=false", "advice.detachedHead=false",
    ] { arguments += ["-c", setting] }
    arguments += ["clone", "--quiet", "--no-local", "--no-recurse-submodules", "--template=", "--origin=origin"]
    if let reference = source.reference { arguments.append("--branch=\(reference)") }
    if let depth = source.depth { arguments.append("--depth=\(depth)") }
    return arguments + ["--", source.url.text, Self.target]
  }

  private var environment: [String] {
    var variables = configuration.environment
    variables.merge(
      [
        "PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": "\(path)/\(Self.home)", "LANG": "C.UTF-8",
        "GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_ATTR_NOSYSTEM": "1",
        "GIT_TERMINAL_PROMPT": "0", "GIT_ASKPASS": "/bin/false", "SSH_ASKPASS": "/bin/false",
        "GIT_ALLOW_PROTOCOL": source.url.scheme.rawValue, "GIT_LFS_SKIP_SMUDGE": "1",
        "GIT_SSH_COMMAND":
          "/usr/bin/ssh -o BatchMode=yes -o StrictHostKeyChecking=yes -o ClearAllForwardings=yes -o ConnectTimeout=20",
      ]
    ) { _, new in new }
    return variables.sorted { $0.key < $1.key }.map { "\($0.key)=\($0.value)" }
  }

  /// Bytes that a single file may have. More than the workspace may hold, so that it is the count that tells.
  private var fileLimit: Int64 { min(limits.bytes, .max - Self.fileSlack) + Self.fileSlack }
  private static let fileSlack: Int64 = 256 << 20

  /// - Throws: ``GitError`` or ``FileError`` if git didn't make the clone.
  func run(isCancelled: () -> Bool) throws {
    guard Self.home.withCString({ mkdirat(directory, $0, 0o700) }) == 0 else { throw FileError("mkdir") }
    var command = [Self.limiter, "--core=0", "--fsize=\(fileLimit)", "--"] + arguments
    if let sandbox = configuration.sandbox { command = try sandbox(command, path, source.url) }
    var ends: [CInt] = [-1, -1]
    guard clinux_pipe(&ends) == 0 else { throw FileError("pipe") }
    let input = open("/dev/null", O_RDWR | O_CLOEXEC)
    let child = spawn(command, input: input, output: ends[1])
    close(input)
    close(ends[1])
    defer { close(ends[0]) }
    guard child.pidfd >= 0 else {
      throw GitError.unavailable("\(command[0]): \(String(cString: strerror(child.error)))")
    }
    defer { close(child.pidfd) }
    _ = fcntl(ends[0], F_SETFL, O_NONBLOCK)
    var output: [UInt8] = []
    var reason: (any Error)?
    let deadline = ContinuousClock.now + configuration.timeout
    var nextCount = ContinuousClock.now
    var status: (code: Int32, value: Int32) = (0, 0)
    while true {
      var waits = [pollfd(fd: child.pidfd, events: Int16(POLLIN), revents: 0)]
      Glibc.poll(&waits, 1, Self.poll)
      Self.read(ends[0], &output)
      if waits[0].revents != 0 {
        // It leads a group of its own, which keeps its number until it is reaped. Something else of the group may
        // still be there, though not out of a sandbox.
        kill(-child.pid, SIGKILL)
        guard clinux_pidfd_reap(child.pidfd, &status.code, &status.value) == 1 else {
          throw GitError.unavailable("wait for git")
        }
        break
      }
      if reason == nil {
        if isCancelled() { reason = CancellationError() }
        if ContinuousClock.now > deadline { reason = GitError.timedOut(configuration.timeout) }
        if reason == nil, ContinuousClock.now > nextCount {
          let begin = ContinuousClock.now
          do throws(FileError) { _ = try Self.usage(of: directory, limits) } catch { reason = error }
          nextCount = .now + max(.milliseconds(200), (ContinuousClock.now - begin) * 10)
        }
        if reason != nil { kill(-child.pid, SIGKILL) }
      }
    }
    Self.read(ends[0], &output)
    if let reason { throw reason }
    guard status.code == CLD_EXITED, status.value == 0 else { throw failure(output) }
    _ = try Self.usage(of: directory, limits)
  }

  private func spawn(_ command: [String], input: CInt, output: CInt) -> clinux_spawn_result {
    let arguments: [UnsafeMutablePointer<CChar>?] = command.map { strdup($0) } + [nil]
    let variables: [UnsafeMutablePointer<CChar>?] = environment.map { strdup($0) } + [nil]
    defer { for text in arguments + variables { free(text) } }
    return clinux_spawn(command[0], arguments, variables, path, input, output, output, -1001)
  }

  /// Takes what is there, and keeps the end of it.
  private static func read(_ descriptor: CInt, _ output: inout [UInt8]) {
    var buffer = [UInt8](repeating: 0, count: 4096)
    // A bound also for somebody who writes faster than this reads.
    for _ in 0..<64 {
      let count = Glibc.read(descriptor, &buffer, buffer.count)
      guard count > 0 else { return }
      output += buffer[..<count]
      output.removeFirst(max(output.count - keptOutput, 0))
    }
  }

  private func failure(_ output: [UInt8]) -> any Error {
    let text = String(decoding: output, as: UTF8.self)
    if text.contains("No space left on device") || text.contains("Disk quota exceeded") { return FileError.diskFull }
    if text.contains("File too large") { return FileError.quotaExceeded(.bytes, limit: limits.bytes) }
    var lines = text.split(whereSeparator: \.isNewline)[...]
    // What this follows is the reason, such as one of ssh's.
    if let end = lines.firstIndex(where: { $0.hasPrefix("fatal: Could not read from remote") }), end > 0 {
      lines = lines[..<end]
    }
    let line = lines.last { $0.hasPrefix("fatal:") } ?? lines.last { $0.hasPrefix("error:") } ?? lines.last ?? ""
    return GitError.failed(String(line.prefix(300).filter { !$0.isNewline && $0 != "\0" }))
  }

  /// - Throws: `quotaExceeded` if there is too much.
  static func usage(of directory: CInt, _ limits: WorkspaceLimits) throws(FileError) -> WorkspaceUsage {
    let usage = try limits.count(directory)
    if let excess = limits.excess(of: usage) { throw excess }
    return usage
  }
}

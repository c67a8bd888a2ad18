public import ClaudeRunner
import Foundation

/// Runs each CLI in namespaces of its own, with the session's two directories as the only ones that it can write.
///
/// Inside, the paths of these directories are the same as outside, since the CLI finds its transcripts by them; the
/// directories above them are empty. The network is that of the host, or none but the model's socket. When the
/// command ends, or the server does, the kernel kills whatever else is left inside.
///
/// The environment is the one that bubblewrap itself is started with: on its command line everybody could read it.
/// It is exactly that of the ``ClaudeLaunch``.
public struct BubblewrapSandbox: ClaudeSandbox {
  /// Sets limits and becomes the command.
  private static let limiter = "/usr/bin/prlimit"
  private static let places = ["/usr/bin/bwrap", "/usr/local/bin/bwrap", "/bin/bwrap"]
  private static let user = 1000

  /// What of /etc programs need to find libraries, names, certificates, times and their own defaults.
  private static let systemFiles = [
    "alternatives", "bash.bashrc", "ca-certificates", "ca-certificates.conf", "claude-code", "debian_version",
    "default/locale", "gai.conf", "host.conf", "hosts", "inputrc", "ld.so.cache", "ld.so.conf", "ld.so.conf.d",
    "locale.conf", "localtime", "magic", "mime.types", "nsswitch.conf", "os-release", "perl", "profile", "protocols",
    "python3", "resolv.conf", "services", "ssl/certs", "ssl/openssl.cnf", "terminfo", "timezone",
  ]

  /// Whether there are control groups that bound all of a session together: its memory, its processes, its
  /// processors.
  public var boundsMemory: Bool { groups?.bounds(.memory) ?? false }
  public var boundsProcesses: Bool { groups?.bounds(.processes) ?? false }
  public var boundsProcessors: Bool { groups?.bounds(.processors) ?? false }
  /// Whether there are some that bound what all sessions of a key read from and write to the disks of their files.
  public var boundsDisk: Bool { groups?.bounds(.disk) ?? false }

  let configuration: SandboxConfiguration
  let bubblewrap: String
  let systemArguments: [String]
  private let groups: ControlGroups?

  var passwords: String { configuration.supportDirectory + "/passwd" }
  var groupNames: String { configuration.supportDirectory + "/group" }

  /// Makes the sandbox and tries it.
  ///
  /// - Throws: ``SandboxError`` if a command can't be run in it here.
  public static func prepare(_ configuration: SandboxConfiguration) async throws(SandboxError) -> BubblewrapSandbox {
    let sandbox = try BubblewrapSandbox(configuration)
    try await sandbox.probe()
    return sandbox
  }

  private init(_ configuration: SandboxConfiguration) throws(SandboxError) {
    self.configuration = configuration
    let candidates = configuration.bubblewrap.map { [$0] } ?? Self.places
    guard let path = candidates.first(where: { access($0, X_OK) == 0 }) else {
      throw SandboxError("There is no bubblewrap at \(candidates.joined(separator: " or ")).")
    }
    bubblewrap = path
    guard access(Self.limiter, X_OK) == 0 else { throw SandboxError("There is no \(Self.limiter).") }
    systemArguments = Self.systemDirectories()
    switch configuration.controlGroups {
    case .none: groups = nil
    case .directories(let directories): groups = try ControlGroups(directories, configuration)
    case .automatic:
      let found = ControlGroupDiscovery(name: Self.groupName(configuration)).find()
      do {
        groups = found.isEmpty ? nil : try ControlGroups(found, configuration)
      } catch {
        // Nobody has asked for them; the limits of processes hold.
        groups = nil
      }
    }
    do {
      try FileManager.default.createDirectory(
        atPath: configuration.supportDirectory, withIntermediateDirectories: true,
        attributes: [.posixPermissions: 0o700])
      try Data(
        """
        root:x:0:0:root:/nonexistent:/usr/sbin/nologin
        agent:x:\(Self.user):\(Self.user)::/tmp:/bin/bash
        nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin

        """.utf8
      ).write(to: URL(filePath: configuration.supportDirectory + "/passwd"), options: .atomic)
      try Data("root:x:0:\nagent:x:\(Self.user):\nnogroup:x:65534:\n".utf8)
        .write(to: URL(filePath: configuration.supportDirectory + "/group"), options: .atomic)
    } catch {
      throw SandboxError("\(configuration.supportDirectory) can't be used: \(error.localizedDescription)")
    }
  }

  /// The same for each run with the same support directory, so that what a killed server left is found.
  private static func groupName(_ configuration: SandboxConfiguration) -> String {
    // FNV-1a.
    let hash = configuration.supportDirectory.utf8.reduce(0xcbf2_9ce4_8422_2325 as UInt64) {
      ($0 ^ UInt64($1)) &* 0x100_0000_01b3
    }
    return "claude-api-" + String(hash, radix: 16)
  }

  public func outOfMemoryKills(ofSession id: String) -> Int? { groups?.outOfMemoryKills(id) }

  /// Removes what is left when all sessions have ended. It can't be used afterwards.
  public func close() { groups?.removeAll() }

  // MARK: The command line

  public func wrap(_ command: [String], for launch: ClaudeLaunch) throws -> [String] {
    let joining = try groups?.enter(launch.sessionID, of: launch.account) ?? []
    return joining + [bubblewrap] + arguments(for: launch) + ["--"] + limits + command
  }

  private func arguments(for launch: ClaudeLaunch) -> [String] {
    let temporary = String(configuration.temporaryBytes)
    var arguments = [
      "--unshare-user", "--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try",
      // No further user namespaces: what they allow is where most holes of the kernel were.
      "--disable-userns", "--uid", String(Self.user), "--gid", String(Self.user), "--hostname", "sandbox",
      "--die-with-parent", "--new-session",
    ]
    if launch.network ?? configuration.network == .modelOnly { arguments.append("--unshare-net") }
    arguments += systemArguments
    arguments += ["--ro-bind", passwords, "/etc/passwd", "--ro-bind", groupNames, "/etc/group"]
    arguments += ["--proc", "/proc", "--dev", "/dev", "--size", temporary, "--perms", "1777", "--tmpfs", "/dev/shm"]
    arguments += ["--size", temporary, "--perms", "1777", "--tmpfs", "/tmp", "--symlink", "../tmp", "/var/tmp"]
    for path in configuration.readOnlyPaths { arguments += ["--ro-bind", path, path] }
    // The session's own: what it sees of the way to the model.
    if let path = launch.gatewayDirectory { arguments += ["--ro-bind", path, path] }
    // The program after /tmp, and the session after the program: each may lie in the one before.
    for path in Self.programFiles(launch.executable) { arguments += ["--ro-bind", path, path] }
    for path in [launch.workingDirectory, launch.configDirectory] { arguments += ["--bind", path, path] }
    // The rest would be memory without a bound. And started by root, whoever is inside is root to the files of
    // /proc, some of which decide what the host's kernel runs.
    for path in ["/proc", "/dev", "/"] { arguments += ["--remount-ro", path] }
    return arguments + ["--chdir", launch.workingDirectory]
  }

  /// The server has far more.
  private static let maximumDescriptors = 4096

  /// Inside of the namespaces, so that the processes of this sandbox alone are counted.
  var limits: [String] {
    var limits = [
      Self.limiter, "--core=0", "--nproc=\(configuration.maximumProcesses)", "--nofile=\(Self.maximumDescriptors)",
    ]
    // Not the address space: the CLI's engine reserves far more of it than it uses.
    if !boundsMemory { limits.append("--data=\(configuration.maximumMemory)") }
    return limits + ["--"]
  }

  private static func systemDirectories() -> [String] {
    var arguments = ["--ro-bind", "/usr", "/usr"]
    for name in ["bin", "sbin", "lib", "lib32", "lib64", "libx32"] {
      if let target = linkTarget("/" + name) {
        arguments += ["--symlink", target, "/" + name]
      } else {
        arguments += ["--ro-bind-try", "/" + name, "/" + name]
      }
    }
    for name in systemFiles { arguments += ["--ro-bind-try", "/etc/" + name, "/etc/" + name] }
    return arguments
  }

  /// The paths that must exist inside for a program to start: its own, and that of the file it is a link to.
  private static func programFiles(_ executable: String) -> [String] {
    let file = realpath(executable, nil).map { path in
      defer { free(path) }
      return String(cString: path)
    }
    var paths = [executable]
    if let file, file != executable { paths.append(file) }
    return paths.filter { path in
      !["/usr/", "/bin/", "/sbin/", "/lib/", "/lib64/"].contains { path.hasPrefix($0) }
    }
  }

  private static func linkTarget(_ path: String) -> String? {
    var buffer = [UInt8](repeating: 0, count: Int(PATH_MAX))
    let count = readlink(path, &buffer, buffer.count)
    return count > 0 ? String(decoding: buffer[..<count], as: UTF8.self) : nil
  }

  // MARK: The trial

  private func probe() async throws(SandboxError) {
    let directory = configuration.supportDirectory + "/trial-\(UUID().uuidString)"
    let launch = ClaudeLaunch(
      sessionID: UUID().uuidString.lowercased(), executable: "/usr/bin/true", arguments: [], environment: [:],
      workingDirectory: directory + "/workspace", configDirectory: directory + "/configuration")
    let status: Int32
    let text: String
    do {
      for path in [launch.workingDirectory, launch.configDirectory] {
        try FileManager.default.createDirectory(atPath: path, withIntermediateDirectories: true)
      }
      defer { clearTrial(directory) }
      (status, text) = try await Self.run(wrap(["/usr/bin/true"], for: launch), output: directory + "/output")
    } catch {
      let reason = (error as? SandboxError)?.description ?? error.localizedDescription
      throw SandboxError("The sandbox can't be tried: \(reason)")
    }
    guard status == 0 else {
      throw SandboxError("bubblewrap can't make a sandbox here: \(text.isEmpty ? "status \(status)" : text)")
    }
  }

  private func clearTrial(_ directory: String) {
    for name in ["workspace", "configuration"] { rmdir(directory + "/" + name) }
    unlink(directory + "/output")
    rmdir(directory)
  }

  /// Runs a command for at most 20 s, with an empty environment.
  private static func run(_ command: [String], output path: String) async throws -> (status: Int32, text: String) {
    let pid = try spawn(command, output: path)
    let timer = Task {
      try await Task.sleep(for: .seconds(20))
      // Not reaped yet, or this task would have been cancelled.
      kill(pid, SIGKILL)
    }
    let status: Int32 = await withCheckedContinuation { continuation in
      Thread.detachNewThread {
        var information = siginfo_t()
        // It stays to be reaped until the timer can't hit another process of its number.
        while waitid(P_PID, id_t(pid), &information, WEXITED | WNOWAIT) != 0, errno == EINTR {}
        timer.cancel()
        var status: Int32 = 0
        while waitpid(pid, &status, 0) < 0, errno == EINTR {}
        continuation.resume(returning: status)
      }
    }
    let text = String(decoding: (FileManager.default.contents(atPath: path) ?? Data()).prefix(2000), as: UTF8.self)
    return (status, text.trimmingCharacters(in: .whitespacesAndNewlines))
  }

  private static func spawn(_ command: [String], output path: String) throws(SandboxError) -> pid_t {
    var actions = posix_spawn_file_actions_t()
    posix_spawn_file_actions_init(&actions)
    defer { posix_spawn_file_actions_destroy(&actions) }
    posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0)
    posix_spawn_file_actions_addopen(&actions, 1, path, O_WRONLY | O_CREAT | O_TRUNC, 0o600)
    posix_spawn_file_actions_adddup2(&actions, 1, 2)
    var arguments = command.map { strdup($0) } + [nil]
    defer { for argument in arguments { free(argument) } }
    var environment: [UnsafeMutablePointer<CChar>?] = [nil]
    var pid: pid_t = 0
    let code = posix_spawn(&pid, command[0], &actions, nil, &arguments, &environment)
    guard code == 0 else { throw SandboxError("\(command[0]) can't be run: \(String(cString: strerror(code)))") }
    return pid
  }
}

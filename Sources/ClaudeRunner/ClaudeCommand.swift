import CLinux
import Glibc
import JSONSupport

/// How the CLI is told about the conversation it belongs to.
enum ConversationStart: Hashable, Sendable {
  /// `--session-id`: there is none yet.
  case new
  /// `--resume`.
  case resume
  /// `--continue`: the most recent one of the directory, whatever its id.
  case latest
}

/// Builds command line, environment and files of one start of the CLI.
struct ClaudeCommand {
  var session: ClaudeSession
  var options: ClaudeOptions
  /// What the conversation may have cost in US dollars by the CLI's own count; nil for no bound.
  var budgetUSD: Double?
  /// That count at the start.
  var costAtStart = 0.0
  var start: ConversationStart
  var configuration: ClaudeRunnerConfiguration
  /// Absolute path of the CLI.
  var executable: String
  /// The process's way to the model, if there is a gateway.
  var access: ModelAccess?

  // Long texts and secrets go into files that only this user can read; command lines are public and short.
  private var launchDirectory: String { session.configDirectory + "/launch" }
  private var systemPromptFile: String { launchDirectory + "/append-system-prompt.txt" }
  private var mcpFile: String { launchDirectory + "/mcp.json" }
  private var temporaryDirectory: String { session.configDirectory + "/tmp" }

  var arguments: [String] {
    var arguments = [
      "-p", "--input-format=stream-json", "--output-format=stream-json", "--verbose",
      "--include-partial-messages",
      // Otherwise a changed system prompt would have no effect after a resume.
      "--system-prompt-snapshot=off",
      "--strict-mcp-config",
    ]
    switch start {
    case .new: arguments.append("--session-id=\(session.id)")
    case .resume: arguments.append("--resume=\(session.id)")
    case .latest: arguments.append("--continue")
    }
    if let model = options.model { arguments.append("--model=\(model)") }
    if options.appendSystemPrompt != nil {
      arguments.append("--append-system-prompt-file=\(systemPromptFile)")
    }
    if !options.allowedTools.isEmpty {
      arguments.append("--allowedTools=\(options.allowedTools.joined(separator: ","))")
    }
    if !options.disallowedTools.isEmpty {
      arguments.append("--disallowedTools=\(options.disallowedTools.joined(separator: ","))")
    }
    // Also the standard one: else settings that lie in the workspace would choose another.
    arguments.append("--permission-mode=\(options.permissionMode.rawValue)")
    if options.asksForPermission {
      arguments.append("--permission-prompt-tool=stdio")
      // Hooks and rules that came with files, such as those of a repository, would decide in the place of whoever is to
      // be asked. The CLI minds no rules of the project's settings where nobody has called the project trusted.
      arguments += [#"--settings={"disableAllHooks":true}"#, "--setting-sources=project"]
    }
    if let maxTurns = options.maxTurns { arguments.append("--max-turns=\(maxTurns)") }
    if let budget = budgetUSD { arguments.append("--max-budget-usd=\(budget)") }
    if let schema = options.jsonSchema { arguments.append("--json-schema=\(schema)") }
    if !options.mcpServers.isEmpty { arguments.append("--mcp-config=\(mcpFile)") }
    return arguments
  }

  var environment: [String: String] {
    var environment = [
      "PATH": configuration.searchPath,
      "HOME": session.configDirectory,
      "SHELL": "/bin/bash",
      "LANG": "C.UTF-8",
      "TMPDIR": temporaryDirectory,
      "PWD": session.workingDirectory,
      "CLAUDE_CONFIG_DIR": session.configDirectory,
      "CLAUDE_CODE_TMPDIR": temporaryDirectory,
      // Nothing but the model is talked to, and nothing is changed behind the server's back.
      "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
      "DISABLE_AUTOUPDATER": "1",
      "DISABLE_BUG_COMMAND": "1",
      "DISABLE_ERROR_REPORTING": "1",
      "DISABLE_TELEMETRY": "1",
      "API_TIMEOUT_MS": String(Self.milliseconds(configuration.modelTimeout)),
      "CLAUDE_CODE_MAX_RETRIES": String(configuration.modelRetries),
      StrayProcesses.sessionVariable: session.id,
      StrayProcesses.instanceVariable: configuration.instance,
    ]
    if let timeZone = getenv("TZ") { environment["TZ"] = String(cString: timeZone) }
    if geteuid() == 0 && options.permissionMode == .bypassPermissions {
      // As root the CLI refuses this mode unless it is told that it is safe to use.
      environment["IS_SANDBOX"] = "1"
    }
    if let gateway = configuration.gateway {
      if let access { environment.merge(gateway.environment(access)) { _, new in new } }
    } else {
      environment.merge(configuration.credentials.environment) { _, new in new }
    }
    environment.merge(configuration.additionalEnvironment) { _, new in new }
    return environment
  }

  var launch: ClaudeLaunch {
    ClaudeLaunch(
      sessionID: session.id, executable: executable, arguments: arguments, environment: environment,
      workingDirectory: session.workingDirectory, configDirectory: session.configDirectory,
      gatewayDirectory: access?.directory, network: session.network,
      account: session.account)
  }

  /// The whole command line.
  func commandLine() throws(ClaudeFailure) -> [String] {
    var command = [executable] + arguments
    if let sandbox = configuration.sandbox {
      do {
        command = try sandbox.wrap(command, for: launch)
      } catch {
        throw ClaudeFailure(.startFailed, "The sandbox can't be set up: \(error)")
      }
    } else if session.network == .modelOnly {
      throw ClaudeFailure(
        .startFailed, "This session may reach nothing but the model, and there is no sandbox that could see to it.")
    }
    command = configuration.commandPrefix + command
    // The system would cut the value off there, and run something else than was asked for.
    guard !command.contains(where: { $0.utf8.contains(0) }) else {
      throw ClaudeFailure(.startFailed, "An option holds a NUL byte.")
    }
    return command
  }

  /// Creates the directories and files that the command line names. Blocks.
  func writeFiles() throws(ClaudeFailure) {
    for directory in [session.configDirectory, temporaryDirectory, launchDirectory] {
      guard mkdir(directory, 0o700) == 0 || errno == EEXIST else {
        throw Self.failure("create", directory, errno)
      }
      // The agent may write here: a link it left must not lead the server elsewhere.
      var info = stat()
      guard lstat(directory, &info) == 0, info.st_mode & S_IFMT == S_IFDIR else {
        throw Self.failure("use", directory, ENOTDIR)
      }
    }
    if let prompt = options.appendSystemPrompt {
      try Self.write(Array(prompt.utf8), to: systemPromptFile)
    }
    if !options.mcpServers.isEmpty {
      try Self.write(JSONValue.object(["mcpServers": .object(options.mcpServers)]).encoded(), to: mcpFile)
    }
  }

  private static func write(_ bytes: [UInt8], to path: String) throws(ClaudeFailure) {
    // A new file each time: the agent can write here, and what it left must not be followed or kept readable.
    unlink(path)
    let file = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0o600)
    guard file >= 0 else { throw failure("create", path, errno) }
    defer { close(file) }
    var rest = bytes[...]
    while !rest.isEmpty {
      let count = rest.withUnsafeBytes { Glibc.write(file, $0.baseAddress, $0.count) }
      guard count >= 0 || errno == EINTR else { throw failure("write", path, errno) }
      rest = rest.dropFirst(max(0, count))
    }
  }

  private static func failure(_ verb: String, _ path: String, _ number: CInt) -> ClaudeFailure {
    let name = path.split(separator: "/").last ?? ""
    return ClaudeFailure(
      .startFailed,
      "The session's configuration can't be prepared (\(verb) \(name): \(String(cString: strerror(number))))."
    )
  }

  static func milliseconds(_ duration: Duration) -> Int64 {
    duration.components.seconds * 1000 + duration.components.attoseconds / 1_000_000_000_000_000
  }
}

/// What the CLI has recorded of a session. All of it blocks.
///
/// The agent can write there, so no link is followed, nothing but files is opened, and of very many names only the first
/// are looked at.
struct Transcripts {
  var session: ClaudeSession

  /// Places that the CLI has worked in: there is one.
  private static let maximumPlaces = 1000
  /// Names in all of them.
  private static let maximumFiles = 100_000
  /// Bytes of a file that are read, from its end.
  private static let keptEnd = 256 << 10

  var hasOwn: Bool {
    var found = false
    forEach { _, name in
      found = isOwn(name)
      return !found
    }
    return found
  }

  var hasOthers: Bool {
    var found = false
    forEach { directory, name in
      found = !isOwn(name) && Self.modified(name, in: directory) != nil
      return !found
    }
    return found
  }

  /// Removes the session's own, which the CLI refuses to resume and, while it is there, to begin anew.
  func removeOwn() {
    forEach { directory, name in
      if isOwn(name) { unlinkat(directory, name, 0) }
      return true
    }
  }

  /// What the CLI counts as the conversation's cost so far when it resumes it, in US dollars.
  ///
  /// - Parameter start: how it is started.
  func recordedCost(_ start: ConversationStart) -> Double {
    var content: [UInt8] = []
    switch start {
    case .new: return 0
    case .resume:
      forEach { directory, name in
        guard isOwn(name) else { return true }
        content = Self.end(of: name, in: directory)
        return false
      }
    case .latest:
      var latest = Int64.min
      forEach { directory, name in
        guard !isOwn(name), let modified = Self.modified(name, in: directory), modified > latest else { return true }
        latest = modified
        content = Self.end(of: name, in: directory)
        return true
      }
    }
    // The CLI writes it at its end, as one of the last lines.
    for line in content.split(separator: UInt8(ascii: "\n")).reversed()
    where line.starts(with: #"{"type":"cost-state""#.utf8) {
      if let cost = (try? JSONValue(parsing: line))?["totalCostUSD"]?.doubleValue { return cost }
    }
    return 0
  }

  private func isOwn(_ name: String) -> Bool { name == "\(session.id).jsonl" }

  /// Goes through the files of all conversations in the session's configuration directory.
  ///
  /// - Parameter body: gets a descriptor of the directory and the file's name, and tells whether to go on.
  private func forEach(_ body: (_ directory: CInt, _ name: String) -> Bool) {
    let top = open(session.configDirectory, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC)
    guard top >= 0 else { return }
    defer { close(top) }
    var files = 0
    Self.forEachName(in: "projects", of: top, atMost: Self.maximumPlaces) { projects, place in
      var goesOn = true
      Self.forEachName(in: place, of: projects, atMost: Self.maximumFiles - files) { directory, name in
        files += 1
        if name.hasSuffix(".jsonl") { goesOn = body(directory, name) }
        return goesOn
      }
      return goesOn && files < Self.maximumFiles
    }
  }

  private static func forEachName(
    in name: String, of parent: CInt, atMost limit: Int, _ body: (_ directory: CInt, _ name: String) -> Bool
  ) {
    let descriptor = clinux_open_beneath(parent, name, O_RDONLY | O_DIRECTORY, 0, 0)
    guard descriptor >= 0 else { return }
    guard let stream = fdopendir(descriptor) else {
      close(descriptor)
      return
    }
    defer { closedir(stream) }
    var left = limit
    while left > 0, let entry = readdir(stream) {
      let name = withUnsafePointer(to: &entry.pointee.d_name) {
        $0.withMemoryRebound(to: CChar.self, capacity: 256) { String(cString: $0) }
      }
      if name == "." || name == ".." { continue }
      left -= 1
      guard body(descriptor, name) else { return }
    }
  }

  /// When a file was changed, in nanoseconds since 1970; nil for what is no file.
  private static func modified(_ name: String, in directory: CInt) -> Int64? {
    var info = stat()
    guard fstatat(directory, name, &info, AT_SYMLINK_NOFOLLOW) == 0, info.st_mode & S_IFMT == S_IFREG else {
      return nil
    }
    return Int64(info.st_mtim.tv_sec) &* 1_000_000_000 &+ Int64(info.st_mtim.tv_nsec)
  }

  private static func end(of name: String, in directory: CInt) -> [UInt8] {
    // The agent may have put a pipe or a link there.
    let descriptor = clinux_open_beneath(directory, name, O_RDONLY | O_NONBLOCK | O_NOCTTY, 0, 0)
    guard descriptor >= 0 else { return [] }
    defer { close(descriptor) }
    var info = stat()
    guard fstat(descriptor, &info) == 0, info.st_mode & S_IFMT == S_IFREG else { return [] }
    var bytes = [UInt8](repeating: 0, count: keptEnd)
    let count = pread(descriptor, &bytes, bytes.count, max(0, info.st_size - bytes.count))
    return Array(bytes.prefix(max(0, count)))
  }
}

/// Finding the CLI. Blocks.
enum ClaudeExecutable {
  static func find(_ configuration: ClaudeRunnerConfiguration) throws(ClaudeFailure) -> String {
    let name = configuration.executable
    guard !name.contains("/") else {
      try check(name)
      return name
    }
    for directory in configuration.searchPath.split(separator: ":") {
      let path = "\(directory)/\(name)"
      if access(path, X_OK) == 0, isFile(path) { return path }
    }
    throw ClaudeFailure(
      .cliMissing,
      "There is no '\(name)' on the search path. Install the Claude Code CLI or configure the path to it.")
  }

  private static func check(_ path: String) throws(ClaudeFailure) {
    guard access(path, F_OK) == 0 else {
      throw ClaudeFailure(
        .cliMissing, "There is no Claude Code CLI at \(path). Install it or configure the path to it.")
    }
    guard isFile(path), access(path, X_OK) == 0 else {
      throw ClaudeFailure(
        .cliNotExecutable, "\(path) can't be executed. Make it an executable file, or configure another path."
      )
    }
  }

  private static func isFile(_ path: String) -> Bool {
    var info = stat()
    return stat(path, &info) == 0 && info.st_mode & S_IFMT == S_IFREG
  }

  /// Changes when the file is replaced.
  static func identity(_ path: String) -> String {
    var info = stat()
    guard stat(path, &info) == 0 else { return "" }
    return
      "\(path) \(info.st_dev) \(info.st_ino) \(info.st_size) \(info.st_mtim.tv_sec).\(info.st_mtim.tv_nsec)"
  }
}

import ClaudeRunner
import Foundation
import Monitoring
import Sandbox
import Sessions
import Workspaces

/// All settings of the responder.
///
/// Each is documented by its row in `catalog`, from which the help text is made and which the README repeats.
struct ServerConfiguration: Sendable {
  var stateDirectory: String
  var workspaceRoot: String
  var socketPath: String
  var webSocketPath: String
  var webSocketOrigins: [String]
  var webSocketMaximumMessage: Int
  var claudePath: String?
  var demoModelURL: String?
  var modelURL: String?
  /// Host and, if it is given, port of the model's API.
  var modelHost: String
  var modelSocket: String
  /// Short enough for the sockets in it.
  var modelSocketDirectory: String
  var modelConnections: Int
  var modelTokenDirectory: String
  var modelLog: String
  var modelPrices: ModelPrices
  var allowedTools: [String]
  var approvalTimeout: Duration
  var maximumProcesses: Int?
  var maximumStarting: Int
  var idleTimeout: Duration
  var startTimeout: Duration
  var turnTimeout: Duration
  var stallTimeout: Duration
  var resultTimeout: Duration
  var modelTimeout: Duration
  var modelRetries: Int
  var lineLimit: Int
  var queueLength: Int
  var maximumTurnLog: Int
  var maximumBody: Int
  var maximumPrompt: Int
  var drainTimeout: Duration
  var requiresKeys: Bool
  var files: Files
  var sandbox: Sandbox
  var minimumFreeDisk: Int
  var logLevel: String
  var logFormat: String
  /// For keys that have no own ones. That of running turns has a default elsewhere.
  var keyLimits: KeyLimits
  var maximumStreams: Int
  var memoryReserve: Int

  /// The connections that each process of the CLI may have to nginx, so that half of nginx's are left to the API when all
  /// have them: for each, nginx may need another one to the model.
  ///
  /// - Parameters:
  ///   - processes: how many there may be.
  ///   - descriptors: those that this process may have, which are as many as nginx's: it has fewer connections where
  ///     there are few of them. See scripts/render-nginx.
  func modelConnections(processes: Int, descriptors: Int) -> Int {
    let all = min(4096, max(0, descriptors) / 8)
    return max(1, min(modelConnections, all / max(1, processes)))
  }

  /// What workspaces may hold, and how their files come in and go out.
  struct Files: Sendable {
    var limits: WorkspaceLimits
    /// Bytes a second; nil for the default.
    var uploadRateOfKey: Int?
    /// Zero if nothing may be shared.
    var shareLifetime: Duration
    var gitSources: [GitURL]
    var gitTimeout: Duration
  }

  struct Sandbox: Sendable {
    enum Mode: String, Sendable, CaseIterable {
      /// Where it works; without it there is a warning.
      case auto
      /// The server doesn't start without it.
      case required
      case off
    }

    var mode: Mode
    var maximumProcesses: Int
    var maximumMemory: Int
    var maximumProcessors: Int?
    var maximumProcessorsOfKey: Int?
    var maximumDiskRateOfKey: Int?
    var temporaryBytes: Int
    var readOnlyPaths: [String]
    var controlGroups: ControlGroupSource
    /// Nil for the default.
    var network: Network?

    enum Network: String, Sendable, CaseIterable {
      case modelOnly = "model-only"
      case open
      /// Whatever a key says.
      case alwaysModelOnly = "always-model-only"
    }
  }

  enum Row {
    static let stateDirectory = Setting(
      key: "state.dir", kind: .path, defaultText: "$XDG_STATE_HOME/claude-api-server",
      summary: "the store, the CLI's configuration directories, the socket")
    static let workspaceRoot = Setting(
      key: "workspace.root", kind: .path, defaultText: "STATE/workspaces",
      summary: "one directory for each session, in which its agent works")
    static let socketPath = Setting(
      key: "socket.path", kind: .path, defaultText: "STATE/run/responder.sock",
      summary: "the FastCGI socket; at most 107 bytes")
    static let webSocketPath = Setting(
      key: "websocket.socket-path", kind: .path, defaultText: "websocket.sock beside socket.path",
      summary: "the socket to which nginx proxies WebSockets; at most 107 bytes")
    static let webSocketOrigins = Setting(
      key: "websocket.allowed-origins", kind: .list, defaultText: "none",
      summary: "origins of other sites, such as https://tools.example.org, whose pages may open WebSockets")
    static let webSocketMaximumMessage = Setting(
      key: "websocket.max-message", kind: .integer(16_384...268_435_456), defaultText: "1048576",
      summary: "bytes of a message from a WebSocket; larger prompts go by POST")
    static let claudePath = Setting(
      key: "claude.path", kind: .path, defaultText: "claude on PATH", summary: "the Claude Code CLI")
    static let demoModelURL = Setting(
      key: "demo-model.url", kind: .text, defaultText: "none",
      summary: "the demo model's base URL, if it is to answer instead of model.url")
    static let modelURL = Setting(
      key: "model.url", kind: .text, defaultText: "https://api.anthropic.com",
      summary: "base URL of the model's API, the one that nginx passes requests on to")
    static let modelSocket = Setting(
      key: "model.socket", kind: .path, defaultText: "STATE/run/model/api.sock",
      summary: "nginx's socket for the requests to the model, which no agent sees; at most 107 bytes")
    static let modelSocketDirectory = Setting(
      key: "model.socket-dir", kind: .path, defaultText: "STATE/run/agents",
      summary:
        "where each CLI process has its socket, from which requests go on to nginx's; at most \(ModelGatewayConfiguration.longestSocketDirectory) bytes"
    )
    static let modelConnections = Setting(
      key: "model.max-connections", kind: .integer(4...1024), defaultText: "32",
      summary: "connections to the model of a CLI process with its tools, as far as all together have 4096; others wait"
    )
    static let modelTokenDirectory = Setting(
      key: "model.token-dir", kind: .path, defaultText: "STATE/run/model-tokens",
      summary: "where nginx finds which CLI processes there are")
    static let modelLog = Setting(
      key: "model.log", kind: .path, defaultText: "STATE/nginx/logs/model.log",
      summary: "where nginx writes the tokens of each request to the model, with which those of the CLI are compared")
    static let modelPrices = Setting(
      key: "model.prices", kind: .path, defaultText: "none",
      summary: "a JSON file with prices of models, before those that are built in")
    static let allowedTools = Setting(
      key: "claude.allowed-tools", kind: .list,
      defaultText: "Bash,Read,Write,Edit,WebSearch,WebFetch,Glob,Grep",
      summary: "tools that the agent may use without asking")
    static let approvalTimeout = Setting(
      key: "approval.timeout", kind: .duration(.seconds(1)...(.seconds(86_400 * 7))), defaultText: "10m",
      summary: "how long a tool call waits for a client's decision; then it is denied")
    static let maximumProcesses = Setting(
      key: "claude.max-processes", kind: .integer(1...100_000), defaultText: "memory / 200 MB",
      summary: "CLI processes at once; the one that rests longest ends for a new one")
    static let maximumStarting = Setting(
      key: "claude.max-starting", kind: .integer(1...1000), defaultText: "half of the processors",
      summary: "CLI processes that start at the same time")
    static let idleTimeout = Setting(
      key: "claude.idle-timeout", kind: .duration(.seconds(1)...(.seconds(86_400 * 7))), defaultText: "15m",
      summary: "how long a CLI process rests before it ends; the next message starts it again")
    static let startTimeout = Setting(
      key: "claude.start-timeout", kind: .duration(.milliseconds(100)...(.seconds(3600))), defaultText: "30s",
      summary: "how long a CLI process may take to its first answer")
    static let turnTimeout = Setting(
      key: "claude.turn-timeout", kind: .duration(.seconds(1)...(.seconds(86_400 * 7))), defaultText: "1h",
      summary: "how long a turn may take")
    static let stallTimeout = Setting(
      key: "claude.stall-timeout", kind: .duration(.seconds(1)...(.seconds(86_400 * 7))), defaultText: "15m",
      summary: "how long the CLI may be silent during a turn")
    static let resultTimeout = Setting(
      key: "claude.result-timeout", kind: .duration(.seconds(1)...(.seconds(3600))), defaultText: "1m",
      summary: "how long the CLI may take to end a turn when the model has finished")
    static let modelTimeout = Setting(
      key: "claude.model-timeout", kind: .duration(.seconds(1)...(.seconds(86_400))), defaultText: "10m",
      summary: "how long the CLI waits for the model to begin an answer")
    static let modelRetries = Setting(
      key: "claude.model-retries", kind: .integer(0...15), defaultText: "4",
      summary: "how often the CLI tries a failed request to the model again; the pauses double from 0.5 s")
    static let lineLimit = Setting(
      key: "claude.line-limit", kind: .integer(65_536...1_073_741_824), defaultText: "67108864",
      summary: "bytes of one line of the CLI's output")
    static let queueLength = Setting(
      key: "queue.max-length", kind: .integer(0...10_000), defaultText: "16",
      summary: "messages that may wait behind a session's running one; then 429")
    static let maximumBody = Setting(
      key: "request.max-body", kind: .integer(1024...1_073_741_824), defaultText: "16777216",
      summary: "bytes of a request's body; nginx's client_max_body_size should be the same")
    static let maximumPrompt = Setting(
      key: "request.max-prompt", kind: .integer(1...1_073_741_824), defaultText: "4194304",
      summary: "bytes of a prompt")
    static let drainTimeout = Setting(
      key: "drain.timeout", kind: .duration(.zero...(.seconds(3600))), defaultText: "30s",
      summary: "how long running turns may go on after SIGTERM; what waits runs after the next start")
    static let keysRequired = Setting(
      key: "keys.required", kind: .choice(["yes", "no"]), defaultText: "no",
      summary: "answer nobody as long as there are no keys, instead of those on the same machine")
    static let quotaBytes = Setting(
      key: "quota.max-bytes", kind: .integer(1_048_576...Int.max), defaultText: "10737418240",
      summary: "bytes on the disk that a session's workspace may take")
    static let quotaFiles = Setting(
      key: "quota.max-files", kind: .integer(100...100_000_000), defaultText: "1000000",
      summary: "files, folders and links that a session's workspace may hold")
    static let quotaTurnLog = Setting(
      key: "quota.max-turn-log", kind: .integer(65_536...Int.max), defaultText: "134217728",
      summary: "bytes of events that the agent of one turn may leave in the log; then the turn is stopped")
    static let uploadSize = Setting(
      key: "upload.max-size", kind: .integer(1...Int.max), defaultText: "4294967296",
      summary: "bytes of one uploaded file; nginx's --max-upload bounds the request")
    static let uploadRateOfKey = Setting(
      key: "upload.max-rate-of-key", kind: .integer(1_000_000...1_000_000_000_000), defaultText: "100000000",
      summary:
        "bytes a second that a key may bring with bodies of 60,000 bytes or more; above it they wait before they are sent"
    )
    static let shareMode = Setting(
      key: "share.mode", kind: .choice(["on", "off"]), defaultText: "on",
      summary: "whether links that work without a key can be made; off also closes those that there are")
    static let shareLifetime = Setting(
      key: "share.max-lifetime", kind: .duration(.seconds(1)...(.seconds(86_400 * 3650))), defaultText: "720h",
      summary: "how long such a link may work")
    static let gitSources = Setting(
      key: "git.allowed-sources", kind: .list, defaultText: "none",
      summary: "addresses below which repositories may be cloned into new sessions, such as https://github.com/example")
    static let gitTimeout = Setting(
      key: "git.timeout", kind: .duration(.seconds(1)...(.seconds(86_400))), defaultText: "5m",
      summary: "how long cloning may take")
    static let sandboxMode = Setting(
      key: "sandbox.mode", kind: .choice(Sandbox.Mode.allCases.map(\.rawValue)), defaultText: "auto",
      summary: "each CLI in a bubblewrap of its own: auto (where it works), required (or no start), off")
    static let sandboxProcesses = Setting(
      key: "sandbox.max-processes", kind: .integer(32...100_000), defaultText: "512",
      summary: "processes and threads of a session; as root it needs control groups")
    static let sandboxMemory = Setting(
      key: "sandbox.max-memory", kind: .integer(268_435_456...Int.max), defaultText: "4294967296",
      summary: "bytes of memory of a session with control groups, else of each of its processes")
    static let sandboxProcessors = Setting(
      key: "sandbox.max-processors", kind: .integer(1...1024), defaultText: "half of them",
      summary: "processors that a session may keep busy; needs control groups")
    static let sandboxProcessorsOfKey = Setting(
      key: "sandbox.max-processors-of-key", kind: .integer(1...1024), defaultText: "3/4 of them",
      summary: "processors that the sessions of a key may keep busy together; needs control groups")
    static let sandboxDiskRateOfKey = Setting(
      key: "sandbox.max-disk-rate-of-key", kind: .integer(1_000_000...1_000_000_000_000), defaultText: "100000000",
      summary:
        "bytes a second that the sessions of a key may write to a disk together, and a quarter of what they may read; "
        + "needs control groups of version 2")
    static let sandboxTemporary = Setting(
      key: "sandbox.tmp-size", kind: .integer(1_048_576...1_099_511_627_776), defaultText: "268435456",
      summary: "bytes of a session's private /tmp, which is memory")
    static let sandboxReadOnly = Setting(
      key: "sandbox.read-only-paths", kind: .list, defaultText: "none",
      summary: "what a session may read besides /usr, as absolute paths")
    static let sandboxGroups = Setting(
      key: "sandbox.control-groups", kind: .list, defaultText: "auto",
      summary: "directories of control groups to divide among sessions; auto (those that it was given), none")
    static let sandboxNetwork = Setting(
      key: "sandbox.network", kind: .choice(Sandbox.Network.allCases.map(\.rawValue)), defaultText: "model-only",
      summary:
        "what agents reach whose key doesn't say: model-only, open; always-model-only, whatever a key says")
    static let minimumFreeDisk = Setting(
      key: "readiness.min-free-disk", kind: .integer(0...Int.max), defaultText: "268435456",
      summary:
        "bytes that stay free where state and workspaces are: below, /readyz is 503, uploads and new sessions 507, and turns are stopped"
    )
    static let logFormat = Setting(
      key: "log.format", kind: .choice(LogFormat.allCases.map(\.rawValue)), defaultText: "logfmt",
      summary: "how a line of the log is written: logfmt or json")
    static let logLevel = Setting(
      key: "log.level", kind: .choice(["debug", "info", "notice", "warning", "error"]), defaultText: "info",
      summary: "the least level that is logged")

    static let maximumStreams = Setting(
      key: "streams.max", kind: .integer(1...1_000_000), defaultText: "8192",
      summary: "streams of events that are open at once, of all keys together; then 503")
    static let memoryReserve = Setting(
      key: "memory.reserve", kind: .integer(0...Int.max), defaultText: "268435456",
      summary: "bytes of the machine's memory that must be available for one more turn to run beside others")
    static let limits: [(limit: KeyLimit, setting: Setting)] = [
      (.sessions, limit(.sessions, "none", "sessions that a key may own")),
      (
        .runningTurns,
        limit(.runningTurns, "3/4 of claude.max-processes", "turns of a key that run at once; others wait")
      ),
      (.queuedTurns, limit(.queuedTurns, "1000", "turns of a key that may wait; then 429")),
      (.streams, limit(.streams, "256", "streams of events that a key may have open; then 429")),
      (.turnsPerHour, limit(.turnsPerHour, "none", "messages that a key may send in an hour; then 429")),
      (.tokensPerDay, limit(.tokensPerDay, "none", "tokens that a key may use in a day; then 429")),
      (.usdPerDay, limit(.usdPerDay, "none", "US dollars that a key may spend in a day; then 402")),
      (.usdPerMonth, limit(.usdPerMonth, "none", "US dollars that a key may spend in a month; then 402")),
      (
        .diskBytes,
        limit(.diskBytes, "none", "bytes on the disk that a key's sessions may take together; then 507")
      ),
    ]

    private static func limit(_ limit: KeyLimit, _ defaultText: String, _ summary: String) -> Setting {
      Setting(key: "limits.\(limit.rawValue)", kind: .form(form(limit)), defaultText: defaultText, summary: summary)
    }

    static func form(_ limit: KeyLimit) -> String {
      limit.isMoney ? "an amount of US dollars such as 12.50, or none" : "a whole number of at least 1, or none"
    }

    private static let listed = [
      stateDirectory, workspaceRoot, socketPath, webSocketPath, webSocketOrigins, webSocketMaximumMessage, claudePath,
      demoModelURL, modelURL, modelSocket, modelSocketDirectory, modelConnections, modelTokenDirectory, modelLog,
      modelPrices, allowedTools, approvalTimeout, maximumProcesses, maximumStarting, idleTimeout, startTimeout,
      turnTimeout, stallTimeout, resultTimeout, modelTimeout, modelRetries, lineLimit, queueLength, maximumBody,
      maximumPrompt, drainTimeout, keysRequired, quotaBytes, quotaFiles, quotaTurnLog, uploadSize,
      uploadRateOfKey, shareMode, shareLifetime, gitSources, gitTimeout, sandboxMode, sandboxProcesses, sandboxMemory,
      sandboxProcessors,
      sandboxProcessorsOfKey, sandboxDiskRateOfKey, sandboxTemporary, sandboxReadOnly, sandboxGroups, sandboxNetwork,
      maximumStreams,
      memoryReserve, minimumFreeDisk, logLevel,
      logFormat,
    ]

    static let all = listed + limits.map { $0.setting }
  }

  /// - Throws: ``SettingsError``, with a sentence that names the setting.
  init(arguments: [String], environment: [String: String]) async throws {
    let settings = try await Settings(arguments: arguments, environment: environment, catalog: Row.all)
    let state =
      try settings.path(Row.stateDirectory) ?? Self.defaultStateDirectory(environment: environment)
    stateDirectory = state
    workspaceRoot = try settings.path(Row.workspaceRoot) ?? state + "/workspaces"
    socketPath = try settings.path(Row.socketPath) ?? state + "/run/responder.sock"
    webSocketPath =
      try settings.path(Row.webSocketPath)
      ?? URL(filePath: socketPath).deletingLastPathComponent().appending(path: "websocket.sock")
      .path(percentEncoded: false)
    webSocketOrigins = try settings.list(Row.webSocketOrigins) ?? []
    guard webSocketOrigins.allSatisfy(Self.isOrigin) else {
      throw SettingsError(
        description: "\(Row.webSocketOrigins.key) must be origins such as https://tools.example.org, without a path.")
    }
    webSocketMaximumMessage = try settings.integer(Row.webSocketMaximumMessage) ?? 1 << 20
    claudePath = try settings.path(Row.claudePath)
    demoModelURL = try settings.text(Row.demoModelURL)
    modelURL = try settings.text(Row.modelURL)
    modelHost = try Self.host(
      demoModelURL.map { (Row.demoModelURL, $0) } ?? (Row.modelURL, modelURL ?? Row.modelURL.defaultText))
    modelSocket = try settings.path(Row.modelSocket) ?? state + "/run/model/api.sock"
    modelSocketDirectory = try settings.path(Row.modelSocketDirectory) ?? state + "/run/agents"
    let longest = ModelGatewayConfiguration.longestSocketDirectory
    guard modelSocketDirectory.utf8.count <= longest else {
      throw SettingsError(
        description: "\(Row.modelSocketDirectory.key) is longer than \(longest) bytes, too long for the sockets in it: "
          + modelSocketDirectory)
    }
    modelConnections = try settings.integer(Row.modelConnections) ?? 32
    modelTokenDirectory = try settings.path(Row.modelTokenDirectory) ?? state + "/run/model-tokens"
    modelLog = try settings.path(Row.modelLog) ?? state + "/nginx/logs/model.log"
    modelPrices = try ModelPrices(file: try settings.path(Row.modelPrices))
    allowedTools =
      try settings.list(Row.allowedTools) ?? Row.allowedTools.defaultText.split(separator: ",").map(String.init)
    approvalTimeout = try settings.duration(Row.approvalTimeout) ?? .seconds(600)
    maximumProcesses = try settings.integer(Row.maximumProcesses)
    maximumStarting = try settings.integer(Row.maximumStarting) ?? ClaudeRunnerConfiguration.halfOfTheProcessors()
    idleTimeout = try settings.duration(Row.idleTimeout) ?? .seconds(15 * 60)
    startTimeout = try settings.duration(Row.startTimeout) ?? .seconds(30)
    turnTimeout = try settings.duration(Row.turnTimeout) ?? .seconds(3600)
    stallTimeout = try settings.duration(Row.stallTimeout) ?? .seconds(15 * 60)
    resultTimeout = try settings.duration(Row.resultTimeout) ?? .seconds(60)
    modelTimeout = try settings.duration(Row.modelTimeout) ?? .seconds(600)
    modelRetries = try settings.integer(Row.modelRetries) ?? 4
    lineLimit = try settings.integer(Row.lineLimit) ?? 64 << 20
    queueLength = try settings.integer(Row.queueLength) ?? 16
    maximumTurnLog = try settings.integer(Row.quotaTurnLog) ?? 134_217_728
    maximumBody = try settings.integer(Row.maximumBody) ?? 16 << 20
    maximumPrompt = try settings.integer(Row.maximumPrompt) ?? 4 << 20
    drainTimeout = try settings.duration(Row.drainTimeout) ?? .seconds(30)
    requiresKeys = try settings.text(Row.keysRequired) == "yes"
    minimumFreeDisk = try settings.integer(Row.minimumFreeDisk) ?? 256 << 20
    var workspaceLimits = WorkspaceLimits()
    workspaceLimits.reservedBytes = Int64(minimumFreeDisk)
    if let bytes = try settings.integer(Row.quotaBytes) { workspaceLimits.bytes = Int64(bytes) }
    if let entries = try settings.integer(Row.quotaFiles) { workspaceLimits.entries = Int64(entries) }
    if let bytes = try settings.integer(Row.uploadSize) { workspaceLimits.uploadBytes = Int64(bytes) }
    let longestShare = try settings.duration(Row.shareLifetime) ?? .seconds(86_400 * 30)
    files = Files(
      limits: workspaceLimits, uploadRateOfKey: try settings.integer(Row.uploadRateOfKey),
      shareLifetime: try settings.text(Row.shareMode) == "off" ? .zero : longestShare,
      gitSources: try Self.addresses(Row.gitSources, settings),
      gitTimeout: try settings.duration(Row.gitTimeout) ?? .seconds(300))
    sandbox = Sandbox(
      mode: try settings.text(Row.sandboxMode).flatMap { Sandbox.Mode(rawValue: $0) } ?? .auto,
      maximumProcesses: try settings.integer(Row.sandboxProcesses) ?? 512,
      maximumMemory: try settings.integer(Row.sandboxMemory) ?? 4 << 30,
      maximumProcessors: try settings.integer(Row.sandboxProcessors),
      maximumProcessorsOfKey: try settings.integer(Row.sandboxProcessorsOfKey),
      maximumDiskRateOfKey: try settings.integer(Row.sandboxDiskRateOfKey),
      temporaryBytes: try settings.integer(Row.sandboxTemporary) ?? 256 << 20,
      readOnlyPaths: try Self.paths(Row.sandboxReadOnly, settings),
      controlGroups: try Self.controlGroups(settings),
      network: try settings.text(Row.sandboxNetwork).flatMap { Sandbox.Network(rawValue: $0) })
    logLevel = try settings.text(Row.logLevel) ?? "info"
    logFormat = try settings.text(Row.logFormat) ?? "logfmt"
    maximumStreams = try settings.integer(Row.maximumStreams) ?? 8192
    memoryReserve = try settings.integer(Row.memoryReserve) ?? 256 << 20
    keyLimits = KeyLimits([.queuedTurns: .maximum(1000), .streams: .maximum(256)])
    for (limit, setting) in Row.limits {
      if let value = try Self.limit(limit, setting, settings) { keyLimits[setting: limit] = value }
    }
  }

  private static func limit(
    _ limit: KeyLimit, _ row: Setting, _ settings: Settings
  ) throws -> KeyLimits.Setting? {
    guard let text = try settings.text(row) else { return nil }
    if text == "none" { return .unlimited }
    guard let amount = limit.amount(text) else {
      throw SettingsError(description: "\(row.key) is \"\(text)\", but must be \(Row.form(limit)).")
    }
    return .maximum(amount)
  }

  private static func isOrigin(_ text: String) -> Bool {
    guard let url = URL(string: text), let host = url.host(), !host.isEmpty, let scheme = url.scheme else {
      return false
    }
    return ["http", "https"].contains(scheme) && text == "\(scheme)://\(host)" + (url.port.map { ":\($0)" } ?? "")
  }

  /// Host and port of a URL as a client sends them.
  private static func host(_ setting: (row: Setting, url: String)) throws -> String {
    guard let components = URLComponents(string: setting.url), ["http", "https"].contains(components.scheme),
      let host = components.encodedHost, !host.isEmpty
    else { throw SettingsError(description: "\(setting.row.key) must be http(s)://HOST[:PORT][/PATH]: \(setting.url)") }
    return components.port.map { "\(host):\($0)" } ?? host
  }

  private static func controlGroups(_ settings: Settings) throws -> ControlGroupSource {
    switch try settings.list(Row.sandboxGroups) ?? ["auto"] {
    // The latter is what installations of earlier versions say.
    case ["auto"], ["delegated"]: .automatic
    case ["none"], []: .none
    default: .directories(try paths(Row.sandboxGroups, settings))
    }
  }

  private static func addresses(_ row: Setting, _ settings: Settings) throws -> [GitURL] {
    try (settings.list(row) ?? []).map { text in
      guard let address = GitURL(text) else {
        throw SettingsError(
          description: "\(row.key) has \"\(text)\", which is no address such as https://example.org/team.")
      }
      return address
    }
  }

  private static func paths(_ row: Setting, _ settings: Settings) throws -> [String] {
    let paths = try settings.list(row) ?? []
    guard paths.allSatisfy({ $0.hasPrefix("/") }) else {
      throw SettingsError(description: "\(row.key) must be absolute paths.")
    }
    return paths
  }

  private static func defaultStateDirectory(environment: [String: String]) throws -> String {
    if let base = environment["XDG_STATE_HOME"], base.hasPrefix("/") { return base + "/claude-api-server" }
    if let home = environment["HOME"], home.hasPrefix("/") { return home + "/.local/state/claude-api-server" }
    throw SettingsError(description: "There is neither XDG_STATE_HOME nor HOME; give \(Row.stateDirectory.flag).")
  }

  /// The rows of the settings as a person reads them on a terminal.
  static var help: String {
    (Row.all + [Settings.fileSetting]).map { setting in
      "  \(setting.flag)  (\(setting.defaultText))\n      \(setting.summary)\n      \(setting.variable)"
    }.joined(separator: "\n")
  }
}

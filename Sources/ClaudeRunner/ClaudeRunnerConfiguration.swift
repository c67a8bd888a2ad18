public import JSONSupport

/// Everything that decides how the CLI is run. The defaults suit a server with many sessions.
public struct ClaudeRunnerConfiguration: Sendable {
  /// Absolute path of the CLI, or a bare name to look for on ``searchPath``.
  public var executable = "claude"
  /// The PATH of the CLI and of the tools it starts, and where a bare ``executable`` is looked for.
  public var searchPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
  /// How the CLI reaches the model if there is no ``gateway``.
  public var credentials = ClaudeCredentials()
  /// Where the CLI reaches the model without credentials.
  public var gateway: ModelGateway?
  /// Added to the environment of the CLI, over everything this module sets itself. Nothing else is inherited.
  public var additionalEnvironment: [String: String] = [:]
  /// A command line that is put before that of the CLI, such as a sandbox or `nice`. Its first element must be an
  /// absolute path.
  public var commandPrefix: [String] = []
  /// Wraps each command line, inside of ``commandPrefix``; nil leaves it as it is.
  public var sandbox: (any ClaudeSandbox)?
  /// Names this server among others of the machine, so that ``ClaudeRunner/killStrays()`` finds what an earlier
  /// run of it left behind and nothing else. Derive it from the state directory.
  public var instance: String

  /// How many processes live at once, working or idle. Default: physical memory / 200 MB, at least 2.
  public var maximumProcesses = Self.processesFittingMemory()
  /// How many processes start at once; starting costs much processor time. Default: half of the processors.
  public var maximumStarting = Self.halfOfTheProcessors()
  /// How long a process without a turn is kept. Default 10 minutes.
  public var idleTimeout = Duration.seconds(600)

  /// The longest line of output in bytes. Default 64 MiB.
  public var lineLimit = 64 << 20
  /// How many of the last bytes of the error output are kept. Default 8 KiB.
  public var errorOutputLimit = 8192

  /// From the start of a process to its first answer. Default 30 s.
  public var startTimeout = Duration.seconds(30)
  /// How long a running turn may go without a byte from the CLI, unless it waits for a permission. It must be
  /// longer than a tool may run. Default 15 minutes.
  public var stallTimeout = Duration.seconds(900)
  /// How long a turn may take. Default 2 hours.
  public var turnTimeout = Duration.seconds(7200)
  /// From the last answer of the model in a turn (the one that calls no tool) to the CLI's result. Default 1 minute.
  public var resultTimeout = Duration.seconds(60)
  /// How long the CLI may take to obey an interrupt before it is killed. Default 1.5 s.
  public var interruptTimeout = Duration.milliseconds(1500)
  /// How long the CLI may take to answer a change of model or permission mode. Default 5 s.
  public var controlTimeout = Duration.seconds(5)
  /// How long a process may take to exit after its input was closed. Default 3 s.
  public var exitTimeout = Duration.seconds(3)
  /// How long a process may take to exit after SIGTERM. Default 2 s.
  public var terminateTimeout = Duration.seconds(2)
  /// How often the CLI itself tries a failed request to the model again (its pauses double from 0.5 s, so 4 are
  /// some 8 s; 10 would be 3 minutes). Default 4.
  public var modelRetries = 4
  /// How long the CLI waits for the model to begin an answer. Default 10 minutes.
  public var modelTimeout = Duration.seconds(600)
  /// How often ``idleTimeout`` is checked. Default 5 s.
  public var evictionInterval = Duration.seconds(5)

  /// - Parameter instance: see ``instance``.
  public init(instance: String) {
    self.instance = instance
  }
}

/// How the CLI authenticates. All nil leaves it without credentials, and its turns fail with `not_logged_in`.
///
/// Reflection and printing show which are set, never their values.
public struct ClaudeCredentials: Sendable, CustomStringConvertible, CustomDebugStringConvertible,
  CustomReflectable
{
  /// `ANTHROPIC_API_KEY`.
  public var apiKey: String?
  /// `ANTHROPIC_AUTH_TOKEN`.
  public var authToken: String?
  /// `CLAUDE_CODE_OAUTH_TOKEN`.
  public var oauthToken: String?
  /// `ANTHROPIC_BASE_URL`.
  public var baseURL: String?

  public init(
    apiKey: String? = nil, authToken: String? = nil, oauthToken: String? = nil, baseURL: String? = nil
  ) {
    self.apiKey = apiKey
    self.authToken = authToken
    self.oauthToken = oauthToken
    self.baseURL = baseURL
  }

  public var isEmpty: Bool { environment.isEmpty }

  public var description: String { "ClaudeCredentials(\(environment.keys.sorted().joined(separator: ", ")))" }
  public var debugDescription: String { description }
  public var customMirror: Mirror { Mirror(self, children: []) }

  var environment: [String: String] {
    [
      "ANTHROPIC_API_KEY": apiKey, "ANTHROPIC_AUTH_TOKEN": authToken,
      "CLAUDE_CODE_OAUTH_TOKEN": oauthToken, "ANTHROPIC_BASE_URL": baseURL,
    ].compactMapValues { $0 }
  }
}

/// Puts a command line around that of the CLI.
public protocol ClaudeSandbox: Sendable {
  /// The command line to run instead; its first element must be an absolute path.
  ///
  /// It must end with the process it starts, and hand the three standard descriptors on.
  func wrap(_ command: [String], for launch: ClaudeLaunch) throws -> [String]

  /// How often a process of the session was killed because all of them together used more memory than they may;
  /// nil if that is not known.
  func outOfMemoryKills(ofSession id: String) -> Int?
}

extension ClaudeSandbox {
  public func outOfMemoryKills(ofSession id: String) -> Int? { nil }
}

/// What of the network a session reaches.
public enum ClaudeNetwork: String, Sendable, Hashable, CaseIterable {
  /// All that the server's machine reaches, itself included.
  case open
  /// The model, by the socket of a ``ModelGateway``, and nothing else.
  case modelOnly = "model-only"
}

/// One start of the CLI, as a ``ClaudeSandbox`` needs to know it.
public struct ClaudeLaunch: Sendable {
  public var sessionID: String
  /// Absolute path of the CLI.
  public var executable: String
  public var arguments: [String]
  public var environment: [String: String]
  /// The session's workspace; the working directory.
  public var workingDirectory: String
  /// The session's own configuration and transcripts; also HOME and, in it, `tmp` as TMPDIR.
  public var configDirectory: String
  /// Absolute path of the directory of the process's own socket that leads to the model, if there is one.
  public var gatewayDirectory: String?
  /// Nil leaves it to the sandbox.
  public var network: ClaudeNetwork?
  /// Whose session it is, in letters, digits, `_` and `-`; nil if it is nobody's.
  public var account: String?

  public init(
    sessionID: String, executable: String, arguments: [String], environment: [String: String],
    workingDirectory: String, configDirectory: String, gatewayDirectory: String? = nil,
    network: ClaudeNetwork? = nil, account: String? = nil
  ) {
    self.sessionID = sessionID
    self.executable = executable
    self.arguments = arguments
    self.environment = environment
    self.workingDirectory = workingDirectory
    self.configDirectory = configDirectory
    self.gatewayDirectory = gatewayDirectory
    self.network = network
    self.account = account
  }
}

/// What a session is and where; the same for all of its life.
public struct ClaudeSession: Sendable, Hashable {
  /// A UUID, in lower case; the CLI uses it as its own.
  public var id: String
  /// Absolute path of an existing directory.
  public var workingDirectory: String
  /// Absolute path of a directory of the session's own; created if it doesn't exist.
  public var configDirectory: String
  /// Whom its use of the model is counted to, in letters, digits, `_` and `-`.
  public var account: String?
  /// Nil for what the sandbox allows all sessions.
  public var network: ClaudeNetwork?

  public init(
    id: String, workingDirectory: String, configDirectory: String, account: String? = nil,
    network: ClaudeNetwork? = nil
  ) {
    self.id = id
    self.workingDirectory = workingDirectory
    self.configDirectory = configDirectory
    self.account = account
    self.network = network
  }

  /// Whether the id is one that can be part of a path and of a command line.
  var hasValidID: Bool {
    let bytes = Array(id.utf8)
    return bytes.count == 36
      && bytes.enumerated().allSatisfy { index, byte in
        switch index {
        case 8, 13, 18, 23: byte == UInt8(ascii: "-")
        default:
          (UInt8(ascii: "0")...UInt8(ascii: "9")).contains(byte)
            || (UInt8(ascii: "a")...UInt8(ascii: "f")).contains(byte)
        }
      }
  }
}

/// What a client may choose. A change of model or permission mode is made in the running process, any other by
/// a new process that resumes the conversation.
public struct ClaudeOptions: Sendable, Hashable {
  /// An alias or a full name; nil is the CLI's default.
  public var model: String?
  /// Added to the CLI's own system prompt.
  public var appendSystemPrompt: String?
  /// Rules of tools that are allowed without asking.
  public var allowedTools: [String] = Self.defaultAllowedTools
  /// Rules of tools that are denied.
  public var disallowedTools: [String] = []
  public var permissionMode: ClaudePermissionMode = .standard
  /// Whether a tool call that no rule decides is put to ``ClaudeRunner/answerPermission(session:requestID:decision:)``;
  /// otherwise it is denied.
  public var asksForPermission = false
  /// The most requests to the model in one turn.
  public var maxTurns: Int?
  /// The most that the conversation may have cost, in US dollars, before the CLI ends its turns with
  /// `budget_exhausted`. The CLI's count goes on over a resume, but may fall behind after a crash: to bound a
  /// single turn, give what was spent so far plus what it may cost.
  public var maxBudgetUSD: Double?
  /// JSON Schema of the structured output that each turn must give.
  public var jsonSchema: JSONValue?
  /// The object of `mcpServers` as in the CLI's configuration files.
  public var mcpServers: [String: JSONValue] = [:]

  public init() {}

  public static let defaultAllowedTools = [
    "Bash", "Read", "Write", "Edit", "WebSearch", "WebFetch", "Glob", "Grep",
  ]
}

/// The CLI's permission modes.
public enum ClaudePermissionMode: String, Sendable, Hashable, CaseIterable, Codable {
  case standard = "default"
  case acceptEdits
  case plan
  case dontAsk
  case bypassPermissions
}

/// Why a turn, or the CLI as such, failed.
public struct ClaudeFailure: Error, Sendable {
  /// Stable names for clients.
  public enum Code: String, Sendable, Hashable, CaseIterable, Codable {
    /// There is no such file.
    case cliMissing = "cli_missing"
    /// The file is there but can't be executed.
    case cliNotExecutable = "cli_not_executable"
    /// It is not a CLI of a version that can be used.
    case cliIncompatible = "cli_incompatible"
    /// The process ended in the middle of a turn or before it could begin.
    case crashed = "crashed"
    /// The system killed the process for want of memory.
    case outOfMemory = "out_of_memory"
    /// The process lives but doesn't speak the protocol.
    case cliProtocolError = "cli_protocol_error"
    case lineTooLong = "line_too_long"
    /// No process could be started at all (no memory, no descriptors, no workspace).
    case startFailed = "start_failed"
    case notLoggedIn = "not_logged_in"
    /// The model's API refused the credentials.
    case modelAuthFailed = "model_auth_failed"
    case rateLimited = "rate_limited"
    case overloaded
    /// The model's API failed in another way.
    case modelError = "model_error"
    case modelTimeout = "model_timeout"
    /// No byte from the CLI for too long.
    case stalled
    case turnTimeout = "turn_timeout"
    /// The model had finished, but the CLI never said so.
    case postResultHang = "post_result_hang"
    case maxTurns = "max_turns"
    case budgetExhausted = "budget_exhausted"
    case interrupted
    /// The session was stopped.
    case killed
    /// The waiting caller gave up before the turn began.
    case cancelled
    /// The turn came to nothing because a tool call was not permitted.
    case permissionDenied = "permission_denied"
    /// The session already has a turn in flight.
    case busy
    /// The runner is shutting down.
    case shuttingDown = "shutting_down"
    /// The CLI has no memory of a conversation that took place.
    case conversationLost = "conversation_lost"
    /// The turn ended without structured output that fits the schema.
    case structuredOutputMissing = "structured_output_missing"
    /// The CLI reported an error that is none of the others.
    case turnFailed = "turn_failed"
  }

  public var code: Code
  /// One sentence or a few for a person. It holds no credentials and no prompts.
  public var message: String
  /// When to try again, if the model's API or the CLI said so.
  public var retryAfter: Duration?
  /// How the process ended, if that was the cause.
  public var exit: ClaudeExit?
  /// The last error output of the process, if it ended or had to be ended.
  public var errorOutput: String
  /// What the turn had produced by then, and what it cost.
  public var partial: ClaudeTurnResult?

  public init(
    _ code: Code, _ message: String, retryAfter: Duration? = nil, exit: ClaudeExit? = nil,
    errorOutput: String = "", partial: ClaudeTurnResult? = nil
  ) {
    self.code = code
    self.message = message
    self.retryAfter = retryAfter
    self.exit = exit
    self.errorOutput = errorOutput
    self.partial = partial
  }
}

extension ClaudeFailure: CustomStringConvertible {
  public var description: String { "\(code.rawValue): \(message)" }
}

/// How a process ended.
public enum ClaudeExit: Sendable, Hashable, CustomStringConvertible {
  case code(Int32)
  case signal(Int32)

  public var description: String {
    switch self {
    case .code(let code): "exit status \(code)"
    case .signal(let signal): "signal \(signal)"
    }
  }
}

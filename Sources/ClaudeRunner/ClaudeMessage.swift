public import JSONSupport

/// One line of the CLI's output.
public struct ClaudeMessage: Sendable, Hashable {
  public enum Kind: Sendable, Hashable {
    /// With its subtype: `init`, `api_retry`, `status`, `task_started`, …
    case system(String)
    case assistant
    /// A tool result, or an echo of what was sent.
    case user
    case result
    /// A piece of an answer in the making.
    case streamEvent
    /// The CLI asks for something; with the subtype. `can_use_tool` is a permission request.
    case controlRequest(String)
    case controlResponse
    /// The CLI withdraws a request of its own.
    case controlCancelRequest
    case rateLimit
    /// A type this module does not know; kept as it is.
    case other(String)
    /// A line that is no JSON object; `json` is its text.
    case notJSON
  }

  public var kind: Kind
  public var json: JSONValue

  public init(line: some Collection<UInt8>) {
    guard let value = try? JSONValue(parsing: line), let type = value["type"]?.stringValue else {
      // What isn't a message is data too: it is kept for the log, not taken for one.
      kind = .notJSON
      json = .string(String(decoding: line.prefix(Self.keptGarbage), as: UTF8.self))
      return
    }
    json = value
    switch type {
    case "system": kind = .system(value["subtype"]?.stringValue ?? "")
    case "assistant": kind = .assistant
    case "user": kind = .user
    case "result": kind = .result
    case "stream_event": kind = .streamEvent
    case "control_request": kind = .controlRequest(value["request"]?["subtype"]?.stringValue ?? "")
    case "control_response": kind = .controlResponse
    case "control_cancel_request": kind = .controlCancelRequest
    case "rate_limit_event": kind = .rateLimit
    default: kind = .other(type)
    }
  }

  /// How many bytes of a line that is no JSON are kept.
  static let keptGarbage = 4096

  /// The text blocks of an assistant message, one after the other; nil for other messages and without text.
  public var assistantText: String? {
    guard kind == .assistant else { return nil }
    let texts = (json["message"]?["content"]?.arrayValue ?? []).compactMap { block in
      block["type"]?.stringValue == "text" ? block["text"]?.stringValue : nil
    }
    return texts.isEmpty ? nil : texts.joined()
  }

  /// Whether a subagent wrote it, not the conversation itself.
  public var isFromSubagent: Bool { json["parent_tool_use_id"]?.stringValue != nil }

  /// Whether an assistant message of the conversation calls a tool, so that more must follow.
  var callsTool: Bool {
    (json["message"]?["content"]?.arrayValue ?? []).contains { $0["type"]?.stringValue == "tool_use" }
  }

  /// Whether a result ends a turn that the CLI began by itself, when background work had finished.
  var isResultOfOwnAccord: Bool {
    guard kind == .result, let origin = json["origin"]?["kind"]?.stringValue else { return false }
    return origin == "task-notification"
  }
}

// What a tool writes into the CLI's own output can look like a message of the CLI. Its numbers are therefore taken for
// what they can be at most, so that they neither end the server nor spoil its sums.
extension ClaudeMessage {
  /// When to try again, at most a week from now, if the message says it.
  ///
  /// - Parameter now: seconds since 1970.
  func retryAfter(now: Int) -> Duration? {
    let seconds: Double?
    switch kind {
    case .system("api_retry") where [429, 529].contains(json["error_status"]?.intValue):
      seconds = json["retry_delay_ms"]?.doubleValue.map { ($0 / 1000).rounded(.up) }
    // The CLI also tells of limits that are far from being reached.
    case .rateLimit where json["rate_limit_info"]?["status"]?.stringValue == "rejected":
      seconds = json["rate_limit_info"]?["resetsAt"]?.doubleValue.map { max(1, $0 - Double(now)) }
    default: seconds = nil
    }
    return seconds.map { .seconds(min(max($0, 0), 7 * 86_400)) }
  }

  /// A number of things: not negative, and so small that some millions of them can be added up.
  static func count(_ value: JSONValue?) -> Int64 { min(max(value?.intValue ?? 0, 0), largestCount) }

  /// A sum of money: from nothing to a million.
  static func dollars(_ value: JSONValue?) -> Double { min(max(value?.doubleValue ?? 0, 0), mostDollars) }

  // These hold for what is added up of many numbers, too: there may be any number of them.
  static let largestCount: Int64 = 1 << 40
  static let mostDollars = 1_000_000.0
}

/// The answer to a permission request.
public enum ClaudePermissionDecision: Sendable, Hashable {
  /// Run the tool; with `updatedInput` instead of what was asked for, and with rules to remember, both in the
  /// CLI's own form.
  case allow(updatedInput: JSONValue? = nil, updatedPermissions: JSONValue? = nil)
  /// Don't; the message is shown to the model.
  case deny(message: String)
}

/// One message to the CLI and what is to be done with it.
public struct ClaudeTurn: Sendable {
  public var session: ClaudeSession
  public var options: ClaudeOptions
  /// Reaches the model as it is; it is never read as a command of the CLI.
  public var prompt: String
  /// Whether an earlier turn of the session got an answer, so that a CLI without memory of it is a failure.
  public var expectsHistory: Bool
  /// What the log calls the turn.
  public var id: String

  /// For whom it runs: those that wait for a process are served in turns between owners.
  public var owner: String
  /// US dollars that this turn may cost, whatever the conversation has cost before; nil for no bound. The CLI looks
  /// at it after each answer of the model, and so may go beyond it by one. A turn that reaches it fails with
  /// `budget_exhausted`. A process whose bound leaves at least half of it serves the turn, too.
  public var allowanceUSD: Double?

  public init(
    session: ClaudeSession, options: ClaudeOptions = ClaudeOptions(), prompt: String,
    expectsHistory: Bool = false, id: String = "-", owner: String = "", allowanceUSD: Double? = nil
  ) {
    self.session = session
    self.options = options
    self.prompt = prompt
    self.expectsHistory = expectsHistory
    self.id = id
    self.owner = owner
    self.allowanceUSD = allowanceUSD
  }
}

/// What came of a turn.
public struct ClaudeTurnResult: Sendable, Hashable {
  /// The final answer; of a turn that failed, what the model had said until then.
  public var text = ""
  public var structuredOutput: JSONValue?
  /// Tokens of this turn, as the CLI counts them.
  public var usage = ClaudeUsage()
  /// What this turn cost, in US dollars at list price.
  public var costUSD = 0.0
  /// From the prompt to the result, as measured here.
  public var duration = Duration.zero
  /// How many steps the CLI made.
  public var numTurns = 0
  public var stopReason: String?
  /// The model that answered last.
  public var model: String?
  /// The CLI's own id of the conversation; it differs from the session's if `--continue` had to be used.
  public var cliSessionID: String?
  /// Whether the process was started for this turn.
  public var startedProcess = false
  /// Tool calls that were denied, in the CLI's form.
  public var permissionDenials: [JSONValue] = []
  /// The CLI's result message; nil if there was none.
  public var raw: JSONValue?

  public init() {}
}

public struct ClaudeUsage: Sendable, Hashable, Codable {
  public var inputTokens: Int64 = 0
  public var outputTokens: Int64 = 0
  public var cacheReadTokens: Int64 = 0
  public var cacheCreationTokens: Int64 = 0

  public init() {}

  init(_ json: JSONValue?) {
    inputTokens = ClaudeMessage.count(json?["input_tokens"])
    outputTokens = ClaudeMessage.count(json?["output_tokens"])
    cacheReadTokens = ClaudeMessage.count(json?["cache_read_input_tokens"])
    cacheCreationTokens = ClaudeMessage.count(json?["cache_creation_input_tokens"])
  }

  /// The sum over the models that a result tells of; nil if it tells none of tokens.
  init?(models: JSONValue?) {
    let entries = (models?.objectValue ?? [:]).values
    guard entries.contains(where: { $0["inputTokens"] != nil }) else { return nil }
    for entry in entries {
      var usage = ClaudeUsage()
      usage.inputTokens = ClaudeMessage.count(entry["inputTokens"])
      usage.outputTokens = ClaudeMessage.count(entry["outputTokens"])
      usage.cacheReadTokens = ClaudeMessage.count(entry["cacheReadInputTokens"])
      usage.cacheCreationTokens = ClaudeMessage.count(entry["cacheCreationInputTokens"])
      self += usage
    }
  }

  /// Each sum is again no more than a count can be.
  static func += (sum: inout Self, other: Self) {
    func add(_ kind: WritableKeyPath<Self, Int64>) {
      sum[keyPath: kind] = min(sum[keyPath: kind] + other[keyPath: kind], ClaudeMessage.largestCount)
    }
    add(\.inputTokens)
    add(\.outputTokens)
    add(\.cacheReadTokens)
    add(\.cacheCreationTokens)
  }
}

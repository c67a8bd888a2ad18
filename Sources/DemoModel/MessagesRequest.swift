import JSONSupport

/// The part of a Messages API request that the demo model looks at.
struct MessagesRequest: Sendable {
  var model: String
  var isStreaming: Bool
  var toolNames: Set<String>
  /// Distinguishes conversations: what the client sends as the user's id, which holds the CLI's session id.
  var conversationID: String
  /// The prompts a person wrote, oldest first.
  var prompts: [String]
  /// How many assistant messages follow the latest prompt.
  var answersInTurn: Int
  /// The texts of the tool results that follow the latest prompt.
  var toolResultsInTurn: [String]
  /// Rough numbers of tokens: of all before the last message, and of that message.
  var cachedTokens: Int
  var newTokens: Int

  /// - Throws: ``RequestError`` that names the wrong member.
  init(_ body: JSONValue) throws(RequestError) {
    guard body.objectValue != nil else { throw RequestError("the body must be an object") }
    guard let model = body["model"]?.stringValue, !model.isEmpty else {
      throw RequestError("model: a string is required")
    }
    guard let messages = body["messages"]?.arrayValue, !messages.isEmpty else {
      throw RequestError("messages: at least one message is required")
    }
    self.model = model
    isStreaming = body["stream"]?.boolValue ?? false
    toolNames = Set((body["tools"]?.arrayValue ?? []).compactMap { $0["name"]?.stringValue })
    conversationID = body["metadata"]?["user_id"]?.stringValue ?? ""
    prompts = []
    answersInTurn = 0
    toolResultsInTurn = []
    let earlier: [JSONValue] = [body["system"] ?? .null, body["tools"] ?? .null] + messages.dropLast()
    cachedTokens = Self.estimatedTokens(earlier)
    newTokens = max(1, Self.estimatedTokens(messages.suffix(1)))
    for (index, message) in messages.enumerated() {
      switch message["role"]?.stringValue {
      case "user": readUser(message["content"])
      case "assistant": answersInTurn += 1
      // The CLI sends its notes about the environment in this role, between the turns.
      case "system": break
      default: throw RequestError("messages.\(index).role: must be user, assistant or system")
      }
    }
  }

  private mutating func readUser(_ content: JSONValue?) {
    if let text = content?.stringValue {
      readText(text)
      return
    }
    for block in content?.arrayValue ?? [] {
      switch block["type"]?.stringValue {
      case "text": readText(block["text"]?.stringValue ?? "")
      case "tool_result": toolResultsInTurn.append(Self.text(of: block["content"]))
      default: break
      }
    }
  }

  private mutating func readText(_ text: String) {
    let prompt = Self.withoutReminders(text)
    guard !prompt.isEmpty, !Self.notesOfTheCLI.contains(where: { prompt.hasPrefix($0) }) else { return }
    prompts.append(prompt)
    answersInTurn = 0
    toolResultsInTurn = []
  }

  /// How texts begin that the CLI itself puts into a user message.
  private static let notesOfTheCLI = [
    "[Request interrupted by user", "[structured-output-enforce]", "<local-command-", "<command-name>",
    "<task-notification>",
  ]

  static func withoutReminders(_ text: String) -> String {
    var kept = ""
    var rest = text[...]
    while let start = rest.range(of: "<system-reminder>") {
      kept += rest[..<start.lowerBound]
      rest = rest[start.upperBound...]
      guard let end = rest.range(of: "</system-reminder>") else { return kept.trimmed }
      rest = rest[end.upperBound...]
    }
    return (kept + rest).trimmed
  }

  private static func text(of content: JSONValue?) -> String {
    if let text = content?.stringValue { return withoutReminders(text) }
    return (content?.arrayValue ?? []).compactMap { $0["text"]?.stringValue }
      .map(withoutReminders).joined(separator: "\n")
  }

  private static func estimatedTokens(_ values: some Sequence<JSONValue>) -> Int {
    values.reduce(0) { $0 + $1.encoded().count } / 4
  }
}

/// What is wrong with a request; becomes an `invalid_request_error`.
struct RequestError: Error, Sendable {
  var message: String

  init(_ message: String) {
    self.message = message
  }
}

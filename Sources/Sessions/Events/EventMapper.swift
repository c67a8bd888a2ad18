public import JSONSupport

#if canImport(FoundationEssentials)
  public import FoundationEssentials
#else
  public import Foundation
#endif

/// Turns what the CLI says during one turn into events.
///
/// Each content block becomes one event. A message that isn't known becomes `agent.unknown` with its text, so that
/// a newer CLI's words are not lost. Very large tool results and raw messages are cut and marked `truncated`.
public struct EventMapper: Sendable {
  /// What one message gives.
  public struct Output: Sendable, Equatable {
    /// For the log.
    public var events: [NewEvent] = []
    public var preview: EventPreview?
  }

  /// A call of the model whose end has not come.
  private struct ModelRequest {
    static let countNames = [
      "input_tokens", "output_tokens", "cache_creation_input_tokens", "cache_read_input_tokens",
    ]
    var messageID: String
    var usage: [String: Int64] = [:]
    /// Types of the previewed events by their blocks' index.
    var blocks: [Int64: String] = [:]

    /// Takes the counts that are in a message; each is a total.
    mutating func note(_ counts: JSONValue?) {
      for name in Self.countNames { if let count = counts?[name]?.intValue { usage[name] = count } }
    }
  }

  /// Bytes of one text of a tool's result, and of a raw message, that are kept.
  private static let keptBytes = 256 << 10
  // A tool can write into the CLI's output what begins and never ends. What is remembered of a turn has bounds that no
  // honest turn reaches; beyond them the oldest is forgotten.
  /// Calls of the model at one time, each of a subagent of its own.
  private static let keptRequests = 256
  private static let keptMessages = 1024
  private static let keptCalls = 1024
  /// Blocks of a message whose previews are told apart.
  private static let keptBlocks = 1024
  /// Bytes of an id by which something is remembered.
  private static let keptID = 128

  private let turnID: UUID
  /// By the tool call of the subagent that makes it; "" for the conversation itself.
  private var requests = BoundedDictionary<String, ModelRequest>(limit: keptRequests)
  /// How many blocks of a model's message have come, by its id, while it is being streamed.
  private var blocksSeen = BoundedDictionary<String, Int>(limit: keptMessages)
  /// Tool calls that go to an MCP server.
  private var mcpCalls = BoundedDictionary<String, String>(limit: keptCalls)

  public init(turnID: UUID) {
    self.turnID = turnID
  }

  /// - Parameter previews: whether the preview of a streamed piece is wanted; its events come either way.
  public mutating func map(_ message: JSONValue, at time: Timestamp = .now(), previews: Bool) -> Output {
    switch message["type"]?.stringValue {
    case "assistant": Output(events: assistant(message, time))
    case "user": Output(events: user(message, time))
    case "stream_event": stream(message, time, previews)
    case "system": Output(events: system(message, time))
    case "rate_limit_event":
      Output(events: [event("session.rate_limit_updated", time, ["rate_limit": message["rate_limit_info"] ?? .null])])
    // The turn's own events tell its end; requests for permission are approvals.
    case "result", "control_request", "control_response", "control_cancel_request", "keep_alive": Output()
    default: Output(events: [unknown(message, time)])
    }
  }

  /// The ends of what is still open when the turn is over.
  public mutating func finish(at time: Timestamp = .now()) -> [NewEvent] {
    requests.removeAll().map { requestEnd($0.value, $0.key, isError: true, time) }
  }

  /// How much is remembered of the turn, in things of any kind.
  var rememberedCount: Int {
    requests.count + blocksSeen.count + mcpCalls.count + requests.contents.values.reduce(0) { $0 + $1.blocks.count }
  }

  private static func id(_ value: JSONValue?) -> String {
    let text = value?.stringValue ?? ""
    return text.utf8.count <= keptID ? text : String(decoding: text.utf8.prefix(keptID), as: UTF8.self)
  }

  // MARK: Whole messages

  private mutating func assistant(_ message: JSONValue, _ time: Timestamp) -> [NewEvent] {
    let messageID = message["message"]?["id"]?.stringValue
    return blocks(message).map { block in
      var payload: [String: JSONValue] = common(message)
      if let messageID {
        payload["message_id"] = .string(messageID)
        let key = Self.id(message["message"]?["id"])
        if let index = blocksSeen[key] {
          payload["preview_id"] = .string(Self.previewID(key, Int64(index)))
          blocksSeen.set(key, index + 1)
        }
      }
      switch block["type"]?.stringValue {
      case "text":
        payload["content"] = [["type": "text", "text": block["text"] ?? ""]]
        return event("agent.message", time, payload)
      case "thinking", "redacted_thinking":
        payload["content"] = [["type": "thinking", "thinking": block["thinking"] ?? ""]]
        return event("agent.thinking", time, payload)
      case "tool_use", "server_tool_use", "mcp_tool_use":
        return toolUse(block, payload, time)
      case let type? where type.hasSuffix("_tool_result"):
        return toolResult(block, payload, time)
      default:
        return unknown(message, time)
      }
    }
  }

  private mutating func toolUse(
    _ block: JSONValue, _ payload: [String: JSONValue], _ time: Timestamp
  ) -> NewEvent {
    var payload = payload
    let name = block["name"]?.stringValue ?? ""
    let id = block["id"]?.stringValue ?? ""
    payload["tool_use_id"] = .string(id)
    payload["input"] = block["input"] ?? [:]
    // The CLI names the tools of MCP servers "mcp__<server>__<tool>".
    if name.hasPrefix("mcp__"), let end = name.dropFirst(5).firstRange(of: "__") {
      let server = String(name[..<end.lowerBound].dropFirst(5))
      mcpCalls.set(Self.id(block["id"]), Self.id(.string(server)))
      payload["name"] = .string(String(name[end.upperBound...]))
      payload["mcp_server_name"] = .string(server)
      return event("agent.mcp_tool_use", time, payload)
    }
    payload["name"] = .string(name)
    return event("agent.tool_use", time, payload)
  }

  private mutating func user(_ message: JSONValue, _ time: Timestamp) -> [NewEvent] {
    // What else the CLI says for the user is its own: echoes, notes on interruptions, prompts of subagents.
    blocks(message).filter { $0["type"]?.stringValue == "tool_result" }
      .map { toolResult($0, common(message), time) }
  }

  private mutating func toolResult(
    _ block: JSONValue, _ payload: [String: JSONValue], _ time: Timestamp
  ) -> NewEvent {
    var payload = payload
    let id = block["tool_use_id"]?.stringValue ?? ""
    var isCut = false
    payload["tool_use_id"] = .string(id)
    payload["is_error"] = .bool(block["is_error"]?.boolValue ?? false)
    payload["content"] = .array(Self.content(block["content"], &isCut))
    if isCut { payload["truncated"] = true }
    if let server = mcpCalls.remove(Self.id(block["tool_use_id"])) {
      payload["mcp_server_name"] = .string(server)
      return event("agent.mcp_tool_result", time, payload)
    }
    return event("agent.tool_result", time, payload)
  }

  /// A tool's result as blocks, without the bulk of large ones.
  private static func content(_ content: JSONValue?, _ isCut: inout Bool) -> [JSONValue] {
    switch content {
    case nil, .null: return []
    case .string(let text): return [["type": "text", "text": .string(cut(text, &isCut))]]
    case .array(let blocks):
      return blocks.map { block in
        if let text = block["text"]?.stringValue, block["type"]?.stringValue == "text" {
          return ["type": "text", "text": .string(cut(text, &isCut))]
        }
        let size = block.encoded().count
        guard size > keptBytes else { return block }
        isCut = true
        return ["type": block["type"] ?? "unknown", "omitted_bytes": .int(Int64(size))]
      }
    case let other?:
      return [["type": "text", "text": .string(cut(other.description, &isCut))]]
    }
  }

  private static func cut(_ text: String, _ isCut: inout Bool) -> String {
    guard text.utf8.count > keptBytes else { return text }
    isCut = true
    var end = text.utf8.index(text.startIndex, offsetBy: keptBytes)
    // Not in the middle of a character.
    while text.utf8[end] & 0xc0 == 0x80 { end = text.utf8.index(before: end) }
    return String(text[..<end])
  }

  private func system(_ message: JSONValue, _ time: Timestamp) -> [NewEvent] {
    switch message["subtype"]?.stringValue {
    case "init":
      var payload: [String: JSONValue] = [:]
      for (name, key) in [
        ("model", "model"), ("permission_mode", "permissionMode"), ("cli_version", "claude_code_version"),
        ("mcp_servers", "mcp_servers"),
      ] { payload[name] = message[key] }
      return [event("agent.ready", time, payload)]
    case "compact_boundary":
      var payload: [String: JSONValue] = [:]
      for name in ["trigger", "pre_tokens"] { payload[name] = message["compact_metadata"]?[name] }
      return [event("agent.thread_context_compacted", time, payload)]
    case "api_retry":
      var payload: [String: JSONValue] = [:]
      for name in ["attempt", "max_retries", "retry_delay_ms", "error_status"] { payload[name] = message[name] }
      return [event("session.status_rescheduled", time, payload)]
    // What the CLI is busy with at the moment, which the other events tell better.
    case "status": return []
    default: return [unknown(message, time)]
    }
  }

  private func unknown(_ message: JSONValue, _ time: Timestamp) -> NewEvent {
    let size = message.encoded().count
    var payload: [String: JSONValue] = ["message_type": message["type"] ?? .null]
    if size <= Self.keptBytes {
      payload["raw"] = message
    } else {
      payload["truncated"] = true
      payload["omitted_bytes"] = .int(Int64(size))
    }
    return event("agent.unknown", time, payload)
  }

  // MARK: Pieces

  private mutating func stream(_ message: JSONValue, _ time: Timestamp, _ previews: Bool) -> Output {
    let piece = message["event"] ?? .null
    let parent = Self.id(message["parent_tool_use_id"])
    switch piece["type"]?.stringValue {
    case "message_start":
      let id = Self.id(piece["message"]?["id"])
      var events: [NewEvent] = []
      if let open = requests.remove(parent) { events.append(requestEnd(open, parent, isError: true, time)) }
      var request = ModelRequest(messageID: id)
      request.note(piece["message"]?["usage"])
      if let forgotten = requests.set(parent, request) {
        events.append(requestEnd(forgotten.value, forgotten.key, isError: true, time))
      }
      blocksSeen.set(id, 0)
      var payload = common(message)
      payload["message_id"] = .string(id)
      if let model = piece["message"]?["model"]?.stringValue { payload["model"] = .string(model) }
      events.append(event("span.model_request_start", time, payload))
      return Output(events: events)
    case "message_delta":
      requests.change(parent) { $0.note(piece["usage"]) }
      return Output()
    case "message_stop":
      guard let request = requests.remove(parent) else { return Output() }
      return Output(events: [requestEnd(request, parent, isError: false, time)])
    case "content_block_start":
      guard let index = piece["index"]?.intValue, let block = piece["content_block"] else { return Output() }
      let type =
        switch block["type"]?.stringValue {
        case "text": "agent.message"
        case "thinking", "redacted_thinking": "agent.thinking"
        case "tool_use" where block["name"]?.stringValue?.hasPrefix("mcp__") == true, "mcp_tool_use":
          "agent.mcp_tool_use"
        case "tool_use", "server_tool_use": "agent.tool_use"
        default: "agent.unknown"
        }
      guard let id = requests[parent]?.messageID else { return Output() }
      requests.change(parent) { if $0.blocks.count < Self.keptBlocks { $0.blocks[index] = type } }
      guard previews else { return Output() }
      var started: [String: JSONValue] = ["type": .string(type)]
      started["name"] = block["name"]
      var payload = common(message)
      payload["preview_id"] = .string(Self.previewID(id, index))
      payload["event"] = .object(started)
      return Output(preview: preview("event_start", payload))
    case "content_block_delta":
      guard previews, let index = piece["index"]?.intValue, let delta = piece["delta"],
        let request = requests[parent], let type = request.blocks[index],
        // The signature of a thought means something to the model only.
        delta["type"]?.stringValue != "signature_delta"
      else { return Output() }
      var payload = common(message)
      payload["preview_id"] = .string(Self.previewID(request.messageID, index))
      payload["event"] = ["type": .string(type)]
      payload["delta"] = delta
      return Output(preview: preview("event_delta", payload))
    default:
      return Output()
    }
  }

  private func requestEnd(
    _ request: ModelRequest, _ parent: String, isError: Bool, _ time: Timestamp
  ) -> NewEvent {
    var usage: [String: JSONValue] = [:]
    for name in ModelRequest.countNames { usage[name] = .int(request.usage[name] ?? 0) }
    var payload: [String: JSONValue] = [
      "message_id": .string(request.messageID), "is_error": .bool(isError), "model_usage": .object(usage),
    ]
    if !parent.isEmpty { payload["parent_tool_use_id"] = .string(parent) }
    return event("span.model_request_end", time, payload)
  }

  // MARK: Parts

  /// By this a client finds the event that takes the place of a preview.
  private static func previewID(_ message: String, _ index: Int64) -> String { "\(message).\(index)" }

  private func common(_ message: JSONValue) -> [String: JSONValue] {
    guard let parent = message["parent_tool_use_id"]?.stringValue else { return [:] }
    return ["parent_tool_use_id": .string(parent)]
  }

  private func blocks(_ message: JSONValue) -> [JSONValue] {
    switch message["message"]?["content"] {
    case .array(let blocks)?: blocks
    case .string(let text)?: [["type": "text", "text": .string(text)]]
    default: []
    }
  }

  private func event(_ type: String, _ time: Timestamp, _ payload: [String: JSONValue]) -> NewEvent {
    NewEvent(type, turn: turnID, at: time, .object(payload))
  }

  private func preview(_ type: String, _ payload: [String: JSONValue]) -> EventPreview {
    EventPreview(
      type: type, turnID: turnID, payload: String(decoding: JSONValue.object(payload).encoded(), as: UTF8.self))
  }
}

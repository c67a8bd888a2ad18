import JSONSupport
import Sessions

#if canImport(FoundationEssentials)
  import FoundationEssentials
#else
  import Foundation
#endif

/// A part of a conversation as a person reads it.
struct ConversationEntry: Equatable {
  struct ToolCall: Equatable {
    let id: String
    let name: String
    /// The part of its input that tells most about it.
    let summary: String
  }

  /// Number of the first event that it was made from.
  let sequence: Int64
  /// `user`, `assistant`, or `system` for an error.
  let role: String
  let turnID: UUID?
  let createdAt: Timestamp
  let text: String
  /// What the agent did after it had said this.
  var toolCalls: [ToolCall] = []

  static let eventTypes: Set<String> = [
    "user.message", "agent.message", "agent.tool_use", "agent.mcp_tool_use", "session.error",
  ]

  static func entries(of events: some Sequence<Event>) -> [ConversationEntry] {
    var entries: [ConversationEntry] = []
    for event in events {
      // The payloads are this program's own; one that can't be read has nothing to show.
      guard let payload = try? JSONValue(parsing: event.payload.utf8), payload["parent_tool_use_id"] == nil else {
        continue
      }
      switch event.type {
      case "user.message": entries.append(ConversationEntry(event, "user", text(of: payload)))
      case "agent.message": entries.append(ConversationEntry(event, "assistant", text(of: payload)))
      case "session.error":
        entries.append(ConversationEntry(event, "system", payload["error"]?["message"]?.stringValue ?? ""))
      default:
        let call = ToolCall(
          id: payload["tool_use_id"]?.stringValue ?? "", name: payload["name"]?.stringValue ?? "",
          summary: summary(of: payload["input"]))
        if let last = entries.last, last.role == "assistant", last.turnID == event.turnID {
          entries[entries.count - 1].toolCalls.append(call)
        } else {
          var entry = ConversationEntry(event, "assistant", "")
          entry.toolCalls = [call]
          entries.append(entry)
        }
      }
    }
    return entries
  }

  private init(_ event: Event, _ role: String, _ text: String) {
    sequence = event.sequence
    self.role = role
    turnID = event.turnID
    createdAt = event.processedAt
    self.text = text
  }

  private static func text(of payload: JSONValue) -> String {
    (payload["content"]?.arrayValue ?? []).compactMap { $0["text"]?.stringValue }.joined()
  }

  private static func summary(of input: JSONValue?) -> String {
    let telling = ["command", "file_path", "path", "pattern", "query", "url", "description", "prompt"]
    let text =
      telling.lazy.compactMap { input?[$0]?.stringValue }.first
      ?? input?.objectValue?.sorted { $0.key < $1.key }.lazy.compactMap(\.value.stringValue).first ?? ""
    let line = text.split(whereSeparator: \.isNewline).first.map(String.init) ?? ""
    return line.count <= 200 ? line : line.prefix(199) + "…"
  }
}

extension JSONWriter {
  mutating func members(_ entry: ConversationEntry) {
    field("sequence", entry.sequence)
    field("role", entry.role)
    field("text", entry.text)
    field("created_at", entry.createdAt.description)
    field("turn_id", entry.turnID?.lowercaseString)
    field("tool_calls", array: entry.toolCalls) { json, call in
      json.object { json in
        json.field("tool_use_id", call.id)
        json.field("name", call.name)
        json.field("summary", call.summary)
      }
    }
  }
}

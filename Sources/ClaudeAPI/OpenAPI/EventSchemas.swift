import JSONSupport
import Sessions

/// The events of a session's log, type by type.
///
/// What is here is what a client can rely on; the agent may say more in an event than its description has.
extension Schemas {
  static let event = Schema.oneOf(
    eventPayloads.map { .reference("event.\($0.type)") },
    "An entry of the log. Its `type` tells what else it has.")

  /// Every type of event by the name of its schema.
  static let eventTypes: [String: Schema] = Dictionary(
    uniqueKeysWithValues: eventPayloads.map { payload in
      (
        "event.\(payload.type)",
        Schema.object(
          payload.description,
          [
            .required("id", .string("In the order of the log also as a text.", pattern: "^evt_[0-9]{12,}$")),
            .required("sequence", .integer("1, 2, … within the session, without a gap.", in: 1...Int64.max)),
            .required("type", .constant(payload.type)),
            .required("session_id", .uuid()),
            .required("turn_id", .uuid("The turn that it belongs to, if it belongs to one.").orNull),
            .required("processed_at", .timestamp()),
          ] + payload.fields, others: .anything)
      )
    })

  struct EventPayload: Sendable {
    let type: String
    let description: String
    let fields: [Schema.Field]

    init(_ type: String, _ description: String, _ fields: [Schema.Field] = []) {
      self.type = type
      self.description = description
      self.fields = fields
    }
  }

  private static let content = Schema.array(.object("A block.", [.required("type", .string())], others: .anything))
  private static let error = Schema.object(
    nil, [.required("type", .string("A `code` of the problems.")), .required("message", .string())])

  private static let ofMessage: [Schema.Field] = [
    .optional("message_id", .string("The model's id of the message.")),
    .optional("preview_id", .string("The previews whose place this event takes.")),
    .optional("parent_tool_use_id", .string("The tool call of the subagent that says it.")),
  ]

  private static let ofEnd: [Schema.Field] = [
    .required("number", .integer("The turn's.", in: 1...Int64.max)),
    .optional("usage", .reference("Usage")),
    .optional("cost_usd", .number()),
    .optional("duration_ms", .integer()),
  ]

  static let eventPayloads: [EventPayload] = [
    EventPayload("user.message", "A message was accepted.", [.required("content", content)]),
    EventPayload("user.interrupt", "Somebody stopped the turn."),
    EventPayload("turn.queued", "The turn waits."),
    EventPayload("session.status_running", "The turn runs."),
    EventPayload(
      "agent.ready", "The agent has taken the message.",
      [
        .optional("model", .string()), .optional("permission_mode", .string()), .optional("cli_version", .string()),
        .optional("mcp_servers", .array(.anything())),
      ]),
    EventPayload("agent.message", "The agent says something.", [.required("content", content)] + ofMessage),
    EventPayload("agent.thinking", "The agent thinks.", [.required("content", content)] + ofMessage),
    EventPayload(
      "agent.tool_use", "The agent calls a tool.",
      [.required("tool_use_id", .string()), .required("name", .string()), .required("input", .anything())] + ofMessage),
    EventPayload(
      "agent.tool_result", "What a tool call came to.",
      [
        .required("tool_use_id", .string()), .required("is_error", .boolean()), .required("content", content),
        .optional("truncated", .boolean("Whether something of it was left out for its size.")),
      ] + ofMessage),
    EventPayload(
      "agent.mcp_tool_use", "The agent calls a tool of an MCP server.",
      [
        .required("tool_use_id", .string()), .required("name", .string()), .required("mcp_server_name", .string()),
        .required("input", .anything()),
      ] + ofMessage),
    EventPayload(
      "agent.mcp_tool_result", "What a call of an MCP server's tool came to.",
      [
        .required("tool_use_id", .string()), .required("mcp_server_name", .string()),
        .required("is_error", .boolean()), .required("content", content), .optional("truncated", .boolean()),
      ] + ofMessage),
    EventPayload(
      "agent.thread_context_compacted", "The agent has summed up the conversation so far.",
      [.optional("trigger", .string()), .optional("pre_tokens", .integer())]),
    EventPayload(
      "agent.unknown", "Something that the CLI said and this server doesn't know.",
      [
        .required("message_type", .anything()), .optional("raw", .anything()), .optional("truncated", .boolean()),
        .optional("omitted_bytes", .integer()),
      ]),
    EventPayload(
      "span.model_request_start", "The model is called.",
      [.required("message_id", .string()), .optional("model", .string())]),
    EventPayload(
      "span.model_request_end", "The model has answered.",
      [
        .required("message_id", .string()), .required("is_error", .boolean()),
        .required("model_usage", .reference("Usage")),
      ]
    ),
    EventPayload(
      "approval.requested", "A tool call waits for a decision.",
      [
        .required("approval_id", .uuid()), .required("tool_use_id", .string()), .required("name", .string()),
        .required("input", .anything()), .required("evaluated_permission", .constant("ask")),
        .required("expires_at", .timestamp()), .optional("description", .string()),
      ]),
    EventPayload(
      "approval.resolved", "The decision.",
      [
        .required("approval_id", .uuid()), .required("tool_use_id", .string()),
        .required("state", .choice(Approval.State.self)), .optional("message", .string()),
        .optional("remember", .boolean()),
      ]),
    EventPayload(
      "approval.remembered", "An earlier decision was applied.",
      [
        .required("approval_id", .uuid("The earlier one.")), .required("tool_use_id", .string().orNull),
        .required("decision", .choice(["allow", "deny"])),
      ]),
    EventPayload(
      "session.status_rescheduled", "The model's API failed, and the agent tries again.",
      [
        .optional("attempt", .integer()), .optional("max_retries", .integer()), .optional("retry_delay_ms", .number()),
        .optional("error_status", .integer().orNull),
      ]),
    EventPayload(
      "session.rate_limit_updated", "What the model's API says of its limits.", [.required("rate_limit", .anything())]),
    EventPayload("session.error", "The turn failed.", [.required("error", error)]),
    EventPayload(
      "session.status_idle", "The session is at rest.",
      [
        .required(
          "stop_reason",
          .object(
            nil,
            [
              .required("type", .choice(["end_turn", "interrupted", "error", "requires_action"])),
              .optional("approval_ids", .array(.uuid())),
            ]))
      ]),
    EventPayload("turn.completed", "The turn is over.", ofEnd),
    EventPayload("turn.failed", "The turn is over.", ofEnd + [.required("error", error)]),
    EventPayload("turn.interrupted", "The turn is over.", ofEnd + [.optional("error", error)]),
    EventPayload("turn.cancelled", "The turn was taken out of the queue.", ofEnd + [.optional("error", error)]),
    EventPayload(
      "workspace.changed", "A file or folder of the workspace was changed; with `overflow`, more of them in a folder.",
      [
        .required("path", .string()), .optional("path_base64", .string("The path's bytes, where they are no UTF-8.")),
        .required("kind", .choice(["created", "modified", "deleted", "overflow"])),
        .required("file_type", .string()), .optional("size", .integer("Bytes, of a file.")),
        .optional("count", .integer("How many more, with `overflow`.")),
        .required("source", .choice(["agent", "client"], "Who changed it.")),
      ]),
    EventPayload(
      "session.updated", "Name, options or metadata were changed.",
      [
        .optional("name", .string()), .optional("metadata", .object(others: .anything)),
        .optional("options", .reference("SessionOptions")),
      ]),
    EventPayload(
      "session.forked", "The session was made as a copy of another.",
      [
        .required("parent_session_id", .uuid()), .required("parent_sequence", .integer()),
        .required("copied_events", .integer()), .required("truncated", .boolean()),
      ]),
  ]
}

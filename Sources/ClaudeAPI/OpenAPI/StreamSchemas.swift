import JSONSupport

/// What streams and sockets say, beside the events of the log.
extension Schemas {
  static let streamTypes: [String: Schema] = [
    "StreamEvent": .oneOf(
      [.reference("Event")] + previewTypes.keys.sorted().map { .reference($0) },
      "What a stream brings: the log's events, texts in the making, and the end of the session."),
    "SocketMessage": .oneOf(
      [.reference("StreamEvent")] + socketTypes.keys.sorted().map { .reference($0) },
      "What the server says over a WebSocket."),
  ].merging(previewTypes) { first, _ in first }.merging(socketTypes) { first, _ in first }

  private static let ofPreview: [Schema.Field] = [
    .required("session_id", .uuid()), .required("turn_id", .uuid().orNull),
    .required("preview_id", .string("The event of the log that takes the place of this has the same.")),
    .optional("parent_tool_use_id", .string("The tool call of the subagent that says it.")),
  ]

  private static let previewed = Schema.object(
    nil,
    [
      .required("type", .string("Of the event that it will be, such as `agent.message`.")),
      .optional("name", .string("Of the tool.")),
    ], others: .anything)

  private static let previewTypes: [String: Schema] = [
    "stream.event_start": .object(
      "The agent begins to say something. It has no number, and isn't in the log.",
      [.required("type", .constant("event_start"))] + ofPreview + [.required("event", previewed)]),
    "stream.event_delta": .object(
      "A piece of what it says. It has no number, and isn't in the log.",
      [.required("type", .constant("event_delta"))] + ofPreview + [
        .required("event", previewed),
        .required(
          "delta", .object("As the model's API has it.", [.required("type", .string())], others: .anything)),
      ]),
    "stream.session.status_terminated": .object(
      "The session was deleted, and the stream ends.",
      [
        .required("type", .constant("session.status_terminated")), .required("session_id", .uuid()),
        .required("processed_at", .timestamp()),
      ]),
  ]

  private static let ofAnswer: [Schema.Field] = [
    .optional("id", .string("That of the command.")),
    .required("to", .string("The `type` of the command.").orNull),
  ]

  private static let socketTypes: [String: Schema] = [
    "socket.ready": .object(
      "The first message. Events come from here on.",
      [
        .required("type", .constant("ready")), .optional("id", .string("That of the command `authenticate`.")),
        .required("session_id", .uuid()),
        .required("after", .integer("The number after which the events begin.", in: 0...Int64.max)),
        .required("last", .integer("The number of the last event there is.", in: 0...Int64.max)),
      ]),
    "socket.pong": .object(
      "The answer to `ping`.",
      [.required("type", .constant("pong")), .optional("id", .string("That of the command."))]),
    "socket.reply": .object(
      "A command was carried out.",
      [.required("type", .constant("reply"))] + ofAnswer + [
        .required("status", .integer("That of the answer over HTTP.", in: 200...299)),
        .optional("replayed", .boolean("Whether a message was accepted before with the same `idempotency_key`.")),
        .required("body", .oneOf([.reference("Turn"), .reference("Approval")], "The body of that answer.")),
      ]),
    "socket.error": .object(
      "A command was not carried out.",
      [.required("type", .constant("error"))] + ofAnswer + [
        .required("status", .integer("That of the answer over HTTP.", in: 400...599)),
        .required("problem", .reference("Problem")),
      ]),
  ]
}

import HTTPTypes
import JSONSupport
import Sessions

extension Parameter {
  fileprivate static let eventTypes = Parameter(
    "types", .string("Only these types, with commas between.", pattern: "^[a-z._]{1,64}(,[a-z._]{1,64}){0,63}$"),
    example: "agent.message,turn.completed")
  fileprivate static let lastEventID = Parameter(
    "Last-Event-ID", .string("The same as `after`, before which it comes.", pattern: "^[0-9]{1,18}$"), example: "17")
}

extension Operation {
  static let eventOperations: [Operation] = [
    Operation(
      .get, "/sessions/{session_id}/events", "listEvents", .events,
      "A page of the log as JSON or, with `Accept: text/event-stream`, all of it and then what happens, without a gap or "
        + "a repetition. A reader who comes back with `Last-Event-ID` misses nothing, also after a restart of the "
        + "server. A browser's `EventSource` works against it where no key is needed, which it can't send; with keys use "
        + "`fetch`, or the WebSocket. A comment comes every 15 s.",
      query: [
        Parameter("after", .afterEvent, example: 17),
        Parameter(
          "limit",
          .integer("Events of a page, at most; large ones make a page end sooner. A stream has none.", in: 1...1000),
          example: 100),
        .eventTypes, .deltas,
        Parameter("stream", .boolean("A stream or a page, in place of `Accept`."), example: false),
      ],
      headers: [.lastEventID],
      answers: [
        Answer(
          200, "A page of events, or the stream.",
          .json(
            .object(
              nil,
              [
                .required("events", .array(.reference("Event"))), .required("has_more", .boolean()),
                .required("next", .integer("The `after` of the next page.", in: 0...Int64.max)),
                .required("last", .integer("The number of the last event there is.", in: 0...Int64.max)),
              ]), example: ["events": [Examples.event], "has_more": false, "next": 17, "last": 17]),
          .eventStream)
      ],
      problems: [.invalidCursor, .unknownCursor, .streamsLimit, .streamsExhausted]),
    Operation(
      .get, "/sessions/{session_id}/ws", "openWebSocket", .events,
      "The same events with the same cursor as messages of a WebSocket, and from the client `message`, `interrupt`, "
        + "`approval` and `ping`. With HTTP/1.1's upgrade only; the key comes as with other requests or, from a browser, "
        + "as the first message: `{\"type\": \"authenticate\", \"key\": \"…\"}`. What the server says is a `SocketMessage` "
        + "in each message.",
      query: [Parameter("after", .afterEvent, example: 17), .eventTypes, .deltas],
      headers: [.lastEventID],
      answers: [Answer(101, "The connection is a WebSocket now.")],
      problems: [
        .upgradeRequired, .originNotAllowed, .alreadyAuthenticated, .tooManySockets, .invalidCursor, .unknownCursor,
        .streamsLimit, .streamsExhausted,
      ]),
  ]

  static let controlOperations: [Operation] = [
    Operation(
      .post, "/sessions/{session_id}/interrupt", "interruptSession", .control,
      "Tools are stopped too; what the agent said is kept, and the session can be used at once.",
      body: .json(.object(nil, others: .nothing), example: [:], isRequired: false),
      answers: [
        Answer(
          200, "The turn, which is over.", .json(.reference("Turn"), example: Examples.turn),
          headers: [.turnLocation], tells: ["turn_id": "$response.body#/id"]),
        Answer(
          202, "The turn, which is about to end.", .json(.reference("Turn"), example: Examples.queuedTurn),
          headers: [.turnLocation], tells: ["turn_id": "$response.body#/id"]),
      ],
      problems: [.nothingRuns]),
    Operation(
      .get, "/sessions/{session_id}/approvals", "listApprovals", .control,
      query: [
        Parameter("state", .choice(Approval.State.self), example: "pending"),
        Parameter("after", .uuid("The approval after which to begin."), example: .string(Examples.approvalID)),
        Parameter("limit", .integer("Approvals of a page, at most.", in: 1...200), example: 50),
      ],
      answers: [
        Answer(
          200, "A page of the approvals, the oldest first.",
          .json(
            .object(
              nil,
              [
                .required("approvals", .array(.reference("Approval"))),
                .required("count", .integer("Of those that are listed.", in: 0...Int64.max)),
                .required("has_more", .boolean()),
                .required("next", .uuid("The `after` of the next page; null if there is no approval.").orNull),
              ]),
            example: [
              "approvals": [Examples.approval], "count": 1, "has_more": false, "next": .string(Examples.approvalID),
            ]),
          tells: ["approval_id": "$response.body#/approvals/0/id"])
      ],
      problems: [.approvalNotFound]),
    Operation(
      .get, "/sessions/{session_id}/approvals/{approval_id}", "getApproval", .control,
      answers: [Answer(200, "The approval.", .json(.reference("Approval"), example: Examples.approval))]),
    Operation(
      .post, "/sessions/{session_id}/approvals/{approval_id}", "decideApproval", .control,
      "The first decision holds. Without one in time the tool call is denied.",
      body: .json(
        {
          var schema = Schema.object(
            nil,
            [
              .required("decision", .choice(ApprovalVerdict.Decision.self)),
              .optional(
                "message",
                .string("What the agent is told, mostly with a denial.", length: 0...10_000, pattern: #"^[^\x00]*$"#)
                  .orNull),
              .optional(
                "updated_input",
                .object("The input to use in place of the agent's; only with `allow`.", others: .anything).orNull),
              .optional("remember", .boolean("Whether it holds for later calls of the same kind.").orNull),
            ], others: .nothing)
          schema.keywords["if"] = ["properties": ["decision": ["const": "deny"]]]
          schema.keywords["then"] = ["properties": ["updated_input": ["type": "null"]]]
          return schema
        }(), example: ["decision": "deny", "message": "Not on a Friday."]),
      answers: [
        Answer(200, "The approval, which is decided.", .json(.reference("Approval"), example: Examples.approval))
      ],
      problems: [.approvalResolved]),
  ]

  static let serverOperations: [Operation] = [
    Operation(
      .get, "/healthz", "getHealth", .server,
      answers: [
        Answer(
          200, "It is.",
          .json(
            .object(nil, [.required("status", .constant("ok")), .required("version", .string())]),
            example: ["status": "ok", "version": "1.0.0"]))
      ]),
    Operation(
      .get, "/readyz", "getReadiness", .server,
      answers: [
        Answer(
          200, "It can.",
          .json(
            .object(
              nil, [.required("status", .constant("ready")), .required("checks", .array(.reference("ReadinessCheck")))]),
            example: ["status": "ready", "checks": [["name": "store", "ok": true]]]))
      ],
      problems: [.notReady]),
    Operation(
      .get, "/metrics", "getMetrics", .server,
      "For clients on the same machine, and for keys of the role `admin`; only these see the use of each key.",
      answers: [Answer(200, "The metrics.", Content("text/plain; version=0.0.4; charset=utf-8", .string()))],
      problems: [.adminOnly]),
    Operation(
      .get, "/usage", "getUsage", .server, "A key sees its own; an administrator's sees any, and `all`.",
      query: [
        Parameter("key", .string("The id of a key, or `all`.", length: 1...200), example: "all")
      ],
      answers: [
        Answer(
          200, "What the key uses.",
          .json(
            Schema.oneOf([
              .reference("KeyUsage"),
              .object(nil, [.required("keys", .array(.reference("KeyUsage")))]),
            ]), example: Examples.keyUsage))
      ],
      problems: [.adminOnly, .keyNotFound]),
    Operation(
      .get, "/", "getIndex", .server,
      answers: [
        Answer(
          200, "What this is, its routes, and which model answers.",
          .json(
            .object(
              nil,
              [
                .required("name", .constant("Claude API")), .required("version", .string()),
                .required("endpoints", .object("A line about each route.", others: .of(.string()))),
                .required(
                  "model",
                  .object(
                    nil,
                    [
                      .required("kind", .choice(["demo", "configured"])), .optional("note", .string()),
                      .optional("host", .string("That of the model's API.").orNull),
                    ])),
              ]),
            example: [
              "name": "Claude API", "version": "1.0.0", "endpoints": ["GET /sessions": "List all sessions"],
              "model": ["kind": "configured", "host": "models.example.org"],
            ]))
      ]),
    Operation(
      .get, "/openapi.json", "getOpenAPI", .server,
      answers: [
        Answer(
          200, "This document.",
          .json(
            .object(
              nil, [.required("openapi", .constant("3.1.0"))], others: .anything), example: ["openapi": "3.1.0"]))
      ]),
    Operation(
      .get, "/docs", "getDocumentation", .server,
      answers: [Answer(200, "This document as a page.", .page)]),
  ]
}

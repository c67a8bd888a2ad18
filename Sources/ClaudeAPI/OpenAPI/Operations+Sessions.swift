import HTTPTypes
import JSONSupport
import Sessions

extension Parameter {
  static let idempotencyKey = Parameter(
    "Idempotency-Key",
    .string(
      "The same key with the same body gives the first answer, or joins the running turn, for 24 hours.",
      length: 1...255, pattern: "^[!-~]+$"),
    example: "5f0c1a6e")
  static let prefer = Parameter(
    "Prefer", .string("`respond-async` answers at once; with `wait=10` after so many seconds at most."),
    example: "respond-async, wait=10")
  static let deltas = Parameter(
    "deltas", .boolean("Whether a stream shows texts in the making (`event_start`, `event_delta`)."), example: false)
  static let replayed = Parameter(
    "Idempotency-Replayed", .constant("true", "This is the answer to an earlier request with the same key."))
  static let turnLocation = Parameter("Location", .string("The turn."))
  static let rateLimit = ["RateLimit", "RateLimit-Policy"].compactMap { OpenAPIDocument.sharedHeaders[$0] }
  static let preferenceApplied = Parameter("Preference-Applied", .constant("respond-async"))
}

extension ProblemCode {
  /// What a request may get that waits for the end of a turn.
  static let ofTurns: [ProblemCode] = [
    .budgetExhausted, .permissionDenied, .interrupted, .cancelled, .busy, .killed, .sessionDeleted, .maxTurns,
    .invalidOutputSchema, .rateLimited, .crashed, .outOfMemory, .cliProtocolError, .lineTooLong, .notLoggedIn,
    .modelAuthFailed, .modelError, .conversationLost, .structuredOutputMissing, .turnFailed, .cliMissing,
    .cliNotExecutable, .cliIncompatible, .startFailed, .overloaded, .modelTimeout, .stalled, .turnTimeout,
    .postResultHang, .quotaExceeded, .keyRevoked,
  ]
  /// What a key may have reached that sends a message.
  static let ofLimits: [ProblemCode] = [
    .runningTurnsLimit, .queuedTurnsLimit, .turnsPerHourLimit, .tokensPerDayLimit, .usdPerDayLimit, .usdPerMonthLimit,
    .diskBytesLimit,
  ]
  static let ofArchives: [ProblemCode] = [
    .invalidArchive, .unsafeArchive, .quotaExceeded, .diskBytesLimit, .uploadTooLarge, .noBodyFile,
  ]
  static let ofForms: [ProblemCode] = [.invalidForm, .tooManyParts, .foreignOrigin, .noBodyFile]
}

extension Operation {
  private static let prompt = Schema.string(
    "What the agent is to do. It must not be blank.", length: 1...Int.max, pattern: #"^[^\x00]*\S[^\x00]*$"#)
  private static let name = Schema.string(
    "At most 1,000 characters.", length: 0...1000, pattern: #"^[^\x00-\x1f\x7f]*$"#)

  private static let git = Schema.object(
    "A repository that becomes the workspace.",
    [
      .required(
        "url",
        .string("Its address, without a password. The operator says which places are allowed.", format: "git-url")),
      .optional("branch", .string("A branch or tag.", format: "git-reference").orNull),
      .optional("depth", .integer("How many commits of its history to bring.", in: 1...1_000_000).orNull),
    ], others: .nothing)

  private static let newSession: [Schema.Field] =
    [
      .optional("git", git.orNull),
      .optional(
        "initial_prompt",
        .string("The first message; empty is none.", pattern: #"^([^\x00]*\S[^\x00]*)?$"#).orNull),
      .optional("session_name", name.orNull),
    ] + Schemas.options

  static let sessionOperations: [Operation] = [
    Operation(
      .post, "/sessions", "createSession", .sessions,
      "With an `initial_prompt` the answer comes when its turn is over; a failure of that turn is told by `error` and "
        + "`error_code`, as the session is there all the same. As a form (multipart/form-data) it may bring an archive "
        + "that becomes the workspace; fields that are no texts are written as JSON there. With an archive there is no "
        + "`git` and no `Idempotency-Key`.",
      headers: [.idempotencyKey, .prefer],
      body: Body(
        contents: [
          .json(
            .object(nil, newSession, others: .nothing),
            example: ["initial_prompt": "Remember 7341", "session_name": "Numbers"]),
          Content(
            "multipart/form-data",
            .object(
              nil,
              newSession.map { field in
                let isText = API.textFieldsOfForms.contains(field.name)
                return .optional(field.name, isText ? field.schema.notNull : field.schema.asText)
              } + [
                .optional(
                  "archive",
                  .string("A tar (also gz, xz, zst) or zip archive, sent with a filename.", format: "binary"))
              ], others: .nothing)),
        ], isRequired: true),
      answers: [
        Answer(
          200, "The session, and what the agent answered.",
          .json(
            .object(
              nil,
              [
                .required("session", .reference("Session")),
                .required("initial_response", .string("Null without a prompt, and if it failed.").orNull),
                .optional("structured_output", .anything("The answer by `output_schema`.")),
                .optional("error", .string("Why the prompt failed.")),
                .optional("error_code", .choice(ProblemCode.self)),
              ]),
            example: ["session": Examples.session, "initial_response": "I remember."]),
          headers: [.replayed] + Parameter.rateLimit, tells: ["session_id": "$response.body#/session/id"]),
        Answer(
          202, "The session; its first turn isn't over (`Prefer: respond-async`).",
          .json(
            .object(
              nil,
              [
                .required("session", .reference("Session")), .required("initial_response", .string().orNull),
                .required("turn", .reference("Turn")),
              ]),
            example: ["session": Examples.session, "initial_response": nil, "turn": Examples.queuedTurn]),
          headers: [.turnLocation, .preferenceApplied, .replayed] + Parameter.rateLimit,
          tells: ["session_id": "$response.body#/session/id", "turn_id": "$response.body#/turn/id"]),
      ],
      problems: [
        .promptTooLarge, .sessionDeleted, .gitSourceNotAllowed, .gitFailed, .gitTimeout, .gitUnavailable,
        .tooManyClones,
        .sessionsLimit,
      ] + ProblemCode.ofLimits + ProblemCode.ofForms + ProblemCode.ofArchives),
    Operation(
      .get, "/sessions", "listSessions", .sessions,
      "All of them in the order of creation; with `limit` or `cursor` a page.",
      query: [
        Parameter("limit", .integer("Sessions of a page.", in: 1...1000), example: 20),
        Parameter("cursor", .integer("`next_cursor` of the page before.", in: 0...Int64.max), example: 40),
        Parameter(
          "name", .string("Only those whose name has this text in it.", length: 1...Int.max), example: "Numbers"),
        Parameter("status", .choice(SessionActivity.self, "`running`: a turn runs or waits."), example: "idle"),
      ],
      answers: [
        Answer(
          200, "The sessions.",
          .json(
            .object(
              nil,
              [
                .required("sessions", .array(.reference("Session"))),
                .required("count", .integer("Of those that are listed.", in: 0...Int64.max)),
                .optional("next_cursor", .string("For the next page; null after the last.").orNull),
              ]),
            example: ["sessions": [Examples.session], "count": 1]))
      ]),
    Operation(
      .get, "/sessions/{session_id}", "getSession", .sessions,
      answers: [Answer(200, "The session.", .json(.reference("Session"), example: Examples.session))]),
    Operation(
      .patch, "/sessions/{session_id}", "updateSession", .sessions,
      "An option that is null is the server's default again. What changes holds from the next turn on.",
      body: .json(
        {
          var schema = Schema.object(
            nil,
            [
              .optional("name", .string(length: 1...1000, pattern: #"^[^\x00-\x1f\x7f]+$"#)),
              .optional(
                "session_name", .string("The same as `name`.", length: 1...1000, pattern: #"^[^\x00-\x1f\x7f]+$"#)),
              .optional(
                "remembered", Schema(keywords: ["type": "null", "description": "Forgets remembered decisions."])),
            ] + Schemas.options, others: .nothing)
          schema.keywords["not"] = ["required": ["name", "session_name"]]
          return schema
        }(), example: ["name": "Primes", "model": "sonnet", "max_turns": nil]),
      answers: [Answer(200, "The session as it is now.", .json(.reference("Session"), example: Examples.session))]),
    Operation(
      .delete, "/sessions/{session_id}", "deleteSession", .sessions,
      "Ends its turn, and removes workspace, conversation and log.",
      answers: [
        Answer(
          200, "It is gone.",
          .json(
            .object(nil, [.required("message", .constant("Session deleted")), .required("session_id", .uuid())]),
            example: ["message": "Session deleted", "session_id": .string(Examples.sessionID)]))
      ]),
    Operation(
      .post, "/sessions/{session_id}/fork", "forkSession", .sessions,
      "The new session has the conversation, the log and the files as they are, and goes on independently.",
      headers: [.idempotencyKey],
      body: .json(
        .object(nil, [.optional("session_name", name.orNull)], others: .nothing),
        example: ["session_name": "Numbers, the other way"], isRequired: false),
      answers: [
        Answer(
          200, "The new session.",
          .json(.object(nil, [.required("session", .reference("Session"))]), example: ["session": Examples.session]),
          headers: [Parameter("Location", .string("The new session.")), .replayed],
          tells: ["session_id": "$response.body#/session/id"])
      ],
      problems: [.sessionBusy, .quotaExceeded, .diskBytesLimit, .sessionsLimit]),
  ]

  static let messageOperations: [Operation] = [
    Operation(
      .post, "/sessions/{session_id}/messages", "sendMessage", .messages,
      "The answer comes when the turn is over. With `Prefer: respond-async` it comes at once; with `Accept: "
        + "text/event-stream` it is the turn's events, and ends with it. A turn belongs to its session, not to the "
        + "request: if the client goes away, it goes on. The problem of a turn that failed names it as `turn_id`; one "
        + "without that says that the message was not accepted.",
      query: [.deltas], headers: [.idempotencyKey, .prefer],
      body: .json(
        .object(nil, [.required("prompt", prompt)] + Schemas.options, others: .nothing),
        example: ["prompt": "Which number?"]),
      answers: [
        Answer(
          200, "The turn is over.",
          .json(
            .object(
              nil,
              [
                .required("session_id", .uuid()), .required("prompt", .string()), .required("response", .string()),
                .required("timestamp", .timestamp()), .required("turn_id", .uuid()),
                .optional("structured_output", .anything("The answer by `output_schema`.")),
              ]),
            example: [
              "session_id": .string(Examples.sessionID), "prompt": "Which number?", "response": "7341",
              "timestamp": "2026-11-22T20:57:03.926558Z", "turn_id": .string(Examples.turnID),
            ]),
          .eventStream, headers: [.replayed, .turnLocation] + Parameter.rateLimit,
          tells: ["turn_id": "$response.body#/turn_id"]),
        Answer(
          202, "The turn, which isn't over.", .json(.reference("Turn"), example: Examples.queuedTurn),
          headers: [.turnLocation, .preferenceApplied, .replayed] + Parameter.rateLimit,
          tells: ["turn_id": "$response.body#/id"]),
      ],
      problems: [.promptTooLarge, .queueFull, .streamsLimit, .streamsExhausted] + ProblemCode.ofLimits
        + ProblemCode.ofTurns),
    Operation(
      .get, "/sessions/{session_id}/messages", "listMessages", .messages,
      "What was said, without the machinery.",
      query: [
        Parameter("after", .afterEvent, example: 17),
        Parameter("limit", .integer("Events that are read for a page, at most.", in: 1...1000), example: 100),
      ],
      answers: [
        Answer(
          200, "A page of the conversation.",
          .json(
            .object(
              nil,
              [
                .required("messages", .array(.reference("ConversationEntry"))),
                .required("has_more", .boolean()),
                .required("next", .integer("The `after` of the next page.", in: 0...Int64.max)),
              ]),
            example: [
              "messages": [
                [
                  "sequence": 5, "role": "user", "text": "Which number?", "created_at": "2026-11-22T20:57:03.051123Z",
                  "turn_id": .string(Examples.turnID), "tool_calls": [],
                ]
              ], "has_more": false, "next": 17,
            ]))
      ],
      problems: [.unknownCursor]),
    Operation(
      .get, "/sessions/{session_id}/turns", "listTurns", .messages,
      query: [
        Parameter("after", .integer("The number of a turn.", in: 0...Int64(Int32.max)), example: 2),
        Parameter(
          "limit", .integer("Turns of a page, at most; large ones make a page end sooner.", in: 1...200), example: 50),
      ],
      answers: [
        Answer(
          200, "A page of turns, in their order.",
          .json(
            .object(
              nil,
              [
                .required("turns", .array(.reference("Turn"))), .required("has_more", .boolean()),
                .required("next", .integer("The `after` of the next page; null if there is no turn.").orNull),
              ]), example: ["turns": [Examples.turn], "has_more": false, "next": 2]))
      ]),
    Operation(
      .get, "/sessions/{session_id}/turns/{turn_id}", "getTurn", .messages,
      query: [
        Parameter(
          "wait",
          .string(
            "How long to wait for its end, such as `30s`, `500ms` or `2m`; at most 300 s.",
            pattern: "^(([0-9]{1,2}|[12][0-9]{2}|300)s?|[0-5]m|[0-9]{1,5}ms)$"),
          example: "30s")
      ],
      answers: [Answer(200, "The turn.", .json(.reference("Turn"), example: Examples.turn))]),
    Operation(
      .post, "/sessions/{session_id}/turns/{turn_id}/cancel", "cancelTurn", .messages,
      answers: [Answer(200, "The turn, which is cancelled.", .json(.reference("Turn"), example: Examples.queuedTurn))],
      problems: [.turnRunning, .turnState]),
  ]
}

extension Schema {
  /// A place in a session's log.
  static let afterEvent = Schema(
    keywords: [
      "description": "The number of the event after which to begin; `latest` is the last one.",
      "anyOf": [
        Schema.integer(in: 0...Int64.max).json, Schema.constant("latest").json,
      ],
    ])
}

import JSONSupport
import Sessions

/// The schemas that have a name in the document.
enum Schemas {
  static let all: [String: Schema] = [
    "Problem": problem, "Session": session, "SessionOptions": shownOptions, "Turn": turn, "TurnError": turnError,
    "Usage": usage, "Approval": approval, "ConversationEntry": conversationEntry, "DirectoryListing": listing,
    "Share": share, "ReadinessCheck": readinessCheck, "Limit": limit, "KeyUsage": keyUsage, "McpServers": mcpServers,
    "Event": event,
  ].merging(eventTypes) { first, _ in first }.merging(streamTypes) { first, _ in first }

  // MARK: Problems

  static let problem = Schema.object(
    "A problem document (RFC 9457).",
    [
      .required("type", .constant("about:blank")),
      .required("title", .string("The status in words.")),
      .required("status", .integer("The status of the answer.", in: 400...599)),
      .required("detail", .string("A sentence for people, which names the field or thing that it is about.")),
      .required("code", .choice(ProblemCode.self, "A name for programs; it doesn't change.")),
      .optional("retry_after", .integer("As the header field `Retry-After`.", in: 0...Int64.max)),
      .optional("checks", .array(.reference("ReadinessCheck"), "What was looked at, with `not_ready`.")),
      .optional("approval", .reference("Approval", "What was decided, with `approval_resolved`.")),
      .optional("limit", .reference("Limit", "The limit of a key that was reached.")),
      .optional(
        "turn_id",
        .uuid("The turn that the request has made all the same: one that failed, or that waits with `shutting_down`.")),
      .optional("instance", .string("Names the request; nginx's own problems have it.")),
    ])

  static let readinessCheck = Schema.object(
    "A look at what the server needs for its work.",
    [
      .required("name", .string()), .required("ok", .boolean()),
      .optional("detail", .string("What is wrong, if something is.")),
    ])

  // MARK: Sessions

  static let session = Schema.object(
    "A conversation with its workspace.",
    [
      .required("id", .uuid()),
      .required("name", .string("The client's, or one made of the id.")),
      .required("created_at", .timestamp()),
      .required("last_used", .timestamp("When the latest message was accepted or the latest turn ended.")),
      .required("workspace", .string("The directory in which the agent works.")),
      .optional("parent_id", .uuid("The session that this one was forked from.")),
      .optional("options", .reference("SessionOptions", "Only those that were set.")),
      .optional("metadata", .object("The client's own data, if there is any.", others: .anything)),
    ])

  /// The options that a session or message takes.
  static let options: [Schema.Field] = [
    .optional(
      "model",
      .string(
        "An alias such as `sonnet`, or a full name.", length: 1...200, pattern: "^[!-,.-~][!-~]*$"
      ).orNull),
    .optional(
      "append_system_prompt",
      .string("A text that is added to the agent's system prompt.", length: 0...100_000, pattern: "^[^\\x00]*$").orNull),
    .optional(
      "allowed_tools",
      .array(
        .string(length: 1...1000, pattern: rulePattern),
        "Rules of tools that run without asking, such as `Read` or `Bash(git log:*)`; in place of the server's list.",
        atMost: 200
      ).orNull),
    .optional(
      "disallowed_tools",
      .array(
        .string(length: 1...1000, pattern: rulePattern),
        "Rules of tools that are denied. They win over those that allow.", atMost: 200
      ).orNull),
    .optional(
      "permission_mode",
      .choice(
        PermissionMode.self,
        "What happens to a tool call that no rule decides: `ask` makes it an approval, `default` denies it, "
          + "`bypassPermissions` runs it."
      ).orNull),
    .optional("max_turns", .integer("The most steps of the agent in one turn.", in: 1...10_000).orNull),
    .optional(
      "max_budget_usd",
      .number(
        "The most that the whole conversation may cost in US dollars, by the CLI's own count.", in: 0.0001...1_000_000
      ).orNull),
    .optional(
      "output_schema",
      .object(
        "A JSON Schema (draft 7) which the turn's `structured_output` fits.",
        [.required("type", .constant("object"))], others: .anything
      ).orNull),
    .optional("mcp_servers", .reference("McpServers").orNull),
    .optional("metadata", .object("The client's own data, at most 16 KiB.", others: .anything).orNull),
  ]

  private static let rulePattern = #"^[A-Za-z0-9_*][A-Za-z0-9_*-]*(\([^()\x00-\x1f\x7f]+\))?$"#

  static let shownOptions = Schema.object(
    "Options of a session or message, without the secrets of MCP servers.",
    options.filter { $0.name != "metadata" } + [
      .optional(
        "remembered",
        .object(
          "Rules that were made of decisions on approvals.",
          [.required("allow", .array(.string())), .required("deny", .array(.string()))]))
    ])

  static let mcpServers: Schema = {
    let strings = Schema.object(others: .of(.string()))
    let command = Schema.object(
      "A server that is started.",
      [
        .required("command", .string(length: 1...Int.max)), .optional("type", .constant("stdio")),
        .optional("args", .array(.string())), .optional("env", strings),
      ], others: .nothing)
    let remote = Schema.object(
      "A server that is connected to.",
      [
        .required("url", .string(length: 1...Int.max)), .required("type", .choice(["http", "sse"])),
        .optional("headers", strings),
      ], others: .nothing)
    var schema = Schema.object(
      "MCP servers by name, in the CLI's own form. What `env` and `headers` hold is shown as `[hidden]`.",
      others: .of(.oneOf([command, remote])))
    schema.keywords["propertyNames"] = ["pattern": "^[A-Za-z0-9_-]{1,64}$"]
    schema.keywords["maxProperties"] = 50
    return schema
  }()

  // MARK: Turns

  static let turnState = Schema.choice(Turn.State.self)

  static let turn = Schema.object(
    "One message and everything the agent did until it was done with it.",
    [
      .required("id", .uuid()),
      .required("session_id", .uuid()),
      .required("number", .integer("1, 2, … within the session, in the order of acceptance.", in: 1...Int64.max)),
      .required("state", turnState),
      .required("position", .integer("Its place among those that wait; null for others.", in: 1...Int64.max).orNull),
      .required("prompt", .string()),
      .required("options", .reference("SessionOptions", "Those of this message alone.")),
      .required("metadata", .object("The client's own data.", others: .anything)),
      .required("result", .string("The agent's final text, or what there is of it.").orNull),
      .required("structured_output", .anything("The answer by `output_schema`, where one was asked for.")),
      .required("error", .reference("TurnError", "Why it didn't complete.").orNull),
      .required("usage", .reference("Usage").orNull),
      .required("cost_usd", .number("US dollars at list price.").orNull),
      .required("model_turns", .integer("How many times the agent called the model.").orNull),
      .required("created_at", .timestamp()),
      .required("started_at", .timestamp("When the agent was given it.").orNull),
      .required("finished_at", .timestamp().orNull),
      .required("duration_ms", .integer().orNull),
    ])

  static let turnError = Schema.object(
    "Why a turn didn't complete.",
    [
      .required("code", .choice(ProblemCode.self)),
      .required("detail", .string()),
      .required("status", .integer("The HTTP status that a waiting client gets.", in: 400...599)),
      .required("retry_after", .integer("Seconds after which another try makes sense.").orNull),
    ])

  static let usage = Schema.object(
    "Tokens, as the CLI reports them.",
    [
      .required("input_tokens", .integer()), .required("output_tokens", .integer()),
      .required("cache_creation_input_tokens", .integer()), .required("cache_read_input_tokens", .integer()),
    ])

  static let conversationEntry = Schema.object(
    "A part of a conversation as a person reads it.",
    [
      .required("sequence", .integer("The number of the first event that it was made from.", in: 1...Int64.max)),
      .required("role", .choice(["user", "assistant", "system"], "`system` is an error.")),
      .required("text", .string()),
      .required("created_at", .timestamp()),
      .required("turn_id", .uuid().orNull),
      .required(
        "tool_calls",
        .array(
          .object(
            nil,
            [
              .required("tool_use_id", .string()), .required("name", .string()),
              .required("summary", .string("The part of its input that tells most.")),
            ]), "What the agent did after it had said this.")),
    ])

  static let approval = Schema.object(
    "A tool call that waits, or waited, for a client's decision.",
    [
      .required("id", .uuid()), .required("session_id", .uuid()), .required("turn_id", .uuid()),
      .required("state", .choice(Approval.State.self, "`void`: the turn ended, or the server stopped, before.")),
      .required("tool_name", .string()),
      .required("tool_use_id", .string("The model's id of the tool call.")),
      .required("input", .object("What the tool is to be called with.", others: .anything)),
      .required("created_at", .timestamp()),
      .required("expires_at", .timestamp("When it turns into a denial by itself.")),
      .required("resolved_at", .timestamp().orNull),
      .required("message", .string("What the client told the agent.").orNull),
      .required(
        "updated_input", .object("The input that the client put in place of the other.", others: .anything).orNull),
      .required("remember", .boolean("Whether the decision holds for later calls of the same kind.")),
    ])

  // MARK: Keys

  static let limit = Schema.object(
    "A limit of a key.",
    [
      .required("name", .choice(KeyLimit.allCases.map(\.identifier))),
      .required("maximum", .number()), .required("used", .number()),
      .required("resets_at", .timestamp("When the count begins anew.").orNull),
    ])

  static let keyUsage = Schema.object(
    "What a key uses, and what is left to it. Periods are those of the calendar in UTC.",
    [
      .required("key", .string("Its id; null without keys.").orNull), .required("name", .string().orNull),
      .required("role", .string().orNull),
      .required(
        "network",
        .string(
          "What the agents of its sessions reach: `model-only` (the model's API) or `open`; null leaves it to the server."
        ).orNull),
      .required("at", .timestamp()),
      .required(
        "limits",
        .object(
          "By the name of the limit.",
          KeyLimit.allCases.map { limit in
            .required(
              limit.identifier,
              .object(
                nil,
                [
                  .required("maximum", .number("Null is no limit.").orNull), .required("used", .number()),
                  .optional("reserved", .number("By turns that run.")),
                  .optional(
                    "beside_cli",
                    .number("What of `used` agents took from the model by themselves, not through the CLI.")),
                  .required("left", .number().orNull),
                  .optional("resets_at", .timestamp()),
                ]))
          })),
    ])

  // MARK: Files

  static let listing = Schema.object(
    "A page of a folder.",
    [
      .required("path", .string("Below the workspace; empty for the workspace itself.")),
      .required("type", .constant("directory")),
      .required("count", .integer("Entries of the whole folder.", in: 0...Int64.max)),
      .required(
        "entries",
        .array(
          .object(
            nil,
            [
              .required("name", .string()),
              .optional("name_base64", .string("The name's bytes, where they are no UTF-8.")),
              .required("type", .choice(["file", "directory", "symlink", "special"])),
              .required("size", .integer("Bytes, of a file.").orNull),
              .required("modified", .timestamp()),
              .required("href", .string("Where to get it.")),
              .optional("etag", .string("Of a file.")),
            ]))),
      .required("next_cursor", .string("For the next page; null after the last.").orNull),
    ])

  static let share = Schema.object(
    "A link by which a file or folder can be read without a key.",
    [
      .required("id", .uuid()), .required("path", .string()), .required("created_at", .timestamp()),
      .required("expires_at", .timestamp()), .required("href", .string("The link, which is the secret.")),
    ])
}

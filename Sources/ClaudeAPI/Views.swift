import HTTPTypes
import JSONSupport
import Sessions

extension JSONWriter {
  /// The members of a session's object.
  mutating func members(_ session: Session) {
    field("id", session.id.lowercaseString)
    field("name", session.name)
    field("created_at", session.createdAt.description)
    field("last_used", session.lastUsed.description)
    field("workspace", session.workspace)
  }
}

extension JSONWriter {
  /// The members that a session has beside the ones of the compatible core: only those that say something.
  mutating func details(_ session: Session) {
    if let parent = session.parentID { field("parent_id", parent.lowercaseString) }
    if session.options != "{}" {
      field("options", json: JSONValue.object(SessionOptions(stored: session.options).shown).description)
    }
    if session.metadata != "{}" { field("metadata", json: session.metadata) }
  }

  mutating func members(_ approval: Approval) {
    field("id", approval.id.lowercaseString)
    field("session_id", approval.sessionID.lowercaseString)
    field("turn_id", approval.turnID.lowercaseString)
    field("state", approval.state.rawValue)
    field("tool_name", approval.toolName)
    field("tool_use_id", approval.toolUseID)
    field("input", json: approval.input)
    field("created_at", approval.createdAt.description)
    field("expires_at", approval.expiresAt.description)
    field("resolved_at", approval.resolvedAt?.description)
    field("message", approval.message)
    field("updated_input", json: approval.updatedInput)
    field("remember", approval.remember)
  }
}

extension JSONWriter {
  /// The members of a turn's object.
  ///
  /// - Parameter position: its place among the turns that wait, if it waits.
  mutating func members(_ turn: Turn, position: Int?) {
    field("id", turn.id.lowercaseString)
    field("session_id", turn.sessionID.lowercaseString)
    field("number", Int64(turn.number))
    field("state", turn.state.rawValue)
    field("position", position.map(Int64.init))
    field("prompt", turn.prompt)
    field(
      "options",
      json: turn.options == "{}" ? "{}" : JSONValue.object(SessionOptions(stored: turn.options).shown).description)
    field("metadata", json: API.metadata(ofTurn: turn))
    field("result", turn.result)
    field("structured_output", json: turn.structuredOutput)
    if let failure = turn.failure {
      field(
        "error",
        object: { json in
          json.field("code", failure.code)
          json.field("detail", failure.detail)
          json.field("status", Int64(Problem(failure).status.code))
          json.field("retry_after", failure.retryAfter.map(Int64.init))
        })
    } else {
      field("error", json: nil)
    }
    if let usage = turn.usage {
      field(
        "usage",
        object: { json in
          json.field("input_tokens", usage.inputTokens)
          json.field("output_tokens", usage.outputTokens)
          json.field("cache_creation_input_tokens", usage.cacheCreationTokens)
          json.field("cache_read_input_tokens", usage.cacheReadTokens)
        })
    } else {
      field("usage", json: nil)
    }
    field("cost_usd", turn.costUSD)
    field("model_turns", turn.modelTurns.map(Int64.init))
    field("created_at", turn.createdAt.description)
    field("started_at", turn.startedAt?.description)
    field("finished_at", turn.finishedAt?.description)
    field("duration_ms", turn.durationMilliseconds)
  }
}

public import JSONSupport

#if canImport(FoundationEssentials)
  public import FoundationEssentials
#else
  public import Foundation
#endif

/// The events that the life of a turn leaves in its session's log.
enum EventLog {
  static func accepted(_ turn: NewTurn) -> [NewEvent] {
    [
      NewEvent(
        "user.message", turn: turn.id, at: turn.createdAt,
        ["content": [["type": "text", "text": .string(turn.prompt)]]]),
      NewEvent("turn.queued", turn: turn.id, at: turn.createdAt),
    ]
  }

  static func running(_ turn: UUID) -> [NewEvent] {
    [NewEvent("session.status_running", turn: turn, at: .now())]
  }

  /// The end of a turn that ran: an error if there was one, the session at rest, and what the turn came to.
  static func finished(_ turn: Turn, _ outcome: TurnOutcome) -> [NewEvent] {
    var events: [NewEvent] = []
    if let failure = outcome.failure {
      events.append(
        NewEvent("session.error", turn: turn.id, at: outcome.finishedAt, ["error": error(failure)]))
    }
    let reason =
      switch outcome.state {
      case .completed: "end_turn"
      case .interrupted: "interrupted"
      default: "error"
      }
    events.append(
      NewEvent(
        "session.status_idle", turn: turn.id, at: outcome.finishedAt, ["stop_reason": ["type": .string(reason)]]))
    events.append(ended(turn, outcome))
    return events
  }

  /// The last event of a turn.
  static func ended(_ turn: Turn, _ outcome: TurnOutcome) -> NewEvent {
    var payload: [String: JSONValue] = ["number": .int(Int64(turn.number))]
    if let failure = outcome.failure { payload["error"] = error(failure) }
    if let usage = outcome.usage {
      payload["usage"] = [
        "input_tokens": .int(usage.inputTokens), "output_tokens": .int(usage.outputTokens),
        "cache_creation_input_tokens": .int(usage.cacheCreationTokens),
        "cache_read_input_tokens": .int(usage.cacheReadTokens),
      ]
    }
    if let cost = outcome.costUSD { payload["cost_usd"] = .double(cost) }
    if let duration = outcome.durationMilliseconds { payload["duration_ms"] = .int(duration) }
    return NewEvent(
      "turn.\(outcome.state.rawValue)", turn: turn.id, at: outcome.finishedAt, .object(payload))
  }

  /// What a conversation consists of for a person who reads it.
  static let conversationTypes: Set<String> = [
    "user.message", "agent.message", "agent.tool_use", "agent.mcp_tool_use", "session.error",
  ]

  /// Whether no event of the same turn follows one of this type.
  static func endsTurn(_ type: String) -> Bool {
    switch type {
    case "turn.completed", "turn.failed", "turn.interrupted", "turn.cancelled": true
    default: false
    }
  }

  static func recovery(_ session: InterruptedSession) -> [NewEvent] {
    let approvals = session.approvals.map { approval in
      approvalResolved(approval, ApprovalDecision(state: .void, resolvedAt: approval.resolvedAt ?? .now()))
    }
    return approvals
      + session.turns.flatMap { turn in
        finished(
          turn, TurnOutcome(state: .interrupted, finishedAt: turn.finishedAt ?? .now(), failure: .serverStopped))
      }
  }

  private static func error(_ failure: TurnFailure) -> JSONValue {
    ["type": .string(failure.code), "message": .string(failure.detail)]
  }
}

extension NewEvent {
  /// - Parameter payload: an object.
  public init(_ type: String, turn: UUID?, at time: Timestamp, _ payload: JSONValue = [:]) {
    self.init(
      type: type, turnID: turn, processedAt: time, payload: String(decoding: payload.encoded(), as: UTF8.self))
  }
}

import JSONSupport

#if canImport(FoundationEssentials)
  import FoundationEssentials
#else
  import Foundation
#endif

/// The events that the life of a turn leaves in its session's log.
enum EventLog {
  static func accepted(_ turn: NewTurn) -> NewEvent {
    event(
      "user.message", turn.id, at: turn.createdAt,
      ["content": [["type": "text", "text": .string(turn.prompt)]]])
  }

  static func running(_ turn: Turn) -> NewEvent {
    event("session.status_running", turn.id, at: .now())
  }

  /// The end of a turn: an error if there was one, and the session at rest.
  static func finished(_ turn: Turn, _ outcome: TurnOutcome) -> [NewEvent] {
    var events: [NewEvent] = []
    if let failure = outcome.failure {
      events.append(
        event(
          "session.error", turn.id, at: outcome.finishedAt,
          ["error": ["type": .string(failure.code), "message": .string(failure.detail)]]))
    }
    let reason =
      switch outcome.state {
      case .completed: "end_turn"
      case .interrupted: "interrupted"
      default: "error"
      }
    events.append(
      event("session.status_idle", turn.id, at: outcome.finishedAt, ["stop_reason": ["type": .string(reason)]]))
    return events
  }

  static func recovery(_ session: InterruptedSession) -> [NewEvent] {
    session.turns.flatMap { turn in
      finished(
        turn, TurnOutcome(state: .interrupted, finishedAt: turn.finishedAt ?? .now(), failure: .serverStopped))
    }
  }

  private static func event(
    _ type: String, _ turn: UUID, at time: Timestamp, _ payload: JSONValue = [:]
  ) -> NewEvent {
    NewEvent(
      type: type, turnID: turn, processedAt: time, payload: String(decoding: payload.encoded(), as: UTF8.self))
  }
}

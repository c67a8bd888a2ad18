import Foundation
import JSONSupport
import SessionTestSupport
import Sessions
import TestSupport
import Testing

/// Conversations of the CLI with values in the wrong places, and in the wrong order.
@Suite struct EventMapperFuzzTests {
  private static let messages: [JSONValue] =
    CLIMessages.answer("Good morning", id: "m") + [
      CLIMessages.assistant([CLIMessages.toolUse("Bash", id: "t", input: ["command": "ls"])], id: "m"),
      CLIMessages.assistant([CLIMessages.toolUse("mcp__a__b", id: "u", input: [:])], id: "n", parent: "t"),
      CLIMessages.toolResult("t", ["a", ["type": "text", "text": "b"]]), CLIMessages.toolResult("u", "x"),
      ["type": "system", "subtype": "init", "model": "m"], ["type": "system", "subtype": "compact_boundary"],
      ["type": "system", "subtype": "api_retry", "attempt": 1], ["type": "rate_limit_event", "rate_limit_info": [:]],
      ["type": "result"], ["type": "something_new", "x": 1],
    ]

  /// Whatever the CLI says, each event is an object of its turn with a type, and the same words give the same events.
  @Test func everyWordBecomesEventsOrNothing() throws {
    let turn = UUID()
    let time = Timestamp(microseconds: 0)
    try Fuzz.rounds(4000) { random, seed in
      let conversation = (0..<random.number(1...12)).map { _ in
        let message = random.pick(Self.messages)
        return random.one(in: 3) ? message : JSONFuzz.changed(message, &random)
      }
      let events = self.events(conversation, turn, time, previews: false)
      // Who watches changes nothing of what is kept.
      #expect(events == self.events(conversation, turn, time, previews: true), "seed \(seed)")
      var open = 0
      for event in events {
        #expect(event.turnID == turn && !event.type.isEmpty, "seed \(seed)")
        guard case .object = try JSONValue(parsing: event.payload.utf8) else {
          Issue.record("\(event.payload) is no object, seed \(seed)")
          continue
        }
        if event.type == "span.model_request_start" { open += 1 }
        if event.type == "span.model_request_end" { open -= 1 }
        #expect(open >= 0, "seed \(seed)")
      }
      #expect(open == 0, "seed \(seed)")
    }
  }

  private func events(
    _ conversation: [JSONValue], _ turn: UUID, _ time: Timestamp, previews: Bool
  ) -> [NewEvent] {
    var mapper = EventMapper(turnID: turn)
    return conversation.flatMap { mapper.map($0, at: time, previews: previews).events } + mapper.finish(at: time)
  }
}

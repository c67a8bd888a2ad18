import Foundation
import JSONSupport
import SessionTestSupport
import Testing

@testable import Sessions

@Suite struct EventMapperTests {
  private let turn = UUID()

  private func events(_ messages: [JSONValue]) throws -> [(type: String, payload: JSONValue)] {
    var mapper = EventMapper(turnID: turn)
    let events = messages.flatMap { mapper.map($0, previews: false).events } + mapper.finish()
    return try events.map { event in
      #expect(event.turnID == turn)
      return (event.type, try JSONValue(parsing: event.payload.utf8))
    }
  }

  @Test func anAnswerIsAMessageBetweenTheEndsOfACallOfTheModel() throws {
    let events = try events(CLIMessages.answer("Good morning", id: "msg_7"))
    #expect(events.map(\.type) == ["span.model_request_start", "agent.message", "span.model_request_end"])
    #expect(events[1].payload["content"] == [["type": "text", "text": "Good morning"]])
    #expect(events[1].payload["preview_id"] == "msg_7.0")
    #expect(
      events[2].payload["model_usage"] == [
        "input_tokens": 3, "output_tokens": 2, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 0,
      ])
    #expect(events[2].payload["is_error"] == false)
  }

  @Test func previewsTellWhichEventTheyBecome() throws {
    var mapper = EventMapper(turnID: turn)
    let previews = try CLIMessages.answer("Hello", id: "m").compactMap { message in
      try mapper.map(message, previews: true).preview.map { ($0.type, try JSONValue(parsing: $0.payload.utf8)) }
    }
    #expect(previews.map(\.0) == ["event_start", "event_delta", "event_delta"])
    #expect(previews.allSatisfy { $0.1["preview_id"] == "m.0" && $0.1["event"]?["type"] == "agent.message" })
    #expect(previews.compactMap { $0.1["delta"]?["text"]?.stringValue }.joined() == "Hello")
  }

  @Test func toolCallsAndTheirResults() throws {
    let events = try events([
      CLIMessages.assistant([["type": "thinking", "thinking": "Hm", "signature": "x"]]),
      CLIMessages.assistant([CLIMessages.toolUse("Bash", id: "t1", input: ["command": "ls"])]),
      CLIMessages.toolResult("t1", "a\nb"),
      CLIMessages.assistant([CLIMessages.toolUse("mcp__files__read_all", id: "t2", input: [:])]),
      CLIMessages.toolResult("t2", [["type": "text", "text": "no"]], isError: true),
    ])
    #expect(
      events.map(\.type) == [
        "agent.thinking", "agent.tool_use", "agent.tool_result", "agent.mcp_tool_use", "agent.mcp_tool_result",
      ])
    #expect(events[0].payload["content"] == [["type": "thinking", "thinking": "Hm"]])
    #expect(events[1].payload["name"] == "Bash")
    #expect(events[1].payload["input"] == ["command": "ls"])
    #expect(events[2].payload["tool_use_id"] == "t1")
    #expect(events[2].payload["content"] == [["type": "text", "text": "a\nb"]])
    #expect(events[2].payload["is_error"] == false)
    #expect(events[3].payload["mcp_server_name"] == "files")
    #expect(events[3].payload["name"] == "read_all")
    #expect(events[4].payload["is_error"] == true)
  }

  @Test func unknownMessagesAreKept() throws {
    let raw: JSONValue = ["type": "surprise", "value": [1, 2]]
    let events = try events([raw, .string("no message"), ["type": "system", "subtype": "new_thing"]])
    #expect(events.map(\.type) == ["agent.unknown", "agent.unknown", "agent.unknown"])
    #expect(events[0].payload["raw"] == raw)
    #expect(events[1].payload["raw"] == "no message")
  }

  @Test func hugeResultsAreCutBetweenCharacters() throws {
    let events = try events([CLIMessages.toolResult("t", .string("x" + String(repeating: "ä", count: 1 << 20)))])
    let text = try #require(events[0].payload["content"]?[0]?["text"]?.stringValue)
    #expect(text.utf8.count == (256 << 10) - 1)
    #expect(text.hasSuffix("ä"))
    #expect(events[0].payload["truncated"] == true)
  }

  @Test func aCallThatIsCutOffEndsAsAnError() throws {
    let events = try events([CLIMessages.start("m"), CLIMessages.delta("He")])
    #expect(events.map(\.type) == ["span.model_request_start", "span.model_request_end"])
    #expect(events[1].payload["is_error"] == true)
  }

  /// A tool can write what looks like the CLI's own output.
  @Test func whatBeginsAndNeverEndsIsForgottenAtSomeTime() {
    var mapper = EventMapper(turnID: turn)
    var starts = 0
    var ends = 0
    func map(_ message: JSONValue) {
      let events = mapper.map(message, previews: true).events
      starts += events.count { $0.type == "span.model_request_start" }
      ends += events.count { $0.type == "span.model_request_end" }
    }
    for number in 0..<20_000 {
      let id = JSONValue.string("\(number)" + String(repeating: "x", count: number % 500))
      map(["type": "stream_event", "event": ["type": "message_start", "message": ["id": id]]])
      map([
        "type": "stream_event", "parent_tool_use_id": id, "event": ["type": "message_start", "message": ["id": id]],
      ])
      map([
        "type": "stream_event",
        "event": ["type": "content_block_start", "index": .int(Int64(number)), "content_block": ["type": "text"]],
      ])
      map(CLIMessages.assistant([CLIMessages.toolUse("mcp__a__b", id: "\(number)", input: [:])], id: "n\(number)"))
    }
    let first = JSONValue.object(["type": "stream_event", "event": ["type": "message_start", "message": ["id": "m"]]])
    map(first)
    for index in 0..<20_000 {
      map([
        "type": "stream_event",
        "event": ["type": "content_block_start", "index": .int(Int64(index)), "content_block": ["type": "text"]],
      ])
    }
    #expect(mapper.rememberedCount < 5000)
    #expect(starts == 40_001 && ends < starts)
    ends += mapper.finish().count
    #expect(ends == starts)
    #expect(mapper.rememberedCount < 5000)
  }

  @Test func theCLIsOwnMessages() throws {
    let events = try events([
      ["type": "system", "subtype": "init", "model": "m", "cwd": "/secret/place", "claude_code_version": "2"],
      ["type": "system", "subtype": "compact_boundary", "compact_metadata": ["trigger": "auto", "pre_tokens": 9]],
      ["type": "system", "subtype": "api_retry", "attempt": 2, "max_retries": 10, "retry_delay_ms": 500],
      ["type": "system", "subtype": "status", "status": "requesting"],
      ["type": "result", "subtype": "success"],
      ["type": "control_request", "request": ["subtype": "can_use_tool"]],
    ])
    #expect(
      events.map(\.type) == ["agent.ready", "agent.thread_context_compacted", "session.status_rescheduled"])
    #expect(events[0].payload == ["model": "m", "cli_version": "2"])
    #expect(events[1].payload == ["trigger": "auto", "pre_tokens": 9])
    #expect(events[2].payload["attempt"] == 2)
  }
}

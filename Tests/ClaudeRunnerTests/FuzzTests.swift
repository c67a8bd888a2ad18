import Foundation
import JSONSupport
import NIOCore
import TestSupport
import Testing

@testable import ClaudeRunner

/// Made-up output of the CLI. A tool can write into the CLI's output, so it is not to be trusted.
@Suite struct StreamJSONFuzzTests {
  static let lines: [String] = [
    #"{"type":"system","subtype":"init","session_id":"5b0e","model":"m","permissionMode":"default","tools":["Bash"]}"#,
    #"{"type":"stream_event","parent_tool_use_id":null,"event":{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"é\u00e9\ud83d\ude00"}}}"#,
    #"{"type":"assistant","parent_tool_use_id":"t","message":{"id":"m","content":[{"type":"text","text":"a"},{"type":"tool_use","id":"u","name":"Bash","input":{"command":"ls"}}]}}"#,
    #"{"type":"control_request","request_id":"r","request":{"subtype":"can_use_tool","tool_name":"Bash","input":{}}}"#,
    #"{"type":"control_response","response":{"request_id":"request-1","subtype":"success","response":{}}}"#,
    #"{"type":"system","subtype":"api_retry","error_status":429,"retry_delay_ms":1500.5,"attempt":1}"#,
    #"{"type":"rate_limit_event","rate_limit_info":{"resetsAt":1760000000}}"#,
    #"{"type":"result","subtype":"success","is_error":false,"result":"x","num_turns":1,"total_cost_usd":0.01,"usage":{"input_tokens":1,"output_tokens":2},"model_usage_since_last_result":{"m":{"costUSD":0.5}},"origin":{"kind":"task-notification"}}"#,
    "warning: no JSON", "",
  ]

  private static let pieces = [
    "\n", "\"", "\\", "\\u", "\\ud800", "{", "}", "[", "]", ":", ",", "1e308", "-1e308", "9223372036854775808", "1e400",
    "-", "null", "\u{0}", "\u{feff}", "{\"type\":\"result\"}", "\"retry_delay_ms\":1e300", "\"input_tokens\":-5",
  ].map { Array($0.utf8) }

  private func output(_ random: inout SplitMix64) -> [UInt8] {
    var bytes = (0..<random.number(1...8)).flatMap { _ in Array(random.pick(Self.lines).utf8) + [UInt8(ascii: "\n")] }
    if !random.one(in: 4) { bytes = random.mutated(bytes, pieces: Self.pieces) }
    return bytes
  }

  /// Lines are the same however they arrive, and no more is kept than the longest one may have and what came last.
  @Test func linesDoNotDependOnHowTheyAreCut() {
    Fuzz.rounds(3000) { random, seed in
      let bytes = output(&random)
      let limit = random.number(100...600)
      let pieces = random.cut(bytes)
      var framer = LineFramer(limit: limit)
      var lines: [[UInt8]] = []
      var isTooLong = false
      reading: for piece in pieces {
        framer.append(ByteBuffer(bytes: piece))
        do {
          while let line = try framer.next() { lines.append(Array(line.readableBytesView)) }
        } catch {
          isTooLong = true
          break reading
        }
      }
      // As many good lines as there are before the first that is too long, be it whole or not.
      let all = bytes.split(separator: UInt8(ascii: "\n"), omittingEmptySubsequences: false).map { Array($0) }
      let good = all.prefix { $0.count <= limit }
      #expect(isTooLong == (good.count < all.count), "seed \(seed)")
      #expect(lines == Array(isTooLong ? good[...] : good.dropLast()), "seed \(seed)")
      #expect(isTooLong || framer.hasPartialLine == (all.last?.isEmpty == false), "seed \(seed)")
    }
  }

  /// Every line is a message or none; all that is asked of a message has an answer within bounds.
  @Test func everyLineIsAMessageOrNone() throws {
    try Fuzz.rounds(15_000) { random, seed in
      let line = random.mutated(Array(random.pick(Self.lines).utf8), pieces: Self.pieces)
      let message = ClaudeMessage(line: line)
      check(message, seed)
      let parsed = try? JSONValue(parsing: line)
      #expect((message.kind == .notJSON) == (parsed?["type"]?.stringValue == nil), "seed \(seed)")
      guard let parsed else {
        #expect(message.json.stringValue?.utf8.count ?? .max <= ClaudeMessage.keptGarbage * 3, "seed \(seed)")
        return
      }
      let again = try JSONValue(parsing: parsed.encoded())
      #expect(again == parsed, "seed \(seed)")
    }
  }

  /// Messages with values in the wrong places.
  @Test func everyValueMayStandAnywhere() throws {
    let messages = Self.lines.compactMap { try? JSONValue(parsing: $0) }
    try Fuzz.rounds(10_000) { random, seed in
      let value = JSONFuzz.changed(random.pick(messages), &random)
      let message = ClaudeMessage(line: value.encoded())
      check(message, seed)
      let again = try JSONValue(parsing: value.encoded())
      #expect(again == value, "seed \(seed)")
    }
  }

  private func check(_ message: ClaudeMessage, _ seed: UInt64) {
    _ = (message.assistantText, message.isFromSubagent, message.callsTool, message.isResultOfOwnAccord)
    if let wait = message.retryAfter(now: 1_760_000_000) {
      #expect(wait >= .zero && wait <= .seconds(7 * 86_400), "seed \(seed)")
    }
    let usage = ClaudeUsage(message.json["usage"])
    for tokens in [usage.inputTokens, usage.outputTokens, usage.cacheReadTokens, usage.cacheCreationTokens] {
      #expect((0...(1 << 40)).contains(tokens), "seed \(seed)")
    }
    #expect((0...1_000_000).contains(ClaudeMessage.dollars(message.json["total_cost_usd"])), "seed \(seed)")
    let failure = Classification.failure(
      of: message.json, partial: ClaudeTurnResult(), wasInterrupted: false, retryAfter: nil)
    #expect(failure == nil || failure?.message.isEmpty == false, "seed \(seed)")
  }

  /// What was found: numbers that no duration and no counter can hold.
  @Test(arguments: [
    #"{"type":"system","subtype":"api_retry","error_status":429,"retry_delay_ms":1e300}"#,
    #"{"type":"system","subtype":"api_retry","error_status":529,"retry_delay_ms":-1e300}"#,
    #"{"type":"rate_limit_event","rate_limit_info":{"resetsAt":1e300}}"#,
    #"{"type":"rate_limit_event","rate_limit_info":{"resetsAt":-9223372036854775808}}"#,
    #"{"type":"result","is_error":false,"usage":{"input_tokens":9223372036854775807,"output_tokens":-1}}"#,
    #"{"type":"result","is_error":false,"total_cost_usd":-5}"#,
    #"{"type":"result","is_error":false,"total_cost_usd":1e308}"#,
  ])
  func absurdNumbersAreBounded(_ line: String) {
    check(ClaudeMessage(line: line.utf8), 0)
  }
  /// What was found: some million counts, each within its bound, whose sum no integer holds, which ended the server.
  @Test func sumsAreBoundedToo() throws {
    let models = try JSONValue(
      parsing: #"{"a":{"inputTokens":1099511627776,"outputTokens":1},"b":{"inputTokens":1099511627776}}"#)
    var sum = try #require(ClaudeUsage(models: models))
    #expect(sum.inputTokens == 1 << 40 && sum.outputTokens == 1)
    for _ in 0..<64 {
      let other = sum
      sum += other
    }
    #expect(sum.inputTokens == 1 << 40 && sum.outputTokens == 1 << 40)
  }
}

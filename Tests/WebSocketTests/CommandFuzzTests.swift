import Foundation
import JSONSupport
import SessionTestSupport
import Sessions
import TestSupport
import Testing

@testable import ClaudeAPI

/// Made-up commands: whatever a client says, it gets one answer, and the socket goes on.
@Suite struct CommandFuzzTests {
  private static let commands: [JSONValue] = [
    ["type": "message", "id": "m", "prompt": "Hello", "idempotency_key": "k", "max_turns": 3],
    ["type": "message", "prompt": "Hello", "model": "opus", "allowed_tools": ["Bash"], "output_schema": [:]],
    ["type": "interrupt", "id": "i"],
    ["type": "approval", "id": "a", "approval_id": "0b1e1c3c-0d2f-4b53-9f39-a9e3f2d1c0aa", "decision": "allow"],
    ["type": "ping", "id": "p"],
    ["type": "authenticate", "id": "x", "key": "cak_x"],
  ]
  private static let pieces = [
    "\"", "\\", "{", "}", "[", "]", ":", ",", "null", "1e999", "\\ud800", "\u{0}", "\"type\":", "\"id\":1,", "\"ping\"",
  ].map { Array($0.utf8) }

  private static func text(_ command: JSONValue, _ random: inout SplitMix64) -> String {
    if random.one(in: 2) { return JSONFuzz.changed(command, &random).description }
    return String(decoding: random.mutated(command.encoded(), pieces: pieces), as: UTF8.self)
  }

  private static func sent(_ text: String) -> JSONValue? { try? JSONValue(parsing: text.utf8) }

  /// Whether an answer is one to what was sent, by a second reading of the rules.
  private func check(_ answer: JSONValue, to text: String, _ seed: UInt64) {
    let comment: Comment = "seed \(seed): \(text) \(answer)"
    let kinds = ["message", "interrupt", "approval", "ping", "authenticate"]
    let sent = Self.sent(text)
    let id: JSONValue = sent?["id"] ?? .null
    // Null, too, is a value of JSON.
    let echoed: JSONValue? = (id.stringValue?.utf8.count ?? .max) <= 128 ? .some(id) : .none
    let isFine = id.isNull || echoed != .none
    let kind = sent?["type"]?.stringValue.flatMap { kinds.contains($0) ? $0 : nil }
    if answer["type"] == "error" {
      let problem = answer["problem"]
      #expect((400..<500).contains(answer["status"]?.intValue ?? 0), comment)
      #expect(problem?["status"] == answer["status"], comment)
      #expect(ProblemCode(rawValue: problem?["code"]?.stringValue ?? "") != nil, comment)
      #expect((problem?["detail"]?.stringValue?.utf8.count ?? .max) < 600, comment)
    } else {
      #expect(kind != nil && isFine, comment)
    }
    switch (sent, kind) {
    case (nil, _): #expect(answer["problem"]?["code"] == "invalid_json", comment)
    case (.object, nil): #expect(answer["problem"]?["code"] == "invalid_field", comment)
    case (.object, let kind?) where isFine:
      #expect(answer["id"] == echoed, comment)
      if kind == "ping", answer["type"] == "pong" { break }
      #expect(answer["to"] == .string(kind), comment)
      if kind == "authenticate" { #expect(answer["problem"]?["code"] == "already_authenticated", comment) }
    case (.object, _): #expect(answer["problem"]?["code"] == "invalid_field", comment)
    default: #expect(answer["problem"]?["code"] == "invalid_body", comment)
    }
  }

  @Test func eachCommandHasOneAnswer() async throws {
    let runner = ScriptedRunner()
    try await SessionServer.run(runner: runner, configure: { $0.commandsPerSecond = 1_000_000 }) { server in
      let id = try await server.newSession()
      let socket = try await server.open(id, "?types=session.error&deltas=false")
      #expect(try await socket.next()["type"] == "ready")
      var accepted = 0
      let inputs = Fuzz.inputs(1500) { random in Self.text(random.pick(Self.commands), &random) }
      for (seed, text) in inputs {
        try await socket.raw.send(text)
        let answer = try await socket.next()
        try #require(answer["closed"] == nil, "seed \(seed): \(text) \(answer)")
        check(answer, to: text, seed)
        if answer["to"] == "message", answer["status"] == 202, answer["replayed"] == false { accepted += 1 }
      }
      // What was accepted runs, once, and nothing else does.
      #expect(accepted > 0)
      #expect(try await socket.ask(["type": "message", "prompt": "last"])["status"] == 202)
      for _ in 0..<3000 where runner.prompts.last != "last" { try await Task.sleep(for: .milliseconds(10)) }
      #expect(runner.prompts.last == "last" && runner.prompts.count == accepted + 1)
    }
  }

  /// Nothing but the key opens the way to a session.
  @Test func onlyTheKeyAuthenticates() async throws {
    try await SessionServer.run { server in
      let key = try await server.key(.admin)
      let id = try await server.newSession(key: key)
      let good: JSONValue = ["type": "authenticate", "id": "x", "key": .string(key.text)]
      for (seed, text) in Fuzz.inputs(150, { random in Self.text(good, &random) }) {
        let socket = try await server.open(id)
        try await socket.raw.send(text)
        let answer = try await socket.next()
        let comment: Comment = "seed \(seed): \(text) \(answer)"
        if answer["type"] == "ready" {
          #expect(Self.sent(text)?["key"] == .string(key.text), comment)
          continue
        }
        #expect(answer["type"] == "error" && answer["problem"] != nil, comment)
        let code = try await socket.end()
        #expect(code == (answer["status"]?.intValue).map { 4000 + $0 }, comment)
        #expect([4400, 4401, 4422, 4429].contains(code), comment)
      }
    }
  }
}

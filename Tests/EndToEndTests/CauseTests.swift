import Foundation
import JSONSupport
import NIOHTTP1
import TestSupport
import Testing

/// Every cause for which a turn can fail is injected, and told through nginx by its own code, its status and, where
/// another try makes sense, when. The session goes on afterwards.
@Suite struct CauseTests {
  struct Cause: Sendable, CustomTestStringConvertible {
    let prompt: String
    let code: String
    let status: Int
    var retryAfter: ClosedRange<Int>?
    var mentions = ""
    var options: [String: JSONValue] = [:]

    init(
      _ prompt: String, _ code: String, _ status: Int, retryAfter: ClosedRange<Int>? = nil, mentions: String = "",
      options: [String: JSONValue] = [:]
    ) {
      self.prompt = prompt
      self.code = code
      self.status = status
      self.retryAfter = retryAfter
      self.mentions = mentions
      self.options = options
    }

    var testDescription: String { "\(code): \(prompt)" }
  }

  private static func check(_ causes: [Cause], _ stack: Stack) async throws {
    for cause in causes {
      let id = try await stack.createSession()
      var body = cause.options
      body["prompt"] = .string(cause.prompt)
      let answer = try await stack.post("/sessions/\(id)/messages", .object(body))
      let what = "\(cause.testDescription): \(answer.status) \(answer.headers) \(answer.text)"
      #expect(answer.status == cause.status, "\(what)")
      let problem = try answer.json
      #expect(problem["code"] == .string(cause.code), "\(what)")
      #expect(problem["status"] == .int(Int64(cause.status)), "\(what)")
      #expect(problem["detail"]?.stringValue?.contains(cause.mentions) == true || cause.mentions.isEmpty, "\(what)")
      let retryAfter = answer.headers.first(name: "Retry-After").flatMap { Int($0) }
      #expect(cause.retryAfter.map { $0.contains(retryAfter ?? -1) } ?? (retryAfter == nil), "\(what)")
      #expect(problem["retry_after"]?.intValue == retryAfter.map(Int64.init), "\(what)")
      // The same is in the turn, for those who didn't wait.
      let turn = try await stack.get("/sessions/\(id)/turns").json["turns"]?[0]
      #expect(turn?["state"] == "failed", "\(what)")
      #expect(turn?["error"]?["code"] == .string(cause.code), "\(what)")
      #expect(turn?["error"]?["status"] == .int(Int64(cause.status)), "\(what)")
      #expect(turn?["error"]?["retry_after"]?.intValue == retryAfter.map(Int64.init), "\(what)")
      let next = try await stack.say("and now?", to: id)
      #expect(next.contains("and now?"), "\(cause.testDescription)")
      #expect(try await stack.request(.DELETE, "/sessions/\(id)").status == 200)
    }
  }

  @Test func ofTheDouble() async throws {
    let settings = [
      "claude-stall-timeout": "2s", "claude-turn-timeout": "4s", "claude-result-timeout": "1s",
      "claude-line-limit": "65536",
    ]
    try await Stack.run(settings: settings) { stack in
      try await Self.check(
        [
          Cause("fake:login", "not_logged_in", 502, mentions: "credentials"),
          Cause("fake:error 401", "model_auth_failed", 502),
          Cause("fake:error 429", "rate_limited", 429, retryAfter: 30...30),
          Cause("fake:retry", "rate_limited", 429, retryAfter: 3...3),
          Cause("fake:limited 90", "rate_limited", 429, retryAfter: 85...90),
          Cause("fake:error 529", "overloaded", 503, retryAfter: 10...10),
          Cause("fake:error 504", "model_timeout", 504),
          Cause("fake:error 500", "model_error", 502),
          Cause("fake:half", "stalled", 504, mentions: "silent"),
          Cause("fake:chatter", "turn_timeout", 504, mentions: "longer than"),
          Cause("fake:noresult", "post_result_hang", 504),
          Cause("fake:forbidden", "permission_denied", 403, mentions: "Bash"),
          Cause("fake:subtype error_max_turns", "max_turns", 422),
          Cause("fake:subtype error_max_budget_usd", "budget_exhausted", 402),
          Cause("fake:exit 134 FATAL ERROR: JavaScript heap out of memory", "out_of_memory", 502),
          Cause("fake:exit 3 something broke", "crashed", 502, mentions: "something broke"),
          Cause("fake:kill", "crashed", 502, mentions: "signal 9"),
        ], stack)
    }
  }

  @Test func anIncompatibleCLI() async throws {
    let path = NSTemporaryDirectory() + "cli-\(UUID())"
    try "#!/bin/sh\necho '1.0.3 (Claude Code)'\n".write(toFile: path + ".text", atomically: true, encoding: .utf8)
    #expect(
      try await TestSupport.run(["install", "-m", "700", path + ".text", path], output: "/dev/null") == .status(0))
    defer {
      unlink(path)
      unlink(path + ".text")
    }
    try await Stack.run(cli: .file(path)) { stack in
      let id = try await stack.createSession()
      let answer = try await stack.post("/sessions/\(id)/messages", ["prompt": "hello"])
      #expect(answer.status == 503 && answer.headers.first(name: "Retry-After") == nil, "\(answer.text)")
      #expect(try answer.json["code"] == "cli_incompatible")
      #expect(try answer.json["detail"]?.stringValue?.contains("Update the Claude Code CLI") == true)
    }
  }

  @Test(.enabled(if: Stack.realCLI != nil, "CLAUDE_API_TEST_CLAUDE names no CLI"))
  func ofTheModel() async throws {
    let settings = ["claude-model-timeout": "2s", "claude-stall-timeout": "20s", "claude-model-retries": "1"]
    try await Stack.run(cli: .real(path: try #require(Stack.realCLI)), settings: settings) {
      stack in
      try await Self.check(
        [
          Cause("[[error 401]]", "model_auth_failed", 502),
          Cause("[[error 429 retry-after 2]]", "rate_limited", 429, retryAfter: 2...3),
          // The CLI doesn't wait so long, and keeps to itself how long it would have been.
          Cause("[[error 429 retry-after 600]]", "rate_limited", 429, retryAfter: 30...30),
          Cause("[[error 529]]", "overloaded", 503, retryAfter: 1...60),
          Cause("[[hang]]", "model_timeout", 504),
          Cause("[[error 500]]", "model_error", 502),
          Cause(
            #"[[tool Bash {"command":"true"}]] [[then]] [[tool Bash {"command":"true"}]]"#, "max_turns", 422,
            options: ["max_turns": 1]),
          Cause("[[usage in 10000000 out 1]]", "budget_exhausted", 402, options: ["max_budget_usd": 0.1]),
        ], stack)
    }
  }
}

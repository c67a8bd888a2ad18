import Foundation
import JSONSupport
import NIOHTTP1
import TestSupport
import Testing

/// What nginx counts on the way to the model against what the real CLI says.
@Suite(.enabled(if: Stack.realCLI != nil, "CLAUDE_API_TEST_CLAUDE names no CLI"))
struct GatewayCostTests {
  private func run<T>(
    _ settings: [String: String] = [:], environment: (String) -> [String: String] = { _ in [:] },
    _ body: (Stack) async throws -> T
  ) async throws -> T {
    try await Stack.run(
      cli: .real(path: try #require(Stack.realCLI)), settings: ["sandbox-mode": "required"].merging(settings) { $1 },
      environment: environment, body)
  }

  private static let kinds = ["input", "output", "cache_read", "cache_creation"]
  private static let names = [
    "input_tokens", "output_tokens", "cache_read_input_tokens", "cache_creation_input_tokens",
  ]

  private func metrics(_ stack: Stack) async throws -> PrometheusText {
    try PrometheusText(try await stack.get("/metrics").text)
  }

  /// Waits until both have counted the same number of tokens, and returns the metrics.
  private func settled(_ stack: Stack, output: Int64) async throws -> PrometheusText {
    for _ in 0..<600 {
      let text = try await metrics(stack)
      if text.value("claude_api_gateway_tokens_total", ["key": "all", "kind": "output"]) == Double(output) {
        return text
      }
      try await Task.sleep(for: .milliseconds(50))
    }
    return try await metrics(stack)
  }

  /// Models of several prices, among them one that costs more for long prompts.
  @Test(arguments: ["claude-sonnet-4-5", "claude-haiku-4-5", "claude-opus-4-1", "claude-opus-5-5", "claude-haiku-5-5"])
  func tokensAndDollarsAgreeWithTheCLI(_ model: String) async throws {
    try await run { stack in
      let created = try await stack.post("/sessions", ["model": .string(model)])
      let id = try #require(try created.json["session"]?["id"]?.stringValue, "\(created.text)")
      for prompt in [
        "[[usage in 1234567 out 54321]] one", #"[[tool Bash {"command":"echo x"}]]"#,
        "[[usage in 321 out 98765]] three",
      ] { _ = try await stack.say(prompt, to: id) }
      let turns = try #require(try await stack.get("/sessions/\(id)/turns").json["turns"]?.arrayValue)
      let told = Self.names.map { name in turns.reduce(0) { $0 + ($1["usage"]?[name]?.intValue ?? 0) } }
      let dollars = turns.reduce(0) { $0 + ($1["cost_usd"]?.doubleValue ?? 0) }
      #expect(told[0] > 1_234_000 && told[1] > 150_000 && dollars > 0.1)
      let text = try await settled(stack, output: told[1])
      for (kind, tokens) in zip(Self.kinds, told) {
        let counted = text.value("claude_api_gateway_tokens_total", ["key": "all", "kind": kind])
        #expect(counted == Double(tokens), "\(kind)")
        #expect(text.value("claude_api_tokens_total", ["key": "all", "kind": kind]) == Double(tokens), "\(kind)")
      }
      let counted = try #require(text.value("claude_api_gateway_cost_usd_total", ["key": "all"]))
      #expect(abs(counted - dollars) < 0.000_01, "nginx \(counted), the CLI \(dollars)")
      #expect(text.sum("claude_api_gateway_unpriced_tokens_total") == 0)
      // The command line says the same of the log.
      let output = stack.directory + "/usage"
      let exit = try await TestSupport.run(
        [Stack.product("claude-api-server"), "model-usage", stack.nginx.prefix + "/logs/model.log"], output: output)
      #expect(exit == .status(0))
      let columns = stack.lines(of: output).first ?? []
      #expect(columns.first == id && columns.count == 7, "\(columns)")
      #expect(abs((columns.last.flatMap(Double.init) ?? 0) - dollars) < 0.000_01, "\(columns)")
    }
  }

  /// A model that is in no table is said to be so, and one that the operator has priced is counted.
  @Test func aModelWithoutAPriceIsNamed() async throws {
    try await run { stack in
      let created = try await stack.post("/sessions", ["model": "claude-unheard-of-9"])
      let id = try #require(try created.json["session"]?["id"]?.stringValue)
      _ = try await stack.say("[[usage in 1000 out 2000]]", to: id)
      let text = try await settled(stack, output: 2000)
      #expect(text.value("claude_api_gateway_unpriced_tokens_total", ["model": "claude-unheard-of-9"]) == 3000)
      #expect(text.sum("claude_api_gateway_cost_usd_total") == 0)
      let log = stack.nginx.prefix + "/logs/model.log"
      let output = stack.directory + "/usage"
      let command = [Stack.product("claude-api-server"), "model-usage", "--by", "model", log]
      #expect(try await TestSupport.run(command, output: output) == .status(0))
      let said = stack.lines(of: output)
      #expect(said.contains(["claude-unheard-of-9", "1", "1000", "2000", "0", "0", "unknown"]), "\(said)")
      #expect(said.contains { $0[0].contains("claude-unheard-of-9 has no price: its 3000 tokens") }, "\(said)")
      let prices = stack.directory + "/prices.json"
      try #"{"claude-unheard-of-9": {"input": 2, "output": 5}}"#.write(
        toFile: prices, atomically: true, encoding: .utf8)
      let priced = stack.directory + "/priced"
      #expect(try await TestSupport.run(command + ["--prices", prices], output: priced) == .status(0))
      #expect(
        stack.lines(of: priced) == [["claude-unheard-of-9", "1", "1000", "2000", "0", "0", "0.012000"]])
    }
  }

  /// A command of the agent's that asks the model by itself.
  private static func ownRequest(_ stack: Stack, _ id: String, _ prompt: String) throws -> String {
    let body: JSONValue = [
      "model": "claude-sonnet-4-5", "max_tokens": 9, "messages": [["role": "user", "content": .string(prompt)]],
    ]
    try body.description.write(
      toFile: "\(stack.workspaceRoot)/\(id)/body.json", atomically: true, encoding: .utf8)
    return "curl -s --unix-socket $ANTHROPIC_UNIX_SOCKET -H x-api-key:$ANTHROPIC_API_KEY "
      + "-H content-type:application/json -d @body.json $ANTHROPIC_BASE_URL/v1/messages"
  }

  /// It is charged like what the CLI takes, once, whatever becomes of the server.
  @Test func whatAnAgentTakesBesideTheCLIIsCharged() async throws {
    try await run { stack in
      let limits = ["--limit", "tokens-per-day=100000", "--limit", "usd-per-day=100"]
      let key = try await stack.createKey("user", limits)
      let id = try await stack.createSession(key: key)
      let headers = Stack.credentials(key)
      let command = try Self.ownRequest(stack, id, "[[usage in 70000 out 80000]]")
      func limit(_ name: String) async throws -> JSONValue {
        try #require(try await stack.get("/usage", headers: headers).json["limits"]?[name])
      }
      _ = try await stack.say("[[usage in 1000 out 2000]]", to: id, headers: headers)
      #expect(try await limit("tokens_per_day")["used"] == 3000)
      #expect(try await limit("tokens_per_day")["beside_cli"] == 0)
      let said = try await stack.say(
        #"[[tool Bash {"command":"\#(command)"}]]"#, to: id, headers: headers)
      #expect(said.contains("80000"), "\(said)")

      // At once, with what was told of it in the answer.
      let refused = try await stack.post("/sessions/\(id)/messages", ["prompt": "x"], headers: headers)
      #expect(refused.status == 429, "\(refused.text)")
      #expect(try refused.json["code"] == "tokens_per_day_limit")
      #expect(try refused.json["limit"]?["used"]?.intValue ?? 0 > 153_000, "\(refused.text)")

      let turns = try #require(
        try await stack.get("/sessions/\(id)/turns", headers: headers).json["turns"]?.arrayValue)
      let told = ["input_tokens", "output_tokens", "cache_creation_input_tokens"].reduce(0 as Int64) { sum, name in
        sum + turns.reduce(0) { $0 + ($1["usage"]?[name]?.intValue ?? 0) }
      }
      var tokens = try await limit("tokens_per_day")
      for _ in 0..<600 where tokens["used"]?.intValue != told + 150_000 {
        try await Task.sleep(for: .milliseconds(20))
        tokens = try await limit("tokens_per_day")
      }
      #expect(tokens["used"]?.intValue == told + 150_000)
      #expect(tokens["beside_cli"] == 150_000)
      // 3 and 15 dollars for a million.
      let dollars = try await limit("usd_per_day")
      #expect(abs((dollars["beside_cli"]?.doubleValue ?? 0) - 1.41) < 0.000_1, "\(dollars)")
      #expect((dollars["used"]?.doubleValue ?? 0) > 1.41)

      await stack.killResponder()
      try await stack.startResponder()
      #expect(try await limit("tokens_per_day") == tokens)
      #expect(try await limit("usd_per_day") == dollars)
      #expect(try await stack.post("/sessions/\(id)/messages", ["prompt": "x"], headers: headers).status == 429)
    }
  }

  /// A server that is killed in the turn, before it has read nginx's log, reads it after the next start.
  @Test func whatWasTakenBeforeAKillIsCharged() async throws {
    try await run { stack in
      let key = try await stack.createKey("user", ["--limit", "tokens-per-day=100000"])
      let id = try await stack.createSession(key: key)
      let headers = Stack.credentials(key)
      let command = try Self.ownRequest(stack, id, "[[usage in 70000 out 80000]]")
      var asynchronous = headers
      asynchronous.add(name: "Prefer", value: "respond-async")
      _ = try await stack.post(
        "/sessions/\(id)/messages",
        ["prompt": .string(#"[[tool Bash {"command":"\#(command) >answer; sleep 60"}]]"#)], headers: asynchronous)
      let log = stack.nginx.prefix + "/logs/model.log"
      for _ in 0..<3000 where !text(of: log).contains("80000") { try await Task.sleep(for: .milliseconds(10)) }
      await stack.killResponder()
      try await stack.startResponder()
      let refused = try await stack.post("/sessions/\(id)/messages", ["prompt": "x"], headers: headers)
      #expect(refused.status == 429, "\(refused.text)")
      let tokens = try await stack.get("/usage", headers: headers).json["limits"]?["tokens_per_day"]
      let beside = try #require(tokens?["beside_cli"]?.intValue)
      #expect(
        beside >= 150_000 && beside < 200_000 && tokens?["used"]?.intValue == beside, "\(String(describing: tokens))")
    }
  }

  /// The agent has the socket and the token of its CLI, and may do what that does.
  @Test func whatAnAgentTakesBesideTheCLIIsNoticed() async throws {
    try await run { stack in
      let honest = try await stack.createSession()
      _ = try await stack.say("[[usage in 5000 out 6000]]", to: honest)
      let id = try await stack.createSession()
      let command = try Self.ownRequest(stack, id, "[[usage in 70000 out 80000]]")
      let said = try await stack.say(#"[[tool Bash {"command":"\#(command)"}]]"#, to: id)
      #expect(said.contains("80000"), "\(said)")
      var text = try await metrics(stack)
      for _ in 0..<600 where text.sum("claude_api_gateway_disagreements_total") == 0 {
        try await Task.sleep(for: .milliseconds(50))
        text = try await metrics(stack)
      }
      #expect(text.value("claude_api_gateway_disagreements_total") == 1)
      let lines = stack.responderLog.split(separator: "\n").filter { $0.contains("not those that nginx has counted") }
      #expect(lines.count == 1, "\(lines)")
      let line = lines.first ?? ""
      #expect(line.contains("level=warning") && line.contains("session=\(id)") && !line.contains(honest), "\(line)")
      #expect(line.contains("gateway_output=8") && line.contains("cli_output="), "\(line)")
    }
  }
}

extension Stack {
  /// The lines of a file, in columns that tabs separate.
  fileprivate func lines(of path: String) -> [[String]] {
    text(of: path).split(separator: "\n").map { $0.split(separator: "\t").map(String.init) }
  }
}

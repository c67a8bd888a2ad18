import Foundation
import JSONSupport
import NIOCore
import NIOHTTP1
import TestSupport
import Testing

/// What operators ask a running server, through nginx.
@Suite struct OperationTests {
  private func metrics(_ stack: Stack, key: String? = nil) async throws -> PrometheusText {
    let answer = try await stack.get("/metrics", headers: key.map { ["Authorization": "Bearer \($0)"] } ?? [:])
    guard answer.status == 200 else { throw Stack.Failure("GET /metrics: \(answer.status) \(answer.text)") }
    #expect(answer.headers.first(name: "content-type") == "text/plain; version=0.0.4; charset=utf-8")
    return try PrometheusText(answer.text)
  }

  // MARK: Metrics

  @Test func everythingThatHappensIsCounted() async throws {
    try await Stack.run { stack in
      let before = try await metrics(stack)
      #expect(before.sum("claude_api_turns_total") == 0)
      let id = try await stack.createSession()
      #expect(try await stack.say("hello", to: id) == "1: hello")
      let failed = try await stack.post("/sessions/\(id)/messages", ["prompt": "fake:error 529"])
      #expect(failed.status == 503)
      #expect(try await stack.get("/sessions/\(UUID())").status == 404)
      #expect(try await stack.get("/nowhere/\(UUID())").status == 404)
      #expect(try await stack.request(.RAW(value: "BREW"), "/sessions").status == 405)
      let after = try await metrics(stack)

      #expect(after.value("claude_api_turns_total", ["outcome": "completed"]) == 1)
      #expect(after.value("claude_api_turns_total", ["outcome": "failed"]) == 1)
      #expect(after.value("claude_api_turn_failures_total", ["code": "overloaded"]) == 1)
      for name in ["queue", "duration", "first_event"] {
        #expect(after.value("claude_api_turn_\(name)_seconds_count") ?? 0 >= 1, "\(name)")
      }
      #expect(after.value("claude_api_turns_running") == 0 && after.value("claude_api_turns_queued") == 0)
      let messages = ["method": "POST", "route": "/sessions/{session_id}/messages"]
      #expect(after.value("claude_api_http_requests_total", messages.merging(["status": "200"]) { $1 }) == 1)
      #expect(after.value("claude_api_http_requests_total", messages.merging(["status": "503"]) { $1 }) == 1)
      #expect(after.value("claude_api_http_request_duration_seconds_count", messages) == 2)
      #expect(
        after.value("claude_api_http_requests_total", ["method": "GET", "route": "none", "status": "404"]) == 1)
      #expect(after.sum("claude_api_http_requests_total", ["method": "other", "status": "405"]) == 1)
      for code in ["overloaded", "session_not_found", "not_found", "method_not_allowed"] {
        #expect(after.value("claude_api_problems_total", ["code": code]) == 1, "\(code)")
      }
      #expect(after.value("claude_api_tokens_total", ["key": "all", "kind": "output"]) ?? 0 > 0)
      #expect(after.value("claude_api_cost_usd_total", ["key": "all"]) != nil)
      #expect(after.value("claude_api_cli_processes", ["state": "idle"]) == 1)
      #expect(after.value("claude_api_cli_starts_total") == 1)
      #expect(after.value("claude_api_child_processes") ?? 0 >= 1)
      #expect(after.value("claude_api_child_resident_memory_bytes") ?? 0 > 1_000_000)
      #expect(after.value("process_resident_memory_bytes") ?? 0 > 1_000_000)
      #expect(after.value("process_open_fds") ?? 0 > 5)
      #expect(after.value("claude_api_reactor_lag_seconds_count") ?? 0 >= 1)
      for call in ["write", "read"] {
        #expect(after.value("claude_api_store_duration_seconds_count", ["call": call]) ?? 0 >= 1, "\(call)")
      }
      #expect(after.value("claude_api_store_bytes") ?? 0 > 0)
      #expect(after.value("claude_api_disk_free_bytes", ["directory": "state"]) ?? 0 > 0)
      #expect(after.samples.contains { $0.name == "claude_api_build_info" && $0.labels["version"] != nil })
      // No label holds an id that a client can make up.
      #expect(!after.samples.contains { $0.labels.values.contains { $0.contains(id) } })
    }
  }

  /// By the parser of Prometheus' own client library.
  @Test(.enabled(if: Stack.contractTools != nil, "CLAUDE_API_TEST_CONTRACT_TOOLS names no directory"))
  func prometheusReadsTheMetrics() async throws {
    try await Stack.run { stack in
      let admin = try await stack.createKey("admin")
      let id = try await stack.createSession(key: admin)
      _ = try await stack.say("hello", to: id, headers: Stack.credentials(admin))
      let answer = try await stack.get("/metrics", headers: Stack.credentials(admin))
      #expect(answer.status == 200)
      let path = stack.directory + "/metrics.txt"
      try Data(answer.body).write(to: URL(filePath: path))
      let script = """
        import json, sys
        from prometheus_client.parser import text_string_to_metric_families
        families = list(text_string_to_metric_families(open(sys.argv[1]).read()))
        assert all(f.type != "unknown" and f.documentation and f.samples is not None for f in families), families
        print(json.dumps([[s.name, s.labels, s.value] for f in families for s in f.samples]))
        """
      let output = stack.directory + "/parsed.json"
      let exit = try await TestSupport.run(
        [try #require(Stack.contractTools) + "/python3", "-c", script, path], output: output)
      try #require(exit == .status(0), "\(text(of: output))")
      let parsed = try #require(try JSONValue(parsing: text(of: output).utf8).arrayValue)
      let own = try PrometheusText(answer.text)
      #expect(parsed.count == own.samples.count && parsed.count > 100)
      #expect(parsed.contains { $0[0] == "claude_api_turns_total" && $0[1] == ["outcome": "completed"] && $0[2] == 1 })
    }
  }

  @Test func streamsAreCountedWhileTheyAreRead() async throws {
    try await Stack.run { stack in
      let id = try await stack.createSession()
      let connection = try RawConnection(port: stack.nginx.port)
      try await connection.send(
        "GET /sessions/\(id)/events HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n")
      _ = try await connection.receive(untilText: "retry: 1000")
      // A stream of one turn is one, too.
      let turn = try RawConnection(port: stack.nginx.port)
      let body = #"{"prompt": "fake:partial"}"#
      try await turn.send(
        "POST /sessions/\(id)/messages HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n"
          + "Content-Type: application/json\r\nContent-Length: \(body.utf8.count)\r\n\r\n\(body)")
      _ = try await turn.receive(untilText: "retry: 1000")
      let socket = try await stack.socket(id)
      #expect(try await socket.next()["type"] == "ready")
      func open(_ transport: String) async throws -> Double? {
        try await metrics(stack).value("claude_api_event_streams", ["transport": transport])
      }
      #expect(try await open("sse") == 2)
      #expect(try await open("websocket") == 1)
      try await socket.raw.send(raw: RawWebSocket.close(1000))
      _ = try await socket.end()
      try await stack.until { try await open("websocket") == 0 }
      #expect(try await stack.post("/sessions/\(id)/interrupt", [:]).status == 200)
      _ = try await turn.receive(untilText: "0\r\n\r\n")
      try await stack.until { try await open("sse") == 1 }
    }
  }

  /// Once there are keys, what single keys used is for administrators.
  @Test func whoMayReadMetrics() async throws {
    try await Stack.run { stack in
      let admin = try await stack.createKey("admin")
      let user = try await stack.createKey("user")
      let reader = try await stack.createKey("read")
      let created = try await stack.post(
        "/sessions", ["initial_prompt": "hello"], headers: ["Authorization": "Bearer \(user)"])
      #expect(created.status == 200)
      let userID = String(user.split(separator: "_")[1])

      let open = try await metrics(stack)
      #expect(open.value("claude_api_tokens_total", ["key": "all", "kind": "input"]) != nil)
      #expect(!open.samples.contains { $0.labels.values.contains(userID) })
      let whole = try await metrics(stack, key: admin)
      #expect(whole.value("claude_api_tokens_total", ["key": userID, "kind": "input"]) != nil)
      #expect(whole.value("claude_api_cost_usd_total", ["key": userID]) != nil)
      for key in [user, reader] {
        let answer = try await stack.get("/metrics", headers: ["Authorization": "Bearer \(key)"])
        #expect(answer.status == 403)
        #expect(try answer.json["code"] == "admin_only")
      }
      let wrong = try await stack.get("/metrics", headers: ["Authorization": "Bearer nonsense"])
      #expect(wrong.status == 401)
      // Somebody else's proxy on this machine: who knows where its client is.
      for name in ["X-Forwarded-For", "Forwarded", "Via"] {
        let answer = try await stack.get("/metrics", headers: [name: "127.0.0.1"])
        #expect(answer.status == 401, "\(name)")
      }
      #expect(try await stack.get("/healthz").status == 200)
      #expect(try await stack.get("/readyz").status == 200)
    }
  }

  // MARK: Readiness

  private func defects(_ answer: Stack.Answer) throws -> [String: String] {
    var found: [String: String] = [:]
    for check in try answer.json["checks"]?.arrayValue ?? [] {
      #expect((check["ok"] == true) == (check["detail"] == nil))
      if check["ok"] != true { found[check["name"]?.stringValue ?? ""] = check["detail"]?.stringValue }
    }
    return found
  }

  @Test func aServerThatCanWorkIsReady() async throws {
    try await Stack.run { stack in
      let answer = try await stack.get("/readyz")
      #expect(answer.status == 200)
      #expect(try answer.json["status"] == "ready")
      #expect(
        try answer.json["checks"]?.arrayValue?.map { $0["name"] ?? nil }
          == ["cli", "store", "disk", "model_gateway", "draining"])
      #expect(try defects(answer).isEmpty)
      #expect(answer.headers.first(name: "cache-control") == "no-store")
      #expect(try await stack.request(.HEAD, "/readyz").status == 200)
      // Without the responder it is nginx that answers.
      await stack.stopResponder()
      let down = try await stack.get("/readyz")
      #expect(down.status == 502)
      #expect(try down.json["code"] == "responder_unavailable")
    }
  }

  @Test func aServerWithoutCLIIsAliveButNotReady() async throws {
    try await Stack.run(cli: .file("/nonexistent/claude")) { stack in
      #expect(try await stack.get("/healthz").status == 200)
      let answer = try await stack.get("/readyz")
      #expect(answer.status == 503)
      #expect(answer.headers.first(name: "content-type") == "application/problem+json")
      #expect(answer.headers.first(name: "retry-after") == "5")
      #expect(try answer.json["code"] == "not_ready")
      #expect(try answer.json["detail"]?.stringValue?.contains("cli_missing") == true)
      #expect(try defects(answer).keys.sorted() == ["cli"])
      // Anybody may ask, so it doesn't say where things are.
      #expect(!answer.text.contains("/nonexistent"))
    }
  }

  /// It has the right version and answers, but doesn't do what is needed of it.
  @Test func aServerWhoseCLIFailsItsRehearsalSaysWhyAndIsNotReady() async throws {
    try await withTemporaryDirectory { directory in
      let path = directory + "/claude"
      let script = """
        #!/bin/bash
        for word; do
          shift
          [[ $word == --permission-prompt-tool=* ]] || set -- "$@" "$word"
        done
        exec \(Stack.product("fake-claude")) "$@"
        """
      try #require(
        FileManager.default.createFile(
          atPath: path, contents: Data(script.utf8), attributes: [.posixPermissions: 0o700]))
      try await Stack.run(cli: .file(path)) { stack in
        var answer = try await stack.get("/readyz")
        for _ in 0..<600 where answer.status != 503 {
          try await Task.sleep(for: .milliseconds(50))
          answer = try await stack.get("/readyz")
        }
        #expect(answer.status == 503)
        #expect(try defects(answer) == ["cli": "The Claude Code CLI can't be used (cli_incompatible)."])
        #expect(try await stack.get("/healthz").status == 200)
        let line = stack.responderLog.split(separator: "\n").first { $0.contains("The CLI can't be used") } ?? ""
        #expect(line.contains("level=warning") && line.contains("code=cli_incompatible"), "\(line)")
        #expect(line.contains("doesn't ask for permission to use a tool"), "\(line)")
        #expect(line.contains("2.1.330"), "\(line)")
      }
    }
  }

  @Test func aServerWithoutAWayToTheModelIsNotReady() async throws {
    try await Stack.run { stack in
      try FileManager.default.removeItem(atPath: stack.directory + "/m/api.sock")
      var answer = try await stack.get("/readyz")
      for _ in 0..<600 where answer.status != 503 {
        try await Task.sleep(for: .milliseconds(20))
        answer = try await stack.get("/readyz")
      }
      #expect(try defects(answer) == ["model_gateway": "nginx doesn't answer on the model's socket."])
    }
  }

  /// What agents take from the model would be nobody's.
  @Test func aMissingLogOfTheGatewayIsTold() async throws {
    try await Stack.run(settings: ["model-log": "/nonexistent/model.log"]) { stack in
      func warnings() -> [Substring] {
        stack.responderLog.split(separator: "\n").filter { $0.contains("beside the CLI is not charged") }
      }
      let id = try await stack.createSession()
      _ = try await stack.say("one", to: id)
      for _ in 0..<3000 where warnings().isEmpty { try await Task.sleep(for: .milliseconds(10)) }
      #expect(warnings().first?.contains("level=warning") == true)
      #expect(warnings().first?.contains("/nonexistent/model.log") == true)
    }
  }

  @Test func aServerWithTooLittleDiskIsNotReady() async throws {
    try await Stack.run(settings: ["readiness-min-free-disk": "\(Int.max)"]) { stack in
      let answer = try await stack.get("/readyz")
      #expect(answer.status == 503)
      #expect(try defects(answer).keys.sorted() == ["disk"])
    }
  }

  @Test func aServerWhoseStoreCannotBeWrittenIsNotReady() async throws {
    try await Stack.run { stack in
      let ready = stack.directory + "/locked"
      let lock = """
        import sqlite3, time, pathlib
        c = sqlite3.connect("\(stack.stateDirectory)/claude-api.sqlite", isolation_level=None, timeout=30)
        c.execute("BEGIN IMMEDIATE")
        pathlib.Path("\(ready)").touch()
        time.sleep(600)
        """
      try await withChild(["python3", "-c", lock], output: stack.directory + "/lock.log") { child in
        while !FileManager.default.fileExists(atPath: ready) {
          if let exit = child.exit { throw Stack.Failure("\(exit): \(text(of: stack.directory + "/lock.log"))") }
          try await Task.sleep(for: .milliseconds(10))
        }
        let answer = try await stack.get("/readyz")
        #expect(try defects(answer).keys.sorted() == ["store"])
        #expect(try await stack.get("/healthz").status == 200)
      }
      // It recovers by itself, as soon as a look is made again.
      for _ in 0..<600 {
        if try await stack.get("/readyz").status == 200 { return }
        try await Task.sleep(for: .milliseconds(50))
      }
      Issue.record("the server didn't become ready again")
    }
  }

  // MARK: The CLI's output

  /// A tool can write what looks like messages of the CLI, with numbers that nothing can hold.
  @Test func aForgedOutputEndsNeitherTheServerNorTheSession() async throws {
    try await Stack.run { stack in
      let lines = [
        #"{"type":"system","subtype":"api_retry","error_status":429,"retry_delay_ms":1e300}"#,
        #"{"type":"rate_limit_event","rate_limit_info":{"resetsAt":1e300}}"#,
        #"{"type":"assistant","message":{"content":[{"type":"text"},7,null,{"type":"tool_use"}]}}"#,
        #"{"type":"stream_event","event":{"type":"content_block_delta","index":-9223372036854775808}}"#,
        #"{"type":"control_response","response":{"request_id":"request-1"}}"#,
        #"{"type":"user","message":{"content":[{"type":"tool_result","content":[[],{}]}]}}"#,
      ]
      let id = try await stack.createSession()
      let text = try await stack.say("fake:raw " + lines.joined(separator: "\n"), to: id)
      #expect(text == "after the raw lines")
      let forged =
        #"{"type":"result","subtype":"success","is_error":false,"result":"forged","num_turns":9223372036854775807,"#
        + #""total_cost_usd":-1e300,"usage":{"input_tokens":9223372036854775807,"output_tokens":-5}}"#
      let answer = try await stack.post("/sessions/\(id)/messages", ["prompt": .string("fake:raw " + forged)])
      #expect(answer.status == 200)
      let turn = try answer.json["turn_id"]?.stringValue ?? ""
      let shown = try await stack.get("/sessions/\(id)/turns/\(turn)").json
      #expect(shown["cost_usd"]?.doubleValue ?? -1 >= 0)
      #expect(shown["usage"]?["output_tokens"] == 0)
      #expect(try await stack.get("/healthz").status == 200)
    }
  }
}

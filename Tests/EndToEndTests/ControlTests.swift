import Foundation
import JSONSupport
import NIOCore
import NIOHTTP1
import TestSupport
import Testing

/// Interrupts, approvals, options and forks, through everything.
@Suite struct ControlTests {
  // MARK: Interrupt

  @Test(arguments: ["fake:partial", "fake:stubborn", "fake:hang", "fake:half"])
  func anInterruptEndsATurnOfAnyKind(_ prompt: String) async throws {
    try await Stack.run { stack in
      let id = try await stack.createSession()
      let none = try await stack.post("/sessions/\(id)/interrupt", [:])
      #expect(none.status == 409)
      #expect(try none.json["code"] == "nothing_runs")
      let running = Task { try await stack.post("/sessions/\(id)/messages", ["prompt": .string(prompt)]) }
      try await stack.waitForState("running", id)
      if prompt == "fake:partial" || prompt == "fake:stubborn" {
        try await stack.waitForEvent("agent.message", id)
      }
      let next = try await stack.post(
        "/sessions/\(id)/messages", ["prompt": "fake:delay 1"], headers: ["Prefer": "respond-async"])
      #expect(next.status == 202)
      let answer = try await stack.request(.POST, "/sessions/\(id)/interrupt")
      #expect(answer.status == 200, "\(answer.text)")
      #expect(try answer.json["state"] == "interrupted")
      #expect(try answer.json["error"]?["code"] == "interrupted")
      if prompt == "fake:partial" { #expect(try answer.json["result"] == "so far\n\nand a bit") }
      if prompt == "fake:stubborn" { #expect(try answer.json["result"] == "I will not stop") }
      let told = try await running.value
      #expect(told.status == 409)
      #expect(try told.json["code"] == "interrupted")
      let turn = try #require(next.headers.first(name: "location"))
      #expect(try await stack.get(turn + "?wait=60s").json["result"] == "after 1 ms")
      #expect(try await stack.events(id).contains { $0["type"] == "user.interrupt" })
    }
  }

  @Test func anInterruptEndsATurnThatWaitsForADecision() async throws {
    try await Stack.run { stack in
      let id = try await stack.createSession(["permission_mode": "ask"])
      let running = Task { try await stack.post("/sessions/\(id)/messages", ["prompt": "fake:asks 2"]) }
      _ = try await stack.pendingApprovals(id, count: 2)
      #expect(try await stack.request(.POST, "/sessions/\(id)/interrupt").json["state"] == "interrupted")
      #expect(try await running.value.json["code"] == "interrupted")
      let states = try await stack.get("/sessions/\(id)/approvals").json["approvals"]?.arrayValue ?? []
      #expect(states.map { $0["state"] } == ["void", "void"])
      #expect(try await stack.say("usable", to: id).hasSuffix("usable"))
    }
  }

  @Test func aTurnThatWaitsForAProcessIsCancelled() async throws {
    try await Stack.run(settings: ["claude-max-processes": "1"]) { stack in
      let holder = try await stack.createSession()
      let waiter = try await stack.createSession()
      let held = Task { try await stack.post("/sessions/\(holder)/messages", ["prompt": "fake:partial"]) }
      try await stack.waitForEvent("agent.message", holder)
      let waiting = Task { try await stack.post("/sessions/\(waiter)/messages", ["prompt": "hello"]) }
      try await stack.waitForState("queued", waiter)
      #expect(try await stack.request(.POST, "/sessions/\(waiter)/interrupt").json["code"] == "nothing_runs")
      let turn = try await stack.get("/sessions/\(waiter)/turns").json["turns"]?[0]
      #expect(turn?["position"] == 1)
      let id = try #require(turn?["id"]?.stringValue)
      #expect(try await stack.request(.POST, "/sessions/\(waiter)/turns/\(id)/cancel").json["state"] == "cancelled")
      #expect(try await waiting.value.json["code"] == "cancelled")
      // The other one has felt nothing of it.
      #expect(try await stack.get("/sessions/\(holder)/turns").json["turns"]?.arrayValue?.first?["state"] == "running")
      #expect(try await stack.request(.POST, "/sessions/\(holder)/interrupt").status == 200)
      #expect(try await held.value.json["code"] == "interrupted")
      #expect(try await stack.say("usable", to: waiter) == "1: usable")
    }
  }

  @Test func anInterruptEndsATurnWhoseProcessIsBeingStarted() async throws {
    try await withTemporaryDirectory { directory in
      // By a child: see FaultTests.
      try Data("#!/bin/sh\n[ \"$1\" = --version ] && echo '2.1.330 (Claude Code)' && exit\nexec sleep 600\n".utf8)
        .write(to: URL(filePath: directory + "/text"))
      let copied = try await TestSupport.run(
        ["install", "-m", "0755", directory + "/text", directory + "/cli"], output: "/dev/null")
      #expect(copied == .status(0))
      try await Stack.run(cli: .file(directory + "/cli")) { stack in
        let id = try await stack.createSession()
        let running = Task { try await stack.post("/sessions/\(id)/messages", ["prompt": "hello"]) }
        try await stack.until { try !stack.processesLeft().isEmpty }
        #expect(try await stack.request(.POST, "/sessions/\(id)/interrupt").json["state"] == "interrupted")
        #expect(try await running.value.json["code"] == "interrupted")
        try await stack.until { try stack.processesLeft().isEmpty }
        // And what has ended can't be interrupted.
        #expect(try await stack.request(.POST, "/sessions/\(id)/interrupt").json["code"] == "nothing_runs")
      }
    }
  }

  // MARK: Retries

  @Test func retriesThatRaceRunAPromptOnce() async throws {
    try await Stack.run { stack in
      let headers: HTTPHeaders = ["Idempotency-Key": "the-same"]
      let created = try await withThrowingTaskGroup(of: JSONValue?.self) { group in
        for _ in 0..<12 {
          group.addTask {
            let body: JSONValue = ["session_name": "one", "initial_prompt": "fake:delay 50"]
            let answer = try await stack.post("/sessions", body, headers: headers)
            #expect(answer.status == 200, "\(answer.text)")
            return try answer.json["session"]?["id"]
          }
        }
        return try await group.reduce(into: []) { $0.append($1) }
      }
      #expect(try await stack.get("/sessions").json["count"] == 1)
      let id = try #require(created.first??.stringValue)
      #expect(created.allSatisfy { $0 == .string(id) })
      // Some wait for the turn, some don't; and the answer is the same after a restart.
      let turns = try await withThrowingTaskGroup(of: JSONValue?.self) { group in
        for number in 0..<12 {
          group.addTask {
            var headers = headers
            if number % 2 == 1 { headers.add(name: "Prefer", value: "respond-async") }
            let answer = try await stack.post(
              "/sessions/\(id)/messages", ["prompt": "fake:delay 200"], headers: headers)
            #expect([200, 202].contains(answer.status), "\(answer.text)")
            return try answer.json[answer.status == 202 ? "id" : "turn_id"]
          }
        }
        return try await group.reduce(into: []) { $0.append($1) }
      }
      let turn = try #require(turns.first ?? nil)
      #expect(turns.allSatisfy { $0 == turn })
      await stack.killResponder()
      try await stack.startResponder()
      let replayed = try await stack.post("/sessions/\(id)/messages", ["prompt": "fake:delay 200"], headers: headers)
      #expect(replayed.status == 200, "\(replayed.text)")
      #expect(try replayed.json["turn_id"] == turn)
      #expect(try await stack.say("and", to: id) == "3: fake:delay 50 | fake:delay 200 | and")
    }
  }

  // MARK: Approvals

  @Test func anApprovalIsDecidedByAClient() async throws {
    try await Stack.run { stack in
      let id = try await stack.createSession(["permission_mode": "ask"])
      let message = Task { try await stack.say("fake:ask", to: id) }
      let approval = try await stack.pendingApprovals(id, count: 1)[0]
      #expect(approval["tool_name"] == "Bash")
      #expect(approval["input"] == ["command": "rm x"])
      #expect(approval["state"] == "pending")
      let path = "/sessions/\(id)/approvals/\(approval["id"]?.stringValue ?? "")"
      #expect(try await stack.get(path).json == approval)
      #expect(try await stack.get("/sessions/\(id)/approvals?state=denied").json["approvals"] == [])
      for body: JSONValue in [
        [:], ["decision": "maybe"], ["decision": "deny", "updated_input": [:]], ["decision": "allow", "remember": 1],
        ["decision": "allow", "updated_input": "x"], ["decision": "allow", "else": 1],
      ] {
        #expect(try await stack.post(path, body).status == 422, "\(body)")
      }
      let input: JSONValue = ["command": "rm y"]
      let decided = try await stack.post(path, ["decision": "allow", "updated_input": input])
      #expect(decided.status == 200)
      #expect(try decided.json["state"] == "allowed")
      #expect(try JSONValue(parsing: Array(try await message.value.utf8))["updatedInput"] == input)
      let late = try await stack.post(path, ["decision": "deny"])
      #expect(late.status == 409)
      #expect(try late.json["code"] == "approval_resolved")
      #expect(try late.json["approval"]?["state"] == "allowed")
      let missing = try await stack.get("/sessions/\(id)/approvals/\(UUID().uuidString.lowercased())")
      #expect(missing.status == 404)
      #expect(try missing.json["code"] == "approval_not_found")
      #expect(try await stack.get("/sessions/\(id)/approvals?state=open").status == 400)
    }
  }

  @Test func severalApprovalsAtOnceAreSharedOutAmongTwoClients() async throws {
    try await Stack.run { stack in
      let id = try await stack.createSession(["permission_mode": "ask"])
      let message = Task { try await stack.say("fake:asks 6", to: id) }
      let approvals = try await stack.pendingApprovals(id, count: 6)
      let first = try await stack.get("/sessions/\(id)/approvals?limit=4").json
      #expect(first["has_more"] == true && first["count"] == 4)
      let rest = try await stack.get("/sessions/\(id)/approvals?after=\(first["next"]?.stringValue ?? "")").json
      #expect(rest["has_more"] == false)
      #expect((first["approvals"]?.arrayValue ?? []) + (rest["approvals"]?.arrayValue ?? []) == approvals)
      let outcomes = try await withThrowingTaskGroup(of: (Int, Int).self) { group in
        for (index, approval) in approvals.enumerated() {
          for decision: JSONValue in ["allow", "deny"] {
            group.addTask {
              let path = "/sessions/\(id)/approvals/\(approval["id"]?.stringValue ?? "")"
              return (index, try await stack.post(path, ["decision": decision]).status)
            }
          }
        }
        return try await group.reduce(into: []) { $0.append($1) }
      }
      for index in approvals.indices {
        #expect(outcomes.filter { $0.0 == index }.map(\.1).sorted() == [200, 409])
      }
      let states = try await stack.get("/sessions/\(id)/approvals").json["approvals"]?.arrayValue ?? []
      let expected = states.enumerated().map { index, approval in
        "ask-\(index + 1)=\(approval["state"] == "allowed" ? "allow" : "deny")"
      }
      #expect(try await message.value == expected.joined(separator: " "))
    }
  }

  @Test func anApprovalIsVoidAfterACrashAndExpiresOtherwise() async throws {
    try await Stack.run(settings: ["approval-timeout": "1s"]) { stack in
      let id = try await stack.createSession(["permission_mode": "ask"])
      let denied = try await stack.say("fake:ask", to: id)
      #expect(try JSONValue(parsing: Array(denied.utf8))["behavior"] == "deny")
      let states = try await stack.get("/sessions/\(id)/approvals").json["approvals"]?.arrayValue ?? []
      #expect(states.map { $0["state"] } == ["expired"])
    }
    try await Stack.run { stack in
      let id = try await stack.createSession(["permission_mode": "ask"])
      let message = Task { try await stack.post("/sessions/\(id)/messages", ["prompt": "fake:ask"]) }
      let approval = try await stack.pendingApprovals(id, count: 1)[0]
      await stack.killResponder()
      _ = try await message.value
      try await stack.startResponder()
      let path = "/sessions/\(id)/approvals/\(approval["id"]?.stringValue ?? "")"
      let after = try await stack.get(path)
      #expect(try after.json["state"] == "void", "\(after.text)")
      #expect(try await stack.post(path, ["decision": "allow"]).status == 409)
      let events = try await stack.events(id)
      #expect(events.contains { $0["type"] == "approval.resolved" && $0["state"] == "void" })
    }
  }

  // MARK: Options

  @Test func optionsReachTheCLI() async throws {
    try await Stack.run { stack in
      let options: JSONValue = [
        "model": "one", "append_system_prompt": "Be brief.", "allowed_tools": ["Read", "Bash(git log:*)"],
        "disallowed_tools": ["WebFetch"], "max_turns": 7, "max_budget_usd": 1.5, "metadata": ["ticket": 12],
        "mcp_servers": ["docs": ["command": "/bin/docs", "env": ["TOKEN": "secret"]]],
      ]
      let id = try await stack.createSession(options)
      let shown = try await stack.get("/sessions/\(id)").json
      #expect(shown["options"]?["model"] == "one")
      #expect(shown["metadata"] == ["ticket": 12])
      #expect(shown["options"]?["mcp_servers"]?["docs"]?["env"] == ["TOKEN": "[hidden]"])
      let arguments = try await stack.say("fake:arguments", to: id)
      for argument in [
        "--model=one", "--allowedTools=Read,Bash(git log:*)", "--disallowedTools=WebFetch", "--max-turns=7",
        "--max-budget-usd=1.5", "--append-system-prompt-file=", "--mcp-config=",
      ] { #expect(arguments.contains(argument), "\(argument)") }
      // For one message only, and without a new process.
      func settings(_ options: [String: JSONValue] = [:]) async throws -> [Substring] {
        let body = options.merging(["prompt": "fake:settings"]) { $1 }
        return try await stack.post("/sessions/\(id)/messages", .object(body)).json["response"]?.stringValue?
          .split(separator: " ") ?? []
      }
      let first = try await settings()
      let second = try await settings(["model": "two", "permission_mode": "plan"])
      #expect(second.prefix(2) == ["two", "plan"])
      #expect(second.last == first.last)
      #expect(try await settings().prefix(2) == ["one", "default"])
      // What can't be changed in the process is changed by a new one that knows the conversation.
      let third = try await settings(["max_turns": 3])
      #expect(third.last != first.last)
      let asked = try await stack.post(
        "/sessions/\(id)/messages", ["prompt": "plain", "max_turns": 3, "metadata": ["n": 1]])
      #expect(try asked.json["response"]?.stringValue?.hasPrefix("6: ") == true)
      let turn = try await stack.get("/sessions/\(id)/turns/\(asked.json["turn_id"]?.stringValue ?? "")").json
      #expect(turn["options"] == ["max_turns": 3])
      #expect(turn["metadata"] == ["n": 1])
    }
  }

  @Test func aSessionIsChanged() async throws {
    try await Stack.run { stack in
      let id = try await stack.createSession(["model": "one"])
      let changed = try await stack.patch(
        "/sessions/\(id)", ["session_name": "new", "model": nil, "permission_mode": "plan", "metadata": ["a": "b"]])
      #expect(changed.status == 200)
      #expect(try changed.json["name"] == "new")
      #expect(try changed.json["options"] == ["permission_mode": "plan"])
      #expect(try await stack.get("/sessions/\(id)").json == changed.json)
      #expect(try await stack.say("fake:settings", to: id).hasPrefix("fake-model plan "))
      let events = try await stack.events(id)
      #expect(events.contains { $0["type"] == "session.updated" && $0["name"] == "new" })
      #expect(try await stack.patch("/sessions/\(id)", [:]).status == 200)
      #expect(try await stack.patch("/sessions/\(UUID())", ["name": "x"]).status == 404)
      let cases: [(JSONValue, String)] = [
        (["name": ""], "name"), (["name": "x", "session_name": "y"], "session_name"), (["models": "x"], "models"),
        (["permission_mode": "root"], "acceptEdits"), (["max_turns": 0], "max_turns"), (["metadata": 1], "metadata"),
        (["remembered": ["allow": ["Bash"]]], "remembered"),
      ]
      for (body, mention) in cases {
        let answer = try await stack.patch("/sessions/\(id)", body)
        #expect(answer.status == 422, "\(body)")
        #expect(try answer.json["detail"]?.stringValue?.contains(mention) == true, "\(answer.text)")
      }
      // The same for those that create.
      let refused = try await stack.post("/sessions", ["permission_mode": "root"])
      #expect(refused.status == 422)
      let message = try await stack.post("/sessions/\(id)/messages", ["prompt": "x", "max_budget_usd": -1])
      #expect(message.status == 422)
      #expect(try message.json["detail"]?.stringValue?.contains("max_budget_usd") == true)
    }
  }

  @Test func structuredOutputIsInTheAnswerOrAFailure() async throws {
    try await Stack.run { stack in
      let schema: JSONValue = ["type": "object", "properties": ["a": ["type": "integer"]]]
      let created = try await stack.post("/sessions", ["initial_prompt": "fake:structured", "output_schema": schema])
      #expect(try created.json["structured_output"] == ["a": 1])
      let id = try #require(try created.json["session"]?["id"]?.stringValue)
      let answer = try await stack.post("/sessions/\(id)/messages", ["prompt": "fake:structured"])
      #expect(try answer.json["structured_output"] == ["a": 1])
      let missing = try await stack.post("/sessions/\(id)/messages", ["prompt": "fake:say 3"])
      #expect(missing.status == 502)
      #expect(try missing.json["code"] == "structured_output_missing")
      let plain = try await stack.post("/sessions/\(id)/messages", ["prompt": "plain", "output_schema": nil])
      #expect(plain.status == 200)
    }
  }

  // MARK: Fork

  @Test func aForkGoesOnByItself() async throws {
    try await Stack.run { stack in
      let id = try await stack.createSession(["max_turns": 9])
      _ = try await stack.say("one", to: id)
      try Data("x".utf8).write(to: URL(filePath: "\(stack.workspaceRoot)/\(id)/file"))
      let headers: HTTPHeaders = ["Idempotency-Key": "k"]
      let answer = try await stack.post("/sessions/\(id)/fork", ["session_name": "copy"], headers: headers)
      #expect(answer.status == 200, "\(answer.text)")
      let session = try #require(try answer.json["session"])
      let fork = try #require(session["id"]?.stringValue)
      #expect(session["name"] == "copy")
      #expect(session["parent_id"] == .string(id))
      #expect(session["options"] == ["max_turns": 9])
      let again = try await stack.post("/sessions/\(id)/fork", ["session_name": "copy"], headers: headers)
      #expect(try again.json["session"]?["id"] == .string(fork))
      #expect(try await stack.say("left", to: id) == "2: one | left")
      #expect(try await stack.say("right", to: fork) == "2: one | right")
      #expect(FileManager.default.fileExists(atPath: "\(stack.workspaceRoot)/\(fork)/file"))
      let messages = try await stack.get("/sessions/\(fork)/messages").json["messages"]?.arrayValue ?? []
      #expect(messages.map { $0["text"] } == ["one", "1: one", "right", "2: one | right"])
      let running = Task { try await stack.say("fake:delay 500", to: id) }
      try await stack.waitForState("running", id)
      let busy = try await stack.request(.POST, "/sessions/\(id)/fork")
      #expect(busy.status == 409)
      #expect(try busy.json["code"] == "session_busy")
      _ = try await running.value
      // Of a fork that has said nothing yet, and after the first of the line is gone.
      let second = try await stack.request(.POST, "/sessions/\(fork)/fork").json["session"]?["id"]?.stringValue ?? ""
      _ = try await stack.request(.DELETE, "/sessions/\(fork)")
      let third = try await stack.request(.POST, "/sessions/\(second)/fork").json["session"]?["id"]?.stringValue ?? ""
      #expect(try await stack.say("end", to: third) == "3: one | right | end")
      #expect(try await stack.get("/sessions").json["count"] == 3)
    }
  }
}

extension Stack {
  func createSession(_ options: JSONValue) async throws -> String {
    let answer = try await post("/sessions", options)
    guard answer.status == 200, let id = try answer.json["session"]?["id"]?.stringValue else {
      throw Failure("POST /sessions: \(answer.status) \(answer.text)")
    }
    return id
  }

  func patch(_ path: String, _ body: JSONValue) async throws -> Answer {
    try await request(
      .PATCH, path, headers: ["Content-Type": "application/json"], body: ByteBuffer(bytes: body.encoded()))
  }

  func events(_ id: String) async throws -> [JSONValue] {
    try await get("/sessions/\(id)/events?limit=1000").json["events"]?.arrayValue ?? []
  }

  func pendingApprovals(_ id: String, count: Int) async throws -> [JSONValue] {
    var found: [JSONValue] = []
    try await until {
      found = try await get("/sessions/\(id)/approvals?state=pending").json["approvals"]?.arrayValue ?? []
      return found.count == count
    }
    return found
  }

  func waitForState(_ state: JSONValue, _ id: String) async throws {
    try await until {
      let turns = try await get("/sessions/\(id)/turns").json["turns"]?.arrayValue ?? []
      return turns.contains { $0["state"] == state }
    }
  }

  func waitForEvent(_ type: JSONValue, _ id: String) async throws {
    try await until { try await events(id).contains { $0["type"] == type } }
  }

  func until(atMost limit: Duration = .seconds(30), _ condition: () async throws -> Bool) async throws {
    let end = ContinuousClock.now + limit
    while try await !condition() {
      guard .now < end else { throw Failure("the condition did not come true") }
      try await Task.sleep(for: .milliseconds(10))
    }
  }
}

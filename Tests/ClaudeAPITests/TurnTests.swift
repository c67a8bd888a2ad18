import HTTPTypes
import JSONSupport
import NIOCore
import SessionTestSupport
import Sessions
import Testing

@testable import ClaudeAPI

@Suite struct TurnTests {
  private static let held = "hold"

  /// Turns whose prompt is "hold" last until the gate is open.
  private func runner(_ gate: Gate) -> ScriptedRunner {
    ScriptedRunner { request, say in
      if request.turn.prompt == Self.held { try await gate.wait() }
      return try await ScriptedRunner.echo(request, say)
    }
  }

  @Test func aMessageIsAnsweredWhenItsTurnHasEnded() async throws {
    try await TestAPI.run { api in
      let id = try await api.newSession()
      let answer = try await api.send(.post, "/sessions/\(id)/messages", body: ["prompt": "Hi"])
      #expect(answer.status == 200)
      let json = try answer.json()
      #expect(json["session_id"]?.stringValue == id)
      #expect(json["prompt"] == "Hi")
      #expect(json["response"] == "Echo: Hi")
      #expect(json["timestamp"]?.stringValue != nil)
    }
  }

  @Test func aTurnIsThereAtOnceForWhoAsksForIt() async throws {
    let gate = Gate()
    try await TestAPI.run(runner: runner(gate)) { api in
      let id = try await api.newSession()
      let answer = try await api.send(
        .post, "/sessions/\(id)/messages", [.prefer: "respond-async"], body: ["prompt": "hold"])
      #expect(answer.status == 202)
      #expect(answer.headers[.preferenceApplied] == "respond-async")
      let turn = try #require(try answer.json()["id"]?.stringValue)
      #expect(answer.headers[.location] == "/sessions/\(id)/turns/\(turn)")
      let path = "/sessions/\(id)/turns/\(turn)"
      #expect(try await ["queued", "running"].contains(api.send(.get, path + "?wait=1ms").json()["state"]))

      async let waited = api.send(.get, path + "?wait=60s")
      gate.open()
      let json = try await waited.json()
      #expect(json["state"] == "completed")
      #expect(json["result"] == "Echo: hold")
      #expect(json["error"] == .null)
      #expect(json["usage"]?["input_tokens"] == 3)
      #expect(json["position"] == .null)
      #expect(json["finished_at"]?.stringValue != nil)
    }
  }

  @Test func aPreferenceToWaitIsKeptWithinTheWait() async throws {
    try await TestAPI.run { api in
      let id = try await api.newSession()
      let answer = try await api.send(
        .post, "/sessions/\(id)/messages", [.prefer: "respond-async, wait=60"], body: ["prompt": "Hi"])
      #expect(answer.status == 200)
      #expect(try answer.json()["response"] == "Echo: Hi")
    }
  }

  @Test func aSessionsFirstTurnIsThereAtOnceToo() async throws {
    let gate = Gate()
    try await TestAPI.run(runner: runner(gate)) { api in
      let answer = try await api.send(
        .post, "/sessions", [.prefer: "respond-async"], body: ["initial_prompt": "hold"])
      #expect(answer.status == 202)
      let json = try answer.json()
      #expect(json["initial_response"] == .null)
      #expect(json["session"]?["id"] == json["turn"]?["session_id"])
      #expect(answer.headers[.location]?.hasSuffix(json["turn"]?["id"]?.stringValue ?? "none") == true)
      gate.open()
    }
  }

  @Test func theProblemOfATurnNamesIt() async throws {
    let runner = ScriptedRunner { _, _ in throw TurnRunFailure(TurnFailure(code: "overloaded", detail: "Busy.")) }
    try await TestAPI.run(runner: runner) { api in
      let id = try await api.newSession()
      let key = HTTPField.Name("Idempotency-Key")!
      let first = try await api.send(.post, "/sessions/\(id)/messages", [key: "k"], body: ["prompt": "Hi"])
      #expect(first.status == 503)
      let turn = try #require(try first.json()["turn_id"]?.stringValue)
      #expect(first.headers[.location] == "/sessions/\(id)/turns/\(turn)")
      #expect(first.headers[.contentType] == "application/problem+json")
      #expect(first.headers[.idempotencyReplayed] == nil)
      let again = try await api.send(.post, "/sessions/\(id)/messages", [key: "k"], body: ["prompt": "Hi"])
      #expect(again.status == 503)
      #expect(try again.json()["turn_id"]?.stringValue == turn)
      #expect(again.headers[.idempotencyReplayed] == "true")
    }
  }

  @Test func turnsAreListedInPages() async throws {
    try await TestAPI.run { api in
      let id = try await api.newSession()
      for number in 1...5 {
        _ = try await api.send(.post, "/sessions/\(id)/messages", body: ["prompt": .string("\(number)")])
      }
      let first = try await api.send(.get, "/sessions/\(id)/turns?limit=3").json()
      #expect(first["turns"]?.arrayValue?.map { $0["prompt"] } == ["1", "2", "3"])
      #expect(first["has_more"] == true)
      let next = try #require(first["next"]?.intValue)
      let second = try await api.send(.get, "/sessions/\(id)/turns?limit=3&after=\(next)").json()
      #expect(second["turns"]?.arrayValue?.map { $0["prompt"] } == ["4", "5"])
      #expect(second["has_more"] == false)
    }
  }

  @Test func aQueuedTurnHasAPlaceAndCanBeCancelled() async throws {
    let gate = Gate()
    try await TestAPI.run(runner: runner(gate)) { api in
      let id = try await api.newSession()
      let messages = "/sessions/\(id)/messages"
      let running = try await api.send(.post, messages, [.prefer: "respond-async"], body: ["prompt": "hold"]).json()
      let queued = try await api.send(.post, messages, [.prefer: "respond-async"], body: ["prompt": "next"]).json()
      let stream = try await api.stream(.get, "/sessions/\(id)/events").reader
      _ = await stream.entries { $0.event == "session.status_running" }
      await stream.close()
      let path = "/sessions/\(id)/turns/"
      let turn = path + (queued["id"]?.stringValue ?? "")
      #expect(try await api.send(.get, turn).json()["position"] == 1)
      #expect(try await api.send(.get, path).json()["turns"]?[1]?["position"] == 1)

      let refused = try await api.send(.post, path + (running["id"]?.stringValue ?? "") + "/cancel")
      #expect(refused.status == 409)
      #expect(try refused.json()["code"] == "turn_running")
      #expect(try refused.json()["detail"]?.stringValue?.contains("/interrupt") == true)
      let cancelled = try await api.send(.post, turn + "/cancel")
      #expect(cancelled.status == 200)
      #expect(try cancelled.json()["state"] == "cancelled")
      #expect(try cancelled.json()["error"]?["code"] == "cancelled")
      #expect(try await api.send(.post, turn + "/cancel").json()["code"] == "turn_state")
      gate.open()
    }
  }

  @Test func aTurnIsOnlyInItsOwnSession() async throws {
    try await TestAPI.run { api in
      let id = try await api.newSession()
      let other = try await api.newSession()
      let turn = try await api.send(.post, "/sessions/\(id)/messages", body: ["prompt": "Hi"]).json()["turn_id"]
      let path = "turns/\(turn?.stringValue ?? "")"
      #expect(try await api.send(.get, "/sessions/\(id)/\(path)").status == 200)
      #expect(try await api.send(.get, "/sessions/\(other)/\(path)").json()["code"] == "turn_not_found")
      #expect(try await api.send(.get, "/sessions/\(id)/turns/none").json()["code"] == "turn_not_found")
      _ = try await api.send(.delete, "/sessions/\(id)")
      #expect(try await api.send(.get, "/sessions/\(id)/\(path)").json()["code"] == "session_not_found")
    }
  }

  @Test func oneKeyOneAnswer() async throws {
    let runner = ScriptedRunner()
    try await TestAPI.run(runner: runner) { api in
      let id = try await api.newSession()
      let path = "/sessions/\(id)/messages"
      let answers = try await withThrowingTaskGroup(of: TestAPI.Answer.self) { group in
        for _ in 0..<10 {
          group.addTask { try await api.send(.post, path, [.idempotencyKey: "a-1"], body: ["prompt": "Hi"]) }
        }
        return try await group.reduce(into: []) { $0.append($1) }
      }
      #expect(Set(answers.map { String(buffer: $0.body) }).count == 1)
      #expect(answers.allSatisfy { $0.status == 200 })
      #expect(answers.count { $0.headers[.idempotencyReplayed] == "true" } == 9)
      #expect(runner.prompts == ["Hi"])

      let other = try await api.send(.post, path, [.idempotencyKey: "a-1"], body: ["prompt": "Ho"])
      #expect(other.status == 422)
      #expect(try other.json()["code"] == "idempotency_mismatch")
      let stream = try await api.stream(.post, path, [.idempotencyKey: "a-1"], body: ["prompt": "Hi"]).reader
      #expect(await stream.entries().last?.event == "turn.completed")
      #expect(runner.prompts == ["Hi"])

      _ = try await api.send(.delete, "/sessions/\(id)")
      #expect(try await api.send(.post, path, [.idempotencyKey: "a-1"], body: ["prompt": "Hi"]).status == 410)
    }
  }

  @Test func oneKeyOneSession() async throws {
    try await TestAPI.run { api in
      let body: JSONValue = ["initial_prompt": "Hi", "session_name": "N"]
      let first = try await api.send(.post, "/sessions", [.idempotencyKey: "k"], body: body).json()
      let second = try await api.send(.post, "/sessions", [.idempotencyKey: "k"], body: body).json()
      #expect(first == second)
      #expect(try await api.send(.get, "/sessions").json()["count"] == 1)
    }
  }

  @Test(arguments: ["", " ", "a b", "ä", String(repeating: "k", count: 256)])
  func badKeys(key: String) async throws {
    try await TestAPI.run { api in
      let answer = try await api.send(.post, "/sessions", [.idempotencyKey: key], body: [:])
      #expect(answer.status == 400)
      #expect(try answer.json()["detail"]?.stringValue?.contains("Idempotency-Key") == true)
      #expect(try await api.send(.get, "/sessions").json()["count"] == 0)
    }
  }

  @Test func preferences() {
    func form(_ name: HTTPField.Name, _ value: String) -> AnswerPreference.Form {
      AnswerPreference([name: value]).form
    }
    #expect(AnswerPreference([:]).form == .whole)
    #expect(form(.prefer, "respond-async") == .turn(wait: 0))
    #expect(form(.prefer, "handling=lenient, Respond-Async; x=1, wait=20") == .turn(wait: 20))
    #expect(form(.prefer, "respond-async, wait=99999999999999999999") == .turn(wait: 0))
    #expect(form(.prefer, "wait=20") == .whole)
    #expect(form(.accept, "text/event-stream") == .stream)
    #expect(form(.accept, "application/json;q=0.5, text/event-stream") == .stream)
    #expect(form(.accept, "application/json, text/event-stream;q=0.5") == .whole)
    #expect(form(.accept, "text/event-stream;q=0") == .whole)
    #expect(form(.accept, "*/*") == .whole)
  }
}

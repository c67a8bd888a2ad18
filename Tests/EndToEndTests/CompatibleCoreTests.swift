import Foundation
import JSONSupport
import NIOCore
import NIOHTTP1
import TestSupport
import Testing

/// What clients that were written for the earlier system rely on.
@Suite struct CompatibleCoreTests {
  @Test func theIndexNamesTheRoutesAndTheModel() async throws {
    try await Stack.run { stack in
      let answer = try await stack.get("/")
      #expect(answer.status == 200)
      #expect(answer.headers.first(name: "content-type") == "application/json")
      let json = try answer.json
      #expect(json["name"] == "Claude API")
      #expect(json["version"]?.stringValue?.isEmpty == false)
      #expect(json["endpoints"]?["POST /sessions"] == "Create a new session")
      #expect(json["endpoints"]?["GET /sessions"] == "List all sessions")
      #expect(json["endpoints"]?["POST /sessions/{session_id}/messages"] == "Send message to session")
      #expect(json["endpoints"]?["GET /sessions/{session_id}"] == "Get session info")
      #expect(json["endpoints"]?["DELETE /sessions/{session_id}"] == "Delete session")
      #expect(json["model"]?["kind"] == "demo")
    }
  }

  @Test func aConversationByTheFiveRoutes() async throws {
    try await Stack.run { stack in
      let created = try await stack.post("/sessions", ["initial_prompt": "hello", "session_name": "Test Session"])
      #expect(created.status == 200)
      let session = try #require(try created.json["session"])
      let id = try #require(session["id"]?.stringValue)
      #expect(UUID(uuidString: id)?.uuidString.lowercased() == id)
      #expect(session["name"] == "Test Session")
      #expect(try created.json["initial_response"] == "1: hello")
      #expect(try created.json.objectValue?.keys.sorted() == ["initial_response", "session"])
      #expect(session.objectValue?.keys.sorted() == ["created_at", "id", "last_used", "name", "workspace"])
      #expect(session["workspace"] == .string(stack.workspaceRoot + "/" + id))
      for field in ["created_at", "last_used"] {
        let text = try #require(session[field]?.stringValue)
        #expect(text.wholeMatch(of: /\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z/) != nil)
      }

      let message = try await stack.post("/sessions/\(id)/messages", ["prompt": "and you?"])
      #expect(message.status == 200)
      #expect(try message.json["session_id"] == .string(id))
      #expect(try message.json["prompt"] == "and you?")
      #expect(try message.json["response"] == "2: hello | and you?")
      let timestamp = try #require(try message.json["timestamp"]?.stringValue)

      let shown = try await stack.get("/sessions/\(id)")
      #expect(shown.status == 200)
      #expect(try shown.json["name"] == "Test Session")
      #expect(try shown.json["created_at"] == session["created_at"])
      #expect(try shown.json["last_used"]?.stringValue ?? "" >= timestamp)

      let second = try await stack.createSession()
      let list = try await stack.get("/sessions")
      #expect(try list.json["count"] == 2)
      #expect(try list.json["sessions"]?.arrayValue?.map { $0["id"] } == [.string(id), .string(second)])

      let deleted = try await stack.request(.DELETE, "/sessions/\(id)")
      #expect(deleted.status == 200)
      #expect(try deleted.json == ["message": "Session deleted", "session_id": .string(id)])
      #expect(!FileManager.default.fileExists(atPath: stack.workspaceRoot + "/" + id))
      #expect(!FileManager.default.fileExists(atPath: stack.stateDirectory + "/claude-config/" + id))
      let gone = try await stack.get("/sessions/\(id)")
      #expect(gone.status == 404)
      #expect(try gone.json["detail"] == "Session not found")
      #expect(try await stack.get("/sessions").json["count"] == 1)
    }
  }

  @Test func aSessionWithoutPromptOrNameHasADefaultNameAndNoResponse() async throws {
    try await Stack.run { stack in
      for body: JSONValue in [
        [:], ["initial_prompt": nil, "session_name": nil], ["initial_prompt": "", "session_name": ""],
      ] {
        let created = try await stack.post("/sessions", body)
        #expect(created.status == 200)
        let id = try #require(try created.json["session"]?["id"]?.stringValue)
        #expect(try created.json["session"]?["name"] == .string("Session \(id.prefix(8))"))
        #expect(try created.json.objectValue?["initial_response"] == JSONValue.null)
      }
    }
  }

  @Test func aFailedInitialPromptStillGivesTheSession() async throws {
    try await Stack.run { stack in
      let created = try await stack.post("/sessions", ["initial_prompt": "fake:error 401"])
      #expect(created.status == 200)
      #expect(try created.json.objectValue?["initial_response"] == JSONValue.null)
      #expect(try created.json["error"]?.stringValue?.isEmpty == false)
      #expect(try created.json["error_code"] == "model_auth_failed")
      let id = try #require(try created.json["session"]?["id"]?.stringValue)
      #expect(try await stack.say("still there?", to: id).hasPrefix("2: "))
    }
  }

  @Test func theClientsOwnTestPasses() async throws {
    try await Stack.run { stack in
      let log = stack.directory + "/client.log"
      let exit = try await TestSupport.run(
        [Stack.product("claude-api"), "test", "--url", "http://127.0.0.1:\(stack.nginx.port)"], output: log)
      #expect(exit == .status(0), "\(TestSupport.text(of: log))")
    }
  }
}

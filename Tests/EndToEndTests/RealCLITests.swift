import Foundation
import JSONSupport
import NIOCore
import NIOHTTP1
import TestSupport
import Testing

/// The real CLI against the demo model, through everything.
@Suite(.enabled(if: Stack.realCLI != nil, "CLAUDE_API_TEST_CLAUDE names no CLI"))
struct RealCLITests {
  private func run<T>(_ body: (Stack) async throws -> T) async throws -> T {
    try await Stack.run(cli: .real(path: try #require(Stack.realCLI)), body)
  }

  @Test func aConversationOutlivesTheResponderAndTheCLI() async throws {
    try await run { stack in
      let created = try await stack.post("/sessions", ["initial_prompt": "Remember the number 7341."])
      #expect(created.status == 200, "\(created.text)")
      #expect(try created.json["initial_response"]?.stringValue?.contains("demo model") == true)
      let id = try #require(try created.json["session"]?["id"]?.stringValue)
      #expect(try await stack.say("Which number?", to: id).contains("7341"))
      #expect(await stack.stopResponder() == .status(0))
      #expect(try stack.processesLeft().isEmpty)
      try await stack.startResponder()
      #expect(try await stack.say("And now?", to: id).contains("7341"))
      await stack.killResponder()
      try await stack.startResponder()
      #expect(try await stack.say("Still?", to: id).contains("7341"))
      for pid in try stack.processesLeft() { kill(pid, SIGKILL) }
      let last = try await stack.say("After the kill?", to: id)
      #expect(last.contains("7341"))
      #expect(last.contains("5 user messages"))
    }
  }

  /// The look at the CLI after the start finds nothing against it.
  @Test func theServerIsReady() async throws {
    try await run { stack in
      for _ in 0..<3000 where !stack.responderLog.contains("The CLI") { try await Task.sleep(for: .milliseconds(20)) }
      let said = stack.responderLog.split(separator: "\n").filter { $0.contains("The CLI") }
      #expect(said.count == 1 && said[0].contains("The CLI does all that is needed of it"), "\(said)")
      let ready = try await stack.get("/readyz")
      #expect(ready.status == 200, "\(ready.text)")
    }
  }

  @Test func toolsWorkInTheWorkspace() async throws {
    try await run { stack in
      let id = try await stack.createSession()
      let answer = try await stack.say(#"[[tool Bash {"command":"echo content > made.txt && cat made.txt"}]]"#, to: id)
      #expect(answer.contains("content"))
      let name = try await stack.say(#"[[tool Bash {"command":"hostname; ls \#(stack.stateDirectory)"}]]"#, to: id)
      #expect(name.contains("sandbox") && !name.contains("sqlite"), "\(name)")
      #expect(FileManager.default.contents(atPath: "\(stack.workspaceRoot)/\(id)/made.txt") == Data("content\n".utf8))
    }
  }

  @Test(arguments: ["/help", "/compact", "/clear", "/cost", "-p", "--version", "!ls", "# note", "@/etc/hostname"])
  func textReachesTheModelAsItIs(_ prompt: String) async throws {
    try await run { stack in
      let id = try await stack.createSession()
      #expect(try await stack.say("\(prompt) 7341", to: id).contains("\"\(prompt) 7341\""))
    }
  }

  @Test(arguments: [("[[error 401]]", 502, "model_auth_failed"), ("[[error 529]]", 503, "overloaded")])
  func theModelsRefusalsAreTold(_ prompt: String, _ status: Int, _ code: String) async throws {
    try await run { stack in
      let id = try await stack.createSession()
      let answer = try await stack.post("/sessions/\(id)/messages", ["prompt": .string(prompt)])
      #expect(answer.status == status, "\(answer.text)")
      #expect(try answer.json["code"] == .string(code))
      #expect(try await stack.say("and now?", to: id).contains("and now?"))
    }
  }
}

import Foundation
import JSONSupport
import NIOCore
import NIOHTTP1
import TestSupport
import Testing

/// Turns belong to their sessions, and what was accepted stays.
@Suite struct DurabilityTests {
  @Test func aTurnGoesOnWithoutItsClient() async throws {
    try await Stack.run { stack in
      let id = try await stack.createSession()
      let body = ByteBuffer(string: #"{"prompt":"fake:delay 1500"}"#)
      await #expect(throws: (any Error).self) {
        try await stack.request(
          .POST, "/sessions/\(id)/messages", headers: ["Content-Type": "application/json"], body: body,
          timeout: .milliseconds(400))
      }
      // The next message waits for that turn and finds its prompt in the conversation.
      #expect(try await stack.say("next", to: id) == "2: fake:delay 1500 | next")
    }
  }

  @Test func messagesToABusySessionWaitInOrderUpToALimit() async throws {
    try await Stack.run(settings: ["queue-max-length": "2"]) { stack in
      let id = try await stack.createSession()
      let first = Task { try await stack.say("fake:delay 1000", to: id) }
      try await waitUntilRunning(stack, id)
      let waiting = ["a", "b"]
      var answers: [Task<String, any Error>] = []
      for prompt in waiting {
        answers.append(Task { try await stack.say(prompt, to: id) })
        try await waitUntil { try await unfinishedTurns(stack, id) == answers.count + 1 }
      }
      let refused = try await stack.post("/sessions/\(id)/messages", ["prompt": "c"])
      #expect(refused.status == 429)
      #expect(try refused.json["code"] == "queue_full")
      #expect(refused.headers.first(name: "retry-after") != nil)
      #expect(try await first.value == "after 1000 ms")
      #expect(try await answers[0].value == "2: fake:delay 1000 | a")
      #expect(try await answers[1].value == "3: fake:delay 1000 | a | b")
    }
  }

  @Test func deletingASessionEndsItsTurn() async throws {
    try await Stack.run { stack in
      let id = try await stack.createSession()
      // What makes a directory hard to remove.
      let workspace = stack.workspaceRoot + "/" + id
      var deep = workspace
      for _ in 0..<40 {
        deep += "/d"
        try FileManager.default.createDirectory(atPath: deep, withIntermediateDirectories: false)
      }
      try Data("x".utf8).write(to: URL(filePath: deep + "/f"))
      let decoy = stack.directory + "/decoy"
      try FileManager.default.createDirectory(atPath: decoy, withIntermediateDirectories: false)
      try Data("keep".utf8).write(to: URL(filePath: decoy + "/f"))
      try FileManager.default.createSymbolicLink(atPath: workspace + "/link", withDestinationPath: decoy)
      chmod(deep, 0o500)
      chmod(workspace + "/d", 0o000)

      let running = Task { try await stack.post("/sessions/\(id)/messages", ["prompt": "fake:stubborn"]) }
      try await waitUntilRunning(stack, id)
      let queued = Task { try await stack.post("/sessions/\(id)/messages", ["prompt": "later"]) }
      try await waitUntil { try await unfinishedTurns(stack, id) == 2 }
      let deleted = try await stack.request(.DELETE, "/sessions/\(id)")
      #expect(deleted.status == 200)
      for task in [running, queued] {
        let answer = try await task.value
        #expect(answer.status == 410)
        #expect(try answer.json["code"] == "session_deleted")
      }
      #expect(!FileManager.default.fileExists(atPath: workspace))
      #expect(!FileManager.default.fileExists(atPath: stack.stateDirectory + "/claude-config/" + id))
      #expect(FileManager.default.contents(atPath: decoy + "/f") == Data("keep".utf8))
      #expect(try stack.processesLeft().isEmpty)
    }
  }

  @Test func afterAKillNothingAcceptedIsMissing() async throws {
    try await Stack.run { stack in
      let busy = try await stack.createSession()
      let other = try await stack.createSession()
      #expect(try await stack.say("remember 7341", to: busy) == "1: remember 7341")
      let lost = Task { try? await stack.post("/sessions/\(busy)/messages", ["prompt": "fake:partial"]) }
      try await waitUntilRunning(stack, busy)
      let queued = Task { try? await stack.post("/sessions/\(busy)/messages", ["prompt": "queued"]) }
      try await waitUntil { try await unfinishedTurns(stack, busy) == 2 }
      await stack.killResponder()
      _ = await lost.value
      _ = await queued.value
      try await stack.startResponder()

      #expect(try await stack.get("/sessions").json["count"] == 2)
      #expect(try await stack.get("/sessions/\(other)").status == 200)
      // The message that waited runs after the restart, the one that ran is not repeated, the context is there.
      #expect(try await stack.say("which?", to: busy) == "4: remember 7341 | fake:partial | queued | which?")
      let turns = try await turns(stack, busy)
      #expect(turns.map { $0["state"] } == ["completed", "interrupted", "completed", "completed"])
    }
  }

  @Test func sigtermEndsTheResponderInOrder() async throws {
    try await Stack.run { stack in
      let id = try await stack.createSession()
      let running = Task { try await stack.say("fake:delay 800", to: id) }
      try await waitUntilRunning(stack, id)
      // The request that runs gets its answer, and then the responder is gone.
      #expect(await stack.stopResponder() == .status(0))
      #expect(try await running.value == "after 800 ms")
      #expect(try stack.processesLeft().isEmpty)
      #expect(try await stack.get("/").status == 502)
      try await stack.startResponder()
      #expect(try await stack.say("again", to: id) == "2: fake:delay 800 | again")
    }
  }

  @Test func aSecondResponderIsRefusedAndTheFirstUnharmed() async throws {
    try await Stack.run { stack in
      let id = try await stack.createSession()
      let log = stack.directory + "/second.log"
      let exit = try await TestSupport.run(
        [
          Stack.product("claude-api-server"), "serve", "--state-dir", stack.stateDirectory, "--workspace-root",
          stack.workspaceRoot, "--socket-path", stack.directory + "/s/r.sock",
        ], output: log)
      #expect(exit != .status(0))
      #expect(TestSupport.text(of: log).contains("another process serves on"))
      #expect(try await stack.say("still there", to: id) == "1: still there")
    }
  }

  // MARK: Waiting

  private func turns(_ stack: Stack, _ id: String) async throws -> [JSONValue] {
    try await stack.get("/sessions/\(id)/turns").json["turns"]?.arrayValue ?? []
  }

  private func unfinishedTurns(_ stack: Stack, _ id: String) async throws -> Int {
    try await turns(stack, id).count { ["queued", "running"].contains($0["state"]?.stringValue) }
  }

  private func waitUntilRunning(_ stack: Stack, _ id: String) async throws {
    try await waitUntil { try await turns(stack, id).contains { $0["state"] == "running" } }
  }

  private func waitUntil(_ condition: () async throws -> Bool) async throws {
    for _ in 0..<3000 {
      if try await condition() { return }
      try await Task.sleep(for: .milliseconds(10))
    }
    throw Stack.Failure("the condition did not come true")
  }
}

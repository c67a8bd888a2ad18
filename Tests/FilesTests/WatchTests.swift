import Foundation
import SessionTestSupport
import Sessions
import TestSupport
import Testing
import Workspaces

/// Changes of files in the log of their session.
@Suite struct WatchTests {
  struct Change: Decodable, Hashable {
    let path: String
    let kind: String
    let file_type: String
    var path_base64: String?
    var size: Int?
    var count: Int?
    let source: String
    var turn_id: String?
  }

  private struct Page: Decodable {
    let events: [Change]
    let has_more: Bool
    let next: Int
  }

  /// All that are in the log, which may be more than a page.
  private func changes(_ server: FilesServer) async throws -> [Change] {
    var found: [Change] = []
    var after = 0
    while true {
      let page = try await server.send(
        "GET", server.base + "/events?limit=1000&types=workspace.changed&after=\(after)"
      ).decode(Page.self)
      found += page.events
      guard page.has_more else { return found }
      after = page.next
    }
  }

  /// Waits until the log has a change.
  private func wait(for path: String, _ kind: String, _ server: FilesServer) async throws -> Change {
    var found: Change?
    try await eventually("\(kind) \(path)") {
      found = try await changes(server).first { $0.path == path && $0.kind == kind }
      return found != nil
    }
    return try #require(found)
  }

  private func runTurn(_ server: FilesServer) async throws -> RawResponse {
    try await server.json("POST", server.base + "/messages", #"{"prompt":"go"}"#)
  }

  @Test func whatATurnChangesIsInTheLogBeforeItsEnd() async throws {
    let runner = ScriptedRunner { request, _ in
      let top = request.session.workspace
      mkdir(top + "/dir", 0o755)
      try Data("hello".utf8).write(to: URL(fileURLWithPath: top + "/dir/new.txt"))
      try Data("longer".utf8).write(to: URL(fileURLWithPath: top + "/old.txt"))
      unlink(top + "/gone.txt")
      rename(top + "/from", top + "/to")
      symlink(top + "/../../decoy", top + "/link")
      mkfifo(top + "/fifo", 0o600)
      #expect(creat(top + "/dir/\u{1}", 0o600) >= 0)
      close(creat((top + "/").utf8CString.dropLast() + [-1, 0x61, 0], 0o600))
      // What is made and removed at once is not told.
      mkdir(top + "/passing", 0o755)
      rmdir(top + "/passing")
      return TurnResult(text: "done")
    }
    try await FilesServer.run(runner: runner) { server in
      mkdir(server.directory + "/decoy", 0o755)
      try Data("secret".utf8).write(to: URL(fileURLWithPath: server.directory + "/decoy/hidden"))
      // What was written in the tick of the file system's clock in which the turn begins would count as changed by it.
      try server.write("x", to: "same.txt")
      let written = Timestamp.now().microseconds + 1
      try await eventually("the clock of changes goes on") { Workspaces.changeTime() > written * 1000 }
      for name in ["old.txt", "gone.txt", "from"] { try server.write("x", to: name) }
      let answer = try await runTurn(server)
      #expect(answer.status == 200, "\(answer.text)")
      let found = try await changes(server)
      #expect(Set(found.compactMap(\.turn_id)).count == 1)
      func change(_ path: String, _ kind: String, _ type: String, _ size: Int? = nil) -> Change {
        Change(
          path: path, kind: kind, file_type: type, size: size, source: "agent", turn_id: found.first?.turn_id)
      }
      var odd = change("\u{fffd}a", "created", "file", 0)
      odd.path_base64 = Data([0xff, 0x61]).base64EncodedString()
      #expect(
        Set(found) == [
          change("dir", "created", "directory"), change("dir/new.txt", "created", "file", 5),
          change("old.txt", "modified", "file", 6), change("gone.txt", "deleted", "file"),
          change("from", "deleted", "file"), change("to", "created", "file", 1), change("link", "created", "symlink"),
          change("fifo", "created", "special"), change("dir/\u{1}", "created", "file", 0), odd,
        ])
      #expect(found.count == 10)
      let log = try await server.send("GET", server.base + "/events?limit=1000").text
      let end = try #require(log.range(of: "turn.completed"))
      #expect(log.range(of: "workspace.changed", options: .backwards).map { $0.upperBound < end.lowerBound } == true)
    }
  }

  @Test func changesAreShownWhileTheTurnRunsAndAClientsOwnOnce() async throws {
    let gate = Gate()
    let runner = ScriptedRunner { request, _ in
      try Data("1".utf8).write(to: URL(fileURLWithPath: request.session.workspace + "/agent.txt"))
      try await gate.wait()
      return TurnResult(text: "done")
    }
    try await FilesServer.run(runner: runner) { server in
      try server.write("x", to: "folder/inside.txt")
      let turn = Task { try await runTurn(server) }
      let early = try await wait(for: "agent.txt", "created", server)
      #expect(early.source == "agent" && early.turn_id != nil)
      #expect(try await server.send("PUT", server.base + "/files/up/client.txt", text: "mine").status == 201)
      #expect(try await server.send("DELETE", server.base + "/files/folder?recursive=1").status == 204)
      // The agent goes on with the client's file.
      try await Task.detached {
        try Data("longer than before".utf8).write(to: URL(fileURLWithPath: server.workspace + "/up/client.txt"))
      }.value
      _ = try await wait(for: "up/client.txt", "modified", server)
      gate.open()
      #expect(try await turn.value.status == 200)
      let found = try await changes(server)
      let own = found.filter { $0.source == "client" }
      #expect(
        Set(own) == [
          Change(path: "up/client.txt", kind: "created", file_type: "file", size: 4, source: "client"),
          Change(path: "folder", kind: "deleted", file_type: "directory", source: "client"),
        ])
      #expect(own.count == 2)
      #expect(found.filter { $0.source == "agent" }.map(\.path) == ["agent.txt", "up/client.txt"])
    }
  }

  @Test func whatClientsChangeBetweenTurns() async throws {
    try await FilesServer.run { server in
      let files = server.base + "/files"
      _ = try await server.send("PUT", files + "/a.txt", text: "a")
      _ = try await server.send("PUT", files + "/a.txt", text: "aa")
      _ = try await server.json("POST", server.base + "/move", #"{"from":"a.txt","to":"b.txt"}"#)
      _ = try await server.json("POST", server.base + "/folders", #"{"path":"f"}"#)
      let form = multipart([("x", "one", "1"), ("y", "two", "22")])
      _ = try await server.send("POST", files + "/f", form.fields, form.body)
      let archive = try await server.send("GET", server.base + "/archive?path=f").body
      _ = try await server.send("POST", server.base + "/archive?path=back", [:], archive)
      _ = try await server.send(
        "POST", server.base + "/uploads",
        [
          "Tus-Resumable": "1.0.0", "Upload-Length": "0",
          "Upload-Metadata": "path \(Data("t".utf8).base64EncodedString())",
        ],
        [])
      _ = try await server.send("DELETE", files + "/b.txt")
      // What fails changes nothing.
      _ = try await server.send("DELETE", files + "/b.txt")
      _ = try await server.send("PUT", files + "/f", text: "x")
      let found = try await changes(server)
      #expect(
        found.map { "\($0.kind) \($0.path) \($0.size ?? -1)" } == [
          "created a.txt 1", "modified a.txt 2", "deleted a.txt -1", "created b.txt 2", "created f -1",
          "created f/one 1", "created f/two 2", "created back/one 1", "created back/two 2", "created t 0",
          "deleted b.txt -1",
        ])
      #expect(found.allSatisfy { $0.source == "client" && $0.turn_id == nil })
    }
  }

  @Test func manyChangesAreCounted() async throws {
    let runner = ScriptedRunner { request, _ in
      // So many that a workspace isn't remembered any more, if the prompt says so.
      let count = request.turn.prompt == "go" ? 3000 : 50_100
      let directory = request.session.workspace + "/a/churn\(count)"
      try FileManager.default.createDirectory(atPath: directory, withIntermediateDirectories: true)
      try await onThread { for index in 0..<count { close(creat(directory + "/\(index)", 0o600)) } }
      return TurnResult(text: "done")
    }
    try await FilesServer.run(runner: runner) { server in
      #expect(try await runTurn(server).status == 200)
      let found = try await changes(server)
      let overflows = found.filter { $0.kind == "overflow" }
      let single = found.count - overflows.count
      #expect(single <= 2000 && single >= 100)
      #expect(found.count { $0.kind == "created" && $0.path == "a" } == 1)
      #expect(overflows.allSatisfy { $0.path == "a/churn3000" })
      #expect(overflows.reduce(0) { $0 + ($1.count ?? 0) } + single == 3002)

      let before = found.count
      let more = try await server.json("POST", server.base + "/messages", #"{"prompt":"more"}"#)
      #expect(more.status == 200)
      let later = try await changes(server).dropFirst(before)
      #expect(later.last?.kind == "overflow" && later.last?.path == "")
      #expect(try await server.send("DELETE", server.base + "/files/a?recursive=1").status == 204)
    }
  }

  @Test func aTurnThatFillsTheWorkspaceIsStopped() async throws {
    var limits = WorkspaceLimits()
    limits.bytes = 1_000_000
    let runner = ScriptedRunner { request, _ in
      guard request.turn.prompt == "fill" else { return TurnResult(text: "done") }
      let isMade = FileManager.default.createFile(
        atPath: request.session.workspace + "/filled", contents: Data(repeating: 1, count: 2_000_000))
      #expect(isMade)
      try await Gate().wait()
      return TurnResult(text: "not reached")
    }
    try await FilesServer.run(limits: limits, runner: runner) { server in
      let stopped = try await server.json("POST", server.base + "/messages", #"{"prompt":"fill"}"#)
      #expect(stopped.status == 507 && stopped.problemCode == "quota_exceeded")
      #expect(try await wait(for: "filled", "created", server).size == 2_000_000)
      #expect(try await server.send("DELETE", server.base + "/files/filled").status == 204)
      #expect(try await server.json("POST", server.base + "/messages", #"{"prompt":"talk"}"#).status == 200)
    }
  }

  @Test func aTurnThatFillsTheAgentsHomeIsStopped() async throws {
    var limits = WorkspaceLimits()
    limits.bytes = 1_000_000
    let runner = ScriptedRunner { request, _ in
      let isMade = FileManager.default.createFile(
        atPath: request.configurationDirectory + "/filled", contents: Data(repeating: 1, count: 2_000_000))
      #expect(isMade)
      try await Gate().wait()
      return TurnResult(text: "not reached")
    }
    try await FilesServer.run(limits: limits, runner: runner) { server in
      let stopped = try await server.json("POST", server.base + "/messages", #"{"prompt":"fill"}"#)
      #expect(stopped.status == 507 && stopped.problemCode == "quota_exceeded")
      #expect(stopped.text.contains("home directory"))
    }
  }

  @Test func whatAnAgentLeavesRunningIsWatchedToo() async throws {
    var limits = WorkspaceLimits()
    limits.bytes = 1_000_000
    let runner = ScriptedRunner({ _, _ in TurnResult(text: "done") }, keepsProcesses: true)
    try await FilesServer.run(limits: limits, runner: runner) { server in
      #expect(try await runTurn(server).status == 200)
      #expect(await runner.hasProcess(server.session.id))
      // As something would that goes on after the turn.
      try Data(repeating: 1, count: 2_000_000).write(to: URL(filePath: server.workspace + "/filled"))
      try await eventually("its end") { await !runner.hasProcess(server.session.id) }
      #expect(try await server.send("DELETE", server.base + "/files/filled").status == 204)
      #expect(try await runTurn(server).status == 200)
    }
  }
}

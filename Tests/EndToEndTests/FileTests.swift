import Foundation
import JSONSupport
import TestSupport
import Testing

/// Files through the whole system.
@Suite struct FileTests {
  @Test func aRepositoryIsClonedInTheSandbox() async throws {
    try await withTemporaryDirectory { sources in
      let script = """
        set -eu
        export GIT_CONFIG_GLOBAL=/dev/null GIT_CONFIG_NOSYSTEM=1
        git init -q "$1/project"
        cd "$1/project"
        echo one >file.txt
        git add file.txt
        git -c user.name=a -c user.email=a@example.org commit -qm one
        """
      #expect(try await run(["bash", "-c", script, "x", sources], output: sources + "/log") == .status(0))
      try await Stack.run(
        settings: [
          "sandbox-mode": "required", "git-allowed-sources": "https://example.org/none, file://\(sources)",
          "share-mode": "off", "quota-max-files": "100",
        ]
      ) { stack in
        let made = try await stack.post(
          "/sessions", ["git": ["url": .string("file://\(sources)/project"), "depth": 1]])
        #expect(made.status == 200, "\(made.text)\n\(stack.responderLog)")
        let id = try made.json["session"]?["id"]?.stringValue ?? ""
        #expect(text(of: "\(stack.workspaceRoot)/\(id)/file.txt") == "one\n")
        let other = try await stack.post("/sessions", ["git": ["url": "https://example.org/other.git"]])
        #expect(try other.status == 403 && other.json["code"] == "git_source_not_allowed")
        let share = try await stack.post("/sessions/\(id)/files/share", ["path": "file.txt"])
        #expect(try share.status == 403 && share.json["code"] == "sharing_disabled")
        let usage = try await stack.get("/sessions/\(id)/usage").json
        #expect(usage["limits"]?["entries"] == 100)
      }
    }
  }

  @Test(.enabled(if: Stack.realCLI != nil, "CLAUDE_API_TEST_CLAUDE names no CLI"))
  func whatTheAgentWritesIsInTheLog() async throws {
    try await Stack.run(cli: .real(path: try #require(Stack.realCLI))) { stack in
      let id = try await stack.createSession()
      _ = try await stack.say(
        #"[[tool Write {"file_path":"notes/a.txt","content":"hello"}]] [[tool Bash {"command":"echo more >b.txt"}]]"#,
        to: id)
      let log = try await stack.get("/sessions/\(id)/events?types=workspace.changed").json
      guard case .array(let events)? = log["events"] else {
        Issue.record("no events: \(log)")
        return
      }
      let found = events.map { "\($0["kind"]?.stringValue ?? "") \($0["path"]?.stringValue ?? "")" }
      #expect(Set(found).isSuperset(of: ["created notes", "created notes/a.txt", "created b.txt"]), "\(found)")
      #expect(events.first { $0["path"] == "notes/a.txt" }?["size"] == 5)
      #expect(events.allSatisfy { $0["turn_id"]?.stringValue != nil && $0["source"] == "agent" })
    }
  }
}

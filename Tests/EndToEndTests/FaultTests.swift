import Foundation
import JSONSupport
import NIOCore
import NIOHTTP1
import TestSupport
import Testing

/// What goes wrong with the CLI is told with a code and a reason, within a bounded time, and the session goes on.
@Suite struct FaultTests {
  @Test(
    arguments: [
      ("fake:exit 3 something broke", 502, "crashed", "something broke"),
      ("fake:kill", 502, "crashed", "signal 9"),
      ("fake:error 401", 502, "model_auth_failed", ""),
      ("fake:error 429", 429, "rate_limited", ""),
      ("fake:error 529", 503, "overloaded", ""),
      ("fake:error 500", 502, "model_error", ""),
      ("fake:login", 502, "not_logged_in", ""),
      ("fake:half", 504, "stalled", ""),
      ("fake:huge 200000", 502, "line_too_long", ""),
      ("fake:stubborn", 504, "stalled", ""),
    ] as [(String, Int, String, String)])
  func duringATurn(_ prompt: String, _ status: Int, _ code: String, _ mentions: String) async throws {
    try await Stack.run(settings: ["claude-stall-timeout": "1s", "claude-line-limit": "65536"]) { stack in
      let id = try await stack.createSession()
      let answer = try await stack.post("/sessions/\(id)/messages", ["prompt": .string(prompt)])
      #expect(answer.status == status, "\(answer.text)")
      #expect(try answer.json["code"] == .string(code))
      #expect(try answer.json["detail"]?.stringValue?.contains(mentions) == true || mentions.isEmpty, "\(answer.text)")
      if status == 429 || status == 503 { #expect(answer.headers.first(name: "retry-after") != nil) }
      #expect(try await stack.say("and now?", to: id).hasSuffix("and now?"))
    }
  }

  @Test func garbageBetweenMessagesIsPassedOver() async throws {
    try await Stack.run { stack in
      let id = try await stack.createSession()
      #expect(try await stack.say("fake:garbage", to: id) == "after garbage")
      #expect(try await stack.say("fake:unknown", to: id) == "after the unknown")
    }
  }

  @Test(
    arguments: [
      ("#!/bin/sh\nexit 7\n", 0o700, "cli_incompatible"),
      ("#!/bin/sh\necho '1.0.3 (Claude Code)'\n", 0o700, "cli_incompatible"),
      (
        "#!/bin/sh\n[ \"$1\" = --version ] && echo '2.1.330 (Claude Code)' && exit\necho broken >&2; exit 7\n", 0o700,
        "crashed"
      ),
      (
        "#!/bin/sh\n[ \"$1\" = --version ] && echo '2.1.330 (Claude Code)' && exit\necho garbage; sleep 600\n", 0o700,
        "cli_protocol_error"
      ),
      (
        "#!/bin/sh\n[ \"$1\" = --version ] && echo '2.1.330 (Claude Code)' && exit\nprintf '{\"type\":\"sys'; sleep 600\n",
        0o700, "cli_protocol_error"
      ),
      ("#!/bin/sh\n", 0o600, "cli_not_executable"),
      (nil, 0, "cli_missing"),
    ] as [(String?, Int, String)])
  func aCLIThatIsNone(_ script: String?, _ mode: Int, _ code: String) async throws {
    let path = NSTemporaryDirectory() + "cli-\(UUID())"
    if let script {
      try script.write(toFile: path + ".text", atomically: true, encoding: .utf8)
      // By a child: what this process has open for writing can be inherited by another test's child, and a file
      // that is open for writing can't be executed.
      let copied = try await TestSupport.run(
        ["install", "-m", String(mode, radix: 8), path + ".text", path], output: "/dev/null")
      #expect(copied == .status(0))
    }
    defer {
      unlink(path)
      unlink(path + ".text")
    }
    try await Stack.run(cli: .file(path), settings: ["claude-start-timeout": "1s"]) { stack in
      let id = try await stack.createSession()
      for _ in 0..<2 {
        let answer = try await stack.post("/sessions/\(id)/messages", ["prompt": "hello"])
        #expect([502, 503, 504].contains(answer.status), "\(answer.text)")
        #expect(try answer.json["code"] == .string(code), "\(answer.text)")
        #expect(try answer.json["detail"]?.stringValue?.isEmpty == false)
      }
      #expect(try await stack.get("/healthz").status == 200)
      #expect(try stack.processesLeft().isEmpty)
    }
  }

  @Test func aKilledCLIIsReplaced() async throws {
    try await Stack.run { stack in
      let id = try await stack.createSession()
      #expect(try await stack.say("remember 7341", to: id) == "1: remember 7341")
      for pid in try stack.processesLeft() { kill(pid, SIGKILL) }
      #expect(try await stack.say("which?", to: id) == "2: remember 7341 | which?")
    }
  }
}

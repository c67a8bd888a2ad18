import Foundation
import TestSupport
import Testing

/// scripts/run with a real nginx, but without a build: a stand-in for `swift` names the programs to start,
/// and the responder's socket is that of a `FakeResponder`.
@Suite struct RunScriptTests {
  private struct Stage {
    let directory: String
    let port: Int
    var state: String { directory + "/state" }
    var log: String { directory + "/log" }

    init(directory: String, server: String = "exec sleep infinity") async throws {
      self.directory = directory
      port = try freePort()
      for name in ["bin", "out", "state/run"] {
        try FileManager.default.createDirectory(
          atPath: "\(directory)/\(name)", withIntermediateDirectories: true)
      }
      try program(
        "bin/swift",
        """
        case $* in
          --version) echo 'Swift version 6.3.1' ;;
          *--show-bin-path*) echo '\(directory)/out' ;;
        esac
        """)
      try program("out/claude-api-server", "printf '%s\\n' \"$@\" >'\(directory)/arguments'\n" + server)
      try program("out/demo-model", "echo 4711 >\"$4\"\nexec sleep infinity")
      // A file that this process had open for writing can't be run while a child that another test is just
      // starting still has it open too. The copies were never open here.
      let copied = try await TestSupport.run(
        ["bash", "-c", "for f in \(directory)/*/*.text; do install -m 0755 $f ${f%.text}; done"], output: log)
      try #require(copied == .status(0))
    }

    private func program(_ name: String, _ text: String) throws {
      try Data("#!/bin/bash\n\(text)\n".utf8).write(to: URL(fileURLWithPath: "\(directory)/\(name).text"))
    }

    func run(_ arguments: [String] = [], log: String? = nil) throws -> ChildProcess {
      var environment: [String: String?] = [
        "PATH": directory + "/bin:" + (ProcessInfo.processInfo.environment["PATH"] ?? "/usr/bin:/bin"),
        "CLAUDE_API_STATE_DIR": state, "CLAUDE_API_PORT": "\(port)",
      ]
      for name in [
        "ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "CLAUDE_CODE_OAUTH_TOKEN", "ANTHROPIC_BASE_URL",
        "CLAUDE_API_DEMO", "CLAUDE_API_WORKSPACE_ROOT", "CLAUDE_API_CLAUDE_PATH",
      ] {
        environment[name] = .some(nil)
      }
      return try ChildProcess(
        [repositoryRoot + "/scripts/run", "--claude-path", "/bin/true"] + arguments,
        environment: environment, output: log ?? self.log)
    }

    /// Waits for the line that says that the server is ready.
    func waitUntilReady(_ script: ChildProcess) async throws {
      while !text(of: log).contains("Ctrl-C stops it.") {
        try #require(script.exit == nil, "\(text(of: log))")
        try await Task.sleep(for: .milliseconds(10))
      }
    }
  }

  private func healthy(path: String) throws -> FakeResponder {
    try FakeResponder(path: path) { _, reply in
      reply.write("Status: 200 OK\r\nContent-Type: application/json\r\n\r\n{\"status\":\"ok\"}")
    }
  }

  private func status(port: Int) async throws -> Int {
    try await exchange(
      port: port, Array("GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".utf8)
    ).status
  }

  @Test func runsUntilItIsToldToStop() async throws {
    try await withTemporaryDirectory { directory in
      let stage = try await Stage(directory: directory)
      let responder = try healthy(path: stage.state + "/run/responder.sock")
      defer { responder.stop() }
      // What a killed nginx left of a request.
      let leftover = stage.state + "/nginx/tmp/body/0000000001"
      try FileManager.default.createDirectory(
        atPath: stage.state + "/nginx/tmp/body", withIntermediateDirectories: true)
      try Data("half".utf8).write(to: URL(fileURLWithPath: leftover))
      let script = try stage.run(["--workspace-root", directory + "/work"])
      do {
        try await stage.waitUntilReady(script)
        #expect(try await status(port: stage.port) == 200)
        #expect(!FileManager.default.fileExists(atPath: leftover))

        // The same state directory and the same port are both refused, and the first run goes on.
        let second = try stage.run(["--port", "\(try freePort())"], log: directory + "/second")
        #expect(await second.waitForExit() == .status(1))
        #expect(text(of: directory + "/second").contains("already uses this state directory"))
        let third = try stage.run(["--state-dir", directory + "/other"], log: directory + "/third")
        #expect(await third.waitForExit() == .status(1))
        #expect(text(of: directory + "/third").contains("port \(stage.port) is taken"))
        #expect(try await status(port: stage.port) == 200)
      } catch {
        await script.stop()
        throw error
      }

      script.signal(SIGTERM)
      #expect(await script.waitForExit() == .status(0), "\(text(of: stage.log))")
      #expect(text(of: stage.log).contains("DEMO MODEL"))
      let arguments = text(of: directory + "/arguments").split(separator: "\n").map(String.init)
      #expect(
        arguments == [
          "serve", "--socket-path", stage.state + "/run/responder.sock", "--state-dir", stage.state,
          "--workspace-root", directory + "/work", "--claude-path", "/bin/true", "--demo-model-url",
          "http://127.0.0.1:4711", "--model-socket", stage.state + "/run/model/api.sock", "--model-socket-dir",
          stage.state + "/run/agents", "--model-token-dir", stage.state + "/run/model-tokens",
        ])
      #expect(throws: (any Error).self) { try RawConnection(port: stage.port) }
      #expect(try FileManager.default.contentsOfDirectory(atPath: stage.state + "/run") == ["lock"])
    }
  }

  @Test func makesACertificateForTryingHTTPS() async throws {
    try await withTemporaryDirectory { directory in
      let stage = try await Stage(directory: directory)
      let responder = try healthy(path: stage.state + "/run/responder.sock")
      defer { responder.stop() }
      let script = try stage.run(["--tls"])
      do {
        try await stage.waitUntilReady(script)
        let certificate = stage.state + "/tls/certificate.pem"
        // As it says how to.
        #expect(
          text(of: stage.log).contains("curl -s --cacert \(certificate) https://localhost:\(stage.port)/sessions"))
        let attributes = try FileManager.default.attributesOfItem(atPath: stage.state + "/tls/key.pem")
        #expect(attributes[.posixPermissions] as? Int == 0o600)
        for host in ["localhost", "127.0.0.1"] {
          let answer = directory + "/answer." + host
          let exit = try await TestSupport.run(
            [
              "curl", "-sS", "--noproxy", "*", "--max-time", "20", "--cacert", certificate,
              "https://\(host):\(stage.port)/healthz",
            ], output: answer)
          #expect(exit == .status(0), "\(text(of: answer))")
          #expect(text(of: answer).contains("ok"))
        }
        // Plain HTTP isn't answered any more.
        #expect(try await status(port: stage.port) == 400)
      } catch {
        await script.stop()
        throw error
      }
      script.signal(SIGTERM)
      #expect(await script.waitForExit() == .status(0), "\(text(of: stage.log))")
    }
  }

  @Test func childrenOfAKilledScriptEnd() async throws {
    try await withTemporaryDirectory { directory in
      let stage = try await Stage(
        directory: directory, server: "trap 'touch \(directory)/ended; kill $!; exit' TERM\nsleep infinity & wait")
      let responder = try healthy(path: stage.state + "/run/responder.sock")
      defer { responder.stop() }
      let script = try stage.run()
      do {
        try await stage.waitUntilReady(script)
      } catch {
        await script.stop()
        throw error
      }
      script.signal(SIGKILL)
      #expect(await script.waitForExit() == .signal(SIGKILL))
      // The children are told when their parent is gone.
      while !FileManager.default.fileExists(atPath: directory + "/ended") {
        try await Task.sleep(for: .milliseconds(10))
      }
    }
  }

  @Test func saysWhyTheResponderDidNotStart() async throws {
    try await withTemporaryDirectory { directory in
      let stage = try await Stage(directory: directory, server: "echo 'the reason'\nexit 7")
      let script = try stage.run()
      #expect(await script.waitForExit() == .status(7))
      #expect(text(of: stage.log).contains("the responder ended with status 7"))
      #expect(text(of: stage.log).contains("the reason"))
    }
  }

  @Test(arguments: [
    (["--bogus"], "unknown option: --bogus"), (["--port"], "--port needs a value"),
    (["--port", "0"], "not the number of a port: 0"), (["--port=99999"], "not the number of a port: 99999"),
    (["--claude-path", "/none"], "not an executable file: /none"),
  ])
  func refuses(arguments: [String], expected: String) async throws {
    try await withTemporaryDirectory { directory in
      let stage = try await Stage(directory: directory)
      #expect(await (try stage.run(arguments)).waitForExit() == .status(1))
      #expect(text(of: stage.log).contains(expected))
    }
  }
}

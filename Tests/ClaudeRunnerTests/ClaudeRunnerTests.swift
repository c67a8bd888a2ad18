import CLinux
import Foundation
import Glibc
import JSONSupport
import NIOPosix
import TestSupport
import Testing

@testable import ClaudeRunner

/// A command line around the CLI that shows in its environment.
private struct EnvironmentSandbox: ClaudeSandbox {
  func wrap(_ command: [String], for launch: ClaudeLaunch) -> [String] {
    ["/usr/bin/env", "SANDBOXED=\(launch.workingDirectory)"] + command
  }
}

@Suite(.timeLimit(.minutes(5))) struct ConversationTests {
  @Test func keepsTheConversation() async throws {
    let fixture = try Fixture()
    let session = try fixture.session()
    let messages = Messages()
    let first = try await fixture.runner.run(ClaudeTurn(session: session, prompt: "one")) {
      messages.append($0)
    }
    #expect(first.text == "1: one" && first.startedProcess && first.costUSD == 0.25 && first.numTurns == 1)
    #expect(first.usage.inputTokens == 10 && first.stopReason == "end_turn" && first.model == "fake-model")
    #expect(first.cliSessionID == session.id)
    #expect(messages.kinds == [.system("init"), .assistant, .result])
    let second = try await fixture.runner.run(ClaudeTurn(session: session, prompt: "/two"))
    #expect(second.text == "2: one | /two" && !second.startedProcess && second.costUSD == 0.25)
    await fixture.runner.stop(session: session.id)
    #expect(await fixture.runner.statistics.live == 0)
    let third = try await fixture.runner.run(
      ClaudeTurn(session: session, prompt: "three", expectsHistory: true))
    #expect(third.text == "3: one | /two | three" && third.startedProcess)
    #expect(try await fixture.end() == [])
  }

  @Test func goesOnAfterTheProcessDied() async throws {
    let fixture = try Fixture()
    let session = try fixture.session()
    _ = try await fixture.runner.run(ClaudeTurn(session: session, prompt: "one"))
    let failure = await failing {
      try await fixture.runner.run(ClaudeTurn(session: session, prompt: "fake:exit 3 some reason"))
    }
    #expect(failure?.code == .crashed && failure?.exit == .code(3))
    #expect(failure?.errorOutput == "some reason\n")
    let result = try await fixture.runner.run(
      ClaudeTurn(session: session, prompt: "two", expectsHistory: true))
    #expect(result.text == "3: one | fake:exit 3 some reason | two")
    #expect(try await fixture.end() == [])
  }

  @Test(arguments: 0..<20)
  func doesNotNoticeAProcessThatDiedInBetween(_: Int) async throws {
    let fixture = try Fixture()
    let session = try fixture.session()
    let settings = try await fixture.runner.run(ClaudeTurn(session: session, prompt: "fake:settings"))
    let pid = try #require(settings.text.split(separator: " ").last.flatMap { pid_t($0) })
    kill(pid, SIGKILL)
    let result = try await fixture.runner.run(
      ClaudeTurn(session: session, prompt: "two", expectsHistory: true))
    #expect(result.text == "2: fake:settings | two" && result.startedProcess)
    #expect(try await fixture.end() == [])
  }

  @Test func fallsBackToTheLatestConversation() async throws {
    let fixture = try Fixture()
    let session = try fixture.session()
    _ = try await fixture.runner.run(ClaudeTurn(session: session, prompt: "one"))
    _ = try await fixture.runner.run(ClaudeTurn(session: session, prompt: "fake:rename"))
    await fixture.runner.stop(session: session.id)
    let result = try await fixture.runner.run(
      ClaudeTurn(session: session, prompt: "two", expectsHistory: true))
    #expect(result.text == "3: one | fake:rename | two" && result.cliSessionID != session.id)
    #expect(try await fixture.end() == [])
  }

  @Test(arguments: ["fake:forget", "fake:empty"])
  func noticesALostConversation(prompt: String) async throws {
    let fixture = try Fixture()
    let session = try fixture.session()
    _ = try await fixture.runner.run(ClaudeTurn(session: session, prompt: prompt))
    await fixture.runner.stop(session: session.id)
    let failure = await failing {
      try await fixture.runner.run(ClaudeTurn(session: session, prompt: "two", expectsHistory: true))
    }
    #expect(failure?.code == .conversationLost)
    // Without an answer that could be lost, it simply begins anew.
    let result = try await fixture.runner.run(ClaudeTurn(session: session, prompt: "three"))
    #expect(result.text == "1: three")
    #expect(try await fixture.end() == [])
  }

  @Test func eachProcessHasATokenASocketAndNoCredential() async throws {
    let directory = FileManager.default.temporaryDirectory.appending(path: "gateway-\(UUID().uuidString)").path()
    let (tokens, sockets) = (directory + "/tokens", directory + "/agents")
    for path in [tokens, sockets] {
      try FileManager.default.createDirectory(atPath: path, withIntermediateDirectories: true)
    }
    defer { try? FileManager.default.removeItem(atPath: directory) }
    func names(_ path: String) throws -> [String] { try FileManager.default.contentsOfDirectory(atPath: path) }
    let gateway = ModelGateway(
      ModelGatewayConfiguration(
        socket: directory + "/m/api.sock", tokenDirectory: tokens, socketDirectory: sockets, host: "api.example:1"),
      eventLoopGroup: MultiThreadedEventLoopGroup.singleton)
    let fixture = try Fixture {
      $0.gateway = gateway
      $0.credentials.apiKey = "the credential"
      $0.credentials.oauthToken = "the other credential"
    }
    var session = try fixture.session()
    session.account = "k1"
    let environment = try await fixture.runner.run(ClaudeTurn(session: session, prompt: "fake:environment")).text
    let first = try #require(try names(tokens).first)
    #expect(try names(tokens).count == 1 && first.hasPrefix("\(session.id).k1.") && first.utf8.count == 36 + 4 + 32)
    let socket = "\(sockets)/\(try #require(try names(sockets).first))/model"
    for entry in [
      "ANTHROPIC_API_KEY=\(first)", "ANTHROPIC_UNIX_SOCKET=\(socket)", "ANTHROPIC_BASE_URL=http://api.example:1",
    ] {
      #expect(environment.contains(entry.replacing("/", with: "\\/")) || environment.contains(entry), "\(environment)")
    }
    #expect(!environment.contains("credential") && !environment.contains("CLAUDE_CODE_OAUTH_TOKEN"))
    for (path, mode) in [(socket, 0o600), ((socket as NSString).deletingLastPathComponent, 0o700)] {
      let attributes = try FileManager.default.attributesOfItem(atPath: path)
      #expect(attributes[.posixPermissions] as? Int == mode, "\(path)")
    }
    await fixture.runner.stop(session: session.id)
    #expect(try names(tokens).isEmpty && names(sockets).isEmpty)
    _ = try await fixture.runner.run(ClaudeTurn(session: session, prompt: "again", expectsHistory: true))
    let second = try names(tokens)
    #expect(second.count == 1 && second != [first])
    #expect(try names(sockets).count == 1)
    // A server that was killed leaves both behind, and the next one doesn't know them.
    try FileManager.default.createDirectory(atPath: sockets + "/empty", withIntermediateDirectories: false)
    try gateway.prepare()
    #expect(try names(tokens).isEmpty && names(sockets).isEmpty)
    #expect(!gateway.isListening)
    #expect(try await fixture.end() == [])
  }

  @Test func aSessionThatMayReachTheModelOnlyNeedsASandbox() async throws {
    let fixture = try Fixture()
    var session = try fixture.session()
    session.network = .modelOnly
    let failure = await failing { try await fixture.runner.run(ClaudeTurn(session: session, prompt: "one")) }
    #expect(failure?.code == .startFailed && failure?.message.contains("sandbox") == true)
    #expect(try await fixture.end() == [])
  }

  @Test func tellsTheCLIWhatItNeedsAndNothingElse() async throws {
    setenv("CLAUDE_API_TEST_SECRET", "must not be inherited", 1)
    let fixture = try Fixture {
      $0.commandPrefix = ["/usr/bin/env", "PREFIXED=1"]
      $0.sandbox = EnvironmentSandbox()
      $0.credentials.baseURL = "http://127.0.0.1:1"
    }
    let session = try fixture.session()
    var options = ClaudeOptions()
    options.model = "--dangerous"
    options.appendSystemPrompt = "Be brief."
    options.disallowedTools = ["WebFetch"]
    options.permissionMode = .acceptEdits
    options.asksForPermission = true
    options.maxTurns = 7
    options.maxBudgetUSD = 1.5
    options.mcpServers = ["x": ["command": "secret"]]
    let arguments = try await fixture.runner.run(
      ClaudeTurn(session: session, options: options, prompt: "fake:arguments")
    ).text
    for part in [
      "\"--model=--dangerous\"", "\"--disallowedTools=WebFetch\"", "\"--permission-mode=acceptEdits\"",
      "\"--permission-prompt-tool=stdio\"", "\"--max-turns=7\"", "\"--max-budget-usd=1.5\"",
      "\"--allowedTools=Bash,Read,Write,Edit,WebSearch,WebFetch,Glob,Grep\"",
      "\"--session-id=\(session.id)\"",
    ] {
      #expect(arguments.contains(part))
    }
    #expect(!arguments.contains("Be brief") && !arguments.contains("secret") && !arguments.contains("fake:"))
    let launch = URL(filePath: session.configDirectory).appending(path: "launch")
    #expect(
      try String(contentsOf: launch.appending(path: "append-system-prompt.txt"), encoding: .utf8)
        == "Be brief.")
    let mcp = launch.appending(path: "mcp.json")
    #expect(try JSONValue(parsing: Data(contentsOf: mcp))["mcpServers"]?["x"]?["command"] == "secret")
    let mode = try FileManager.default.attributesOfItem(atPath: mcp.path())[.posixPermissions] as? Int
    #expect(mode == 0o600)

    let environment = try await fixture.runner.run(
      ClaudeTurn(session: session, options: options, prompt: "fake:environment")
    ).text
    for part in [
      "\"HOME=\(session.configDirectory)\"", "\"CLAUDE_CONFIG_DIR=\(session.configDirectory)\"",
      "\"ANTHROPIC_API_KEY=dummy\"", "\"ANTHROPIC_BASE_URL=http://127.0.0.1:1\"", "\"PREFIXED=1\"",
      "\"SANDBOXED=\(session.workingDirectory)\"",
      "\"CLAUDE_API_SESSION_ID=\(session.id)\"", "\"DISABLE_TELEMETRY=1\"",
    ] {
      #expect(environment.contains(part))
    }
    #expect(!environment.contains("CLAUDE_API_TEST_SECRET"))
    #expect(try await fixture.end() == [])
  }

  @Test func changesWhatCanBeChangedLive() async throws {
    let fixture = try Fixture()
    let session = try fixture.session()
    var options = ClaudeOptions()
    func settings() async throws -> [Substring] {
      try await fixture.runner.run(ClaudeTurn(session: session, options: options, prompt: "fake:settings"))
        .text.split(separator: " ")
    }
    let first = try await settings()
    options.model = "other"
    options.permissionMode = .plan
    let second = try await settings()
    #expect(second == ["other", "plan", first[2]])
    options.maxTurns = 3
    let third = try await settings()
    #expect(third[0] == "other" && third[1] == "plan" && third[2] != first[2])
    #expect(
      try await fixture.runner.run(ClaudeTurn(session: session, options: options, prompt: "x")).text
        == "4: fake:settings | fake:settings | fake:settings | x")
    #expect(try await fixture.end() == [])
  }

  @Test func keepsResultsOfItsOwnAccordApart() async throws {
    let fixture = try Fixture()
    let session = try fixture.session()
    let result = try await fixture.runner.run(ClaudeTurn(session: session, prompt: "fake:own"))
    #expect(result.text == "what was asked for" && result.costUSD == 0.5)
    #expect(try await fixture.runner.run(ClaudeTurn(session: session, prompt: "fake:later")).text == "now")
    while fixture.said.kinds.isEmpty { await Task.yield() }
    #expect(fixture.said.kinds == [.result])
    let next = try await fixture.runner.run(ClaudeTurn(session: session, prompt: "x"))
    #expect(next.costUSD == 0.5)
    #expect(try await fixture.end() == [])
  }
}

@Suite(.timeLimit(.minutes(5))) struct FaultTests {
  struct Case: Sendable, CustomTestStringConvertible {
    var prompt: String
    var code: ClaudeFailure.Code
    var testDescription: String { prompt }
  }

  static let turnFaults: [Case] = [
    Case(prompt: "fake:kill", code: .crashed), Case(prompt: "fake:exit 0", code: .crashed),
    Case(prompt: "fake:half", code: .stalled), Case(prompt: "fake:stubborn", code: .stalled),
    Case(prompt: "fake:noresult", code: .postResultHang),
    Case(prompt: "fake:huge 200000", code: .lineTooLong),
    // More answers than its pipe and what may wait for it take.
    Case(prompt: "fake:unread 10000", code: .cliProtocolError),
    Case(prompt: "fake:error 401", code: .modelAuthFailed),
    Case(prompt: "fake:error 403", code: .modelAuthFailed),
    Case(prompt: "fake:error 429", code: .rateLimited), Case(prompt: "fake:error 500", code: .modelError),
    Case(prompt: "fake:error 529", code: .overloaded), Case(prompt: "fake:error 504", code: .modelTimeout),
    Case(prompt: "fake:login", code: .notLoggedIn),
    Case(prompt: "fake:subtype error_max_turns", code: .maxTurns),
    Case(prompt: "fake:subtype error_max_budget_usd", code: .budgetExhausted),
    Case(prompt: "fake:subtype error_of_the_future", code: .turnFailed),
  ]

  @Test(arguments: turnFaults)
  func failsTheTurnAndKeepsTheSession(_ fault: Case) async throws {
    let fixture = try Fixture {
      $0.lineLimit = 100_000
      // Long enough for a process to start on a busy machine, short enough to wait for.
      $0.stallTimeout = fault.code == .stalled ? .seconds(2) : .seconds(60)
      $0.resultTimeout = .milliseconds(200)
      $0.terminateTimeout = .milliseconds(200)
    }
    let session = try fixture.session()
    let failure = await failing {
      try await fixture.runner.run(ClaudeTurn(session: session, prompt: fault.prompt))
    }
    #expect(failure?.code == fault.code)
    let result = try await fixture.runner.run(
      ClaudeTurn(session: session, prompt: "next", expectsHistory: true))
    #expect(result.text == "2: \(fault.prompt) | next")
    #expect(try await fixture.end() == [])
  }

  @Test func boundsTheTurn() async throws {
    let fixture = try Fixture {
      $0.turnTimeout = .seconds(2)
      $0.stallTimeout = .seconds(60)
    }
    let session = try fixture.session()
    let failure = await failing {
      try await fixture.runner.run(ClaudeTurn(session: session, prompt: "fake:partial"))
    }
    #expect(failure?.code == .turnTimeout)
    #expect(failure?.partial?.text == "so far\n\nand a bit")
    #expect(try await fixture.end() == [])
  }

  static let startFaults: [Case] = [
    Case(prompt: "exit 7 it will not do", code: .crashed), Case(prompt: "kill", code: .crashed),
    Case(prompt: "garbage", code: .cliProtocolError), Case(prompt: "half", code: .cliProtocolError),
    Case(prompt: "silence", code: .stalled),
  ]

  @Test(arguments: startFaults)
  func failsTheStart(_ fault: Case) async throws {
    let fixture = try Fixture {
      $0.additionalEnvironment["FAKE_CLAUDE_START"] = fault.prompt
      $0.startTimeout = fault.code == .crashed ? .seconds(30) : .seconds(2)
      $0.terminateTimeout = .milliseconds(200)
    }
    let session = try fixture.session()
    let failure = await failing {
      try await fixture.runner.run(ClaudeTurn(session: session, prompt: "x"))
    }
    #expect(failure?.code == fault.code)
    if fault.code == .crashed, failure?.exit == .code(7) {
      #expect(failure?.errorOutput == "it will not do\n")
      #expect(failure?.message.contains("it will not do") == true)
    }
    #expect(await fixture.runner.statistics.live == 0)
    #expect(try await fixture.end() == [])
  }

  @Test func survivesGarbageAndTheUnknown() async throws {
    let fixture = try Fixture()
    let session = try fixture.session()
    let messages = Messages()
    let first = try await fixture.runner.run(ClaudeTurn(session: session, prompt: "fake:garbage")) {
      messages.append($0)
    }
    #expect(first.text == "after garbage" && messages.kinds.count { $0 == .notJSON } == 3)
    let second = try await fixture.runner.run(ClaudeTurn(session: session, prompt: "fake:unknown")) {
      messages.append($0)
    }
    #expect(second.text == "after the unknown" && messages.kinds.contains(.other("from_the_future")))
    let third = try await fixture.runner.run(ClaudeTurn(session: session, prompt: "fake:say 3000000"))
    #expect(third.text.count == 3_000_000)
    #expect(try await fixture.end() == [])
  }

  @Test func takesRetryAfterFromTheCLI() async throws {
    let fixture = try Fixture()
    let session = try fixture.session()
    let failure = await failing {
      try await fixture.runner.run(ClaudeTurn(session: session, prompt: "fake:retry"))
    }
    #expect(failure?.code == .rateLimited && failure?.retryAfter == .seconds(3))
    #expect(failure?.partial?.costUSD == 0.25)
    #expect(try await fixture.end() == [])
  }

  @Test func wantsStructuredOutput() async throws {
    let fixture = try Fixture()
    let session = try fixture.session()
    var options = ClaudeOptions()
    options.jsonSchema = ["type": "object"]
    let result = try await fixture.runner.run(
      ClaudeTurn(session: session, options: options, prompt: "fake:structured"))
    #expect(result.structuredOutput == ["a": 1])
    let failure = await failing {
      try await fixture.runner.run(ClaudeTurn(session: session, options: options, prompt: "fake:say 3"))
    }
    #expect(failure?.code == .structuredOutputMissing)
    #expect(try await fixture.end() == [])
  }

  @Test func refusesAnExecutableThatCannotBe() async throws {
    func probe(_ change: (inout ClaudeRunnerConfiguration) -> Void) async throws -> ClaudeFailure.Code? {
      let fixture = try Fixture(change)
      let failure = await failing { try await fixture.runner.probe() }
      let session = try fixture.session()
      let turnFailure = await failing {
        try await fixture.runner.run(ClaudeTurn(session: session, prompt: "x"))
      }
      #expect(failure?.code == turnFailure?.code)
      #expect(try await fixture.end() == [])
      return failure?.code
    }
    #expect(try await probe { $0.executable = "/nonexistent/claude" } == .cliMissing)
    #expect(try await probe { $0.executable = "no-such-program" } == .cliMissing)
    #expect(try await probe { $0.executable = "/etc/passwd" } == .cliNotExecutable)
    #expect(try await probe { $0.executable = "/tmp" } == .cliNotExecutable)
    #expect(try await probe { $0.executable = "/bin/true" } == .cliIncompatible)
    #expect(try await probe { $0.executable = "/bin/false" } == .cliIncompatible)
    #expect(
      try await probe { $0.additionalEnvironment["FAKE_CLAUDE_VERSION"] = "2.1.247 (Claude Code)" }
        == .cliIncompatible)
    let fixture = try Fixture { $0.additionalEnvironment["FAKE_CLAUDE_VERSION"] = "3.0.1 (Claude Code)" }
    #expect(try await fixture.runner.probe().version == "3.0.1")
    #expect(try await fixture.end() == [])
  }

  @Test func failsWithoutAWorkspace() async throws {
    let fixture = try Fixture()
    var session = try fixture.session()
    session.workingDirectory = "/nonexistent"
    let failure = await failing {
      try await fixture.runner.run(ClaudeTurn(session: session, prompt: "x"))
    }
    #expect(failure?.code == .startFailed)
    #expect(try await fixture.end() == [])
  }

  @Test func refusesWhatCannotBeACommandLine() async throws {
    let fixture = try Fixture()
    let session = try fixture.session()
    for model in ["x\0--dangerously-skip-permissions", String(repeating: "x", count: 200_000)] {
      var options = ClaudeOptions()
      options.model = model
      let turn = ClaudeTurn(session: session, options: options, prompt: "x")
      #expect(await failing { try await fixture.runner.run(turn) }?.code == .startFailed)
    }
    for id in ["", "../../etc", session.id.uppercased() + "x", session.id + "/.."] {
      var other = session
      other.id = id
      let turn = ClaudeTurn(session: other, prompt: "x")
      #expect(await failing { try await fixture.runner.run(turn) }?.code == .startFailed)
    }
    #expect(
      await fixture.runner.statistics
        == ClaudeRunnerStatistics(
          live: 0, starting: 0, working: 0, waiting: 0, started: 2, evicted: 0))
    #expect(try await fixture.end() == [])
  }

  @Test func doesNotFollowLinksTheAgentLeft() async throws {
    let fixture = try Fixture()
    let session = try fixture.session()
    let target = fixture.root.appending(path: "target")
    try FileManager.default.createDirectory(at: target, withIntermediateDirectories: true)
    try FileManager.default.createDirectory(
      atPath: session.configDirectory, withIntermediateDirectories: true)
    try FileManager.default.createSymbolicLink(
      atPath: session.configDirectory + "/launch", withDestinationPath: target.path())
    var options = ClaudeOptions()
    options.appendSystemPrompt = "x"
    let failure = await failing {
      try await fixture.runner.run(ClaudeTurn(session: session, options: options, prompt: "x"))
    }
    #expect(failure?.code == .startFailed)
    #expect(try FileManager.default.contentsOfDirectory(atPath: target.path()) == [])
    #expect(try await fixture.end() == [])
  }

  @Test func looksForTranscriptsInFoldersOfTheSessionOnly() async throws {
    let fixture = try Fixture()
    let session = try fixture.session()
    let files = FileManager.default
    let target = fixture.root.appending(path: "target").path()
    let projects = session.configDirectory + "/projects"
    try files.createDirectory(atPath: target, withIntermediateDirectories: true)
    try files.createDirectory(atPath: projects, withIntermediateDirectories: true)
    let own = target + "/\(session.id).jsonl"
    for name in [own, target + "/other.jsonl"] {
      try Data(#"{"type":"cost-state","totalCostUSD":7}"#.utf8).write(to: URL(filePath: name))
    }
    let transcripts = Transcripts(session: session)
    func expectNothing() {
      #expect(!transcripts.hasOwn && !transcripts.hasOthers)
      #expect(transcripts.recordedCost(.resume) == 0 && transcripts.recordedCost(.latest) == 0)
      transcripts.removeOwn()
      #expect(files.fileExists(atPath: own))
    }
    // A folder, all of them, and a file by links.
    try files.createSymbolicLink(atPath: projects + "/place", withDestinationPath: target)
    expectNothing()
    try files.removeItem(atPath: projects)
    try files.createDirectory(atPath: target + "/place", withIntermediateDirectories: true)
    try files.moveItem(atPath: own, toPath: target + "/place/\(session.id).jsonl")
    try files.createSymbolicLink(atPath: own, withDestinationPath: "place/\(session.id).jsonl")
    try files.createSymbolicLink(atPath: projects, withDestinationPath: target)
    expectNothing()
    try files.removeItem(atPath: projects)
    try files.createDirectory(atPath: projects + "/place", withIntermediateDirectories: true)
    try files.createSymbolicLink(
      atPath: projects + "/place/other.jsonl", withDestinationPath: target + "/other.jsonl")
    expectNothing()
    // And what is there is found.
    for name in [session.id, "other"] {
      let name = "\(projects)/place/\(name).jsonl"
      unlink(name)
      try Data(#"{"type":"cost-state","totalCostUSD":7}"#.utf8).write(to: URL(filePath: name))
    }
    #expect(transcripts.hasOwn && transcripts.hasOthers)
    #expect(transcripts.recordedCost(.resume) == 7 && transcripts.recordedCost(.latest) == 7)
    transcripts.removeOwn()
    #expect(!transcripts.hasOwn && transcripts.hasOthers)
    #expect(try await fixture.end() == [])
  }
}

@Suite(.timeLimit(.minutes(5))) struct ControlTests {
  @Test func interruptsByRequest() async throws {
    let fixture = try Fixture { $0.interruptTimeout = .seconds(60) }
    let session = try fixture.session()
    let arrival = Arrival()
    let outcome = Task {
      try await fixture.runner.run(ClaudeTurn(session: session, prompt: "fake:partial")) {
        arrival.handle($0)
      }
    }
    _ = await arrival.first { $0.kind == .streamEvent }
    await fixture.runner.interrupt(session: session.id)
    let failure = await failing { try await outcome.value }
    #expect(failure?.code == .interrupted && failure?.partial?.text == "so far\n\nand a bit")
    let next = try await fixture.runner.run(ClaudeTurn(session: session, prompt: "next"))
    #expect(next.text == "2: fake:partial | next" && !next.startedProcess)
    #expect(try await fixture.end() == [])
  }

  /// What an earlier turn has left in the background is none of the interrupted one's.
  @Test func anInterruptedTurnHasNoToolsLeft() async throws {
    let fixture = try Fixture { $0.interruptTimeout = .seconds(60) }
    let session = try fixture.session()
    let earlier = try await fixture.runner.run(ClaudeTurn(session: session, prompt: "fake:stray"))
    let background = try #require(pid_t(earlier.text))
    let start = try #require(ProcFS.status(of: background)?.start)
    while ProcFS.now <= start { try await Task.sleep(for: .milliseconds(1)) }
    let arrival = Arrival()
    let outcome = Task {
      try await fixture.runner.run(ClaudeTurn(session: session, prompt: "fake:tool")) { arrival.handle($0) }
    }
    let said = await arrival.first { $0.kind == .assistant }
    let tool = try #require(said?.assistantText.flatMap { pid_t($0) })
    await fixture.runner.interrupt(session: session.id)
    #expect(await failing { try await outcome.value }?.code == .interrupted)
    let left = StrayProcesses.ofSession(session.id).find()
    #expect(!left.contains(tool) && left.contains(background))
    let next = try await fixture.runner.run(ClaudeTurn(session: session, prompt: "next"))
    #expect(!next.startedProcess)
    #expect(try await fixture.end() == [])
  }

  @Test func interruptsByForce() async throws {
    let fixture = try Fixture { $0.interruptTimeout = .milliseconds(100) }
    let session = try fixture.session()
    let arrival = Arrival()
    let outcome = Task {
      try await fixture.runner.run(ClaudeTurn(session: session, prompt: "fake:stubborn")) {
        arrival.handle($0)
      }
    }
    _ = await arrival.first { $0.kind == .assistant }
    await fixture.runner.interrupt(session: session.id)
    let failure = await failing { try await outcome.value }
    #expect(failure?.code == .interrupted && failure?.partial?.text == "I will not stop")
    let next = try await fixture.runner.run(ClaudeTurn(session: session, prompt: "next"))
    #expect(next.text == "2: fake:stubborn | next" && next.startedProcess)
    #expect(try await fixture.end() == [])
  }

  @Test func interruptsAStart() async throws {
    let fixture = try Fixture { $0.additionalEnvironment["FAKE_CLAUDE_START"] = "silence" }
    let session = try fixture.session()
    let runner = fixture.runner
    let outcome = Task { try await runner.run(ClaudeTurn(session: session, prompt: "x")) }
    while await runner.statistics.live < 1 { await Task.yield() }
    await runner.interrupt(session: session.id)
    #expect(await failing { try await outcome.value }?.code == .interrupted)
    #expect(try await fixture.end() == [])
  }

  @Test func stopsTheSession() async throws {
    let fixture = try Fixture()
    let session = try fixture.session()
    let arrival = Arrival()
    let outcome = Task {
      try await fixture.runner.run(ClaudeTurn(session: session, prompt: "fake:stubborn")) {
        arrival.handle($0)
      }
    }
    _ = await arrival.first { $0.kind == .assistant }
    let busy = await failing {
      try await fixture.runner.run(ClaudeTurn(session: session, prompt: "second"))
    }
    #expect(busy?.code == .busy)
    await fixture.runner.stop(session: session.id)
    #expect(StrayProcesses.ofSession(session.id).find() == [])
    let failure = await failing { try await outcome.value }
    #expect(failure?.code == .killed)
    #expect(try await fixture.end() == [])
  }

  @Test func answersPermissionRequests() async throws {
    // Nobody is silent as long as a person has to decide.
    let fixture = try Fixture { $0.stallTimeout = .seconds(1) }
    let session = try fixture.session()
    var options = ClaudeOptions()
    options.asksForPermission = true
    func ask(
      _ decision: ClaudePermissionDecision, options: ClaudeOptions
    ) async throws -> String {
      let arrival = Arrival()
      async let result = fixture.runner.run(
        ClaudeTurn(session: session, options: options, prompt: "fake:ask")
      ) { arrival.handle($0) }
      let request = await arrival.first { $0.kind == .controlRequest("can_use_tool") }
      #expect(request?.json["request"]?["tool_name"] == "Bash")
      try await Task.sleep(for: .milliseconds(1500))
      let id = request?.json["request_id"]?.stringValue ?? ""
      #expect(await !fixture.runner.answerPermission(session: session.id, requestID: "x", decision: decision))
      #expect(await fixture.runner.answerPermission(session: session.id, requestID: id, decision: decision))
      #expect(await !fixture.runner.answerPermission(session: session.id, requestID: id, decision: decision))
      return try await result.text
    }
    #expect(
      try await ask(.allow(), options: options) == #"{"behavior":"allow","updatedInput":{"command":"rm x"}}"#)
    #expect(
      try await ask(.allow(updatedInput: ["command": "ls"]), options: options)
        == #"{"behavior":"allow","updatedInput":{"command":"ls"}}"#)
    #expect(try await ask(.deny(message: "no"), options: options) == #"{"behavior":"deny","message":"no"}"#)
    options.asksForPermission = false
    let unasked = try await fixture.runner.run(
      ClaudeTurn(session: session, options: options, prompt: "fake:ask"))
    #expect(unasked.text.contains("deny"))
    #expect(try await fixture.end() == [])
  }

  @Test func killsWhatLeftTheGroup() async throws {
    let fixture = try Fixture()
    let session = try fixture.session()
    let stray = try await fixture.runner.run(ClaudeTurn(session: session, prompt: "fake:stray"))
    let pid = try #require(pid_t(stray.text))
    #expect(processExists(pid))
    await fixture.runner.stop(session: session.id)
    #expect(!processExists(pid))
    // It was adopted, so it must be reaped, too.
    while ProcFS.status(of: pid) != nil { await Task.yield() }
    #expect(try await fixture.end() == [])
  }

  @Test func killsWhatAnEarlierRunLeft() async throws {
    let fixture = try Fixture()
    let left = try ChildProcess(
      ["/bin/sleep", "600"], environment: ["CLAUDE_API_INSTANCE": fixture.instance], output: "/dev/null")
    // posix_spawn returns while the child still has the environment of this process.
    while StrayProcesses.ofInstance(fixture.instance).find() != [left.pid] { await Task.yield() }
    #expect(await fixture.runner.killStrays() == 1)
    #expect(await left.waitForExit() == .signal(SIGKILL))
    #expect(await fixture.runner.killStrays() == 0)
    #expect(try await fixture.end() == [])
  }

  /// A process has no environment to be known by while it starts a program, and these do nothing else. With many
  /// variables it is to be seen half made more often, and to be replaced while it is read.
  @Test(arguments: [0, 20_000]) func killsWhatIsStartingPrograms(variables: Int) async throws {
    let fixture = try Fixture()
    let again = #"exec /bin/sh -c "$0" "$0""#
    var environment: [String: String?] = ["CLAUDE_API_INSTANCE": fixture.instance]
    for number in 0..<variables { environment["VARIABLE_\(number)"] = "\(number)" }
    for _ in 0..<20 {
      let left = try ChildProcess(["/bin/sh", "-c", again, again], environment: environment, output: "/dev/null")
      while !StrayProcesses.ofInstance(fixture.instance).find().contains(left.pid) { await Task.yield() }
      let killed = await fixture.runner.killStrays()
      #expect(killed == 1)
      if killed == 0 { left.signal(SIGKILL) }
      #expect(await left.waitForExit() == .signal(SIGKILL))
    }
    #expect(try await fixture.end() == [])
  }
}

@Suite(.timeLimit(.minutes(5))) struct ProcessSupervisorTests {
  /// As git, which is started by another part of the server.
  @Test func leavesAnothersChildToItsOwner() async throws {
    let supervisor = ProcessSupervisor.shared
    let nothing = open("/dev/null", O_RDWR | O_CLOEXEC)
    defer { close(nothing) }
    let child = ["/bin/sh", "-c", "exit 7"].withCStrings {
      clinux_spawn("/bin/sh", $0, environ, "/", nothing, nothing, nothing, -1001)
    }
    try #require(child.pidfd >= 0)
    defer { close(child.pidfd) }
    var end = pollfd(fd: child.pidfd, events: Int16(POLLIN), revents: 0)
    try #require(poll(&end, 1, 60_000) == 1)
    supervisor.reapOrphans()
    // What it does next it does after that.
    _ = try await supervisor.spawn(
      ProcessSupervisor.Request(
        executable: "/bin/true", arguments: ["true"], environment: [:], workingDirectory: "/", input: nothing,
        output: nothing, errorOutput: nothing, onExit: { _ in }))
    var (code, status): (CInt, CInt) = (0, 0)
    #expect(clinux_pidfd_reap(child.pidfd, &code, &status) == 1)
    #expect(code == CLD_EXITED && status == 7)
  }
}

extension [String] {
  fileprivate func withCStrings<R>(_ body: (UnsafePointer<UnsafeMutablePointer<CChar>?>) -> R) -> R {
    var pointers = map { strdup($0) } + [nil]
    defer { for pointer in pointers { free(pointer) } }
    return body(&pointers)
  }
}

@Suite(.timeLimit(.minutes(5))) struct ProcFSTests {
  /// The start of the code, and the start and the end of the environment, as the kernel shows them.
  @Test(arguments: [
    ("94273012207616", "140725000001000", "140725000003000", false),
    ("94273012207616", "140725000001000", "140725000001000", true),
    // In the middle of execve: nothing yet, and not all of it.
    ("0", "0", "0", false), ("0", "140725000001000", "0", false), ("0", "140725000001000", "140725000001000", false),
    // One may not look.
    ("1", "0", "0", true),
  ])
  func tellsAnEmptyEnvironmentFromOneThatIsBeingMade(code: String, start: String, end: String, isEmpty: Bool) throws {
    var fields = Array(repeating: "7", count: 52)
    fields[0...2] = ["4711", "(a) R (b)", "S"]
    fields[25] = code
    fields[49...50] = [start, end]
    let status = try #require(ProcFS.Status(fields.joined(separator: " ")))
    #expect(status.hasEmptyEnvironment == isEmpty)
    #expect(!status.isZombie)
  }

  /// A process gives itself its name, and one of these would be one character with the parenthesis after it.
  @Test(arguments: ["a", ") Z 1 ", "\u{600}", ") Z 1 \u{600}", "a\u{110bd}", "\u{1f1e6}\u{200d}"])
  func noNameHidesAProcess(name: String) throws {
    var fields = Array(repeating: "7", count: 52)
    fields[0...3] = ["4711", "(\(name))", "S", "12"]
    let status = try #require(ProcFS.Status(fields.joined(separator: " ")))
    #expect(!status.isZombie && status.parent == 12 && status.start == 7)
  }

  @Test func readsAnEnvironmentWhole() async throws {
    let large = String(repeating: "x", count: 100_000)
    let child = try ChildProcess(["/bin/sleep", "600"], environment: ["LARGE": large], output: "/dev/null")
    while !ProcFS.environment(of: child.pid).split(separator: 0).contains(where: {
      $0.elementsEqual("LARGE=\(large)".utf8)
    }) {
      await Task.yield()
    }
    await child.stop()
  }
}

@Suite(.timeLimit(.minutes(5))) struct PoolTests {
  @Test func boundsTheProcesses() async throws {
    let fixture = try Fixture {
      $0.maximumProcesses = 2
      $0.maximumStarting = 1
    }
    var sessions: [ClaudeSession] = []
    for _ in 0..<6 { sessions.append(try fixture.session()) }
    let runner = fixture.runner
    let texts = try await withThrowingTaskGroup { group in
      for session in sessions {
        group.addTask { try await runner.run(ClaudeTurn(session: session, prompt: "one")).text }
      }
      return try await group.reduce(into: []) { $0.append($1) }
    }
    #expect(texts == Array(repeating: "1: one", count: 6))
    let statistics = await runner.statistics
    #expect(statistics.live <= 2 && statistics.started == 6 && statistics.evicted >= 4)
    #expect(statistics.waiting == 0 && statistics.starting == 0 && statistics.working == 0)
    for session in sessions {
      #expect(
        try await runner.run(ClaudeTurn(session: session, prompt: "two", expectsHistory: true)).text
          == "2: one | two")
    }
    #expect(try await fixture.end() == [])
  }

  @Test func letsAWaitingTurnGo() async throws {
    let fixture = try Fixture { $0.maximumProcesses = 1 }
    let (first, second, third) = (try fixture.session(), try fixture.session(), try fixture.session())
    let arrival = Arrival()
    let runner = fixture.runner
    let holder = Task {
      try await runner.run(ClaudeTurn(session: first, prompt: "fake:hang")) { arrival.handle($0) }
    }
    _ = await arrival.first { $0.kind == .system("init") }
    let stopped = Task { try await runner.run(ClaudeTurn(session: second, prompt: "x")) }
    while await runner.statistics.waiting < 1 { await Task.yield() }
    let cancelled = Task { try await runner.run(ClaudeTurn(session: third, prompt: "x")) }
    while await runner.statistics.waiting < 2 { await Task.yield() }
    await runner.stop(session: second.id)
    let killed = await failing { try await stopped.value }
    #expect(killed?.code == .killed)
    cancelled.cancel()
    let gone = await failing { try await cancelled.value }
    #expect(gone?.code == .cancelled)
    let waiting = Task { try await runner.run(ClaudeTurn(session: third, prompt: "now")).text }
    while await runner.statistics.waiting < 1 { await Task.yield() }
    await runner.interrupt(session: first.id)
    #expect(await failing { try await holder.value }?.code == .interrupted)
    #expect(try await waiting.value == "1: now")
    #expect(try await fixture.end() == [])
  }

  @Test func evictsTheIdle() async throws {
    let fixture = try Fixture {
      $0.idleTimeout = .zero
      $0.evictionInterval = .milliseconds(20)
    }
    let session = try fixture.session()
    _ = try await fixture.runner.run(ClaudeTurn(session: session, prompt: "one"))
    while await fixture.runner.statistics.live > 0 { await Task.yield() }
    #expect(await fixture.runner.statistics.evicted == 1)
    #expect(
      try await fixture.runner.run(ClaudeTurn(session: session, prompt: "two", expectsHistory: true)).text
        == "2: one | two")
    #expect(try await fixture.end() == [])
  }

  @Test func evictsTheRestlessWhenATurnWouldBeOver() async throws {
    let fixture = try Fixture {
      $0.idleTimeout = .milliseconds(200)
      $0.turnTimeout = .milliseconds(600)
      $0.evictionInterval = .milliseconds(20)
      $0.exitTimeout = .milliseconds(100)
    }
    let session = try fixture.session()
    #expect(try await fixture.runner.run(ClaudeTurn(session: session, prompt: "fake:restless")).text == "now")
    while await fixture.runner.statistics.live > 0 { await Task.yield() }
    #expect(await fixture.runner.statistics.evicted == 1)
    #expect(try await fixture.end() == [])
  }

  @Test func shutsDown() async throws {
    let fixture = try Fixture { $0.terminateTimeout = .milliseconds(100) }
    let (idle, quick, stubborn) = (try fixture.session(), try fixture.session(), try fixture.session())
    let runner = fixture.runner
    _ = try await runner.run(ClaudeTurn(session: idle, prompt: "one"))
    let (first, second) = (Arrival(), Arrival())
    let finishing = Task {
      try await runner.run(ClaudeTurn(session: quick, prompt: "fake:delay 200")) { first.handle($0) }.text
    }
    let hanging = Task {
      try await runner.run(ClaudeTurn(session: stubborn, prompt: "fake:stubborn")) { second.handle($0) }
    }
    _ = await first.first { $0.kind == .system("init") }
    _ = await second.first { $0.kind == .assistant }
    await runner.shutdown(grace: .seconds(2))
    #expect(try await finishing.value == "after 200 ms")
    let failure = await failing { try await hanging.value }
    #expect(failure?.code == .shuttingDown)
    let refused = await failing {
      try await runner.run(ClaudeTurn(session: idle, prompt: "two"))
    }
    #expect(refused?.code == .shuttingDown)
    #expect(try await fixture.end() == [])
  }
}

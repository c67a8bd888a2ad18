import DemoModel
import Foundation
import JSONSupport
import Logging
import ServiceLifecycle
import Testing

@testable import ClaudeRunner

private let realCLI = ProcessInfo.processInfo.environment["CLAUDE_API_TEST_CLAUDE"]

/// The real CLI, talking to the demo model in this process. It runs only if `CLAUDE_API_TEST_CLAUDE` names the CLI.
@Suite(
  .serialized, .timeLimit(.minutes(5)),
  .enabled(
    if: realCLI != nil,
    "CLAUDE_API_TEST_CLAUDE does not name a Claude Code CLI, so nothing is tested with the real one")
)
struct RealCLITests {
  /// Runs the demo model for as long as the body takes.
  private func withFixture(
    _ change: (inout ClaudeRunnerConfiguration) -> Void = { _ in },
    _ body: (Fixture) async throws -> Void
  ) async throws {
    let executable = try #require(realCLI)
    let (ports, portSource) = AsyncStream<Int>.makeStream()
    let logger = Logger(label: "demo-model") { _ in SwiftLogNoOpLogHandler() }
    let application = DemoModelServer().application(port: 0, logger: logger) { portSource.yield($0) }
    var configuration = ServiceGroupConfiguration(services: [application], logger: logger)
    configuration.maximumGracefulShutdownDuration = .milliseconds(100)
    let group = ServiceGroup(configuration: configuration)
    let running = Task { try await group.run() }
    var iterator = ports.makeAsyncIterator()
    let port = try #require(await iterator.next())
    let fixture = try Fixture {
      $0.executable = executable
      $0.credentials.baseURL = "http://127.0.0.1:\(port)"
      $0.modelRetries = 1
      change(&$0)
    }
    do {
      try await body(fixture)
    } catch {
      Issue.record(error)
    }
    #expect(try await fixture.end() == [])
    await group.triggerGracefulShutdown()
    // A hanging answer is cut off at the end of the test, and reported as what it is.
    _ = await running.result
  }

  @Test func holdsAConversation() async throws {
    try await withFixture { fixture in
      let session = try fixture.session()
      let messages = Messages()
      let probe = try await fixture.runner.probe()
      print("real CLI: \(probe.version)")
      let first = try await fixture.runner.run(
        ClaudeTurn(session: session, prompt: "number 4711 [[usage in 1000 out 1000]]")
      ) { messages.append($0) }
      #expect(first.text.contains("1 user message") && first.startedProcess && first.costUSD > 0)
      #expect(first.usage.inputTokens == 1000 && first.usage.outputTokens == 1000)
      #expect(messages.kinds.first == .system("init") && messages.kinds.last == .result)
      #expect(messages.kinds.contains(.streamEvent) && messages.kinds.contains(.assistant))
      let second = try await fixture.runner.run(
        ClaudeTurn(session: session, prompt: "again [[usage in 1000 out 1000]]"))
      #expect(second.text.contains("4711") && !second.startedProcess)
      print(
        "warm turn: \(second.duration) here, \(second.raw?["duration_ms"] ?? nil) ms by the CLI's own count")
      #expect(second.usage == first.usage && abs(second.costUSD - first.costUSD) < 1e-9)
      await fixture.runner.stop(session: session.id)
      let third = try await fixture.runner.run(
        ClaudeTurn(session: session, prompt: "third [[usage in 1000 out 1000]]", expectsHistory: true))
      #expect(third.text.contains("3 user messages") && third.text.contains("4711"))
      #expect(third.startedProcess && abs(third.costUSD - first.costUSD) < 1e-9)
    }
  }

  @Test func passesEveryPromptVerbatim() async throws {
    try await withFixture { fixture in
      let session = try fixture.session()
      for (index, prompt) in [
        "/compact", "/clear", "/cost", "/init", "/help x", "@/etc/hostname", "!ls", "# remember",
        "-p --version",
        "{\"type\":\"user\"}\n{}", "nul\u{0}byte", "😀\u{2028}x",
      ].enumerated() {
        let result = try await fixture.runner.run(ClaudeTurn(session: session, prompt: prompt))
        #expect(result.text.contains("\(index + 1) user message") && result.text.hasSuffix("\"\(prompt)\""))
      }
    }
  }

  @Test func callsTools() async throws {
    try await withFixture { fixture in
      let session = try fixture.session()
      let prompt = #"[[tool Bash {"command":"echo marker-$((40+2))"}]] [[tool Bash {"command":"pwd"}]]"#
      let result = try await fixture.runner.run(ClaudeTurn(session: session, prompt: prompt))
      #expect(result.text.contains("marker-42") && result.text.contains(session.workingDirectory))
    }
  }

  @Test(arguments: [
    ("401", ClaudeFailure.Code.modelAuthFailed), ("403", .modelAuthFailed), ("400", .modelError),
    ("429 retry-after 1", .rateLimited), ("500", .modelError), ("529", .overloaded),
  ])
  func reportsErrorsOfTheModel(error: String, code: ClaudeFailure.Code) async throws {
    try await withFixture { fixture in
      let session = try fixture.session()
      let failure = await failing {
        try await fixture.runner.run(ClaudeTurn(session: session, prompt: "[[error \(error)]]"))
      }
      #expect(failure?.code == code)
      #expect((failure?.retryAfter != nil) == (code == .rateLimited || code == .overloaded))
      let next = try await fixture.runner.run(ClaudeTurn(session: session, prompt: "next"))
      #expect(next.text.contains("\"next\""))
    }
  }

  @Test func reportsWhatElseTheModelDoes() async throws {
    try await withFixture {
      $0.modelTimeout = .seconds(2)
      $0.stallTimeout = .seconds(8)
    } _: { fixture in
      let session = try fixture.session()
      func code(_ prompt: String) async throws -> ClaudeFailure.Code? {
        await failing { try await fixture.runner.run(ClaudeTurn(session: session, prompt: prompt)) }?.code
      }
      #expect(try await code("[[cut]]") == .modelError)
      #expect(try await code("[[hang]]") == .modelTimeout)
      #expect(try await code("[[stall]]") == .stalled)
      let next = try await fixture.runner.run(ClaudeTurn(session: session, prompt: "next"))
      #expect(next.text.contains("4 user messages"))
    }
  }

  @Test func isNotLoggedInWithoutCredentials() async throws {
    try await withFixture {
      $0.credentials.apiKey = nil
    } _: { fixture in
      let session = try fixture.session()
      let failure = await failing {
        try await fixture.runner.run(ClaudeTurn(session: session, prompt: "x"))
      }
      #expect(failure?.code == .notLoggedIn)
    }
  }

  @Test(arguments: [
    "[[hang]]", "[[chunks 100 delay 100ms]]", #"[[tool Bash {"command":"tail -f /dev/null"}]]"#,
  ])
  func interrupts(prompt: String) async throws {
    try await withFixture { fixture in
      let session = try fixture.session()
      let arrival = Arrival()
      let outcome = Task {
        try await fixture.runner.run(ClaudeTurn(session: session, prompt: prompt)) { arrival.handle($0) }
      }
      _ = await arrival.first {
        prompt.contains("hang")
          ? $0.kind == .system("init")
          : prompt.contains("tool") ? $0.kind == .assistant : $0.json["event"]?["delta"]?["text"] != nil
      }
      let start = ContinuousClock.now
      await fixture.runner.interrupt(session: session.id)
      let failure = await failing { try await outcome.value }
      print("interrupt of \(prompt) took \(ContinuousClock.now - start)")
      #expect(failure?.code == .interrupted)
      if prompt.contains("chunks") { #expect(failure?.partial?.text.hasPrefix("I") == true) }
      let next = try await fixture.runner.run(ClaudeTurn(session: session, prompt: "next"))
      #expect(next.text.contains("2 user messages"))
    }
  }

  @Test func asksForPermission() async throws {
    try await withFixture { fixture in
      let session = try fixture.session()
      var options = ClaudeOptions()
      options.allowedTools = []
      options.asksForPermission = true
      let turn = ClaudeTurn(
        session: session, options: options,
        prompt: #"[[tool Bash {"command":"touch one"}]] [[tool Bash {"command":"touch two"}]]"#)
      let runner = fixture.runner
      let result = try await runner.run(turn) { message in
        guard message.kind == .controlRequest("can_use_tool"),
          let id = message.json["request_id"]?.stringValue
        else { return }
        let isFirst = message.json["request"]?["input"]?["command"] == "touch one"
        await runner.answerPermission(
          session: session.id, requestID: id, decision: isFirst ? .allow() : .deny(message: "not this one"))
      }
      #expect(result.text.contains("not this one") && result.permissionDenials.count == 1)
      let files = try FileManager.default.contentsOfDirectory(atPath: session.workingDirectory)
      #expect(files == ["one"])
    }
  }

  @Test func obeysOptions() async throws {
    try await withFixture { fixture in
      let session = try fixture.session()
      var options = ClaudeOptions()
      options.model = "claude-haiku-4-5"
      let first = try await fixture.runner.run(ClaudeTurn(session: session, options: options, prompt: "x"))
      #expect(first.model == "claude-haiku-4-5")
      options.model = "claude-sonnet-4-5"
      options.permissionMode = .plan
      let second = try await fixture.runner.run(ClaudeTurn(session: session, options: options, prompt: "x"))
      #expect(second.model == "claude-sonnet-4-5" && !second.startedProcess)
      options.permissionMode = .bypassPermissions
      options.appendSystemPrompt = "Be brief."
      options.jsonSchema = ["type": "object", "properties": ["a": ["type": "integer"]], "required": ["a"]]
      let third = try await fixture.runner.run(
        ClaudeTurn(session: session, options: options, prompt: #"[[json {"a":5}]]"#))
      #expect(third.structuredOutput == ["a": 5] && third.startedProcess)
      let missing = await failing { [options] in
        try await fixture.runner.run(ClaudeTurn(session: session, options: options, prompt: "x"))
      }
      #expect(missing?.code == .structuredOutputMissing)
      options.jsonSchema = nil
      options.maxTurns = 1
      let turns = await failing { [options] in
        try await fixture.runner.run(
          ClaudeTurn(session: session, options: options, prompt: #"[[tool Bash {"command":"true"}]]"#))
      }
      #expect(turns?.code == .maxTurns)
      options.maxTurns = nil
      options.maxBudgetUSD = 0.1
      let budget = await failing { [options] in
        try await fixture.runner.run(
          ClaudeTurn(session: session, options: options, prompt: "[[usage in 10000000 out 1]]"))
      }
      #expect(budget?.code == .budgetExhausted && (budget?.partial?.costUSD ?? 0) > 0.1)
    }
  }

  /// The CLI's own budget is for the conversation; what a turn may spend is not.
  @Test func anAllowanceBoundsATurnAndNotTheConversation() async throws {
    try await withFixture { fixture in
      let session = try fixture.session()
      func turn(_ prompt: String, _ allowance: Double?, of other: ClaudeSession? = nil) -> ClaudeTurn {
        ClaudeTurn(
          session: other ?? session, prompt: prompt + " [[usage in 1000 out 10000]]",
          expectsHistory: allowance != nil && other == nil,
          allowanceUSD: allowance)
      }
      let first = try await fixture.runner.run(turn("one", nil))
      let second = try await fixture.runner.run(turn("two", first.costUSD * 1.5))
      #expect(second.startedProcess && second.text.contains("2 user messages"))
      #expect(abs(second.costUSD - first.costUSD) < 1e-9)
      // Its process may not spend more than that, so the next one that may begins there.
      let third = try await fixture.runner.run(turn("three", first.costUSD * 3))
      #expect(third.startedProcess)
      let fourth = try await fixture.runner.run(turn("four", first.costUSD * 2.5))
      #expect(!fourth.startedProcess)
      let other = try fixture.session()
      let failure = await failing { try await fixture.runner.run(turn("five", first.costUSD * 0.5, of: other)) }
      #expect(failure?.code == .budgetExhausted && failure?.message.contains("/usage") == true)
    }
  }

  @Test func leavesNoBackgroundWork() async throws {
    try await withFixture { fixture in
      let session = try fixture.session()
      let prompt = #"[[tool Bash {"command":"tail -f /dev/null","run_in_background":true}]]"#
      _ = try await fixture.runner.run(ClaudeTurn(session: session, prompt: prompt))
      #expect(StrayProcesses.ofSession(session.id).find().count >= 2)
      await fixture.runner.stop(session: session.id)
      #expect(StrayProcesses.ofSession(session.id).find() == [])
    }
  }

  @Test func goesOnAfterAKill() async throws {
    try await withFixture { fixture in
      let session = try fixture.session()
      let arrival = Arrival()
      let outcome = Task {
        try await fixture.runner.run(ClaudeTurn(session: session, prompt: "one [[hang]]")) {
          arrival.handle($0)
        }
      }
      _ = await arrival.first { $0.kind == .system("init") }
      await fixture.runner.stop(session: session.id)
      #expect(await failing { try await outcome.value }?.code == .killed)
      let next = try await fixture.runner.run(ClaudeTurn(session: session, prompt: "two"))
      #expect(next.text.contains("\"two\""))
    }
  }
}

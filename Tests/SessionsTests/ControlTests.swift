import Foundation
import JSONSupport
import SessionTestSupport
import Sessions
import TestSupport
import Testing

@Suite struct ControlTests {
  private func logTypes(_ service: SessionService, _ id: UUID) async throws -> [String] {
    try await service.events(of: id, after: 0, limit: 1000).items.map(\.type)
  }

  private func waitUntil(_ condition: () async throws -> Bool) async throws {
    for _ in 0..<5000 {
      if try await condition() { return }
      try await Task.sleep(for: .milliseconds(2))
    }
    Issue.record("the condition did not come true")
  }

  private func pending(_ service: SessionService, _ id: UUID, count: Int = 1) async throws -> [Approval] {
    try await waitUntil { try await service.approvals(of: id, states: [.pending]).items.count == count }
    return try await service.approvals(of: id, states: [.pending]).items
  }

  // MARK: Interrupt

  @Test func anInterruptEndsTheRunningTurnAndTheNextOneRuns() async throws {
    let runner = ScriptedRunner { request, say in
      if request.turn.prompt == "long" {
        await say(CLIMessages.assistant([CLIMessages.text("so far")], id: "m"))
        do { try await Task.sleep(for: .seconds(600)) } catch {
          throw TurnRunFailure(
            TurnFailure(code: "interrupted", detail: ""), isInterruption: true, partialText: "so far")
        }
      }
      return TurnResult(text: "done")
    }
    try await withService(runner: runner) { service in
      let id = try await service.create(NewSession()).session.id
      await #expect(throws: SessionServiceError.nothingRuns) { try await service.interrupt(id) }
      let long = try await service.send("long", to: id)
      let next = try await service.send("next", to: id)
      try await waitUntil { try await logTypes(service, id).contains("agent.message") }
      // Two clients at once are told of the same turn.
      async let first = service.interrupt(id)
      async let second = service.interrupt(id)
      for turn in [try await first, try await second] {
        #expect(turn.id == long.id)
        #expect(turn.state == .interrupted)
        #expect(turn.result == "so far")
      }
      #expect(try await service.outcome(of: next).state == .completed)
      let types = try await logTypes(service, id)
      #expect(types.count { $0 == "user.interrupt" } == 1)
      let interrupt = try #require(types.firstIndex(of: "user.interrupt"))
      #expect(types.firstIndex(of: "turn.interrupted").map { $0 > interrupt } == true)
    }
    try await withService { service in
      await #expect(throws: SessionServiceError.sessionNotFound) {
        _ = try await service.interrupt(UUID())
      }
      return
    }
  }

  /// It may come at any moment of a turn's life; never does it hit the next turn.
  @Test func interruptsAtAnyMomentHitNoOtherTurn() async throws {
    let runner = ScriptedRunner { request, _ in
      if request.turn.prompt == "a" { try await Task.sleep(for: .milliseconds(Int.random(in: 0...3))) }
      return TurnResult(text: "done")
    }
    try await withService(runner: runner) { service in
      let id = try await service.create(NewSession()).session.id
      for _ in 0..<200 {
        let first = try await service.send("a", to: id)
        let second = try await service.send("b", to: id)
        let interrupted = try? await service.interrupt(id)
        let turns = [try await service.outcome(of: first), try await service.outcome(of: second)]
        for turn in turns where turn.state == .interrupted { #expect(turn.id == interrupted?.id) }
      }
    }
  }

  // MARK: Approvals

  private func asking(
    _ answers: PermissionAnswers, _ questions: [JSONValue] = [CLIMessages.ask("q1")]
  ) -> ScriptedRunner {
    ScriptedRunner(
      { _, say in
        for question in questions { await say(question) }
        var texts: [String] = []
        for question in questions {
          switch try await answers.answer(to: question["request_id"]?.stringValue ?? "") {
          case .allow(let input, _): texts.append("allow \(input?.description ?? "-")")
          case .deny(let message): texts.append("deny \(message)")
          }
        }
        return TurnResult(text: texts.joined(separator: ", "))
      }, answers: answers)
  }

  @Test func aDecisionReachesTheAgentOnce() async throws {
    let answers = PermissionAnswers()
    try await withService(runner: asking(answers)) { service in
      let id = try await service.create(NewSession()).session.id
      let turn = try await service.send("go", to: id)
      let approval = try #require(try await pending(service, id).first)
      #expect(approval.toolName == "Bash")
      #expect(approval.input == #"{"command":"rm x"}"#)
      #expect(approval.turnID == turn.id)
      // Raced by many clients, one wins and all others learn what was decided.
      let outcomes = await withTaskGroup(of: Result<Approval, any Error>.self) { group in
        for index in 0..<20 {
          group.addTask {
            do {
              let verdict = ApprovalVerdict(index % 2 == 0 ? .allow : .deny, message: "client \(index)")
              return .success(try await service.decide(approval.id, of: id, verdict))
            } catch { return .failure(error) }
          }
        }
        return await group.reduce(into: []) { $0.append($1) }
      }
      let winners = outcomes.compactMap { try? $0.get() }
      #expect(winners.count == 1)
      for case .failure(let error) in outcomes {
        #expect(error as? SessionServiceError == .approvalResolved(try #require(winners.first)))
      }
      let ended = try await service.outcome(of: turn)
      #expect(ended.result?.hasPrefix(winners.first?.state == .allowed ? "allow" : "deny client") == true)
      let types = try await logTypes(service, id)
      #expect(
        types == [
          "user.message", "turn.queued", "session.status_running", "approval.requested", "session.status_idle",
          "approval.resolved", "session.status_running", "session.status_idle", "turn.completed",
        ])
      let other = try await service.create(NewSession()).session.id
      await #expect(throws: SessionServiceError.approvalNotFound) {
        try await service.approval(approval.id, of: other)
      }
    }
  }

  @Test func severalQuestionsAtOnceAreDecidedEach() async throws {
    let answers = PermissionAnswers()
    let questions = (1...3).map { CLIMessages.ask("q\($0)", ["command": "c\($0)"]) }
    try await withService(runner: asking(answers, questions)) { service in
      let id = try await service.create(NewSession()).session.id
      let turn = try await service.send("go", to: id)
      let approvals = try await pending(service, id, count: 3)
      _ = try await service.decide(approvals[2].id, of: id, ApprovalVerdict(.deny, message: "no"))
      _ = try await service.decide(
        approvals[0].id, of: id, ApprovalVerdict(.allow, updatedInput: ["command": "other"]))
      #expect(try await service.approvals(of: id, states: [.pending]).items.map(\.id) == [approvals[1].id])
      _ = try await service.decide(approvals[1].id, of: id, ApprovalVerdict(.allow))
      #expect(try await service.outcome(of: turn).result == #"allow {"command":"other"}, allow -, deny no"#)
      let types = try await logTypes(service, id)
      // At work again only when nothing is left to decide.
      #expect(types.count { $0 == "session.status_running" } == 2)
    }
  }

  @Test func moreQuestionsThanMayWaitAreDenied() async throws {
    let answers = PermissionAnswers()
    let questions = (1...5).map { CLIMessages.ask("q\($0)") }
    try await withService(
      runner: asking(answers, questions), configure: { $0.maximumPendingApprovals = 2 },
      { service in
        let id = try await service.create(NewSession()).session.id
        let turn = try await service.send("go", to: id)
        for approval in try await pending(service, id, count: 2) {
          _ = try await service.decide(approval.id, of: id, ApprovalVerdict(.allow))
        }
        let denial =
          "deny Too much of this turn waits for a decision: 2 tool calls with 16777216 bytes of input in all may. "
          + "Try again later or with less."
        #expect(
          try await service.outcome(of: turn).result
            == (["allow -", "allow -"] + Array(repeating: denial, count: 3)).joined(separator: ", "))
        // What was denied for that left nothing behind, and the next turn may ask again.
        #expect(try await service.approvals(of: id).items.count == 2)
        #expect(try await logTypes(service, id).count { $0 == "approval.requested" } == 2)
      })
  }

  @Test func moreInputThanMayWaitIsDenied() async throws {
    let answers = PermissionAnswers()
    let long = JSONValue.string(String(repeating: "x", count: 600))
    let questions = [
      CLIMessages.ask("q1", ["command": long]), CLIMessages.ask("q2", ["command": long]),
      CLIMessages.ask("q3", ["command": "c"]),
    ]
    try await withService(
      runner: asking(answers, questions), configure: { $0.maximumPendingApprovalBytes = 1000 },
      { service in
        let id = try await service.create(NewSession()).session.id
        let turn = try await service.send("go", to: id)
        for approval in try await pending(service, id, count: 2) {
          _ = try await service.decide(approval.id, of: id, ApprovalVerdict(.allow))
        }
        let words = try #require(try await service.outcome(of: turn).result).split(separator: ", ")
        #expect(words.map { $0.prefix(5) } == ["allow", "deny ", "allow"])
      })
  }

  @Test func aQuestionThatNobodyAnswersBecomesADenial() async throws {
    let answers = PermissionAnswers()
    try await withService(
      runner: asking(answers), configure: { $0.approvalTimeout = .milliseconds(20) },
      { service in
        let id = try await service.create(NewSession()).session.id
        let turn = try await service.outcome(of: try await service.send("go", to: id))
        #expect(turn.result?.hasPrefix("deny Nobody") == true)
        let approval = try #require(try await service.approvals(of: id).items.first)
        #expect(approval.state == .expired)
        await #expect(throws: SessionServiceError.approvalResolved(approval)) {
          try await service.decide(approval.id, of: id, ApprovalVerdict(.allow))
        }
      })
  }

  @Test func interruptAndWithdrawalMakeAQuestionVoid() async throws {
    let answers = PermissionAnswers()
    let withdrawn = Gate()
    let runner = ScriptedRunner(
      { request, say in
        await say(CLIMessages.ask(request.turn.prompt))
        if request.turn.prompt == "withdrawn" {
          try await withdrawn.wait()
          await say(CLIMessages.withdraw("withdrawn"))
          return TurnResult(text: "")
        }
        _ = try await answers.answer(to: request.turn.prompt)
        return TurnResult(text: "")
      }, answers: answers)
    try await withService(runner: runner) { service in
      let id = try await service.create(NewSession()).session.id
      _ = try await service.send("interrupted", to: id)
      let first = try #require(try await pending(service, id).first)
      #expect(try await service.interrupt(id).state == .interrupted)
      #expect(try await service.approval(first.id, of: id).state == .void)
      let turn = try await service.send("withdrawn", to: id)
      let second = try #require(try await pending(service, id).first)
      withdrawn.open()
      #expect(try await service.outcome(of: turn).state == .completed)
      #expect(try await service.approval(second.id, of: id).state == .void)
      #expect(try await logTypes(service, id).count { $0 == "approval.resolved" } == 2)
      #expect(answers["interrupted"] == nil)
      #expect(answers["withdrawn"] == nil)
    }
  }

  @Test func aRememberedDecisionIsNotAskedForAgain() async throws {
    let suggestions: JSONValue = [
      ["type": "setMode", "mode": "acceptEdits", "destination": "session"],
      [
        "type": "addRules", "behavior": "allow", "destination": "localSettings",
        "rules": [["toolName": "Bash", "ruleContent": "touch *"]],
      ],
    ]
    let answers = PermissionAnswers()
    let runner = ScriptedRunner(
      { _, say in
        await say(CLIMessages.ask("q1", ["command": "touch a"], suggestions: suggestions))
        _ = try await answers.answer(to: "q1")
        await say(CLIMessages.ask("q2", ["command": "touch b"], suggestions: suggestions))
        _ = try await answers.answer(to: "q2")
        return TurnResult(text: "")
      }, answers: answers)
    try await withService(runner: runner) { service in
      let id = try await service.create(NewSession()).session.id
      let turn = try await service.send("go", to: id)
      let approval = try #require(try await pending(service, id).first)
      let verdict = ApprovalVerdict(.allow, updatedInput: ["command": "touch c"], remember: true)
      _ = try await service.decide(approval.id, of: id, verdict)
      #expect(try await service.outcome(of: turn).state == .completed)
      #expect(try await service.approvals(of: id).items.count == 1)
      #expect(try await logTypes(service, id).contains("approval.remembered"))
      // The other call's input is its own.
      guard case .allow(["command": "touch c"], let permissions?)? = answers["q1"],
        case .allow(nil, permissions)? = answers["q2"]
      else {
        Issue.record("\(String(describing: answers["q1"])), \(String(describing: answers["q2"]))")
        return
      }
      #expect(permissions[0]?["destination"] == "session")
      #expect(permissions[0]?["rules"] == [["toolName": "Bash", "ruleContent": "touch *"]])
      try await waitUntil {
        SessionOptions(stored: try await service.session(id).options).remembered.allowed == ["Bash(touch *)"]
      }
      var change = SessionChange()
      change.forgetsRemembered = true
      #expect(try await service.update(id, change).options == "{}")
    }
  }

  /// The agent must not be able to smuggle in a rule with the words of a command.
  @Test func rulesThatCouldEndEarlyAreNotKept() async throws {
    let contents = ["echo a),Bash(*", #"echo \\"#, "echo $(id)", "echo a\nb", "git log, --all"]
    let answers = PermissionAnswers()
    let questions = contents.enumerated().map { index, content in
      CLIMessages.ask(
        "q\(index)",
        suggestions: [
          [
            "type": "addRules", "behavior": "allow", "rules": [["toolName": "Bash", "ruleContent": .string(content)]],
          ]
        ])
    }
    try await withService(runner: asking(answers, questions)) { service in
      let id = try await service.create(NewSession()).session.id
      let turn = try await service.send("go", to: id)
      for approval in try await pending(service, id, count: contents.count) {
        _ = try await service.decide(approval.id, of: id, ApprovalVerdict(.allow, remember: true))
      }
      #expect(try await service.outcome(of: turn).state == .completed)
      let options = SessionOptions(stored: try await service.session(id).options)
      #expect(options.remembered.allowed == ["Bash(git log, --all)"])
    }
  }

  // MARK: Options

  @Test func aMessagesOptionsHoldInPlaceOfTheSessions() throws {
    var session = SessionOptions()
    try session.set(.model, "one")
    try session.set(.maxTurns, 3)
    try session.set(.outputSchema, ["type": "object"])
    var message = SessionOptions()
    try message.set(.model, "two")
    try message.set(.outputSchema, nil)
    let stored = session.overridden(by: SessionOptions(stored: message.stored))
    #expect(stored.model == "two")
    #expect(stored.maxTurns == 3)
    #expect(stored.outputSchema == Optional.none)
    #expect(SessionOptions(stored: session.stored) == session)
    #expect(SessionOptions().stored == "{}")
  }

  private static let badOptions: [(SessionOption, JSONValue)] = [
    (.model, ""), (.model, "a b"), (.model, "-p"), (.model, 5),
    (.appendSystemPrompt, "a\u{0}b"), (.allowedTools, "Read"), (.allowedTools, [5]), (.allowedTools, ["Read,Bash"]),
    (.allowedTools, ["Bash(a),Write"]), (.allowedTools, ["Bash(a) Write(b)"]), (.disallowedTools, [""]),
    (.disallowedTools, ["--model"]), (.permissionMode, "root"), (.maxTurns, 0), (.maxTurns, 1.5),
    (.maxBudgetUSD, 0), (.maxBudgetUSD, "1"), (.outputSchema, ["type": "array"]), (.outputSchema, "{}"),
    (.mcpServers, ["a b": ["command": "x"]]), (.mcpServers, ["a": ["url": "http://x"]]),
    (.mcpServers, ["a": ["command": "x", "args": [1]]]), (.mcpServers, ["a": ["command": "x", "cwd": "/"]]),
  ]

  @Test(arguments: badOptions)
  func badOptionsAreRefused(_ option: SessionOption, _ value: JSONValue) {
    var options = SessionOptions()
    #expect(throws: SessionOptionError.self) { try options.set(option, value) }
    #expect(options.isEmpty)
  }

  @Test func goodOptionsAreTaken() throws {
    var options = SessionOptions()
    try options.set(.allowedTools, ["Read", "Bash(git log:*)", "Bash(mkdir x, y)", "mcp__server__tool", "mcp__s__*"])
    try options.set(.maxBudgetUSD, 1)
    try options.set(
      .mcpServers,
      [
        "a": ["command": "x", "args": ["y"], "env": ["TOKEN": "secret"]],
        "b": ["type": "http", "url": "http://127.0.0.1/", "headers": ["Authorization": "secret"]],
      ])
    #expect(options.maxBudgetUSD == 1)
    #expect(!JSONValue.object(options.shown).description.contains("secret"))
    #expect(options.stored.contains("secret"))
  }

  @Test func changesAtOnceAllHold() async throws {
    try await withService { service in
      let id = try await service.create(NewSession(options: #"{"model":"m","max_turns":2}"#)).session.id
      let options: [(SessionOption, JSONValue)] = [
        (.model, nil), (.permissionMode, "ask"), (.maxBudgetUSD, 1), (.appendSystemPrompt, "x"),
        (.disallowedTools, ["Bash"]),
      ]
      try await withThrowingTaskGroup(of: Void.self) { group in
        for (option, value) in options {
          group.addTask {
            var change = SessionChange()
            change.options[option] = value
            _ = try await service.update(id, change)
          }
        }
        try await group.waitForAll()
      }
      let all = SessionOptions(stored: try await service.session(id).options)
      #expect(all.model == nil)
      #expect(all.maxTurns == 2)
      #expect(all.permissionMode == .ask)
      #expect(all.maxBudgetUSD == 1)
      #expect(all.appendSystemPrompt == "x")
      #expect(all.disallowedTools == ["Bash"])
      #expect(try await logTypes(service, id) == Array(repeating: "session.updated", count: 5))
      var bad = SessionChange()
      bad.name = "new"
      bad.options[.maxTurns] = 0
      await #expect(throws: SessionOptionError.self) { try await service.update(id, bad) }
      #expect(try await service.session(id).name != "new")
    }
  }

  // MARK: Fork

  @Test func aForkHasWhatTheOtherSessionHadAndGoesOnAlone() async throws {
    try await withService { service in
      let id = try await service.create(
        NewSession(name: "a", options: #"{"model":"m"}"#, metadata: #"{"k":1}"#)
      ).session.id
      _ = try await service.outcome(of: try await service.send("hello", to: id))
      let source = try await service.session(id).workspace
      try Self.fill(source)
      let fork = try await service.fork(id, name: "b").session
      #expect(fork.name == "b")
      #expect(fork.parentID == id)
      #expect(fork.options == #"{"model":"m"}"#)
      #expect(fork.metadata == #"{"k":1}"#)
      #expect(fork.hasConversation)
      try Self.check(fork.workspace)
      try Data("changed".utf8).write(to: URL(filePath: source + "/deep/file"))
      try Self.check(fork.workspace)
      let events = try await service.events(of: fork.id, after: 0, limit: 100).items
      #expect(events.map(\.type) == ["session.forked", "user.message", "agent.message"])
      #expect(events.map(\.sequence) == [1, 2, 3])
      _ = try await service.outcome(of: try await service.send("on", to: fork.id))
      #expect(try await service.turns(of: fork.id, after: 0, limit: 10).items.map(\.number) == [1])
      try await service.delete(id)
      try Self.check(fork.workspace)
      await #expect(throws: SessionServiceError.sessionNotFound) { try await service.fork(id) }
    }
  }

  @Test func aBusySessionIsNotForkedAndMessagesWaitForAFork() async throws {
    let gate = Gate()
    let runner = ScriptedRunner { request, _ in
      if request.turn.prompt == "wait" { try await gate.wait() }
      return TurnResult(text: request.turn.prompt)
    }
    try await withService(runner: runner) { service in
      let id = try await service.create(NewSession()).session.id
      let turn = try await service.send("wait", to: id)
      await #expect(throws: SessionServiceError.sessionBusy) { try await service.fork(id) }
      gate.open()
      _ = try await service.outcome(of: turn)
      let workspace = try await service.session(id).workspace
      for index in 0..<500 { try Data("x".utf8).write(to: URL(filePath: "\(workspace)/\(index)")) }
      async let fork = service.fork(id)
      async let message = service.send("during", to: id)
      #expect(try await service.outcome(of: message).result == "during")
      // Which of the two was first is chance; both come to their end.
      do { _ = try await fork } catch SessionServiceError.sessionBusy {}
    }
  }

  @Test func aForkThatFailsLeavesNothing() async throws {
    try await withService { service in
      let id = try await service.create(NewSession()).session.id
      let workspace = try await service.session(id).workspace
      for index in 0..<50 { try Data("x".utf8).write(to: URL(filePath: "\(workspace)/\(index)")) }
      // In the place of the conversations, which come after the files, is what isn't followed.
      let records =
        URL(filePath: workspace).deletingLastPathComponent().deletingLastPathComponent().path()
        + "c/\(id.lowercaseString)/projects"
      #expect(symlink("/nonexistent", records) == 0)
      await #expect(throws: SessionServiceError.self) { try await service.fork(id) }
      let root = URL(filePath: workspace).deletingLastPathComponent().path()
      let names = try FileManager.default.contentsOfDirectory(atPath: root).filter { !$0.hasPrefix(".") }
      #expect(names == [id.lowercaseString])
      #expect(try await service.sessions().sessions.count == 1)
      #expect(try await service.outcome(of: try await service.send("still", to: id)).state == .completed)
    }
  }

  // MARK: Parts

  private static func fill(_ path: String) throws {
    let files = FileManager.default
    try files.createDirectory(atPath: path + "/deep/er", withIntermediateDirectories: true)
    try Data("content".utf8).write(to: URL(filePath: path + "/deep/file"))
    try Data("script".utf8).write(to: URL(filePath: path + "/run"))
    #expect(chmod(path + "/run", 0o755) == 0)
    #expect(chmod(path + "/deep/er", 0o555) == 0)
    try files.createSymbolicLink(atPath: path + "/outside", withDestinationPath: "/etc")
    try files.createSymbolicLink(atPath: path + "/broken", withDestinationPath: "nowhere")
    #expect(mkfifo(path + "/pipe", 0o600) == 0)
    let sparse = open(path + "/sparse", O_WRONLY | O_CREAT, 0o600)
    #expect(ftruncate(sparse, 64 << 20) == 0)
    #expect(pwrite(sparse, "end", 3, (32 << 20)) == 3)
    close(sparse)
  }

  private static func check(_ path: String) throws {
    let files = FileManager.default
    #expect(
      try files.contentsOfDirectory(atPath: path).sorted() == ["broken", "deep", "outside", "run", "sparse"])
    #expect(files.contents(atPath: path + "/deep/file") == Data("content".utf8))
    #expect(try files.destinationOfSymbolicLink(atPath: path + "/outside") == "/etc")
    #expect(try files.destinationOfSymbolicLink(atPath: path + "/broken") == "nowhere")
    var status = stat()
    #expect(lstat(path + "/run", &status) == 0 && status.st_mode & 0o7777 == 0o755)
    #expect(lstat(path + "/deep/er", &status) == 0 && status.st_mode & 0o7777 == 0o555)
    #expect(lstat(path + "/sparse", &status) == 0 && status.st_size == 64 << 20)
    #expect(status.st_blocks * 512 < 16 << 20)
    let sparse = try #require(files.contents(atPath: path + "/sparse"))
    #expect(sparse[(32 << 20)..<((32 << 20) + 3)] == Data("end".utf8))
  }
}

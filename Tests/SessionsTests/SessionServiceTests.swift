import Foundation
import JSONSupport
import SQLiteStore
import SessionTestSupport
import Sessions
import TestSupport
import Testing

@Suite struct SessionServiceTests {
  private let claim = IdempotencyClaim(key: IdempotencyKey(scope: "s", key: "k"), digest: [1])

  @Test func aTurnLeavesItsEventsInOrder() async throws {
    try await withService { service in
      let session = try await service.create(NewSession()).session
      let turn = try await service.outcome(of: service.send("Hi", to: session.id))
      let events = try await service.events(of: session.id, after: 0, limit: 100).items
      #expect(
        events.map(\.type) == [
          "user.message", "turn.queued", "session.status_running", "span.model_request_start", "agent.message",
          "span.model_request_end", "session.status_idle", "turn.completed",
        ])
      #expect(events.map(\.sequence) == Array(1...8))
      #expect(events.allSatisfy { $0.turnID == turn.id })
    }
  }

  @Test func aTurnThatWaitsIsCancelledAndNeverRuns() async throws {
    let gate = Gate()
    let runner = ScriptedRunner { request, say in
      if request.turn.prompt == "long" { try await gate.wait() }
      return try await ScriptedRunner.echo(request, say)
    }
    try await withService(runner: runner) { service in
      let id = try await service.create(NewSession()).session.id
      let running = try await service.send("long", to: id)
      let waiting = try await service.send("second", to: id)
      let last = try await service.send("third", to: id)
      var stream = service.eventStream(of: id, .init()).makeIterator()
      defer { stream.close() }
      var types: [String] = []
      while !types.contains("session.status_running") { types += try await stream.next()?.map(\.type) ?? [] }
      #expect(await service.position(of: waiting) == 1)
      #expect(await service.position(of: last) == 2)

      async let outcome = service.outcome(of: waiting)
      let cancelled = try await service.cancel(waiting.id, of: id)
      #expect(cancelled.state == .cancelled)
      #expect(try await outcome.failure?.code == "cancelled")
      #expect(await service.position(of: last) == 1)
      await #expect(throws: SessionServiceError.turnState(.running)) { try await service.cancel(running.id, of: id) }
      await #expect(throws: SessionServiceError.turnState(.cancelled)) {
        try await service.cancel(waiting.id, of: id)
      }
      gate.open()
      #expect(try await service.outcome(of: last).result == "Echo: third")
      #expect(runner.prompts == ["long", "third"])
      let events = try await service.events(of: id, after: 0, limit: 100).items.filter { $0.turnID == waiting.id }
      #expect(events.map(\.type) == ["user.message", "turn.queued", "turn.cancelled"])
    }
  }

  @Test func oneKeyOneTurnHoweverManyTry() async throws {
    let runner = ScriptedRunner()
    try await withService(runner: runner) { service in
      let id = try await service.create(NewSession()).session.id
      let turns = try await withThrowingTaskGroup(of: AcceptedMessage.self) { group in
        for _ in 0..<50 { group.addTask { try await service.accept("once", for: id, idempotency: claim) } }
        return try await group.reduce(into: []) { $0.append($1) }
      }
      #expect(Set(turns.map(\.turn.id)).count == 1)
      #expect(turns.count { !$0.isReplay } == 1)
      #expect(turns.allSatisfy { $0.precedingSequence == 0 })
      #expect(try await service.outcome(of: turns[0].turn).result == "Echo: once")
      #expect(runner.prompts == ["once"])
    }
  }

  @Test func oneKeyOneSessionHoweverManyTry() async throws {
    let runner = ScriptedRunner()
    try await withService(runner: runner) { service in
      let created = try await withThrowingTaskGroup(of: CreatedSession.self) { group in
        for _ in 0..<20 {
          group.addTask { try await service.create(NewSession(initialPrompt: "once", idempotency: claim)) }
        }
        return try await group.reduce(into: []) { $0.append($1) }
      }
      #expect(Set(created.map(\.session.id)).count == 1)
      #expect(Set(created.map(\.turn?.id)).count == 1)
      #expect(created.count { !$0.isReplay } == 1)
      let workspace = URL(filePath: created[0].session.workspace).deletingLastPathComponent().path()
      #expect(try FileManager.default.contentsOfDirectory(atPath: workspace).count { !$0.hasPrefix(".") } == 1)
      _ = try await service.outcome(of: #require(created[0].turn))
      #expect(runner.prompts == ["once"])
    }
  }

  @Test func aKeyHoldsAcrossARestart() async throws {
    try await withTemporaryDirectory { path in
      let file = SQLiteStoreConfiguration(path: path + "/db")
      let other = IdempotencyClaim(key: IdempotencyKey(scope: "t", key: "k"), digest: [2])
      let first = try await SQLiteSessionStore.open(file)
      let (id, turn) = try await withService(store: first) { service in
        let id = try await service.create(NewSession(idempotency: claim)).session.id
        let turn = try await service.accept("once", for: id, idempotency: other).turn
        _ = try await service.outcome(of: turn)
        return (id, turn)
      }
      await first.close()
      let second = try await SQLiteSessionStore.open(file)
      let runner = ScriptedRunner()
      try await withService(runner: runner, store: second) { service in
        let again = try await service.create(NewSession(idempotency: claim))
        #expect(again.isReplay)
        #expect(again.session.id == id)
        let message = try await service.accept("once", for: id, idempotency: other)
        #expect(message.isReplay)
        #expect(message.turn.id == turn.id)
        #expect(message.turn.result == "Echo: once")
        #expect(runner.prompts.isEmpty)
      }
      await second.close()
    }
  }

  @Test func aKeyOfAnotherRequestOrOfADeletedSession() async throws {
    try await withService { service in
      let id = try await service.create(NewSession(idempotency: claim)).session.id
      let wrong = IdempotencyClaim(key: claim.key, digest: [9])
      await #expect(throws: SessionServiceError.idempotencyMismatch) {
        try await service.create(NewSession(idempotency: wrong))
      }
      let message = IdempotencyClaim(key: IdempotencyKey(scope: "m", key: "k"), digest: [1])
      _ = try await service.outcome(of: service.accept("Hi", for: id, idempotency: message).turn)
      try await service.delete(id)
      await #expect(throws: SessionServiceError.sessionDeleted) {
        try await service.create(NewSession(idempotency: claim))
      }
      await #expect(throws: SessionServiceError.sessionDeleted) {
        try await service.accept("Hi", for: id, idempotency: message)
      }
      await #expect(throws: SessionServiceError.sessionNotFound) { try await service.accept("Hi", for: id) }
    }
  }

  @Test func aBoundedWaitReturnsTheTurnAsItIs() async throws {
    let gate = Gate()
    let runner = ScriptedRunner { request, say in
      try await gate.wait()
      return try await ScriptedRunner.echo(request, say)
    }
    try await withService(runner: runner) { service in
      let id = try await service.create(NewSession()).session.id
      let turn = try await service.send("slow", to: id)
      #expect(try await !service.outcome(of: turn, within: .milliseconds(1)).state.isFinal)
      async let outcome = service.outcome(of: turn, within: .seconds(60))
      gate.open()
      #expect(try await outcome.state == .completed)
    }
  }

  @Test func deletionEndsTheTurnAndTheStream() async throws {
    let never = Gate()
    let runner = ScriptedRunner { _, _ in
      try await never.wait()
      return TurnResult(text: "")
    }
    try await withService(runner: runner) { service in
      let id = try await service.create(NewSession()).session.id
      let turn = try await service.send("long", to: id)
      var stream = service.eventStream(of: id, .init()).makeIterator()
      defer { stream.close() }
      var types: [String] = []
      while !types.contains("session.status_running") { types += try await stream.next()?.map(\.type) ?? [] }
      let outcome = Task { try await service.outcome(of: turn) }
      try await service.delete(id)
      await #expect(throws: SessionServiceError.sessionDeleted) { try await outcome.value }
      while let frames = try await stream.next() { types += frames.map(\.type) }
      #expect(types.last == "session.status_terminated")
    }
  }

  /// A runner to which a turn comes only after its session was stopped.
  private struct LateRunner: TurnRunner {
    let runner = ScriptedRunner { _, _ in
      try await Gate().wait()
      return TurnResult(text: "")
    }
    let wasStopped = Gate()

    func run(
      _ request: TurnRequest, onMessage: @escaping @Sendable (JSONValue) async -> Void
    ) async throws(TurnRunFailure) -> TurnResult {
      do {
        try await wasStopped.wait()
      } catch {
        throw TurnRunFailure(TurnFailure(code: "interrupted", detail: "The test is over."), isInterruption: true)
      }
      return try await runner.run(request, onMessage: onMessage)
    }

    func interrupt(_ sessionID: UUID) async { await runner.interrupt(sessionID) }

    func answerPermission(_ requestID: String, of sessionID: UUID, _ answer: PermissionAnswer) async -> Bool { false }

    func stop(_ sessionID: UUID) async {
      await runner.stop(sessionID)
      wasStopped.open()
    }

    func hasProcess(_ sessionID: UUID) async -> Bool { false }
  }

  @Test(.timeLimit(.minutes(5))) func deletionEndsATurnThatWasAboutToBegin() async throws {
    try await withService(runner: LateRunner(), configure: { $0.deletionPatience = .zero }) { service in
      let id = try await service.create(NewSession()).session.id
      let turn = try await service.send("long", to: id)
      while await service.load.running == 0 { try await Task.sleep(for: .milliseconds(2)) }
      let outcome = Task { try await service.outcome(of: turn) }
      try await service.delete(id)
      await #expect(throws: SessionServiceError.self) { try await outcome.value }
    }
  }

  @Test func whatRanWhenTheServerStoppedIsInTheLogAfterTheNextStart() async throws {
    let store = InMemorySessionStore()
    let session = Session(id: UUID(), name: "s", createdAt: .now(), workspace: "/w")
    let turn = NewTurn(sessionID: session.id, prompt: "p", createdAt: .now())
    _ = try await store.createSession(session, firstTurn: turn)
    _ = try await store.startTurn(turn.id, at: .now())
    try await withService(store: store) { service in
      let events = try await service.events(of: session.id, after: 0, limit: 10).items
      #expect(events.map(\.type) == ["session.error", "session.status_idle", "turn.interrupted"])
    }
  }
}

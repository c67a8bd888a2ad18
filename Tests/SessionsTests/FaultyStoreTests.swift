import Foundation
import JSONSupport
import SessionTestSupport
import TestSupport
import Testing
import Workspaces

@testable import Sessions

/// What becomes of turns while the store can't be written.
@Suite struct FaultyStoreTests {
  private static let faults: [SessionStoreError] = [.diskFull, .busy, .io("a fault")]

  private func poll(_ condition: () async throws -> Bool) async throws {
    while try await !condition() { try await Task.sleep(for: .milliseconds(2)) }
  }

  @Test(.timeLimit(.minutes(5)), arguments: faults)
  func aTurnThatCantBeStartedWaitsAndRunsWhenItCan(_ fault: SessionStoreError) async throws {
    let runner = ScriptedRunner()
    let store = FaultyStore()
    let claim = IdempotencyClaim(key: IdempotencyKey(scope: "s", key: "k"), digest: [1])
    try await withService(runner: runner, store: store) { service in
      let id = try await service.create(NewSession()).session.id
      store.fail(.startTurn, with: fault)
      let first = try await service.accept("first", for: id, idempotency: claim).turn
      let second = try await service.send("second", to: id)
      let waiting = Task { try await service.outcome(of: first) }
      try await poll { store.failures(of: .startTurn) >= 2 }
      // It waits like any other: with its place, for who looks and for who repeats the message.
      try await poll { await service.position(of: first) == 1 }
      #expect(await service.position(of: second) == 2)
      #expect(try await service.outcome(of: first, within: .milliseconds(1)).state == .queued)
      let repeated = try await service.accept("first", for: id, idempotency: claim)
      #expect(repeated.isReplay && repeated.turn.id == first.id)
      #expect(runner.prompts.isEmpty)
      store.fail(.startTurn, with: nil)
      #expect(try await waiting.value.result == "Echo: first")
      #expect(try await service.outcome(of: second).result == "Echo: second")
      #expect(runner.prompts == ["first", "second"])
    }
  }

  @Test(.timeLimit(.minutes(5))) func aTurnThatCantBeStartedIsCancelledAndDeleted() async throws {
    let store = FaultyStore()
    let runner = ScriptedRunner()
    try await withService(runner: runner, store: store) { service in
      let id = try await service.create(NewSession()).session.id
      store.fail(.startTurn, with: .diskFull)
      let first = try await service.send("first", to: id)
      let second = try await service.send("second", to: id)
      try await poll { await service.position(of: first) == 1 && store.failures(of: .startTurn) >= 1 }
      var cancelled: Turn?
      try await poll {
        // While an attempt is being made it counts as running.
        do { cancelled = try await service.cancel(first.id, of: id) } catch SessionServiceError.turnState(.running) {}
        return cancelled != nil
      }
      #expect(cancelled?.state == .cancelled)
      let waiting = Task { try await service.outcome(of: second) }
      try await service.delete(id)
      await #expect(throws: SessionServiceError.self) { try await waiting.value }
      #expect(runner.prompts.isEmpty)
      #expect(await service.load.queued == 0)
    }
  }

  @Test(.timeLimit(.minutes(10))) func aTurnThatCouldNotBeStartedRunsAfterTheNextStart() async throws {
    let store = FaultyStore()
    store.fail(.startTurn, with: .diskFull)
    let turn = try await withService(store: store) { service in
      let id = try await service.create(NewSession()).session.id
      let turn = try await service.send("Hi", to: id)
      let waiting = Task { try await service.outcome(of: turn) }
      try await poll { store.failures(of: .startTurn) >= 1 }
      // The pause before the next attempt isn't waited for, nor the patience with those that run: the test would be over
      // before.
      await service.shutdown(patience: .seconds(3600))
      do {
        _ = try await waiting.value
        Issue.record("it has not run")
      } catch SessionServiceError.postponed(let postponed) {
        #expect(postponed.id == turn.id)
      }
      return turn
    }
    store.fail(.startTurn, with: nil)
    let runner = ScriptedRunner()
    try await withService(runner: runner, store: store) { service in
      let outcome = try await service.outcome(of: turn)
      #expect(outcome.result == "Echo: Hi")
      #expect(runner.prompts == ["Hi"])
    }
  }

  @Test(.timeLimit(.minutes(5)), arguments: faults)
  func aTurnWhoseEndCantBeStoredEndsWhenItCan(_ fault: SessionStoreError) async throws {
    let store = FaultyStore()
    // No bound of the patience with other things holds for it.
    try await withService(store: store, configure: { $0.storePatience = .zero }) { service in
      let id = try await service.create(NewSession()).session.id
      store.fail(.finishTurn, with: fault)
      let first = try await service.send("first", to: id)
      let second = try await service.send("second", to: id)
      try await poll { store.failures(of: .finishTurn) >= 3 }
      // It is running for everybody until then.
      let interrupted = try await service.interrupt(id, patience: .milliseconds(1))
      #expect(interrupted.id == first.id && interrupted.state == .running)
      store.fail(.finishTurn, with: nil)
      let ended = try await service.outcome(of: first)
      #expect(ended.state == .completed && ended.result == "Echo: first" && ended.usage != nil)
      #expect(try await service.outcome(of: second).state == .completed)
    }
  }

  @Test(.timeLimit(.minutes(5))) func theEndOfATurnIsNotWaitedForAtTheEndOfTheServer() async throws {
    let store = FaultyStore()
    store.fail(.finishTurn, with: .diskFull)
    let turn = try await withService(store: store) { service in
      let id = try await service.create(NewSession()).session.id
      let turn = try await service.send("Hi", to: id)
      try await poll { store.failures(of: .finishTurn) >= 1 }
      return turn
    }
    store.fail(.finishTurn, with: nil)
    try await withService(store: store) { service in
      let interrupted = try await service.turn(turn.id, of: turn.sessionID)
      #expect(interrupted.state == .interrupted)
    }
  }

  @Test(.timeLimit(.minutes(5)), arguments: faults)
  func theLogOfATurnHasNoHole(_ fault: SessionStoreError) async throws {
    let store = FaultyStore()
    let runner = ScriptedRunner { request, say in
      for number in 1...5 { await say(CLIMessages.assistant([CLIMessages.text("\(number)")], id: "m\(number)")) }
      return TurnResult(text: "done")
    }
    try await withService(runner: runner, store: store, configure: { $0.storePatience = .zero }) { service in
      let id = try await service.create(NewSession()).session.id
      store.fail(.appendEvents, with: fault)
      let turn = try await service.send("Hi", to: id)
      try await poll { store.failures(of: .appendEvents) >= 3 }
      store.fail(.appendEvents, with: nil)
      #expect(try await service.outcome(of: turn).state == .completed)
      let said = try await service.events(of: id, after: 0, limit: 100).items.filter { $0.type == "agent.message" }
      let texts = try said.map { try JSONValue(parsing: $0.payload.utf8)["message_id"]?.stringValue }
      #expect(texts == ["m1", "m2", "m3", "m4", "m5"])
    }
  }

  /// The agent is gone while a message of it is being stored, which cancels the task that reads.
  @Test(.timeLimit(.minutes(5))) func whatAnInterruptedAgentHadSaidComesBeforeTheEndOfItsTurn() async throws {
    let store = FaultyStore()
    let runner = ScriptedRunner { _, say in
      await say(CLIMessages.start("m1"))
      await say(CLIMessages.assistant([CLIMessages.text("last words")], id: "m1"))
      try Task.checkCancellation()
      return TurnResult(text: "")
    }
    try await withService(runner: runner, store: store) { service in
      let id = try await service.create(NewSession()).session.id
      store.fail(.appendEvents, with: .diskFull)
      let turn = try await service.send("Hi", to: id)
      try await poll { store.failures(of: .appendEvents) >= 1 }
      _ = try await service.interrupt(id, patience: .milliseconds(1))
      store.fail(.appendEvents, with: nil)
      #expect(try await service.outcome(of: turn).state == .interrupted)
      let types = try await service.events(of: id, after: 0, limit: 100).items.map(\.type)
      #expect(
        types.filter { $0.hasPrefix("span") || $0.hasPrefix("agent") || $0.hasPrefix("turn.") } == [
          "turn.queued", "span.model_request_start", "agent.message", "span.model_request_end", "turn.interrupted",
        ])
    }
  }

  @Test(.timeLimit(.minutes(5))) func aSessionIsDeletedWhileItsEventsCantBeStored() async throws {
    let store = FaultyStore()
    try await withService(store: store, configure: { $0.deletionPatience = .zero }) { service in
      let id = try await service.create(NewSession()).session.id
      store.fail(.appendEvents, with: .diskFull)
      let turn = try await service.send("Hi", to: id)
      try await poll { store.failures(of: .appendEvents) >= 1 }
      let waiting = Task { try await service.outcome(of: turn) }
      try await service.delete(id)
      await #expect(throws: SessionServiceError.self) { try await waiting.value }
      await #expect(throws: SessionServiceError.sessionNotFound) { try await service.session(id) }
    }
  }

  // MARK: Races

  @Test(.timeLimit(.minutes(5))) func aTurnThatIsAboutToStartCountsAsRunning() async throws {
    let store = FaultyStore()
    try await withService(store: store) { service in
      let id = try await service.create(NewSession()).session.id
      let start = store.holdNext(.startTurn, .before)
      let turn = try await service.send("Hi", to: id)
      try await poll { store.isHeld(.startTurn) }
      await #expect(throws: SessionServiceError.turnState(.running)) { try await service.cancel(turn.id, of: id) }
      start.open()
      #expect(try await service.outcome(of: turn).state == .completed)
    }
  }

  @Test func aMessageForASessionAtRestIsOneTransaction() async throws {
    let store = FaultyStore()
    try await withService(store: store) { service in
      let id = try await service.create(NewSession()).session.id
      _ = store.takeCalls()
      let turn = try await service.send("Hi", to: id)
      #expect(turn.state == .running)
      #expect(try await service.outcome(of: turn).state == .completed)
      let calls = store.takeCalls()
      #expect(calls.count { $0.hasPrefix("enqueueTurn") } == 1 && !calls.contains { $0.hasPrefix("startTurn") })
    }
  }

  /// Before the store has taken the first one, and after.
  @Test(.timeLimit(.minutes(5)), arguments: [FaultyStore.Moment.before, .after])
  func aMessageThatComesWhileAnotherIsAccepted(_ moment: FaultyStore.Moment) async throws {
    let store = FaultyStore()
    let runner = ScriptedRunner()
    try await withService(runner: runner, store: store) { service in
      let id = try await service.create(NewSession()).session.id
      let gate = store.holdNext(.enqueueTurn, moment)
      let first = Task { try await service.send("first", to: id) }
      try await poll { store.isHeld(.enqueueTurn) }
      await #expect(throws: SessionServiceError.sessionBusy) { try await service.fork(id) }
      let second = try await service.send("second", to: id)
      #expect(second.state == .queued && runner.prompts.isEmpty)
      gate.open()
      let turns = [try await first.value, second]
      for turn in turns { #expect(try await service.outcome(of: turn).state == .completed) }
      #expect(turns.map(\.number) == (moment == .before ? [2, 1] : [1, 2]))
      #expect(runner.prompts == (moment == .before ? ["second", "first"] : ["first", "second"]))
    }
  }

  @Test(.timeLimit(.minutes(5)), arguments: [FaultyStore.Moment.before, .after])
  func aSessionIsDeletedWhileAMessageIsAccepted(_ moment: FaultyStore.Moment) async throws {
    let store = FaultyStore()
    let runner = ScriptedRunner()
    try await withService(runner: runner, store: store) { service, workspaces in
      let id = try await service.create(NewSession()).session.id
      let gate = store.holdNext(.enqueueTurn, moment)
      let accepted = Task { try await service.outcome(of: try await service.send("[[sleep]]", to: id)) }
      try await poll { store.isHeld(.enqueueTurn) }
      let deletion = Task { try await service.delete(id) }
      try await poll {
        do { _ = try await store.session(id) } catch SessionStoreError.sessionNotFound { return true }
        return false
      }
      gate.open()
      try await deletion.value
      await #expect(throws: SessionServiceError.self) { try await accepted.value }
      #expect(!FileManager.default.fileExists(atPath: workspaces.workspacePath(of: id)))
      #expect(try await store.unfinishedDeletions().isEmpty)
      #expect(await service.load == (running: 0, queued: 0))
    }
  }

  /// Who repeats a message, and who has found its turn, may know of it before the service does.
  @Test(.timeLimit(.minutes(5)), arguments: [true, false])
  func aTurnIsWaitedForWhileItsMessageIsAccepted(_ isAtRest: Bool) async throws {
    let store = FaultyStore()
    let runner = ScriptedRunner { request, _ in
      if request.turn.prompt == "sleep" { try await Task.sleep(for: .seconds(3600)) }
      return TurnResult(text: "")
    }
    let claim = IdempotencyClaim(key: IdempotencyKey(scope: "s", key: "k"), digest: [1])
    try await withService(runner: runner, store: store) { service in
      let id = try await service.create(NewSession()).session.id
      if !isAtRest { _ = try await service.send("sleep", to: id) }
      let gate = store.holdNext(.enqueueTurn, .after)
      let accepted = Task { try await service.accept("Hi", for: id, idempotency: claim) }
      try await poll { store.isHeld(.enqueueTurn) }
      let repeated = try await service.accept("Hi", for: id, idempotency: claim)
      #expect(repeated.isReplay && repeated.turn.state == (isAtRest ? .running : .queued))
      #expect(try await service.outcome(of: repeated.turn, within: .milliseconds(1)).state == repeated.turn.state)
      let waiting = Task { try await service.outcome(of: repeated.turn) }
      let cancellation = isAtRest ? nil : Task { try await service.cancel(repeated.turn.id, of: id) }
      try await poll { await service.waiters[repeated.turn.id] != nil }
      gate.open()
      #expect(try await accepted.value.turn.id == repeated.turn.id)
      if let cancellation {
        #expect(try await cancellation.value.state == .cancelled)
        _ = try await service.interrupt(id)
      }
      #expect(try await waiting.value.state == (isAtRest ? .completed : .cancelled))
      #expect(try await service.outcome(of: repeated.turn).state.isFinal)
    }
  }

  @Test(.timeLimit(.minutes(5))) func aTurnIsInterruptedWhileItsMessageIsAccepted() async throws {
    let store = FaultyStore()
    let runner = ScriptedRunner { _, _ in
      try await Task.sleep(for: .seconds(3600))
      return TurnResult(text: "")
    }
    try await withService(runner: runner, store: store) { service in
      let id = try await service.create(NewSession()).session.id
      let gate = store.holdNext(.enqueueTurn, .after)
      let accepted = Task { try await service.send("Hi", to: id) }
      try await poll { store.isHeld(.enqueueTurn) }
      #expect(try await service.turns(of: id, after: 0, limit: 1).items.map(\.state) == [.running])
      let interruption = Task { try await service.interrupt(id) }
      gate.open()
      #expect(try await interruption.value.state == .interrupted)
      #expect(try await accepted.value.id == interruption.value.id)
    }
  }

  @Test(.timeLimit(.minutes(5))) func theFirstTurnOfASessionIsWaitedForWhileItIsCreated() async throws {
    let store = FaultyStore()
    let new = NewSession(
      initialPrompt: "Hi", idempotency: IdempotencyClaim(key: IdempotencyKey(scope: "s", key: "k"), digest: [1]))
    try await withService(store: store) { service in
      let gate = store.holdNext(.createSession, .after)
      let creation = Task { try await service.create(new) }
      try await poll { store.isHeld(.createSession) }
      let turn = try #require(try await service.create(new).turn)
      let waiting = Task { try await service.outcome(of: turn) }
      try await poll { await service.waiters[turn.id] != nil }
      gate.open()
      #expect(try await creation.value.turn?.id == turn.id)
      #expect(try await waiting.value.result == "Echo: Hi")
    }
  }

  /// It has started for the store, so that it comes to its end.
  @Test(.timeLimit(.minutes(5))) func theServerEndsWhileAMessageIsAccepted() async throws {
    let store = FaultyStore()
    try await withService(store: store) { service in
      let id = try await service.create(NewSession()).session.id
      let gate = store.holdNext(.enqueueTurn, .after)
      let accepted = Task { try await service.outcome(of: try await service.send("Hi", to: id)) }
      try await poll { store.isHeld(.enqueueTurn) }
      let end = Task { await service.shutdown(patience: .seconds(60)) }
      try await poll { await service.isDraining }
      gate.open()
      #expect(try await accepted.value.state == .completed)
      await end.value
      #expect(try await store.unfinishedTurns().isEmpty)
    }
  }

  @Test(.timeLimit(.minutes(5))) func aMessageThatIsNotAcceptedLeavesItsPlace() async throws {
    let store = FaultyStore()
    let claim = IdempotencyClaim(key: IdempotencyKey(scope: "s", key: "k"), digest: [1])
    try await withService(store: store, configure: { $0.maximumRunningTurns = 1 }) { service in
      let id = try await service.create(NewSession()).session.id
      store.fail(.enqueueTurn, with: .diskFull)
      await #expect(throws: SessionServiceError.diskFull) { try await service.send("Hi", to: id) }
      store.fail(.enqueueTurn, with: nil)
      let turn = try await service.accept("Hi", for: id, idempotency: claim).turn
      #expect(try await service.outcome(of: turn).state == .completed)
      #expect(try await service.accept("Hi", for: id, idempotency: claim).isReplay)
      let other = try await service.create(NewSession()).session.id
      for id in [id, other] {
        #expect(try await service.outcome(of: try await service.send("Hi", to: id)).state == .completed)
      }
    }
  }

  /// The answers of the store may come in another order than its changes.
  @Test(.timeLimit(.minutes(5))) func aChangeIsNotCoveredByTheNoteOfAConversation() async throws {
    let store = FaultyStore()
    try await withService(store: store) { service in
      let id = try await service.create(NewSession()).session.id
      let note = store.holdNext(.updateSession, .after)
      let turn = try await service.send("Hi", to: id)
      try await poll { store.isHeld(.updateSession) }
      var change = SessionChange()
      change.name = "new"
      _ = try await service.update(id, change)
      note.open()
      #expect(try await service.outcome(of: turn).state == .completed)
      let session = try await service.session(id)
      #expect(session.name == "new" && session.hasConversation)
    }
  }

  @Test(.timeLimit(.minutes(5))) func aChangeIsNotCoveredByTheSessionsCreation() async throws {
    let store = FaultyStore()
    let new = NewSession(idempotency: IdempotencyClaim(key: IdempotencyKey(scope: "s", key: "k"), digest: [1]))
    try await withService(store: store) { service in
      let creation = store.holdNext(.createSession, .after)
      let first = Task { try await service.create(new) }
      try await poll { store.isHeld(.createSession) }
      let again = try await service.create(new)
      #expect(again.isReplay)
      var change = SessionChange()
      change.name = "new"
      _ = try await service.update(again.session.id, change)
      creation.open()
      #expect(try await first.value.session.id == again.session.id)
      #expect(try await service.session(again.session.id).name == "new")
    }
  }

  /// The deletion of a large workspace may take long.
  @Test(.timeLimit(.minutes(5))) func theStartDoesNotWaitForDeletions() async throws {
    let store = FaultyStore()
    let session = Session(id: UUID(), name: "s", createdAt: .now(), workspace: "/w")
    _ = try await store.createSession(session)
    _ = try await store.beginDeletion(of: session.id, at: .now())
    let deletion = store.holdNext(.finishDeletion, .before)
    try await withService(store: store) { service in
      try await poll { store.isHeld(.finishDeletion) }
      _ = try await service.create(NewSession())
      deletion.open()
      try await poll { try await store.unfinishedDeletions().isEmpty }
    }
  }

  // MARK: Approvals

  /// A client may decide until the agent is told that nobody did.
  @Test(.timeLimit(.minutes(5))) func anApprovalWhoseEndCantBeStoredIsStillDecided() async throws {
    let store = FaultyStore()
    let answers = PermissionAnswers()
    let runner = ScriptedRunner(
      { _, say in
        await say(CLIMessages.ask("q1"))
        return TurnResult(text: "\(try await answers.answer(to: "q1"))")
      }, answers: answers)
    store.fail(.resolveApproval, with: .diskFull)
    try await withService(runner: runner, store: store, configure: { $0.approvalTimeout = .milliseconds(1) }) {
      service in
      let id = try await service.create(NewSession()).session.id
      let turn = try await service.send("Hi", to: id)
      try await poll { store.failures(of: .resolveApproval) >= 2 }
      #expect(answers["q1"] == nil)
      #expect(try await service.approvals(of: id).items.map(\.state) == [.pending])
      store.fail(.resolveApproval, with: nil)
      _ = try await service.outcome(of: turn)
      #expect(try await service.approvals(of: id).items.map(\.state) == [.expired])
      guard case .deny = answers["q1"] else { return #expect(Bool(false), "it was not denied") }
    }
  }
}

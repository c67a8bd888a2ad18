import Foundation
import JSONSupport
import SQLiteStore
import SessionTestSupport
import Synchronization
import TestSupport
import Testing

@testable import Sessions

/// What the service makes of the limits of keys.
@Suite struct LimitTests {
  /// The keys that there are, with their limits.
  private struct Keys: KeyStore {
    var limits: [String: KeyLimits]

    func lookUpKey(_ id: String?) async throws(SessionStoreError) -> APIKeyLookup {
      let key = id.map { id in
        APIKey(
          id: id, name: id, role: .user, digest: [], createdAt: .now(), limits: limits[id] ?? KeyLimits())
      }
      return APIKeyLookup(key: key, hasKeys: true)
    }

    func keys() async throws(SessionStoreError) -> [APIKey] { [] }
    func addKey(_: APIKey) async throws(SessionStoreError) {}
    func replaceKeyDigest(_: String, with _: [UInt8]) async throws(SessionStoreError) -> APIKey? { nil }
    func setKeyLimits(_: String, to _: KeyLimits) async throws(SessionStoreError) -> APIKey? { nil }
    func setKeyNetwork(_: String, to _: AgentNetwork?) async throws(SessionStoreError) -> APIKey? { nil }
    func revokeKey(_: String, at _: Timestamp) async throws(SessionStoreError) -> Bool { false }
  }

  private static func policy(_ limits: [String: [KeyLimit: Int64]]) -> KeyLimitPolicy {
    KeyLimitPolicy(keys: Keys(limits: limits.mapValues { KeyLimits($0.mapValues { .maximum($0) }) }))
  }

  /// Runs turns until they are let go, by prompt.
  private final class Gates: Sendable {
    private let gates = Mutex<[String: Gate]>([:])

    func gate(_ name: String) -> Gate {
      gates.withLock { gates in
        let gate = gates[name] ?? Gate()
        gates[name] = gate
        return gate
      }
    }

    func runner(cost: Double? = nil) -> ScriptedRunner {
      ScriptedRunner { request, _ in
        try await self.gate(request.turn.prompt).wait()
        return TurnResult(text: "", accounts: TurnAccounts(usage: TokenUsage(inputTokens: 10), costUSD: cost))
      }
    }
  }

  private func send(_ prompt: String, _ owner: String, _ service: SessionService) async throws -> Turn {
    try #require(try await service.create(NewSession(initialPrompt: prompt, owner: owner)).turn)
  }

  private func poll(_ condition: () async throws -> Bool) async throws {
    while try await !condition() { try await Task.sleep(for: .milliseconds(2)) }
  }

  /// What nginx counts beside the CLI ends the turns that run, and what the CLI will tell of itself doesn't count twice.
  @Test(.timeLimit(.minutes(5)), arguments: [KeyLimit.tokensPerDay, .usdPerDay, .usdPerMonth])
  func aTurnEndsWhoseBudgetIsUsedUpBesideTheCLI(_ limit: KeyLimit) async throws {
    let gates = Gates()
    let store = InMemorySessionStore()
    let maximum = limit.isMoney ? KeyLimit.dollar : 100
    try await withService(
      runner: gates.runner(cost: 0.4), store: store, limits: Self.policy(["a": [limit: maximum]]),
      configure: { $0.restInterval = .milliseconds(5) }
    ) { service in
      func pass(_ percent: Int64, _ turn: Turn, _ key: String) async throws {
        let use = limit.isMoney ? ModelUse(tokens: 1, cost: percent * maximum / 100) : ModelUse(tokens: percent)
        try await store.countGateway(
          [GatewayUse(session: turn.sessionID, key: key, use: use)], mark: "m", at: .now())
      }
      try await store.countGateway([], mark: "0", at: .now())
      let bad = try await send("bad", "a", service)
      let other = try await send("other", "b", service)
      try await poll { try await service.standing(of: "a").usage.runningTurns == 1 }
      try await poll { try await service.standing(of: "b").usage.runningTurns == 1 }
      try await pass(99, bad, "a")
      try await pass(1000, other, "b")
      // Some looks later it still runs.
      try await Task.sleep(for: .milliseconds(50))
      #expect(try await service.turn(bad.id, of: bad.sessionID).state == .running)
      try await pass(2, bad, "a")
      let ended = try await service.outcome(of: bad)
      #expect(ended.state == .failed && ended.failure?.code == limit.identifier + "_limit", "\(ended)")
      let usage = try await service.standing(of: "a").usage
      #expect(usage.amount(limit) == 101 * maximum / 100 && usage.pending.isZero)
      #expect(try await service.turn(other.id, of: other.sessionID).state == .running)
      gates.gate("other").open()
      #expect(try await service.outcome(of: other).state == .completed)
    }
  }

  /// The CLI tells of the same as nginx, and ends by itself where its own limit is.
  @Test(.timeLimit(.minutes(5))) func anHonestTurnIsNotEndedByTheBudget() async throws {
    let gates = Gates()
    let store = InMemorySessionStore()
    let limits: [KeyLimit: Int64] = [.tokensPerDay: 25, .usdPerDay: KeyLimit.dollar]
    try await withService(
      runner: gates.runner(cost: 0.45), store: store, limits: Self.policy(["a": limits]),
      configure: { $0.restInterval = .milliseconds(5) }
    ) { service in
      try await store.countGateway([], mark: "0", at: .now())
      for number in 1...2 {
        let turn = try await send("\(number)", "a", service)
        try await poll { try await service.standing(of: "a").usage.runningTurns == 1 }
        let use = ModelUse(tokens: 10, cost: 45 * KeyLimit.dollar / 100)
        try await store.countGateway(
          [GatewayUse(session: turn.sessionID, key: "a", use: use)], mark: "\(number)", at: .now())
        try await Task.sleep(for: .milliseconds(50))
        gates.gate("\(number)").open()
        #expect(try await service.outcome(of: turn).state == .completed)
      }
      let usage = try await service.standing(of: "a").usage
      #expect(usage.tokensToday == 20 && usage.costToday == 90 * KeyLimit.dollar / 100)
      #expect(usage.besideCLI == KeyUsage.BesideCLI())
    }
  }

  @Test func aHundredWaitingTurnsDontDelayAnothersFirst() async throws {
    let gates = Gates()
    let runner = gates.runner()
    try await withService(runner: runner, configure: { $0.maximumRunningTurns = 1 }) { service in
      var turns = [try await send("a0", "a", service)]
      try await poll { runner.prompts == ["a0"] }
      for number in 1...100 { turns.append(try await send("a\(number)", "a", service)) }
      let other = try await send("b", "b", service)
      // They wait, and say where.
      try await poll { await service.position(of: turns[100]) == 100 }
      #expect(try await service.turn(turns[1].id, of: turns[1].sessionID).state == .queued)
      #expect(await service.position(of: turns[1]) == 1)
      #expect(await service.position(of: other) == 1)
      #expect(await service.position(of: turns[0]) == nil)
      let usage = try await service.standing(of: "a").usage
      #expect(usage.runningTurns == 1 && usage.queuedTurns == 100)
      gates.gate("a0").open()
      try await poll { runner.prompts.count == 2 }
      #expect(runner.prompts == ["a0", "b"])
      // One that waits can be taken back, and its place goes on.
      #expect(try await service.cancel(turns[1].id, of: turns[1].sessionID).state == .cancelled)
      gates.gate("b").open()
      #expect(try await service.outcome(of: other).state == .completed)
      try await poll { runner.prompts.count == 3 }
      #expect(runner.prompts.last == "a2")
      // Deleting what waits gives its place up as well.
      try await service.delete(turns[3].sessionID)
      gates.gate("a2").open()
      try await poll { runner.prompts.count == 4 }
      #expect(runner.prompts.last == "a4")
    }
  }

  @Test func turnsThatWaitForAPlaceRunAfterTheNextStart() async throws {
    let gates = Gates()
    let store = InMemorySessionStore()
    let waiting = try await withService(
      runner: gates.runner(), store: store, configure: { $0.maximumRunningTurns = 1 }
    ) { service in
      _ = try await send("first", "a", service)
      return try await send("second", "a", service)
    }
    #expect(try await store.turn(waiting.id).state == .queued)
    gates.gate("second").open()
    try await withService(runner: gates.runner(), store: store) { service in
      let outcome = try await service.outcome(of: waiting)
      #expect(outcome.state == .completed)
    }
  }

  @Test func aKeysRunningTurnsHaveALimit() async throws {
    let gates = Gates()
    let runner = gates.runner()
    try await withService(runner: runner, limits: Self.policy(["a": [.runningTurns: 2], "b": [:]])) { service in
      for number in 0..<4 { _ = try await send("a\(number)", "a", service) }
      for number in 0..<4 { _ = try await send("b\(number)", "b", service) }
      try await poll { runner.prompts.count == 6 }
      #expect(runner.prompts.count { $0.hasPrefix("a") } == 2)
      gates.gate("a1").open()
      try await poll { runner.prompts.contains("a2") }
      #expect(!runner.prompts.contains("a3"))
    }
  }

  @Test func withoutMemoryForMoreTurnsRunOneAfterTheOther() async throws {
    let gates = Gates()
    let runner = gates.runner()
    let hasRoom = Mutex(false)
    try await withService(
      runner: runner,
      configure: { configuration in
        configuration.hasRoom = { hasRoom.withLock { $0 } }
        configuration.roomInterval = .milliseconds(5)
      }
    ) { service in
      let first = try await send("1", "a", service)
      try await poll { runner.prompts == ["1"] }
      _ = try await send("2", "a", service)
      let third = try await send("3", "b", service)
      try await poll { await service.position(of: third) == 1 }
      #expect(runner.prompts == ["1"])
      gates.gate("1").open()
      _ = try await service.outcome(of: first)
      try await poll { runner.prompts.count == 2 }
      hasRoom.withLock { $0 = true }
      try await poll { runner.prompts.count == 3 }
    }
  }

  @Test(arguments: [false, true]) func ofAHundredAtOnceExactlyTenSessionsAreMade(inMemory: Bool) async throws {
    try await withTemporaryDirectory { directory in
      let store: any SessionStore =
        inMemory
        ? InMemorySessionStore()
        : try await SQLiteSessionStore.open(SQLiteStoreConfiguration(path: directory + "/store.sqlite"))
      try await withService(store: store, limits: Self.policy(["a": [.sessions: 10]])) { service in
        let refused = await withTaskGroup(of: SessionServiceError?.self) { group in
          for _ in 0..<100 {
            group.addTask {
              do throws(SessionServiceError) {
                _ = try await service.create(NewSession(owner: "a"))
                return nil
              } catch {
                return error
              }
            }
          }
          return await group.reduce(into: [SessionServiceError]()) { all, error in
            if let error { all.append(error) }
          }
        }
        #expect(refused.count == 90)
        for error in refused {
          guard case .limited(let excess) = error else {
            Issue.record("\(error)")
            continue
          }
          #expect(excess.limit == .sessions && excess.maximum == 10 && excess.used == 10)
        }
        let page = try await service.sessions(SessionQuery(owner: "a"))
        #expect(page.sessions.count == 10)
        // The directories of those that were refused are gone, and a deletion makes room.
        let left = try FileManager.default.contentsOfDirectory(
          atPath: URL(filePath: page.sessions[0].workspace).deletingLastPathComponent().path())
        #expect(left.filter { UUID(uuidString: $0) != nil }.count == 10)
        try await service.delete(page.sessions[0].id)
        _ = try await service.create(NewSession(owner: "a"))
      }
      await store.close()
    }
  }

  @Test func aTurnWhoseKeyHasNothingLeftFailsWhenItsTimeComes() async throws {
    let gates = Gates()
    let limits = Self.policy(["a": [.usdPerDay: KeyLimit.dollar]])
    let asked = Mutex<[Double?]>([])
    let runner = ScriptedRunner { request, _ in
      asked.withLock { $0.append(request.allowanceUSD) }
      try await gates.gate(request.turn.prompt).wait()
      return TurnResult(text: "", accounts: TurnAccounts(costUSD: 1))
    }
    try await withService(runner: runner, limits: limits, configure: { $0.maximumRunningTurns = 1 }) { service in
      let first = try await send("1", "a", service)
      let second = try await send("2", "a", service)
      gates.gate("1").open()
      #expect(try await service.outcome(of: first).state == .completed)
      let refused = try await service.outcome(of: second)
      #expect(refused.state == .failed && refused.failure?.code == "usd_per_day_limit")
      #expect((refused.failure?.retryAfter ?? 0) > 0)
      #expect(asked.withLock { $0 } == [0.5])
      await #expect(throws: SessionServiceError.self) { try await send("3", "a", service) }
      // Another key's turn goes on.
      gates.gate("4").open()
      #expect(try await service.outcome(of: try await send("4", "b", service)).state == .completed)
    }
  }

  @Test func whatAnAgentLeavesRunningEndsWithTheBudget() async throws {
    let store = InMemorySessionStore()
    let limits = Self.policy(["a": [.tokensPerDay: 100], "b": [:]])
    let runner = ScriptedRunner({ _, _ in TurnResult(text: "") }, keepsProcesses: true)
    try await withService(
      runner: runner, store: store, limits: limits, configure: { $0.restInterval = .milliseconds(20) }
    ) { service in
      let turns = [try await send("1", "a", service), try await send("1", "b", service)]
      for turn in turns { _ = try await service.outcome(of: turn) }
      try await store.countGateway(
        zip(turns, ["a", "b"]).map { GatewayUse(session: $0.sessionID, key: $1, use: ModelUse(tokens: 100)) },
        mark: "1", at: .now())
      try await poll { await !runner.hasProcess(turns[0].sessionID) }
      #expect(await runner.hasProcess(turns[1].sessionID))
    }
  }

  @Test func deletingASessionDoesntHideWhatItsTurnUsed() async throws {
    let store = InMemorySessionStore()
    let hasBegun = Gate()
    func hour() -> Int { Int(Date().timeIntervalSince1970) / 3600 }
    let hourOfTheTurn = hour()
    let runner = ScriptedRunner { _, _ in
      hasBegun.open()
      do {
        try await Task.sleep(for: .seconds(60))
      } catch {
        throw TurnRunFailure(
          TurnFailure(code: "interrupted", detail: ""), isInterruption: true,
          accounts: TurnAccounts(usage: TokenUsage(inputTokens: 7), costUSD: 0.5))
      }
      return TurnResult(text: "")
    }
    try await withService(runner: runner, store: store, limits: Self.policy(["a": [:]])) { service in
      let turn = try await send("x", "a", service)
      try await hasBegun.wait()
      try await service.delete(turn.sessionID)
      let usage = try await service.standing(of: "a").usage
      #expect(usage.costToday == KeyLimit.dollar / 2 && usage.tokensToday == 7)
      #expect(usage.turnsThisHour == 1 || hour() != hourOfTheTurn)
      #expect(usage.sessions == 0 && usage.runningTurns == 0)
    }
  }

  @Test func streamsAreCountedAndBounded() async throws {
    let limits = Self.policy(["a": [.streams: 2], "guest": [:], "b": [:]])
    try await withService(limits: limits, configure: { $0.maximumStreams = 4 }) { service in
      var leases = [
        try await service.leaseStream(for: ["a"], over: .webSocket),
        try await service.leaseStream(for: ["a", "guest"], over: .serverSentEvents),
      ]
      await #expect(throws: SessionServiceError.self) {
        try await service.leaseStream(for: ["guest", "a"], over: .webSocket)
      }
      #expect(try await service.standing(of: "a").streams == 2)
      #expect(try await service.standing(of: "guest").streams == 1)
      #expect(service.streams.count(over: .webSocket) == 1)
      #expect(service.streams.count(over: .serverSentEvents) == 1)
      leases.append(try await service.leaseStream(for: ["b"], over: .serverSentEvents))
      leases.append(try await service.leaseStream(for: ["b"], over: .serverSentEvents))
      await #expect(throws: SessionServiceError.streamsExhausted(maximum: 4)) {
        try await service.leaseStream(for: ["b"], over: .serverSentEvents)
      }
      leases.removeFirst(2)
      #expect(service.streams.count == 2 && service.streams.count(of: "a") == 0)
      #expect(service.streams.count(over: .webSocket) == 0)
      #expect(service.streams.count(over: .serverSentEvents) == 2)
      leases.append(try await service.leaseStream(for: ["a"], over: .serverSentEvents))
      #expect(leases.count == 3)
    }
  }
}

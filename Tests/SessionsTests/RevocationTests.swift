import Foundation
import SessionTestSupport
import Sessions
import Synchronization
import TestSupport
import Testing

/// What becomes of the turns of a key that isn't good any more.
@Suite struct RevocationTests {
  private final class Keys: KeyStore {
    private let stored: Mutex<[String: APIKey]>
    private let asked = Atomic(0)

    var lookUps: Int { asked.load(ordering: .relaxed) }

    init(_ ids: String...) {
      stored = Mutex(
        Dictionary(
          uniqueKeysWithValues: ids.map {
            ($0, APIKey(id: $0, name: $0, role: .user, digest: [1], createdAt: .now()))
          }))
    }

    func change(_ id: String, _ body: @Sendable (inout APIKey) -> Void) {
      stored.withLock { stored in
        guard var key = stored[id] else { return }
        body(&key)
        stored[id] = key
      }
    }

    func lookUpKey(_ id: String?) async throws(SessionStoreError) -> APIKeyLookup {
      asked.add(1, ordering: .relaxed)
      return APIKeyLookup(key: id.flatMap { id in stored.withLock { $0[id] } }, hasKeys: true)
    }

    func keys() async throws(SessionStoreError) -> [APIKey] { [] }
    func addKey(_: APIKey) async throws(SessionStoreError) {}
    func replaceKeyDigest(_: String, with _: [UInt8]) async throws(SessionStoreError) -> APIKey? { nil }
    func setKeyLimits(_: String, to _: KeyLimits) async throws(SessionStoreError) -> APIKey? { nil }
    func setKeyNetwork(_: String, to _: AgentNetwork?) async throws(SessionStoreError) -> APIKey? { nil }
    func revokeKey(_: String, at _: Timestamp) async throws(SessionStoreError) -> Bool { false }
  }

  private func poll(_ condition: () async throws -> Bool) async throws {
    while try await !condition() { try await Task.sleep(for: .milliseconds(2)) }
  }

  /// Turns whose prompt is "long" run until they are interrupted or `gate` opens.
  private func runner(_ gate: Gate) -> ScriptedRunner {
    ScriptedRunner { request, say in
      if request.turn.prompt == "long" {
        do { try await gate.wait() } catch {
          throw TurnRunFailure(
            TurnFailure(code: "interrupted", detail: ""), isInterruption: true, partialText: "so far",
            accounts: TurnAccounts(costUSD: 0.5))
        }
      }
      return try await ScriptedRunner.echo(request, say)
    }
  }

  @Test(.timeLimit(.minutes(5)), arguments: ["revoked", "expired"])
  func theTurnsOfAKeyEndWithIt(_ end: String) async throws {
    let keys = Keys("a", "b")
    let gate = Gate()
    let runner = runner(gate)
    try await withService(
      runner: runner, limits: KeyLimitPolicy(keys: keys), configure: { $0.keyInterval = .milliseconds(5) }
    ) { service in
      let id = try await service.create(NewSession(owner: "b")).session.id
      let running = try await service.send("long", to: id, owner: "a")
      let waiting = try await service.send("second", to: id, owner: "a")
      let other = try await service.send("third", to: id, owner: "b")
      try await poll { runner.prompts == ["long"] }
      keys.change("a") { key in
        if end == "revoked" { key.revokedAt = .now() } else { key.expiresAt = .now() }
      }
      let ended = try await service.outcome(of: running)
      #expect(ended.state == .failed && ended.failure?.code == "key_revoked")
      // What was said and spent until then is known.
      #expect(ended.result == "so far" && ended.costUSD == 0.5)
      let refused = try await service.outcome(of: waiting)
      #expect(refused.state == .failed && refused.failure?.code == "key_revoked")
      #expect(try await service.outcome(of: other).result == "Echo: third")
      #expect(runner.prompts == ["long", "third"])
      let types = try await service.events(of: id, after: 0, limit: 100).items.filter { $0.turnID == waiting.id }.map(
        \.type)
      #expect(types == ["user.message", "turn.queued", "session.error", "session.status_idle", "turn.failed"])
    }
  }

  @Test(.timeLimit(.minutes(5))) func whatAnAgentLeavesRunningEndsWithTheKey() async throws {
    let keys = Keys("a", "b")
    let runner = ScriptedRunner(keepsProcesses: true)
    try await withService(
      runner: runner, limits: KeyLimitPolicy(keys: keys), configure: { $0.restInterval = .milliseconds(20) }
    ) { service in
      var sessions: [UUID] = []
      for key in ["a", "b"] {
        let id = try await service.create(NewSession(owner: key)).session.id
        _ = try await service.outcome(of: service.send("Hi", to: id, owner: key))
        sessions.append(id)
      }
      keys.change("a") { $0.revokedAt = .now() }
      try await poll { await !runner.hasProcess(sessions[0]) }
      #expect(await runner.hasProcess(sessions[1]))
    }
  }

  @Test(.timeLimit(.minutes(5))) func theTurnsOfARotatedKeyGoOn() async throws {
    let keys = Keys("a")
    let gate = Gate()
    let runner = runner(gate)
    try await withService(
      runner: runner, limits: KeyLimitPolicy(keys: keys), configure: { $0.keyInterval = .milliseconds(1) }
    ) { service in
      let id = try await service.create(NewSession(owner: "a")).session.id
      let running = try await service.send("long", to: id, owner: "a")
      let waiting = try await service.send("second", to: id, owner: "a")
      try await poll { runner.prompts == ["long"] }
      keys.change("a") { $0.digest = [2] }
      let before = keys.lookUps
      try await poll { keys.lookUps >= before + 3 }
      gate.open()
      #expect(try await service.outcome(of: running).state == .completed)
      #expect(try await service.outcome(of: waiting).state == .completed)
    }
  }
}

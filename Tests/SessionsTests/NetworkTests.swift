import Foundation
import SessionTestSupport
import Sessions
import Synchronization
import TestSupport
import Testing

/// What the agents of a session reach, by the keys that have to do with it.
@Suite struct NetworkTests {
  private struct Keys: KeyStore {
    let networks: [String: AgentNetwork]

    func lookUpKey(_ id: String?) async throws(SessionStoreError) -> APIKeyLookup {
      let key = id.map { APIKey(id: $0, name: $0, role: .user, digest: [], createdAt: .now(), network: networks[$0]) }
      return APIKeyLookup(key: key, hasKeys: true)
    }

    func keys() async throws(SessionStoreError) -> [APIKey] { [] }
    func addKey(_: APIKey) async throws(SessionStoreError) {}
    func replaceKeyDigest(_: String, with _: [UInt8]) async throws(SessionStoreError) -> APIKey? { nil }
    func setKeyLimits(_: String, to _: KeyLimits) async throws(SessionStoreError) -> APIKey? { nil }
    func setKeyNetwork(_: String, to _: AgentNetwork?) async throws(SessionStoreError) -> APIKey? { nil }
    func revokeKey(_: String, at _: Timestamp) async throws(SessionStoreError) -> Bool { false }
  }

  private let policy = KeyLimitPolicy(keys: Keys(networks: ["open": .open, "closed": .modelOnly]))

  @Test(
    arguments: [
      // owner, sender, what the session is held to; what comes of it
      (nil, nil, nil, nil), ("plain", "plain", nil, nil), ("open", "open", nil, AgentNetwork.open),
      ("closed", "closed", nil, .modelOnly), ("closed", "open", nil, .modelOnly), ("open", "closed", nil, .modelOnly),
      ("plain", "closed", nil, .modelOnly), ("plain", "open", nil, nil), ("open", "plain", nil, .open),
      (nil, "open", nil, nil), (nil, "closed", nil, .modelOnly), ("open", "open", .modelOnly, .modelOnly),
      ("plain", "open", .modelOnly, .modelOnly),
    ] as [(String?, String?, AgentNetwork?, AgentNetwork?)])
  func theStricterHoldsAndOnlyTheOwnerOpens(
    _ owner: String?, _ sender: String?, _ bound: AgentNetwork?, _ expected: AgentNetwork?
  ) async throws {
    let session = Session(id: UUID(), name: "s", createdAt: .now(), workspace: "/w", owner: owner, network: bound)
    #expect(try await policy.network(of: session, sender: sender) == expected)
  }

  @Test func aForkIsHeldToWhatItsOriginIs() async throws {
    let seen = Mutex<[AgentNetwork?]>([])
    let runner = ScriptedRunner { request, _ in
      seen.withLock { $0.append(request.network) }
      return TurnResult(text: "")
    }
    try await withService(runner: runner, limits: policy) { service in
      for (owner, forker) in [("closed", "open"), ("open", "open"), ("open", "plain"), ("open", "closed")] {
        let origin = try await service.create(NewSession(owner: owner)).session
        let fork = try await service.fork(origin.id, owner: forker).session
        _ = try await service.outcome(of: try await service.send("x", to: fork.id, owner: forker))
      }
    }
    #expect(seen.withLock { $0 } == [.modelOnly, .open, nil, .modelOnly])
  }
}

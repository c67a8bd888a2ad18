import Foundation
import HTTPTypes
import JSONSupport
import SQLiteStore
import SessionTestSupport
import Sessions
import Synchronization
import TestSupport
import Testing

@testable import ClaudeAPI

/// What is refused for different reasons takes the same way, so that neither the answer nor its time tells them apart.
///
/// Times are measured by scripts/bench-keys; here it is the calls of the stores and the bytes of the answers.
@Suite struct RefusalTests {
  /// The keys of a store, and what was asked of them.
  private final class CountedKeys: KeyStore {
    private let base: any KeyStore
    private let calls = Mutex<[String]>([])

    init(_ base: any KeyStore) { self.base = base }

    func takeCalls() -> [String] {
      calls.withLock { calls in
        defer { calls = [] }
        return calls
      }
    }

    private func counted(_ call: String = #function) -> any KeyStore {
      calls.withLock { $0.append(call) }
      return base
    }

    func lookUpKey(_ id: String?) async throws(SessionStoreError) -> APIKeyLookup { try await counted().lookUpKey(id) }
    func lookUpKnownKey(_ id: String?) -> APIKeyLookup? { counted().lookUpKnownKey(id) }
    func keys() async throws(SessionStoreError) -> [APIKey] { try await counted().keys() }
    func addKey(_ key: APIKey) async throws(SessionStoreError) { try await counted().addKey(key) }
    func replaceKeyDigest(_ id: String, with digest: [UInt8]) async throws(SessionStoreError) -> APIKey? {
      try await counted().replaceKeyDigest(id, with: digest)
    }
    func setKeyLimits(_ id: String, to limits: KeyLimits) async throws(SessionStoreError) -> APIKey? {
      try await counted().setKeyLimits(id, to: limits)
    }
    func setKeyNetwork(_ id: String, to network: AgentNetwork?) async throws(SessionStoreError) -> APIKey? {
      try await counted().setKeyNetwork(id, to: network)
    }
    func revokeKey(_ id: String, at now: Timestamp) async throws(SessionStoreError) -> Bool {
      try await counted().revokeKey(id, at: now)
    }
  }

  /// An answer, and what was asked of the stores for it.
  private struct Trace: Equatable {
    let status: Int
    let headers: HTTPFields
    let text: String
    let calls: [String]
    let keyCalls: [String]
  }

  private struct Fixture {
    let api: KeyedAPI
    let sessions: FaultyStore
    let counted: CountedKeys

    func trace(_ method: HTTPRequest.Method, _ path: String, _ key: String) async throws -> Trace {
      let body: JSONValue? = method == .get || method == .head || method == .delete ? nil : ["prompt": "x"]
      _ = (sessions.takeCalls(), counted.takeCalls())
      let answer = try await api.send(method, path, key: key, body: body)
      return Trace(
        status: answer.status, headers: answer.headers, text: answer.text, calls: sessions.takeCalls(),
        keyCalls: counted.takeCalls())
    }

    /// A session in the store, which the service doesn't have in its memory, and whose directories don't exist.
    func sessionElsewhere(_ owner: KeySecret) async throws -> UUID {
      let id = UUID()
      _ = try await sessions.createSession(
        Session(id: id, name: "secret", createdAt: .now(), workspace: "/nowhere", owner: owner.id))
      return id
    }
  }

  private func withFixture(_ body: (Fixture) async throws -> Void) async throws {
    try await withTemporaryDirectory { directory in
      let store = try await SQLiteSessionStore.open(SQLiteStoreConfiguration(path: directory + "/s/store.sqlite"))
      let sessions = FaultyStore(store)
      try await withService(store: sessions) { service, workspaces in
        let watched = WatchedKeyStore(store, stateDirectory: directory)
        let counted = CountedKeys(watched)
        let api = API(
          service: service, configuration: APIConfiguration(version: "1", model: .demo), keys: counted,
          files: FilesAPI(service: service, workspaces: workspaces))
        // What a service does by itself when it starts.
        var begun: [String] = []
        while !Set(begun).isSuperset(of: ["purgeIdempotencyRecords(at:)", "sessions(_:)"]) {
          begun += sessions.takeCalls()
          await Task.yield()
        }
        try await body(
          Fixture(
            api: KeyedAPI(api: api, responder: api.responder(), store: store, keys: watched), sessions: sessions,
            counted: counted))
      }
      await store.close()
    }
  }

  @Test(arguments: [APIKey.Role.user, .read])
  func anotherTenantsSessionTakesTheWayOfAMissingOne(_ role: APIKey.Role) async throws {
    try await withFixture { fixture in
      let owner = try await fixture.api.key(.user)
      let stranger = try await fixture.api.key(role)
      // One that is bound to a session of its own sees no other either.
      let bound = try await fixture.api.key(role, session: try await fixture.api.newSession(owner))
      let routes = fixture.api.api.routes.entries.filter { $0.path.contains("{session_id}") }
      #expect(routes.count > 25)
      for entry in routes {
        let rest = entry.path.replacing("{path}", with: "x")
          .replacing(#/{(?!session_id)[a-z_]+}/#, with: UUID().lowercaseString)
        func path(_ session: UUID) -> String { rest.replacing("{session_id}", with: session.lowercaseString) }
        for key in [stranger, bound] {
          let foreign = try await fixture.sessionElsewhere(owner)
          let missing = try await fixture.trace(entry.method, path(UUID()), key.text)
          let first = try await fixture.trace(entry.method, path(foreign), key.text)
          // Now it is in the service's memory.
          let again = try await fixture.trace(entry.method, path(foreign), key.text)
          let what = "\(entry.method) \(entry.path)"
          #expect(missing.status == 404 && missing.calls == ["session(_:)"], "\(what): \(missing)")
          #expect(first == missing && again == missing, "\(what)")
          #expect(entry.method == .head || missing.text.contains("\"session_not_found\""), "\(what)")
          // Nothing of it came to be.
          #expect(try await fixture.sessions.lastSequence(of: foreign) == 0, "\(what)")
        }
      }
    }
  }

  @Test func keysThatAreNoGoodTakeTheSameWay() async throws {
    try await withFixture { fixture in
      let good = try await fixture.api.key(.user)
      let session = try await fixture.api.newSession(good)
      let revoked = try await fixture.api.key(.user)
      #expect(try await fixture.api.keys.revokeKey(revoked.id, at: .now()))
      let expired = try await fixture.api.key(.user, expiresAt: .now())
      let keys = [KeySecret(id: good.id), KeySecret(), expired, revoked]
      // Whatever has to be read of the keys is read.
      #expect(try await fixture.trace(.get, "/sessions", good.text).status == 200)
      for path in ["/sessions", "/sessions/\(session.lowercaseString)", "/sessions/\(UUID().lowercaseString)/files/x"] {
        var traces: [Trace] = []
        for key in keys { traces.append(try await fixture.trace(.get, path, key.text)) }
        let first = try #require(traces.first)
        #expect(first.status == 401 && first.calls.isEmpty && first.keyCalls == ["lookUpKey(_:)"], "\(path): \(first)")
        #expect(traces.allSatisfy { $0 == first }, "\(path)")
      }
    }
  }
}

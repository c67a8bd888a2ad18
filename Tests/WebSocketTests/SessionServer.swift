import Foundation
import HTTPTypes
import Hummingbird
import JSONSupport
import Logging
import NIOCore
import SessionTestSupport
import Sessions
import Synchronization
import TestSupport
import WebSockets

@testable import ClaudeAPI
@testable import HummingbirdFastCGI

/// The API with its listener for WebSockets.
struct SessionServer: Sendable {
  let api: API
  let sockets: TestSockets
  let store: InMemorySessionStore
  private let responder: RouterResponder<API.Context>

  var service: SessionService { api.service }
  var hub: EventHub { api.service.hub }

  /// - Parameter hasKeys: whether keys are asked for once there is one.
  static func run(
    runner: any TurnRunner = ScriptedRunner(), hub: EventHub = EventHub(),
    hasKeys: Bool = true, configure: (inout SessionSocketConfiguration) -> Void = { _ in },
    transport: (inout WebSocketServerConfiguration) -> Void = { _ in }, _ body: (SessionServer) async throws -> Void
  ) async throws {
    let store = InMemorySessionStore()
    let keys = Keys()
    try await withService(runner: runner, store: store, hub: hub) { service in
      let api = API(
        service: service, configuration: APIConfiguration(version: "1", model: .demo), keys: hasKeys ? keys : nil)
      var configuration = SessionSocketConfiguration()
      configure(&configuration)
      let revocation = StreamRevocation(
        keys: keys, hub: hub, interval: .milliseconds(5),
        logger: Logger(label: "test") { _ in SwiftLogNoOpLogHandler() }
      )
      let watch = Task { if hasKeys { await revocation.run() } }
      defer { watch.cancel() }
      try await TestSockets.run(api.sockets(configuration), configure: transport) { sockets in
        try await body(
          SessionServer(api: api, sockets: sockets, store: store, responder: api.responder(), keys: keys))
      }
    }
  }

  let keys: Keys

  private init(
    api: API, sockets: TestSockets, store: InMemorySessionStore, responder: RouterResponder<API.Context>, keys: Keys
  ) {
    self.api = api
    self.sockets = sockets
    self.store = store
    self.responder = responder
    self.keys = keys
  }

  func newSession(_ body: JSONValue = [:], key: KeySecret? = nil) async throws -> String {
    try await send(.post, "/sessions", key: key, body: body)["session"]?["id"]?.stringValue ?? ""
  }

  /// Sends a request over HTTP.
  func send(
    _ method: HTTPRequest.Method, _ path: String, key: KeySecret? = nil, headers: HTTPFields = [:],
    body: JSONValue? = nil
  ) async throws -> JSONValue {
    var fields = headers
    if let key { fields[.authorization] = "Bearer \(key.text)" }
    if body != nil { fields[.contentType] = "application/json" }
    let request = Request(
      head: HTTPRequest(method: method, scheme: "http", authority: "localhost", path: path, headerFields: fields),
      body: RequestBody(buffer: ByteBuffer(bytes: body?.encoded() ?? [])))
    let source = FastCGIRequestContextSource(
      logger: Logger(label: "test") { _ in SwiftLogNoOpLogHandler() },
      parameters: CGIParameters([("REMOTE_ADDR", "127.0.0.1")]))
    let response = try await responder.respond(to: request, context: API.Context(source: source))
    let text = BodyText()
    try await response.body.write(text)
    return try JSONValue(parsing: text.text.utf8)
  }

  private final class BodyText: ResponseBodyWriter, Sendable {
    private let stored = Mutex("")
    var text: String { stored.withLock { $0 } }
    func write(_ buffer: ByteBuffer) async throws { stored.withLock { $0 += String(buffer: buffer) } }
    func finish(_: HTTPFields?) async throws {}
  }

  /// Opens a socket and takes nothing from it.
  func open(
    _ session: String, _ query: String = "", key: KeySecret? = nil, headers: [String: String] = [:]
  ) async throws -> SocketClient {
    var headers = headers
    headers["Claude-Api-Remote-Addr"] = headers["Claude-Api-Remote-Addr"] ?? "127.0.0.1"
    if let key { headers["Authorization"] = "Bearer \(key.text)" }
    return SocketClient(try await sockets.open("/sessions/\(session)/ws\(query)", headers: headers))
  }

  /// The status and code with which a socket is refused.
  func refusal(
    _ session: String, _ query: String = "", key: KeySecret? = nil, headers: [String: String] = [:]
  ) async throws -> String {
    do {
      let client = try await open(session, query, key: key, headers: headers)
      return "opened \(client)"
    } catch let refused as RawWebSocket.Refused {
      let code = try JSONValue(parsing: refused.response.body)["code"]?.stringValue ?? "-"
      return "\(refused.response.status) \(code)"
    }
  }

  func key(_ role: APIKey.Role, session: String? = nil) async throws -> KeySecret {
    let secret = KeySecret()
    try await keys.addKey(
      APIKey(
        id: secret.id, name: "test", role: role, sessionID: session.flatMap { UUID(uuidString: $0) },
        digest: secret.digest, createdAt: .now()))
    return secret
  }

  /// Keys in memory.
  final class Keys: KeyStore {
    private let stored = Mutex<[String: APIKey]>([:])

    func lookUpKey(_ id: String?) async throws(SessionStoreError) -> APIKeyLookup {
      stored.withLock { keys in APIKeyLookup(key: id.flatMap { keys[$0] }, hasKeys: !keys.isEmpty) }
    }

    func keys() async throws(SessionStoreError) -> [APIKey] { stored.withLock { Array($0.values) } }

    func addKey(_ key: APIKey) async throws(SessionStoreError) { stored.withLock { $0[key.id] = key } }

    func replaceKeyDigest(_ id: String, with digest: [UInt8]) async throws(SessionStoreError) -> APIKey? {
      stored.withLock { stored in
        stored[id]?.digest = digest
        return stored[id]
      }
    }

    func setKeyLimits(_ id: String, to limits: KeyLimits) async throws(SessionStoreError) -> APIKey? {
      stored.withLock { stored in
        stored[id]?.limits = limits
        return stored[id]
      }
    }

    func setKeyNetwork(_ id: String, to network: AgentNetwork?) async throws(SessionStoreError) -> APIKey? {
      stored.withLock { stored in
        stored[id]?.network = network
        return stored[id]
      }
    }

    func revokeKey(_ id: String, at now: Timestamp) async throws(SessionStoreError) -> Bool {
      stored.withLock { stored in
        stored[id]?.revokedAt = now
        return stored[id] != nil
      }
    }
  }
}

import Foundation
import HTTPTypes
import Hummingbird
import JSONSupport
import Logging
import NIOCore
import SQLiteStore
import SessionTestSupport
import Sessions
import TestSupport
import Testing

@testable import ClaudeAPI
@testable import HummingbirdFastCGI

/// The API with keys and files on a real store, asked without a transport.
struct KeyedAPI: Sendable {
  let api: API
  let responder: RouterResponder<API.Context>
  let store: SQLiteSessionStore
  let keys: WatchedKeyStore

  /// The OpenAPI document.
  var document: JSONValue { OpenAPIDocument(routes: api.routes.entries, version: "1").json }

  func send(
    _ method: HTTPRequest.Method, _ path: String, key: String? = nil, headers: HTTPFields = [:],
    from address: String? = "127.0.0.1", parameters: [(String, String)] = [], body: JSONValue? = nil
  ) async throws -> (status: Int, headers: HTTPFields, text: String) {
    var fields = headers
    if let key { fields[.authorization] = "Bearer \(key)" }
    if body != nil { fields[.contentType] = "application/json" }
    let request = Request(
      head: HTTPRequest(method: method, scheme: "http", authority: "localhost", path: path, headerFields: fields),
      body: RequestBody(buffer: ByteBuffer(bytes: body?.encoded() ?? [])))
    let source = FastCGIRequestContextSource(
      logger: Logger(label: "test") { _ in SwiftLogNoOpLogHandler() },
      parameters: CGIParameters((address.map { [("REMOTE_ADDR", $0)] } ?? []) + parameters))
    let response = try await responder.respond(to: request, context: API.Context(source: source))
    let writer = Text()
    if response.headers[.contentType] != "text/event-stream" { try await response.body.write(writer) }
    return (response.status.code, response.headers, writer.text)
  }

  func stream(_ session: UUID, key: KeySecret?) async throws -> StreamReader {
    var fields: HTTPFields = [.accept: "text/event-stream"]
    if let key { fields[.authorization] = "Bearer \(key.text)" }
    let request = Request(
      head: HTTPRequest(
        method: .get, scheme: "http", authority: "localhost", path: "/sessions/\(session.lowercaseString)/events",
        headerFields: fields),
      body: RequestBody(buffer: ByteBuffer()))
    let source = FastCGIRequestContextSource(
      logger: Logger(label: "test") { _ in SwiftLogNoOpLogHandler() },
      parameters: CGIParameters([("REMOTE_ADDR", "127.0.0.1")]))
    return StreamReader(try await responder.respond(to: request, context: API.Context(source: source)).body)
  }

  func key(
    _ role: APIKey.Role, session: UUID? = nil, expiresAt: Timestamp? = nil
  ) async throws -> KeySecret {
    let secret = KeySecret()
    try await keys.addKey(
      APIKey(
        id: secret.id, name: "test", role: role, sessionID: session, digest: secret.digest, createdAt: .now(),
        expiresAt: expiresAt))
    return secret
  }

  func newSession(_ key: KeySecret?) async throws -> UUID {
    let answer = try await send(.post, "/sessions", key: key?.text, body: [:])
    let id = try JSONValue(parsing: answer.text.utf8)["session"]?["id"]?.stringValue
    return try #require(id.flatMap { UUID(uuidString: $0) }, "\(answer.text)")
  }
}

/// A server that is always well, and that says for whom it has written its metrics.
private struct FixedStatus: ServerStatus {
  func readiness() async -> [ReadinessCheck] { [ReadinessCheck("all")] }
  func metrics(byKey: Bool) async -> String { "byKey=\(byKey)\n" }
  func answered(_: HTTPRequest.Method, _: String?, status: Int, after: Duration) {}
  func reported(problem code: ProblemCode) {}
}

private final class Text: ResponseBodyWriter {
  private(set) var text = ""
  func write(_ buffer: ByteBuffer) async throws { text += String(buffer: buffer) }
  func finish(_: HTTPFields?) async throws {}
}

func withAPI(requiresKeys: Bool = false, _ body: (KeyedAPI) async throws -> Void) async throws {
  try await withTemporaryDirectory { directory in
    let store = try await SQLiteSessionStore.open(SQLiteStoreConfiguration(path: directory + "/s/store.sqlite"))
    try await withService(store: store) { service, workspaces in
      var configuration = APIConfiguration(version: "1", model: .demo)
      configuration.requiresKeys = requiresKeys
      let keys = WatchedKeyStore(store, stateDirectory: directory)
      let api = API(
        service: service, configuration: configuration, keys: keys,
        files: FilesAPI(service: service, workspaces: workspaces), status: FixedStatus())
      try await body(KeyedAPI(api: api, responder: api.responder(), store: store, keys: keys))
    }
    await store.close()
  }
}

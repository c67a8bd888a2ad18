import HTTPTypes
public import Hummingbird
import NIOCore
public import Sessions

#if canImport(FoundationEssentials)
  import FoundationEssentials
#else
  import Foundation
#endif

/// The HTTP API: routes, their bodies and answers.
public struct API: Sendable {
  let service: SessionService
  let configuration: APIConfiguration
  private let files: FilesAPI?
  private let promptRules: PromptRules

  /// - Parameter files: the routes for files, if there are to be any.
  public init(service: SessionService, configuration: APIConfiguration, files: FilesAPI? = nil) {
    self.service = service
    self.configuration = configuration
    self.files = files
    promptRules = PromptRules(maximumBytes: configuration.maximumPromptBytes)
  }

  /// Makes the responder that answers all requests.
  public func responder<Context: APIRequestContext>(_: Context.Type) -> RouterResponder<Context> {
    let router = Router(context: Context.self, options: .autoGenerateHeadEndpoints)
    // The middleware needs the whole table, and the router its middleware before the first route.
    var table = RouteTable()
    addRoutes(to: Router(context: Context.self), &table)
    router.add(middleware: ErrorMiddleware(routes: table))
    var again = RouteTable()
    addRoutes(to: router, &again)
    return router.buildResponder()
  }

  private func addRoutes<Context: APIRequestContext>(to router: Router<Context>, _ routes: inout RouteTable) {
    routes.add(.post, "/sessions", "Create a new session", to: router, createSession)
    routes.add(.get, "/sessions", "List all sessions", to: router, listSessions)
    routes.add(
      .post, "/sessions/{session_id}/messages", "Send message to session", to: router, sendMessage)
    routes.add(.get, "/sessions/{session_id}", "Get session info", to: router, showSession)
    routes.add(.delete, "/sessions/{session_id}", "Delete session", to: router, deleteSession)
    files?.addRoutes(to: router, &routes)
    routes.add(.get, "/healthz", "Whether the server is alive", to: router, health)
    let index = index(routes)
    routes.add(.get, "/", "API info", to: router) { _, _ in Self.json(index) }
  }

  // MARK: The server

  private func index(_ routes: RouteTable) -> ByteBuffer {
    var json = JSONWriter()
    json.object { json in
      json.field("name", "Claude API")
      json.field("version", configuration.version)
      json.field(
        "endpoints",
        object: { json in
          for route in routes.entries { json.member("\(route.method.rawValue) \(route.path)", route.summary) }
        })
      json.field(
        "model",
        object: { json in
          switch configuration.model {
          case .demo:
            json.field("kind", "demo")
            json.field(
              "note",
              "The built-in demo model answers: it repeats what it was sent and understands nothing. Start the server with credentials for a real one."
            )
          case .configured(let host):
            json.field("kind", "configured")
            json.field("host", host)
          }
        })
    }
    return json.finish()
  }

  private func health(_: Request, _: some RequestContext) -> Response {
    var json = JSONWriter()
    json.object { json in
      json.field("status", "ok")
      json.field("version", configuration.version)
    }
    return Self.json(json.finish())
  }

  // MARK: Sessions

  private func createSession(_ request: Request, _ context: some APIRequestContext) async throws -> Response {
    let fields = try await BodyFields(
      request, limit: configuration.maximumBodyBytes, known: ["initial_prompt", "session_name"])
    // An empty text is none, as it always was for these two.
    let name = try fields.string("session_name").flatMap { $0.isEmpty ? nil : $0 }
    if let name {
      guard name.utf8.count <= 1000 else { throw fields.invalid("session_name", "must have at most 1000 bytes") }
      guard !name.unicodeScalars.contains(where: { $0.value < 0x20 || $0.value == 0x7f }) else {
        throw fields.invalid("session_name", "must not hold control characters")
      }
    }
    let prompt = try fields.string("initial_prompt").flatMap { $0.isEmpty ? nil : $0 }
      .map { text throws(Problem) in try promptRules.check(text, field: "initial_prompt", fields) }
    let (session, turn) = try await service.create(NewSession(name: name, initialPrompt: prompt))
    let outcome: Turn? = if let turn { try await service.outcome(of: turn) } else { nil }
    // With the time of its last use as it is now.
    let current = service.cachedSession(session.id) ?? session
    var json = JSONWriter(capacity: 1024)
    json.object { json in
      json.field("session", object: { $0.members(current) })
      json.field("initial_response", outcome?.state == .completed ? outcome?.result ?? "" : nil)
      if let outcome, let failure = outcome.failure {
        json.field("error", failure.detail)
        json.field("error_code", failure.code)
      }
    }
    return Self.json(json.finish())
  }

  private func listSessions(_: Request, _: some RequestContext) async throws -> Response {
    let sessions = try await service.sessions().sessions
    var json = JSONWriter(capacity: 64 + sessions.count * 300)
    json.object { json in
      json.field("sessions", array: sessions) { json, session in json.object { $0.members(session) } }
      json.field("count", Int64(sessions.count))
    }
    return Self.json(json.finish())
  }

  private func showSession(_: Request, _ context: some APIRequestContext) async throws -> Response {
    let id = try Self.sessionID(context)
    let session: Session
    if let cached = service.cachedSession(id) {
      session = cached
    } else {
      session = try await service.session(id)
    }
    var json = JSONWriter()
    json.object { $0.members(session) }
    return Self.json(json.finish())
  }

  private func deleteSession(_: Request, _ context: some APIRequestContext) async throws -> Response {
    let id = try Self.sessionID(context)
    try await service.delete(id)
    var json = JSONWriter()
    json.object { json in
      json.field("message", "Session deleted")
      json.field("session_id", id.lowercaseString)
    }
    return Self.json(json.finish())
  }

  private func sendMessage(_ request: Request, _ context: some APIRequestContext) async throws -> Response {
    let id = try Self.sessionID(context)
    let fields = try await BodyFields(request, limit: configuration.maximumBodyBytes, known: ["prompt"])
    guard let text = try fields.string("prompt") else { throw fields.invalid("prompt", "is missing") }
    let prompt = try promptRules.check(text, field: "prompt", fields)
    let turn = try await service.outcome(of: try await service.send(prompt, to: id))
    if let failure = turn.failure { throw Problem(failure) }
    var json = JSONWriter(capacity: 512 + prompt.utf8.count + (turn.result?.utf8.count ?? 0))
    json.object { json in
      json.field("session_id", id.lowercaseString)
      json.field("prompt", prompt)
      json.field("response", turn.result ?? "")
      json.field("timestamp", (turn.finishedAt ?? .now()).description)
      json.field("turn_id", turn.id.lowercaseString)
    }
    return Self.json(json.finish())
  }

  // MARK: Parts

  /// The id in the path. What is no id in its usual form names no session.
  static func sessionID(_ context: some APIRequestContext) throws(Problem) -> UUID {
    guard let text = context.parameters["session_id"], text.utf8.count == 36, let id = UUID(uuidString: String(text))
    else { throw Problem(SessionServiceError.sessionNotFound) }
    return id
  }

  static func json(_ body: ByteBuffer) -> Response {
    Response(
      status: .ok, headers: [.contentType: "application/json"], body: ResponseBody(byteBuffer: body))
  }
}

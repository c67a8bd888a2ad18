import HTTPTypes
public import Hummingbird
public import HummingbirdFastCGI
import NIOCore
public import Sessions

#if canImport(FoundationEssentials)
  import FoundationEssentials
#else
  import Foundation
#endif

/// The HTTP API: routes, their bodies and answers.
public struct API: Sendable {
  /// One type, so that the whole path of a request is specialised for it.
  public typealias Context = BasicFastCGIRequestContext

  let service: SessionService
  let configuration: APIConfiguration
  let files: FilesAPI?
  let status: (any ServerStatus)?
  let promptRules: PromptRules
  let authenticator: Authenticator?

  /// - Parameters:
  ///   - keys: against which requests are checked. Nil checks nothing, for a server that has seen to it otherwise
  ///     who can reach it.
  ///   - files: the routes for files, if there are to be any.
  ///   - status: counts requests, and is what the routes for operators tell of.
  public init(
    service: SessionService, configuration: APIConfiguration, keys: (any KeyStore)? = nil, files: FilesAPI? = nil,
    status: (any ServerStatus)? = nil
  ) {
    self.service = service
    authenticator = keys.map { Authenticator(keys: $0, service: service, requiresKeys: configuration.requiresKeys) }
    self.configuration = configuration
    self.files = files
    self.status = status
    promptRules = PromptRules(maximumBytes: configuration.maximumPromptBytes)
  }

  /// Makes the responder that answers all requests.
  public func responder(_: Context.Type = Context.self) -> RouterResponder<Context> {
    let router = Router(context: Context.self, options: .autoGenerateHeadEndpoints)
    // The middleware needs the whole table, and the router its middleware before the first route.
    let table = routes
    router.add(middleware: AnnouncedBody.Answers())
    if let status { router.add(middleware: StatusMiddleware(routes: table, status: status)) }
    if let authenticator {
      router.add(
        middleware: AuthenticationMiddleware(routes: table, authenticator: authenticator, status: status))
    }
    router.add(middleware: ErrorMiddleware(routes: table, status: status))
    router.add(middleware: AnnouncedBody.Admission(routes: table, files: files))
    var again = RouteTable()
    addRoutes(
      to: router, &again, Documents(OpenAPIDocument(routes: table.entries, version: configuration.version)))
    return router.buildResponder()
  }

  /// What is asked before the responder.
  public var immediateResponder: ImmediateResponder {
    guard let files else { return { _, _, _ in nil } }
    let immediate = ImmediateFiles(files: files, authenticator: authenticator, status: status)
    return { immediate.answer($0, $1, $2) }
  }

  /// All routes, for what must cover each of them.
  var routes: RouteTable {
    var table = RouteTable()
    addRoutes(
      to: Router(context: Context.self), &table, Documents(OpenAPIDocument(routes: [], version: configuration.version)))
    return table
  }

  private func addRoutes(to router: Router<Context>, _ routes: inout RouteTable, _ documents: Documents) {
    addSessionRoutes(to: router, &routes)
    addTurnRoutes(to: router, &routes)
    addEventRoutes(to: router, &routes)
    addControlRoutes(to: router, &routes)
    addApprovalRoutes(to: router, &routes)
    addWebSocketRoutes(to: router, &routes)
    addUsageRoutes(to: router, &routes)
    files?.addRoutes(to: router, &routes)
    addDocumentationRoutes(to: router, &routes, documents)
    addOperationRoutes(to: router, &routes)
    let index = index(routes)
    routes.add(.get, "/", "API info", for: .information, to: router) { _, _ in
      Self.json(index)
    }
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

  // MARK: Parts

  /// The id in the path. What is no id in its usual form names no session.
  static func sessionID(_ context: some RequestContext) throws(Problem) -> UUID {
    try sessionID(context.parameters["session_id"] ?? "")
  }

  static func sessionID(_ text: some StringProtocol) throws(Problem) -> UUID {
    guard let id = UUID(canonical: text) else { throw Problem(SessionServiceError.sessionNotFound) }
    return id
  }

  static func uuid(_ name: String, _ context: some RequestContext) -> UUID? {
    context.parameters[name[...]].flatMap { UUID(canonical: $0) }
  }

  static func json(_ body: ByteBuffer, status: HTTPResponse.Status = .ok, _ headers: HTTPFields = [:]) -> Response {
    var headers = headers
    headers[.contentType] = "application/json"
    return Response(status: status, headers: headers, body: ResponseBody(byteBuffer: body))
  }
}

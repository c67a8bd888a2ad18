import HTTPTypes
import Hummingbird
import NIOCore

extension API {
  func addOperationRoutes(to router: Router<Context>, _ routes: inout RouteTable) {
    routes.add(.get, "/healthz", "Whether the server is alive", for: .open, to: router, health)
    guard let status else { return }
    routes.add(.get, "/readyz", "Whether the server can do its work", for: .open, to: router) { _, _ in
      return try Self.readiness(await status.readiness())
    }
    routes.add(
      .get, "/metrics", "Metrics in Prometheus' text format", for: .operation, to: router
    ) { _, _ in
      let text = await status.metrics(byKey: Principal.current != nil)
      return Response(
        status: .ok,
        headers: [.contentType: "text/plain; version=0.0.4; charset=utf-8", .cacheControl: "no-store"],
        body: ResponseBody(byteBuffer: ByteBuffer(string: text)))
    }
  }

  private func health(_: Request, _: Context) -> Response {
    var json = JSONWriter()
    json.object { json in
      json.field("status", "ok")
      json.field("version", configuration.version)
    }
    return Self.json(json.finish(), [.cacheControl: "no-store"])
  }

  private static func readiness(_ checks: [ReadinessCheck]) throws(Problem) -> Response {
    let defects = checks.compactMap { check in check.defect.map { "\(check.name): \($0)" } }
    guard defects.isEmpty else {
      var problem = Problem(
        .notReady, "The server can't do its work. \(defects.joined(separator: " "))",
        retryAfter: 5)
      problem.checks = checks
      throw problem
    }
    var json = JSONWriter()
    json.object { json in
      json.field("status", "ready")
      json.field(checks)
    }
    return Self.json(json.finish(), [.cacheControl: "no-store"])
  }
}

extension JSONWriter {
  mutating func field(_ checks: [ReadinessCheck]) {
    field("checks", array: checks) { json, check in
      json.object { json in
        json.field("name", check.name)
        json.field("ok", check.defect == nil)
        if let defect = check.defect { json.field("detail", defect) }
      }
    }
  }
}

/// Counts requests. It is the outermost of the middleware, so that it sees what all others answer.
struct StatusMiddleware: RouterMiddleware {
  typealias Context = API.Context

  let routes: RouteTable
  let status: any ServerStatus

  func handle(
    _ request: Request, context: Context, next: (Request, Context) async throws -> Response
  ) async throws -> Response {
    let start = ContinuousClock.now
    let response = try await next(request, context)
    if AnnouncedBody.isWelcome(response, context) { return response }
    let route = context.endpointPath.flatMap { routes.access(request.method, $0) == nil ? nil : $0 }
    status.answered(request.method, route, status: response.status.code, after: ContinuousClock.now - start)
    return response
  }
}

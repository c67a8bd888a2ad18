import HTTPTypes
import Hummingbird
import HummingbirdFastCGI
import Logging
import Sessions

#if canImport(FoundationEssentials)
  import FoundationEssentials
#else
  import Foundation
#endif

/// Lets a request pass to its route only if its key may use it, and logs who asked for what.
struct AuthenticationMiddleware: RouterMiddleware {
  typealias Context = API.Context

  let routes: RouteTable
  let authenticator: Authenticator
  var status: (any ServerStatus)?

  func handle(
    _ request: Request, context: Context, next: (Request, Context) async throws -> Response
  ) async throws -> Response {
    let access = context.endpointPath.flatMap { routes.access(request.method, $0) }
    if access == .open { return try await next(request, context) }
    let start = ContinuousClock.now
    var principal: Principal?
    let response: Response
    do {
      principal = try await authenticator.principal(
        showing: Authenticator.credentials(request.headers),
        from: context.parametersOfServer["REMOTE_ADDR"], host: request.head.authority,
        isLocal: ClientAddress.isLocal(request.headers, context.parametersOfServer), for: access)
      if let principal {
        try await authenticator.authorize(
          principal, access, session: context.parameters["session_id"].map { String($0) })
      } else if access == .change, PageOrigin.isForeign(request.head) {
        // Without a key it is only the machine that tells one client from others, and whatever a browser shows on it
        // can have that send requests.
        throw Problem(.foreignOrigin, "A page of another site can't change anything here.")
      }
      response = try await Principal.$current.withValue(principal) { try await next(request, context) }
    } catch let problem as Problem {
      status?.reported(problem: problem.code)
      response = problem.response
    }
    if AnnouncedBody.isWelcome(response, context) { return response }
    Self.log(
      response.status, principal, "\(request.method.rawValue) \(context.endpointPath ?? "-")",
      session: context.parameters["session_id"].map { String($0) }, ContinuousClock.now - start, context.logger)
    return response
  }

  /// Writes down an access, without keys and contents.
  ///
  /// - Parameters:
  ///   - route: method and template.
  ///   - session: as it stands in the path.
  static func log(
    _ status: HTTPResponse.Status, _ principal: Principal?, _ route: String, session: String?, _ duration: Duration,
    _ logger: Logger
  ) {
    // Without keys nginx's log says as much. 429 is for those who try many, and 503 for those who don't show one.
    let isWorthIt =
      principal != nil || [.unauthorized, .forbidden, .tooManyRequests, .serviceUnavailable].contains(status)
    logger.log(
      level: isWorthIt ? .info : .debug, "Access",
      metadata: [
        "key": "\(principal?.keyID ?? "-")",
        "route": "\(route)",
        "session": "\(session.flatMap { UUID(canonical: $0) }?.lowercaseString ?? "-")",
        "status": "\(status.code)",
        "ms": "\(Int64(duration / .milliseconds(1)))",
      ])
  }
}

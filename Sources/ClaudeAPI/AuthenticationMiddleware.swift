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
///
/// As long as the store has no key, everything is open to clients on this machine and closed to all others. The
/// first key closes it for those too. Each request is checked against the store, so that a revocation holds at once.
struct AuthenticationMiddleware: RouterMiddleware {
  typealias Context = API.Context

  let routes: RouteTable
  let keys: any KeyStore
  let service: SessionService
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
      principal = try await authenticate(request, access, context)
      if let principal { try await authorize(principal, access, context) }
      response = try await Principal.$current.withValue(principal) { try await next(request, context) }
    } catch let problem as Problem {
      status?.reported(problem: problem.code)
      response = problem.response
    }
    log(response.status, principal, context, request.method, ContinuousClock.now - start)
    return response
  }

  // MARK: Who it is

  /// - Returns: nil if the client needs no key: because there are none, or for what is anybody's on this machine.
  private func authenticate(
    _ request: Request, _ access: RouteTable.Access?, _ context: Context
  ) async throws(Problem) -> Principal? {
    let shown = Self.credentials(request.headers)
    let secret = shown.flatMap { KeySecret($0) }
    let found: APIKeyLookup
    do {
      found = try await keys.lookUpKey(secret?.id)
    } catch {
      throw Problem(SessionServiceError.store(error))
    }
    let isLocal = Self.isLoopback(context.parametersOfServer["REMOTE_ADDR"]) && !Self.isForwarded(request.headers)
    guard found.hasKeys else {
      guard isLocal else {
        throw Problem(
          .forbidden, "no_keys",
          "This server has no keys yet and answers only on its own machine; claude-api-server keys create makes one.")
      }
      return nil
    }
    if access == .operation, shown == nil, isLocal { return nil }
    guard let secret, secret.matches(found.key), let key = found.key, key.isValid(at: .now()) else {
      throw Problem(
        .unauthorized, "unauthorized",
        shown == nil
          ? "A key is needed, as Authorization: Bearer KEY or X-Api-Key: KEY." : "The key is not valid.",
        challenge: shown == nil ? "Bearer" : #"Bearer error="invalid_token""#)
    }
    return Principal(key)
  }

  /// The key that a request shows; one that shows several different ones shows none that could be valid.
  private static func credentials(_ headers: HTTPFields) -> String? {
    var shown = headers[values: .xAPIKey]
    for value in headers[values: .authorization] {
      let parts = value.split(separator: " ", maxSplits: 1)
      shown.append(
        parts.count == 2 && parts[0].lowercased() == "bearer" ? String(parts[1]).trimmingSpaces : "")
    }
    guard let first = shown.first else { return nil }
    return shown.allSatisfy { $0 == first } ? first : ""
  }

  private static func isLoopback(_ address: String?) -> Bool {
    guard let address else { return false }
    return address.hasPrefix("127.") || address == "::1" || address.hasPrefix("::ffff:127.")
  }

  /// Whether another proxy on this machine passes on what came from elsewhere.
  private static func isForwarded(_ headers: HTTPFields) -> Bool {
    headers.contains(.forwarded) || headers.contains(.xForwardedFor) || headers.contains(.via)
  }

  // MARK: What it may

  private func authorize(_ principal: Principal, _ access: RouteTable.Access?, _ context: Context) async throws(Problem)
  {
    // A path or method that doesn't exist is told by what comes next.
    guard let access else { return }
    if access == .operation, principal.role != .admin {
      throw Problem(.forbidden, "admin_key_needed", "This is for administrators' keys.")
    }
    if context.parameters["session_id"] != nil {
      try await checkSession(principal, context)
    } else if principal.sessionID != nil && access != .information {
      throw Problem(.forbidden, "key_of_session", "This key is good for a single session only.")
    }
    if access == .change && principal.role == .read {
      throw Problem(.forbidden, "read_only_key", "This key may only read.")
    }
  }

  private func checkSession(_ principal: Principal, _ context: Context) async throws(Problem) {
    let id = try API.sessionID(context)
    do throws(SessionServiceError) {
      if let session = service.cachedSession(id) {
        if principal.sees(session) { return }
        // Another's session has to take as long as one that doesn't exist, which is looked for in the store.
        _ = try await service.session(UUID())
      }
      guard principal.sees(try await service.session(id)) else { throw SessionServiceError.sessionNotFound }
    } catch {
      throw Problem(error)
    }
  }

  // MARK: The log

  private func log(
    _ status: HTTPResponse.Status, _ principal: Principal?, _ context: Context, _ method: HTTPRequest.Method,
    _ duration: Duration
  ) {
    // Without keys nginx's log says as much.
    let isWorthIt = principal != nil || status == .unauthorized || status == .forbidden
    context.logger.log(
      level: isWorthIt ? .info : .debug, "Access",
      metadata: [
        "key": "\(principal?.keyID ?? "-")",
        "route": "\(method.rawValue) \(context.endpointPath ?? "-")",
        "session":
          "\(context.parameters["session_id"].flatMap { UUID(uuidString: String($0)) }?.lowercaseString ?? "-")",
        "status": "\(status.code)",
        "ms": "\(Int64(duration / .milliseconds(1)))",
      ])
  }
}

extension HTTPField.Name {
  static let xAPIKey = Self("X-Api-Key")!
  static let forwarded = Self("Forwarded")!
  static let xForwardedFor = Self("X-Forwarded-For")!
}

extension String {
  fileprivate var trimmingSpaces: String {
    String(drop { $0 == " " }.reversed().drop { $0 == " " }.reversed())
  }
}

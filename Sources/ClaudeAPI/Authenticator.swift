import HTTPTypes
import Hummingbird
import Sessions

#if canImport(FoundationEssentials)
  import FoundationEssentials
#else
  import Foundation
#endif

/// Who a client is and what it may, for requests and for sockets alike.
///
/// As long as the store has no key, everything is open to clients on this machine and closed to all others. The
/// first key closes it for those too. Every check asks the store, so that a revocation holds at once.
struct Authenticator: Sendable {
  let keys: any KeyStore
  let service: SessionService
  let wrongKeys = WrongKeys()
  /// Whether nobody is answered as long as there are no keys.
  var requiresKeys = false

  // MARK: Who it is

  /// - Parameters:
  ///   - shown: the text that the client shows as its key, if any; see `credentials(_:)`.
  ///   - address: the client's address, from the web server.
  ///   - host: the host that the client asks for.
  ///   - isLocal: whether it is certain that the client is on this machine; see ``ClientAddress``.
  ///   - access: what the client wants to use.
  /// - Returns: nil if the client needs no key: because there are none, or for what is open to this machine.
  func principal(
    showing shown: String?, from address: String?, host: String?, isLocal: @autoclosure () -> Bool,
    for access: RouteTable.Access? = nil
  ) async throws(Problem) -> Principal? {
    let secret = shown.flatMap { KeySecret($0) }
    let found = try await lookUp(secret?.id)
    guard found.hasKeys else {
      guard isOpen(to: host, isLocal: isLocal()) else {
        throw Problem(
          .noKeys,
          requiresKeys
            ? "This server has no keys yet and answers nobody without one; claude-api-server keys create makes one."
            : "This server has no keys yet and answers only on its own machine, as localhost or by an address of "
              + "loopback, and not behind another proxy; "
              + "claude-api-server keys create makes one.")
      }
      return nil
    }
    if access == .operation, shown == nil, isLocal() { return nil }
    let digest = secret?.digest
    if shown != nil, let seconds = wrongKeys.refusal(address, digest) {
      throw Problem(
        .tooManyWrongKeys,
        "Too many wrong keys came from this address; this one was not looked at.", retryAfter: seconds)
    }
    guard let digest, let key = Self.validKey(digest, found) else {
      if shown != nil { wrongKeys.noteWrong(address) }
      throw Problem(
        .unauthorized,
        shown == nil
          ? "A key is needed, as Authorization: Bearer KEY or X-Api-Key: KEY." : "The key is not valid.",
        challenge: shown == nil ? "Bearer" : #"Bearer error="invalid_token""#)
    }
    wrongKeys.note(address, good: digest)
    return Principal(key)
  }

  /// Who a client is that may read what belongs to a session, where that can be told without waiting. Nothing is told of
  /// those who may not, and nothing noted of them: the request is then one for the methods above and below.
  ///
  /// - Returns: nil if it can't be told, or if it is refused.
  func knownReader(
    of session: Session, showing shown: String?, from address: String?, host: String?, isLocal: @autoclosure () -> Bool
  ) -> Reader? {
    let secret = shown.flatMap { KeySecret($0) }
    guard let found = keys.lookUpKnownKey(secret?.id) else { return nil }
    guard found.hasKeys else { return isOpen(to: host, isLocal: isLocal()) ? Reader(principal: nil) : nil }
    guard let digest = secret?.digest, wrongKeys.refusal(address, digest) == nil,
      let key = Self.validKey(digest, found)
    else { return nil }
    let principal = Principal(key)
    guard principal.sees(session) else { return nil }
    wrongKeys.note(address, good: digest)
    return Reader(principal: principal)
  }

  /// Somebody who may read.
  struct Reader {
    /// Nil for a client on this machine, as long as there are no keys.
    let principal: Principal?
  }

  /// Whether a client needs no key, as long as there are none.
  private func isOpen(to host: String?, isLocal: Bool) -> Bool {
    !requiresKeys && isLocal && ClientAddress.isNameOfLoopback(host)
  }

  private static func validKey(_ digest: [UInt8], _ found: APIKeyLookup) -> APIKey? {
    guard KeySecret.matches(digest, found.key), let key = found.key, key.isValid(at: .now()) else { return nil }
    return key
  }

  /// Refuses what was allowed before if it would not be allowed now: the key was revoked, rotated or has expired, or
  /// there was none and now there are keys.
  func confirm(_ principal: Principal?) async throws(Problem) {
    let holds: Bool
    do {
      holds = try await keys.upholds(principal?.key)
    } catch {
      throw Problem(SessionServiceError.store(error))
    }
    guard holds else { throw Self.keyEnded }
  }

  static let keyEnded = Problem(
    .unauthorized, "The key is not valid any more.", challenge: #"Bearer error="invalid_token""#)

  /// Whether there are keys, so that a client without one is refused.
  var needsKey: Bool {
    get async throws(Problem) { try await lookUp(nil).hasKeys }
  }

  private func lookUp(_ id: String?) async throws(Problem) -> APIKeyLookup {
    do {
      return try await keys.lookUpKey(id)
    } catch {
      throw Problem(SessionServiceError.store(error))
    }
  }

  /// The key that a request shows; one that shows several different ones shows none that could be valid.
  static func credentials(_ headers: HTTPFields) -> String? {
    var shown = headers[values: .xAPIKey]
    for value in headers[values: .authorization] {
      let parts = value.split(separator: " ", maxSplits: 1)
      shown.append(
        parts.count == 2 && parts[0].lowercased() == "bearer" ? String(parts[1]).trimmingSpaces : "")
    }
    guard let first = shown.first else { return nil }
    return shown.allSatisfy { $0 == first } ? first : ""
  }

  // MARK: What it may

  /// - Parameters:
  ///   - access: what the route is for; nil for one that doesn't exist, which is told by what comes next.
  ///   - session: the session in the path, as it stands there; nil for a route without one.
  func authorize(
    _ principal: Principal, _ access: RouteTable.Access?, session: String?
  ) async throws(Problem) {
    guard let access else { return }
    if access == .operation, principal.role != .admin {
      throw Problem(.adminOnly, "This is for administrators' keys.")
    }
    if let session {
      try await checkSession(principal, session)
    } else if principal.sessionID != nil && access != .information {
      throw Problem(.keyOfSession, "This key is good for a single session only.")
    }
    if access == .change && principal.role == .read {
      throw Problem(.readOnlyKey, "This key may only read.")
    }
  }

  private func checkSession(_ principal: Principal, _ text: String) async throws(Problem) {
    let id = try API.sessionID(text)
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
}

extension HTTPField.Name {
  static let forwarded = Self("Forwarded")!
  static let xAPIKey = Self("X-Api-Key")!
  static let xForwardedFor = Self("X-Forwarded-For")!
}

extension String {
  fileprivate var trimmingSpaces: String {
    String(drop { $0 == " " }.reversed().drop { $0 == " " }.reversed())
  }
}

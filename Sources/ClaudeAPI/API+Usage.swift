import HTTPTypes
import Hummingbird
import NIOCore
import Sessions

#if canImport(FoundationEssentials)
  import FoundationEssentials
#else
  import Foundation
#endif

extension API {
  func addUsageRoutes(to router: Router<Context>, _ routes: inout RouteTable) {
    routes.add(
      .get, "/usage", "What this key uses and what is left; an admin's ?key= shows another's, or all",
      for: .information,
      to: router, usage)
  }

  private func usage(_ request: Request, _: Context) async throws -> Response {
    let query = try QueryFields(request, known: ["key"])
    let principal = Principal.current
    let own = principal?.keyID ?? ""
    let wanted = try query.text("key")
    // Nothing tells whether another key exists.
    if let principal, let wanted, wanted != own, principal.role != .admin {
      throw Problem(.adminOnly, "This key may see its own use only.")
    }
    await service.bringUseUpToDate()
    var json = JSONWriter(capacity: 2048)
    if wanted == "all" {
      var standings: [(KeyStanding, APIKey?)] = []
      for key in try await allKeys() { standings.append((try await service.standing(of: key.id), key)) }
      let unowned = try await service.standing(of: "")
      if unowned.usage != KeyUsage() { standings.append((unowned, nil)) }
      json.object { json in
        json.field("keys", array: standings) { json, entry in json.object { $0.members(entry.0, entry.1) } }
      }
      return Self.json(json.finish())
    }
    let id = wanted ?? own
    let key = try await allKeys().first { $0.id == id }
    guard key != nil || id.isEmpty else { throw Problem(.keyNotFound, "There is no such key.") }
    await service.bringRoomUpToDate(of: id)
    let standing = try await service.standing(of: id)
    json.object { $0.members(standing, key) }
    return Self.json(json.finish())
  }

  private func allKeys() async throws(Problem) -> [APIKey] {
    do {
      return try await authenticator?.keys.keys() ?? []
    } catch {
      throw Problem(SessionServiceError.store(error))
    }
  }

  // MARK: For other routes

  /// Takes a place for a stream of the client's, which is free again when the lease is gone.
  func leaseStream(of session: UUID, over transport: StreamTransport) async throws -> StreamPlaces.Lease {
    try await service.leaseStream(for: try await streamKeys(of: session), over: transport)
  }

  /// A key of a session is somebody's own way to share it, so its streams are also those of the session's owner.
  private func streamKeys(of session: UUID) async throws -> [String] {
    let principal = Principal.current
    let isBound = principal?.sessionID != nil
    return KeyLimitPolicy.keys(
      owner: isBound ? try await service.session(session).owner : nil, sender: principal?.keyID)
  }

  /// The key that is to own a copy of a session: who asks for it, but for a key of that session its owner, since the
  /// key would not see what it made.
  func owner(ofForkOf session: UUID) async throws -> String? {
    guard let principal = Principal.current else { return nil }
    return principal.sessionID == nil ? principal.keyID : try await service.session(session).owner
  }

  /// Adds how many messages the key may still send, if there is a limit.
  func addRateLimit(to headers: inout HTTPFields) async throws {
    let key = Principal.current?.keyID ?? ""
    guard let maximum = try await service.limits(of: key)[.turnsPerHour] else { return }
    let standing = try await service.standing(of: key)
    headers.merge(
      LimitExcess(.turnsPerHour, maximum: maximum, used: standing.usage.turnsThisHour, at: standing.at),
      at: standing.at)
  }
}

extension HTTPFields {
  /// Adds the fields of draft-ietf-httpapi-ratelimit-headers-10 for a limit, if it is one that they can express: what
  /// counts in requests.
  mutating func merge(_ limit: LimitExcess, at now: Timestamp) {
    let left = Swift.max(0, limit.maximum - limit.used)
    let name = limit.limit.rawValue
    switch limit.limit {
    case .turnsPerHour:
      self[.rateLimitPolicy] = "\"\(name)\";q=\(limit.maximum);w=3600"
      self[.rateLimit] = "\"\(name)\";r=\(left);t=\(limit.retryAfter(now) ?? 0)"
    case .streams, .queuedTurns:
      self[.rateLimitPolicy] = "\"\(name)\";q=\(limit.maximum);qu=\"concurrent-requests\""
      self[.rateLimit] = "\"\(name)\";r=\(left)"
    case .sessions, .runningTurns, .tokensPerDay, .usdPerDay, .usdPerMonth, .diskBytes: break
    }
  }
}

extension HTTPField.Name {
  static let rateLimit = Self("RateLimit")!
  static let rateLimitPolicy = Self("RateLimit-Policy")!
}

extension JSONWriter {
  fileprivate mutating func members(_ standing: KeyStanding, _ key: APIKey?) {
    field("key", key?.id)
    field("name", key?.name)
    field("role", key?.role.rawValue)
    field("network", key?.network?.rawValue)
    field("at", standing.at.description)
    field(
      "limits",
      object: { json in
        for limit in KeyLimit.allCases {
          json.member(
            limit.identifier,
            object: { json in
              let maximum = standing.account.limits[limit]
              let used = standing.used(limit)
              let reserved = limit.isMoney ? standing.usage.reserved : 0
              json.amount("maximum", maximum, limit)
              json.amount("used", used, limit)
              if limit.isMoney { json.amount("reserved", reserved, limit) }
              if let beside = standing.usage.amountBesideCLI(limit) { json.amount("beside_cli", beside, limit) }
              json.amount("left", maximum.map { max(0, $0 - used - reserved) }, limit)
              if let period = limit.period { json.field("resets_at", period.end(standing.at).description) }
            })
        }
      })
  }

  fileprivate mutating func amount(_ name: StaticString, _ amount: Int64?, _ limit: KeyLimit) {
    field(name, json: amount.map { limit.text($0) })
  }

  /// A limit that was reached.
  mutating func members(_ excess: LimitExcess) {
    field("name", excess.limit.identifier)
    amount("maximum", excess.maximum, excess.limit)
    amount("used", excess.used, excess.limit)
    field("resets_at", excess.resetsAt?.description)
  }
}

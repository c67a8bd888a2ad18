#if canImport(FoundationEssentials)
  public import FoundationEssentials
#else
  public import Foundation
#endif

/// What a client's `Idempotency-Key` is unique within.
public struct IdempotencyKey: Hashable, Sendable {
  /// Id of the API key; nil when the server runs without keys.
  public let owner: String?
  /// Method and route, for example `POST /sessions`.
  public let scope: String
  /// The header's value.
  public let key: String

  public init(owner: String? = nil, scope: String, key: String) {
    self.owner = owner
    self.scope = scope
    self.key = key
  }
}

/// A request's wish to be run at most once.
public struct IdempotencyClaim: Hashable, Sendable {
  public let key: IdempotencyKey
  /// Digest of the request, by which a repetition is told from another request with the same key.
  public let digest: [UInt8]

  public init(key: IdempotencyKey, digest: [UInt8]) {
    self.key = key
    self.digest = digest
  }
}

/// What became of the first request with a key.
public struct IdempotencyRecord: Hashable, Sendable {
  /// How long a record answers repetitions: 24 hours.
  public static let lifetime = Duration.seconds(24 * 60 * 60)

  public let key: IdempotencyKey
  public let digest: [UInt8]
  public let sessionID: UUID
  public let turnID: UUID?
  public let createdAt: Timestamp

  public init(
    key: IdempotencyKey, digest: [UInt8], sessionID: UUID, turnID: UUID?, createdAt: Timestamp
  ) {
    self.key = key
    self.digest = digest
    self.sessionID = sessionID
    self.turnID = turnID
    self.createdAt = createdAt
  }

  /// Whether the record no longer answers a request that arrives at `now`.
  public func isExpired(at now: Timestamp) -> Bool {
    createdAt.advanced(by: Self.lifetime) <= now
  }
}

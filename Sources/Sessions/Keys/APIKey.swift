#if canImport(FoundationEssentials)
  public import FoundationEssentials
#else
  public import Foundation
#endif

/// What of the network agents reach.
public enum AgentNetwork: String, Sendable, Hashable, CaseIterable {
  /// All that the server's machine reaches, itself included.
  case open
  /// The model's API and nothing else.
  case modelOnly = "model-only"
}

/// A key of the API as the store knows it: without its secret.
public struct APIKey: Hashable, Sendable, Identifiable {
  /// What a key may do.
  public enum Role: String, Sendable, Hashable, CaseIterable, Codable {
    /// Everything, with all sessions.
    case admin
    /// Everything with its own sessions.
    case user
    /// Reading its own sessions.
    case read
  }

  /// Part of the key's text; also the owner of its sessions. It is no secret.
  public let id: String
  public var name: String
  public let role: Role
  /// The one session that the key is good for, whoever owns it; nil for no such bound.
  public let sessionID: UUID?
  /// SHA-256 of the key's text.
  public var digest: [UInt8]
  public let createdAt: Timestamp
  public var expiresAt: Timestamp?
  public var revokedAt: Timestamp?
  /// What it may use; the server decides about the rest.
  public var limits: KeyLimits
  /// What the agents of its sessions reach; nil leaves it to the server. See ``KeyLimitPolicy/network(of:sender:)``.
  public var network: AgentNetwork?

  public init(
    id: String, name: String, role: Role, sessionID: UUID? = nil, digest: [UInt8], createdAt: Timestamp,
    expiresAt: Timestamp? = nil, revokedAt: Timestamp? = nil, limits: KeyLimits = KeyLimits(),
    network: AgentNetwork? = nil
  ) {
    self.id = id
    self.name = name
    self.role = role
    self.sessionID = sessionID
    self.digest = digest
    self.createdAt = createdAt
    self.expiresAt = expiresAt
    self.revokedAt = revokedAt
    self.limits = limits
    self.network = network
  }

  /// Whether the key is good at `now`.
  public func isValid(at now: Timestamp) -> Bool {
    revokedAt == nil && expiresAt.map { now < $0 } ?? true
  }
}

/// What is known of a key that a request shows.
public struct APIKeyLookup: Hashable, Sendable {
  /// Nil if there is no such key.
  public let key: APIKey?
  /// Whether the store has any key at all, be it revoked.
  public let hasKeys: Bool

  public init(key: APIKey?, hasKeys: Bool) {
    self.key = key
    self.hasKeys = hasKeys
  }
}

/// Where keys are kept. A change holds for the next look-up, also when another process made it.
public protocol KeyStore: Sendable {
  /// Finds the key of an id; nil asks only whether there are keys.
  func lookUpKey(_ id: String?) async throws(SessionStoreError) -> APIKeyLookup
  /// What `lookUpKey` would find, if it is known without waiting for anything; else nil.
  func lookUpKnownKey(_ id: String?) -> APIKeyLookup?
  /// All keys in the order of their creation, revoked ones included.
  func keys() async throws(SessionStoreError) -> [APIKey]
  /// - Throws: `alreadyExists` for an id that was used before.
  func addKey(_ key: APIKey) async throws(SessionStoreError)
  /// Gives a key another secret, unless it is revoked.
  ///
  /// - Returns: the key as it is now; nil if there is none, or it is revoked.
  func replaceKeyDigest(_ id: String, with digest: [UInt8]) async throws(SessionStoreError) -> APIKey?
  /// Changes what a key may use.
  ///
  /// - Returns: the key as it is now; nil if there is none, or it is revoked.
  func setKeyLimits(_ id: String, to limits: KeyLimits) async throws(SessionStoreError) -> APIKey?
  /// Changes what the agents of a key's sessions reach; nil leaves it to the server.
  ///
  /// - Returns: the key as it is now; nil if there is none, or it is revoked.
  func setKeyNetwork(_ id: String, to network: AgentNetwork?) async throws(SessionStoreError) -> APIKey?
  /// - Returns: false if there is no such key. One that is revoked already stays as it is.
  func revokeKey(_ id: String, at now: Timestamp) async throws(SessionStoreError) -> Bool
}

extension KeyStore {
  public func lookUpKnownKey(_ id: String?) -> APIKeyLookup? { nil }
}

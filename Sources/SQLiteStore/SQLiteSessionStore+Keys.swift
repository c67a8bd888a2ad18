internal import Foundation
internal import GRDB
public import Sessions

extension SQLiteSessionStore: KeyStore {
  public func lookUpKey(_ id: String?) async throws(SessionStoreError) -> APIKeyLookup {
    try await reader.perform { database in
      if let id, let key = try database.key(id) { return APIKeyLookup(key: key, hasKeys: true) }
      let hasKeys = try database.first("SELECT 1 FROM api_keys LIMIT 1", []) { _ in true } ?? false
      return APIKeyLookup(key: nil, hasKeys: hasKeys)
    }
  }

  public func keys() async throws(SessionStoreError) -> [APIKey] {
    try await scanner.perform { database in
      try database.all("SELECT \(APIKey.columns) FROM api_keys ORDER BY created_at, id") { try APIKey($0) }
    }
  }

  public func addKey(_ key: APIKey) async throws(SessionStoreError) {
    try await writer.perform(.power) { database in
      guard try database.key(key.id) == nil else { throw SessionStoreError.alreadyExists("Key \(key.id)") }
      try database.run(
        """
        INSERT INTO api_keys (\(APIKey.columns))
        VALUES (CAST(? AS TEXT), CAST(? AS TEXT), ?, ?, ?, ?, ?, ?, ?, ?)
        """,
        [
          freeText(key.id), freeText(key.name), key.role.rawValue, key.sessionID, Data(key.digest),
          key.createdAt.microseconds, key.expiresAt?.microseconds, key.revokedAt?.microseconds, key.limits.stored,
          key.network?.rawValue,
        ])
    }
  }

  public func replaceKeyDigest(_ id: String, with digest: [UInt8]) async throws(SessionStoreError) -> APIKey? {
    try await writer.perform(.power) { database in
      try database.run(
        "UPDATE api_keys SET digest = ? WHERE id = CAST(? AS TEXT) AND revoked_at IS NULL",
        [Data(digest), freeText(id)])
      return try database.key(id).flatMap { $0.revokedAt == nil ? $0 : nil }
    }
  }

  public func setKeyLimits(_ id: String, to limits: KeyLimits) async throws(SessionStoreError) -> APIKey? {
    try await writer.perform(.power) { database in
      try database.run(
        "UPDATE api_keys SET limits = ? WHERE id = CAST(? AS TEXT) AND revoked_at IS NULL",
        [limits.stored, freeText(id)])
      return try database.key(id).flatMap { $0.revokedAt == nil ? $0 : nil }
    }
  }

  public func setKeyNetwork(_ id: String, to network: AgentNetwork?) async throws(SessionStoreError) -> APIKey? {
    try await writer.perform(.power) { database in
      try database.run(
        "UPDATE api_keys SET network = ? WHERE id = CAST(? AS TEXT) AND revoked_at IS NULL",
        [network?.rawValue, freeText(id)])
      return try database.key(id).flatMap { $0.revokedAt == nil ? $0 : nil }
    }
  }

  public func revokeKey(_ id: String, at now: Timestamp) async throws(SessionStoreError) -> Bool {
    try await writer.perform(.power) { database in
      try database.run(
        "UPDATE api_keys SET revoked_at = ? WHERE id = CAST(? AS TEXT) AND revoked_at IS NULL",
        [now.microseconds, freeText(id)])
      return try database.key(id) != nil
    }
  }
}

extension Database {
  fileprivate func key(_ id: String) throws -> APIKey? {
    try first(
      "SELECT \(APIKey.columns) FROM api_keys WHERE id = CAST(? AS TEXT)", [freeText(id)]
    ) { try APIKey($0) }
  }
}

extension APIKey {
  fileprivate static let columns =
    "id, name, role, session_id, digest, created_at, expires_at, revoked_at, limits, network"

  fileprivate init(_ row: Row) throws {
    guard let limits = KeyLimits(stored: try row.string(8)) else { throw InvalidColumn() }
    self.init(
      id: try row.freeText(0), name: try row.freeText(1), role: try row.state(2), sessionID: try row.uuidOrNil(3),
      digest: try row.withUnsafeData(atIndex: 4) { Array($0 ?? Data()) }, createdAt: try row.timestamp(5),
      expiresAt: try row.timestampOrNil(6), revokedAt: try row.timestampOrNil(7), limits: limits,
      network: try row.stateOrNil(9))
  }
}

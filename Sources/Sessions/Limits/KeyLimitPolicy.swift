/// Which limits hold for a key: its own, and for what they leave open those of the server.
public struct KeyLimitPolicy: Sendable {
  private let keys: (any KeyStore)?
  private let defaults: KeyLimits
  private let withoutKey: KeyLimits

  /// - Parameters:
  ///   - keys: where keys have their own limits; nil if there are none.
  ///   - defaults: for every key.
  ///   - withoutKey: for the use without keys, all of which counts as that of one.
  public init(keys: (any KeyStore)? = nil, defaults: KeyLimits = KeyLimits(), withoutKey: KeyLimits? = nil) {
    self.keys = keys
    self.defaults = defaults
    self.withoutKey = withoutKey ?? defaults
  }

  /// - Parameter key: the id of a key; empty for use without one.
  public func account(_ key: String) async throws(SessionStoreError) -> KeyAccount {
    if key.isEmpty { return KeyAccount(key: key, limits: withoutKey) }
    let own = try await keys?.lookUpKey(key).key?.limits ?? KeyLimits()
    return KeyAccount(key: key, limits: own.over(defaults))
  }

  /// The accounts that something in a session counts for: that of the key that owns the session, and that of the key
  /// that asks for it if it is another one.
  public func accounts(owner: String?, sender: String?) async throws(SessionStoreError) -> [KeyAccount] {
    var accounts: [KeyAccount] = []
    for key in Self.keys(owner: owner, sender: sender) { accounts.append(try await account(key)) }
    return accounts
  }

  /// Whether what a key has sent may run: the key is neither revoked nor expired. A new secret doesn't matter.
  ///
  /// - Parameter sender: the id of a key; nil for what was sent without one.
  public func upholds(sender: String?) async throws(SessionStoreError) -> Bool {
    guard let sender, let keys else { return true }
    return try await keys.lookUpKey(sender).key?.isValid(at: .now()) ?? false
  }

  /// What the agents of a session reach.
  ///
  /// They are held to the model's API if the session is, or the key that owns it, or the one that sends the message;
  /// what opens the network is the owner's key alone.
  ///
  /// - Parameter sender: the key that sends the message.
  /// - Returns: nil if it is left to the server.
  public func network(of session: Session, sender: String?) async throws(SessionStoreError) -> AgentNetwork? {
    let owning = try await network(of: session.owner)
    let asking = sender == session.owner ? owning : try await network(of: sender)
    return [session.network, owning, asking].contains(.modelOnly) ? .modelOnly : owning
  }

  private func network(of key: String?) async throws(SessionStoreError) -> AgentNetwork? {
    guard let key else { return nil }
    return try await keys?.lookUpKey(key).key?.network
  }

  /// The keys that something in a session counts for.
  public static func keys(owner: String?, sender: String?) -> [String] {
    guard let owner else { return [sender ?? ""] }
    guard let sender, sender != owner else { return [owner] }
    return [owner, sender]
  }
}

import Sessions

#if canImport(FoundationEssentials)
  import FoundationEssentials
#else
  import Foundation
#endif

/// Whose request it is that the current task answers.
struct Principal: Sendable, Equatable {
  /// The key as it was when it was shown.
  let key: APIKey

  /// Nil where the server runs without keys: then everything is everybody's.
  @TaskLocal static var current: Principal?

  init(_ key: APIKey) {
    self.key = key
  }

  var keyID: String { key.id }
  var role: APIKey.Role { key.role }
  /// The only session that the key is good for.
  var sessionID: UUID? { key.sessionID }

  /// Whether the session exists for this key. What doesn't is answered exactly as if it weren't there at all.
  func sees(_ session: Session) -> Bool {
    if let sessionID { return session.id == sessionID }
    return role == .admin || session.owner == keyID
  }

  /// The owner to whose sessions lists are restricted.
  var listedOwner: String? { role == .admin ? nil : keyID }
}

#if canImport(FoundationEssentials)
  public import FoundationEssentials
#else
  public import Foundation
#endif

/// One conversation: what is known of it outside the CLI.
public struct Session: Hashable, Sendable, Identifiable {
  /// Also the session id that the CLI is given.
  public let id: UUID
  public var name: String
  public let createdAt: Timestamp
  /// When the latest message was accepted or the latest turn ended.
  public var lastUsed: Timestamp
  /// Absolute path of the directory in which the CLI works.
  public let workspace: String
  /// Id of the API key that made the session; nil when the server runs without keys.
  public let owner: String?
  /// The session that this one was forked from. That session may be gone.
  public let parentID: UUID?
  /// The options given at creation or by a later change, an object.
  public var options: JSONText
  /// The client's own data, an object.
  public var metadata: JSONText
  /// Whether the CLI has a transcript of this session, so that it must be resumed and not begun.
  public var hasConversation: Bool
  /// What its agents reach, whatever the key that owns it says; nil leaves it to that key. A fork takes over what its
  /// origin was held to. See ``KeyLimitPolicy/network(of:sender:)``.
  public let network: AgentNetwork?
  /// When its deletion began. A session with this set is visible only to `unfinishedDeletions`.
  public let deletedAt: Timestamp?

  public init(
    id: UUID, name: String, createdAt: Timestamp, lastUsed: Timestamp? = nil, workspace: String,
    owner: String? = nil, parentID: UUID? = nil, options: JSONText = "{}", metadata: JSONText = "{}",
    hasConversation: Bool = false, network: AgentNetwork? = nil, deletedAt: Timestamp? = nil
  ) {
    self.id = id
    self.name = name
    self.createdAt = createdAt
    self.lastUsed = lastUsed ?? createdAt
    self.workspace = workspace
    self.owner = owner
    self.parentID = parentID
    self.options = options
    self.metadata = metadata
    self.hasConversation = hasConversation
    self.network = network
    self.deletedAt = deletedAt
  }
}

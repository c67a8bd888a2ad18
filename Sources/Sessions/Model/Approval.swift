#if canImport(FoundationEssentials)
  public import FoundationEssentials
#else
  public import Foundation
#endif

/// A tool call that waits, or waited, for a client's decision.
public struct Approval: Hashable, Sendable, Identifiable {
  public let id: UUID
  public let sessionID: UUID
  public let turnID: UUID
  public let toolName: String
  /// The model's id of the tool call.
  public let toolUseID: String
  /// What the model wants to call the tool with, an object.
  public let input: JSONText
  /// The CLI's id of the question, which its answer must carry.
  public let cliRequestID: String
  public let createdAt: Timestamp
  /// When it turns into a denial by itself.
  public let expiresAt: Timestamp
  public var state: State
  public var resolvedAt: Timestamp?
  /// What the client says to the model, mostly with a denial.
  public var message: String?
  /// The input to use in place of `input`, an object.
  public var updatedInput: JSONText?
  /// Whether the decision holds for later calls of the same kind in this session.
  public var remember: Bool

  public enum State: String, Codable, Hashable, Sendable, CaseIterable {
    case pending
    case allowed
    case denied
    /// Nobody decided in time; the tool call was denied.
    case expired
    /// The turn ended, or the server stopped, before anybody decided.
    case void
  }

  public init(
    id: UUID, sessionID: UUID, turnID: UUID, toolName: String, toolUseID: String, input: JSONText,
    cliRequestID: String, createdAt: Timestamp, expiresAt: Timestamp, state: State = .pending,
    resolvedAt: Timestamp? = nil, message: String? = nil, updatedInput: JSONText? = nil,
    remember: Bool = false
  ) {
    self.id = id
    self.sessionID = sessionID
    self.turnID = turnID
    self.toolName = toolName
    self.toolUseID = toolUseID
    self.input = input
    self.cliRequestID = cliRequestID
    self.createdAt = createdAt
    self.expiresAt = expiresAt
    self.state = state
    self.resolvedAt = resolvedAt
    self.message = message
    self.updatedInput = updatedInput
    self.remember = remember
  }
}

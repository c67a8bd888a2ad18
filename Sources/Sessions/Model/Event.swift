#if canImport(FoundationEssentials)
  public import FoundationEssentials
#else
  public import Foundation
#endif

/// An entry of a session's log. It never changes and goes only together with its session.
public struct Event: Hashable, Sendable {
  public let sessionID: UUID
  /// 1, 2, … within the session, without a gap.
  public let sequence: Int64
  /// A dotted word such as `agent.message`.
  public let type: String
  /// The turn it belongs to, if it belongs to one.
  public let turnID: UUID?
  public let processedAt: Timestamp
  /// An object.
  public let payload: JSONText

  public init(
    sessionID: UUID, sequence: Int64, type: String, turnID: UUID? = nil, processedAt: Timestamp,
    payload: JSONText
  ) {
    self.sessionID = sessionID
    self.sequence = sequence
    self.type = type
    self.turnID = turnID
    self.processedAt = processedAt
    self.payload = payload
  }
}

/// An event that has no number yet.
public struct NewEvent: Hashable, Sendable {
  public var type: String
  public var turnID: UUID?
  public var processedAt: Timestamp
  /// An object.
  public var payload: JSONText

  public init(type: String, turnID: UUID? = nil, processedAt: Timestamp, payload: JSONText = "{}") {
    self.type = type
    self.turnID = turnID
    self.processedAt = processedAt
    self.payload = payload
  }
}

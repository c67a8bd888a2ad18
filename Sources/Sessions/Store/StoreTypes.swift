#if canImport(FoundationEssentials)
  public import FoundationEssentials
#else
  public import Foundation
#endif

/// A message to accept. The store gives it its number.
public struct NewTurn: Hashable, Sendable {
  public var id: UUID
  public var sessionID: UUID
  public var prompt: String
  /// Options for this message alone, an object.
  public var options: JSONText
  public var owner: String?
  public var createdAt: Timestamp

  public init(
    id: UUID = UUID(), sessionID: UUID, prompt: String, options: JSONText = "{}", owner: String? = nil,
    createdAt: Timestamp
  ) {
    self.id = id
    self.sessionID = sessionID
    self.prompt = prompt
    self.options = options
    self.owner = owner
    self.createdAt = createdAt
  }
}

/// What became of a request to create a session.
public enum SessionAdmission: Hashable, Sendable {
  case created(Session, firstTurn: Turn?, events: [Event])
  /// The same request came before: the session and first turn of that time, as they are now.
  case replayed(Session, firstTurn: Turn?)
  /// The same request came before, and its session has been deleted since.
  case replayedButDeleted(sessionID: UUID)
  /// Another request came before with the same idempotency key.
  case mismatch
}

/// What became of a request to accept a message.
public enum TurnAdmission: Hashable, Sendable {
  case created(Turn, events: [Event])
  /// Created, and runs already.
  case started(TurnChange)
  /// The same request came before: its turn as it is now.
  case replayed(Turn)
  /// Another request came before with the same idempotency key.
  case mismatch
  /// So many turns of the session are unfinished already, the running one included.
  case queueFull(unfinished: Int)
}

/// Which sessions to list, and from where.
public struct SessionQuery: Hashable, Sendable {
  /// Continue after this place; nil for the beginning.
  public var after: SessionCursor?
  /// At most so many; nil for all.
  public var limit: Int?
  /// Only sessions whose name contains this text, ignoring the case of ASCII letters.
  public var nameContains: String?
  public var activity: SessionActivity?
  /// Only sessions of this API key. Nil for all sessions, whoever owns them.
  public var owner: String?

  public init(
    after: SessionCursor? = nil, limit: Int? = nil, nameContains: String? = nil,
    activity: SessionActivity? = nil, owner: String? = nil
  ) {
    self.after = after
    self.limit = limit
    self.nameContains = nameContains
    self.activity = activity
    self.owner = owner
  }
}

/// Whether a session has anything to do.
public enum SessionActivity: String, Codable, Hashable, Sendable, CaseIterable {
  /// No unfinished turn.
  case idle
  /// A turn is running or queued.
  case running
}

/// A place in the list of all sessions. It stays valid when sessions come and go.
public struct SessionCursor: Hashable, Sendable, RawRepresentable, LosslessStringConvertible {
  public let rawValue: Int64

  public init(rawValue: Int64) {
    self.rawValue = rawValue
  }

  public init?(_ description: String) {
    guard let value = Int64(description), value >= 0 else { return nil }
    rawValue = value
  }

  public var description: String { String(rawValue) }
}

/// A part of the list of sessions, in the order of their creation.
public struct SessionPage: Hashable, Sendable {
  public let sessions: [Session]
  /// Where the list goes on; nil at its end.
  public let next: SessionCursor?

  public init(sessions: [Session], next: SessionCursor?) {
    self.sessions = sessions
    self.next = next
  }
}

/// Changes to a session. What is nil stays as it is.
public struct SessionUpdate: Hashable, Sendable {
  public var name: String?
  public var lastUsed: Timestamp?
  public var options: JSONText?
  public var metadata: JSONText?
  public var hasConversation: Bool?

  public init(
    name: String? = nil, lastUsed: Timestamp? = nil, options: JSONText? = nil, metadata: JSONText? = nil,
    hasConversation: Bool? = nil
  ) {
    self.name = name
    self.lastUsed = lastUsed
    self.options = options
    self.metadata = metadata
    self.hasConversation = hasConversation
  }
}

/// How a turn ended.
public struct TurnOutcome: Hashable, Sendable {
  /// A final state.
  public var state: Turn.State
  public var finishedAt: Timestamp
  public var result: String?
  public var structuredOutput: JSONText?
  public var failure: TurnFailure?
  public var usage: TokenUsage?
  /// US dollars.
  public var costUSD: Double?
  public var durationMilliseconds: Int64?
  public var modelTurns: Int?
  /// Whether the agent may have spent what nobody counted; see ``charge(reserved:)``.
  public var isCostUnknown: Bool

  public init(
    state: Turn.State, finishedAt: Timestamp, result: String? = nil, structuredOutput: JSONText? = nil,
    failure: TurnFailure? = nil, usage: TokenUsage? = nil, costUSD: Double? = nil,
    durationMilliseconds: Int64? = nil, modelTurns: Int? = nil, isCostUnknown: Bool = false
  ) {
    self.state = state
    self.finishedAt = finishedAt
    self.result = result
    self.structuredOutput = structuredOutput
    self.failure = failure
    self.usage = usage
    self.costUSD = costUSD
    self.durationMilliseconds = durationMilliseconds
    self.modelTurns = modelTurns
    self.isCostUnknown = isCostUnknown
  }
}

/// A turn after a change, with what was written together with it.
public struct TurnChange: Hashable, Sendable {
  public let turn: Turn
  public var events: [Event]
  /// Approvals of the turn that nobody had decided when it ended.
  public let voidedApprovals: [Approval]
  /// What a turn that was started may spend, in billionths of a US dollar; nil for no bound.
  public let allowance: Int64?

  public init(
    turn: Turn, events: [Event] = [], voidedApprovals: [Approval] = [], allowance: Int64? = nil
  ) {
    self.turn = turn
    self.allowance = allowance
    self.events = events
    self.voidedApprovals = voidedApprovals
  }
}

/// How an approval ends.
public struct ApprovalDecision: Hashable, Sendable {
  /// Anything but `pending`.
  public var state: Approval.State
  public var resolvedAt: Timestamp
  public var message: String?
  public var updatedInput: JSONText?
  public var remember: Bool

  public init(
    state: Approval.State, resolvedAt: Timestamp, message: String? = nil, updatedInput: JSONText? = nil,
    remember: Bool = false
  ) {
    self.state = state
    self.resolvedAt = resolvedAt
    self.message = message
    self.updatedInput = updatedInput
    self.remember = remember
  }
}

/// What became of a decision.
public enum ApprovalResolution: Hashable, Sendable {
  /// This decision holds.
  case resolved(Approval, events: [Event])
  /// Another one was there first; the approval as it is.
  case alreadyResolved(Approval)
}

/// What a crash left of one session.
public struct InterruptedSession: Hashable, Sendable {
  public let sessionID: UUID
  /// The turns that ran, now interrupted.
  public let turns: [Turn]
  /// The approvals that were pending, now void.
  public let approvals: [Approval]

  public init(sessionID: UUID, turns: [Turn], approvals: [Approval]) {
    self.sessionID = sessionID
    self.turns = turns
    self.approvals = approvals
  }
}

/// What a server finds when it starts.
public struct Recovery: Hashable, Sendable {
  /// In the order of the sessions' creation.
  public let interrupted: [InterruptedSession]
  /// Turns that wait, in the order of their acceptance, without their prompts.
  public let queued: [Turn]
  /// Sessions whose deletion has begun.
  public let deletions: [Session]

  public init(interrupted: [InterruptedSession], queued: [Turn], deletions: [Session]) {
    self.interrupted = interrupted
    self.queued = queued
    self.deletions = deletions
  }
}

/// What is known of the files of a session.
public struct SessionFiles: Hashable, Sendable {
  public let session: UUID
  /// Bytes on the disk, as they were noted last; nil if they never were, in a store of an earlier version.
  public let bytes: Int64?

  public init(session: UUID, bytes: Int64?) {
    self.session = session
    self.bytes = bytes
  }
}

/// Bytes that the files of a session take on the disk.
public enum FilesSize: Hashable, Sendable {
  /// As they were measured.
  case measured(Int64)
  /// So many more than before.
  case more(Int64)
  /// As many as before, but no fewer than these.
  case atLeast(Int64)
}

/// How much a store holds. Sessions whose deletion has begun don't count, except in `events` and `bytes`.
public struct StoreStatistics: Hashable, Sendable {
  public var sessions: Int
  /// Every state is there, also with 0.
  public var turns: [Turn.State: Int]
  public var events: Int64
  public var pendingApprovals: Int
  /// Bytes on disk; 0 for a store in memory.
  public var bytes: Int64

  public init(
    sessions: Int, turns: [Turn.State: Int], events: Int64, pendingApprovals: Int, bytes: Int64
  ) {
    self.sessions = sessions
    self.turns = turns
    self.events = events
    self.pendingApprovals = pendingApprovals
    self.bytes = bytes
  }
}

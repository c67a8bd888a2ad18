public import JSONSupport

#if canImport(FoundationEssentials)
  public import FoundationEssentials
#else
  public import Foundation
#endif

/// What runs turns: the CLI, or a double of it in tests.
public protocol TurnRunner: Sendable {
  /// Runs a turn to its end. One session's turns are never run at the same time.
  ///
  /// - Parameter onMessage: is given what the agent says, in order; the next message waits until it returns.
  func run(
    _ request: TurnRequest, onMessage: @escaping @Sendable (JSONValue) async -> Void
  ) async throws(TurnRunFailure) -> TurnResult

  /// Ends the running turn of a session softly: its `run` throws with the state `interrupted`. Returns when that
  /// is under way; does nothing if no turn runs.
  func interrupt(_ sessionID: UUID) async

  /// Answers a question for permission, which was a message of the type `control_request`.
  ///
  /// - Returns: false if the question is there no more.
  func answerPermission(_ requestID: String, of sessionID: UUID, _ answer: PermissionAnswer) async -> Bool

  /// Ends all processes of a session; a running turn fails. Returns when they are gone.
  func stop(_ sessionID: UUID) async

  /// Whether a session has a process. It may go on working when its turn is over.
  func hasProcess(_ sessionID: UUID) async -> Bool
}

/// A turn that is to be run, with the session that it belongs to as it is now.
public struct TurnRequest: Hashable, Sendable {
  public let session: Session
  public let turn: Turn
  /// The configuration directory of the session, outside its workspace.
  public let configurationDirectory: String
  /// US dollars that the turn may spend, beside what its options say; nil for no bound.
  public let allowanceUSD: Double?
  /// What the agent reaches; nil leaves it to the runner.
  public let network: AgentNetwork?

  public init(
    session: Session, turn: Turn, configurationDirectory: String, allowanceUSD: Double? = nil,
    network: AgentNetwork? = nil
  ) {
    self.session = session
    self.turn = turn
    self.configurationDirectory = configurationDirectory
    self.allowanceUSD = allowanceUSD
    self.network = network
  }

  /// What holds for this turn.
  public var options: SessionOptions {
    SessionOptions(stored: session.options).overridden(by: SessionOptions(stored: turn.options))
  }
}

/// What a turn used, as far as it is known.
public struct TurnAccounts: Hashable, Sendable {
  public var usage: TokenUsage?
  public var costUSD: Double?
  public var durationMilliseconds: Int64?
  public var modelTurns: Int?
  /// Whether the agent may have used more than is in here, because it ended without a report.
  public var isIncomplete: Bool

  public init(
    usage: TokenUsage? = nil, costUSD: Double? = nil, durationMilliseconds: Int64? = nil, modelTurns: Int? = nil,
    isIncomplete: Bool = false
  ) {
    self.usage = usage
    self.costUSD = costUSD
    self.durationMilliseconds = durationMilliseconds
    self.modelTurns = modelTurns
    self.isIncomplete = isIncomplete
  }
}

/// What came of a turn that was completed.
public struct TurnResult: Hashable, Sendable {
  public var text: String
  public var structuredOutput: JSONValue?
  public var accounts: TurnAccounts

  public init(text: String, structuredOutput: JSONValue? = nil, accounts: TurnAccounts = TurnAccounts()) {
    self.text = text
    self.structuredOutput = structuredOutput
    self.accounts = accounts
  }
}

/// Why a turn was not completed, and what is known of it all the same.
public struct TurnRunFailure: Error, Hashable, Sendable {
  public var failure: TurnFailure
  /// Whether somebody wanted the turn to end.
  public var isInterruption: Bool
  /// What the agent had said until then.
  public var partialText: String?
  public var accounts: TurnAccounts

  public init(
    _ failure: TurnFailure, isInterruption: Bool = false, partialText: String? = nil,
    accounts: TurnAccounts = TurnAccounts()
  ) {
    self.failure = failure
    self.isInterruption = isInterruption
    self.partialText = partialText
    self.accounts = accounts
  }
}

#if canImport(FoundationEssentials)
  public import FoundationEssentials
#else
  public import Foundation
#endif

/// One message of the user and everything the model did until it was done with it.
public struct Turn: Hashable, Sendable, Identifiable {
  public let id: UUID
  public let sessionID: UUID
  /// 1, 2, … within the session, in the order of acceptance.
  public let number: Int
  public var prompt: String
  /// Options for this message alone, an object.
  public let options: JSONText
  /// Id of the API key that sent the message; nil when the server runs without keys.
  public let owner: String?
  public var state: State
  public let createdAt: Timestamp
  /// When the prompt was handed to the CLI.
  public var startedAt: Timestamp?
  public var finishedAt: Timestamp?
  /// The model's final text, or what there is of it when the turn didn't complete.
  public var result: String?
  /// The answer by the output schema of the options, where one was asked for.
  public var structuredOutput: JSONText?
  /// Set when `state` is failed, interrupted or cancelled, otherwise nil.
  public var failure: TurnFailure?
  public var usage: TokenUsage?
  /// US dollars.
  public var costUSD: Double?
  public var durationMilliseconds: Int64?
  /// How many times the CLI called the model.
  public var modelTurns: Int?

  public enum State: String, Codable, Hashable, Sendable, CaseIterable {
    /// Accepted and on disk; the CLI has not seen it.
    case queued
    case running
    case completed
    case failed
    /// Stopped on request, or by the end of the server.
    case interrupted
    /// Taken out of the queue before it ran.
    case cancelled

    /// Whether the turn is over and will not change again.
    public var isFinal: Bool {
      switch self {
      case .queued, .running: false
      case .completed, .failed, .interrupted, .cancelled: true
      }
    }
  }

  public init(
    id: UUID, sessionID: UUID, number: Int, prompt: String, options: JSONText = "{}", owner: String? = nil,
    state: State, createdAt: Timestamp, startedAt: Timestamp? = nil, finishedAt: Timestamp? = nil,
    result: String? = nil, structuredOutput: JSONText? = nil, failure: TurnFailure? = nil,
    usage: TokenUsage? = nil, costUSD: Double? = nil, durationMilliseconds: Int64? = nil,
    modelTurns: Int? = nil
  ) {
    self.id = id
    self.sessionID = sessionID
    self.number = number
    self.prompt = prompt
    self.options = options
    self.owner = owner
    self.state = state
    self.createdAt = createdAt
    self.startedAt = startedAt
    self.finishedAt = finishedAt
    self.result = result
    self.structuredOutput = structuredOutput
    self.failure = failure
    self.usage = usage
    self.costUSD = costUSD
    self.durationMilliseconds = durationMilliseconds
    self.modelTurns = modelTurns
  }
}

extension Turn {
  /// The same with an empty prompt. Many prompts would take much memory.
  public var withoutPrompt: Turn {
    var turn = self
    turn.prompt = ""
    return turn
  }
}

/// Why a turn didn't complete, in the form in which clients see it.
public struct TurnFailure: Hashable, Codable, Sendable {
  /// A stable word such as `rate_limited`, which also decides the status of an answer.
  public var code: String
  /// A sentence for a person.
  public var detail: String
  /// Seconds after which a new attempt makes sense.
  public var retryAfter: Int?

  public init(code: String, detail: String, retryAfter: Int? = nil) {
    self.code = code
    self.detail = detail
    self.retryAfter = retryAfter
  }
}

extension TurnFailure {
  /// The failure of a turn that was running when an earlier process of the server ended.
  public static let serverStopped = TurnFailure(
    code: "interrupted", detail: "The server stopped while this turn was running.")

  /// The failure of a turn whose message was sent with a key that isn't good any more.
  static let keyRevoked = TurnFailure(
    code: "key_revoked", detail: "The key that sent this message was revoked or has expired.")

  /// The failure of a turn that has said more than its log may have.
  static func logFull(_ maximumBytes: Int) -> TurnFailure {
    TurnFailure(
      code: "quota_exceeded",
      detail:
        "The turn was stopped: it had more for the log than the \(maximumBytes) bytes that a turn may leave there.")
  }

  /// The failure of a turn that was taken out of its queue.
  public static let cancelled = TurnFailure(
    code: "cancelled", detail: "The message was taken out of the queue before its turn came.")
}

/// Tokens that a turn used, as the CLI reports them.
public struct TokenUsage: Hashable, Codable, Sendable {
  public var inputTokens: Int64
  public var outputTokens: Int64
  public var cacheReadTokens: Int64
  public var cacheCreationTokens: Int64

  public init(
    inputTokens: Int64 = 0, outputTokens: Int64 = 0, cacheReadTokens: Int64 = 0,
    cacheCreationTokens: Int64 = 0
  ) {
    self.inputTokens = inputTokens
    self.outputTokens = outputTokens
    self.cacheReadTokens = cacheReadTokens
    self.cacheCreationTokens = cacheCreationTokens
  }
}

public import JSONSupport
import Logging

#if canImport(FoundationEssentials)
  import FoundationEssentials
#else
  import Foundation
#endif

/// What the agent is told about a tool call that it asked for.
public enum PermissionAnswer: Hashable, Sendable {
  /// The tool runs, with `updatedInput` instead of what was asked for if it isn't nil.
  case allow(updatedInput: JSONValue?, updatedPermissions: JSONValue?)
  /// It doesn't; the model reads the message.
  case deny(message: String)
}

/// A client's decision on an approval.
public struct ApprovalVerdict: Hashable, Sendable {
  public enum Decision: String, CaseIterable, Hashable, Sendable {
    case allow
    case deny
  }

  public var decision: Decision
  /// What the model is told with a denial.
  public var message: String?
  /// An object that takes the place of the tool's input. Only with `allow`.
  public var updatedInput: JSONValue?
  /// Whether later calls that fall under the same rules of the CLI (or, where it has none, of the same tool) are
  /// decided so without asking. The rules are added to the session's options; those that hold parentheses or
  /// backslashes can't be, and hold until the end of the turn.
  public var remember: Bool

  public init(
    _ decision: Decision, message: String? = nil, updatedInput: JSONValue? = nil, remember: Bool = false
  ) {
    self.decision = decision
    self.message = message
    self.updatedInput = updatedInput
    self.remember = remember
  }
}

/// Brings the agent's questions to clients, and their decisions back.
///
/// A question is in the store as an approval before a client sees it. It is answered once: by the first decision, or
/// by a denial when its time is over; when the CLI withdraws it or its turn ends, it becomes void. While as many of one
/// turn wait as may, further ones are denied at once and leave nothing behind.
actor ApprovalDesk {
  private struct Pending {
    let approval: Approval
    let rules: [String]
    /// Set while an answer to it is being stored.
    var isResolving = false
    var timer: Task<Void, Never>?
  }

  private struct Remembered {
    let turn: UUID
    let rules: [String]
    let verdict: ApprovalVerdict
    let approval: UUID
  }

  private let store: any SessionStore
  private let runner: any TurnRunner
  private let hub: EventHub
  private let timeout: Duration
  private let maximumPending: Int
  private let maximumPendingBytes: Int
  private let observer: (any TurnObserver)?
  private let logger: Logger
  private var pending: [UUID: Pending] = [:]
  /// Turns of which a question was denied because too many waited.
  private var refusedTurns: Set<UUID> = []
  /// By session. Later turns have them in their options.
  private var remembered: [UUID: [Remembered]] = [:]

  init(
    store: any SessionStore, runner: any TurnRunner, hub: EventHub, timeout: Duration, maximumPending: Int,
    maximumPendingBytes: Int,
    observer: (any TurnObserver)?, logger: Logger
  ) {
    self.store = store
    self.runner = runner
    self.hub = hub
    self.timeout = timeout
    self.maximumPending = maximumPending
    self.maximumPendingBytes = maximumPendingBytes
    self.observer = observer
    self.logger = logger
  }

  /// Whether a message of the agent is for the desk.
  nonisolated static func concerns(_ message: JSONValue) -> Bool {
    switch message["type"]?.stringValue {
    case "control_request": message["request"]?["subtype"]?.stringValue == "can_use_tool"
    case "control_cancel_request": true
    default: false
    }
  }

  /// Takes a message for which ``concerns(_:)`` is true.
  ///
  /// - Parameter recorder: that of the turn.
  func receive(_ message: JSONValue, _ turn: Turn, _ recorder: TurnRecorder) async {
    let requestID = message["request_id"]?.stringValue ?? ""
    if message["type"]?.stringValue == "control_cancel_request" {
      await withdraw(requestID, turn)
    } else {
      await ask(requestID, message["request"] ?? [:], turn, recorder)
    }
  }

  private func ask(
    _ requestID: String, _ request: JSONValue, _ turn: Turn, _ recorder: TurnRecorder
  ) async {
    let session = turn.sessionID
    let rules = Self.rules(for: request)
    if let earlier = remembered[session]?.last(where: { $0.turn == turn.id && $0.rules == rules }) {
      await recorder.record(
        NewEvent(
          "approval.remembered", turn: turn.id, at: .now(),
          [
            "approval_id": .string(earlier.approval.lowercaseString),
            "tool_use_id": request["tool_use_id"] ?? nil, "decision": .string(earlier.verdict.decision.rawValue),
          ]))
      // The input that a client gave in place of another call's is that call's alone.
      var verdict = earlier.verdict
      verdict.updatedInput = nil
      _ = await runner.answerPermission(requestID, of: session, Self.answer(verdict, rules))
      return
    }
    let input = (request["input"] ?? [:]).description
    let waiting = pending.values.filter { $0.approval.turnID == turn.id }
    guard waiting.count < maximumPending,
      waiting.reduce(input.utf8.count, { $0 + $1.approval.input.utf8.count }) <= maximumPendingBytes
    else { return await refuse(requestID, turn) }
    let now = Timestamp.now()
    let approval = Approval(
      id: UUID(), sessionID: session, turnID: turn.id, toolName: request["tool_name"]?.stringValue ?? "",
      toolUseID: request["tool_use_id"]?.stringValue ?? "", input: input, cliRequestID: requestID, createdAt: now,
      expiresAt: now.advanced(by: timeout))
    pending[approval.id] = Pending(approval: approval, rules: rules)
    do throws(SessionStoreError) {
      hub.publish(try await store.addApproval(approval, events: Self.requested(approval, request)))
    } catch {
      pending[approval.id] = nil
      logger.error("An approval could not be stored", metadata: turn.logMetadata(with: error))
      let answer = PermissionAnswer.deny(message: "The server could not ask for permission.")
      _ = await runner.answerPermission(requestID, of: session, answer)
      return
    }
    // A decision may have been faster.
    guard pending[approval.id] != nil else { return }
    pending[approval.id]?.timer = Task { [weak self, timeout] in
      do { try await Task.sleep(for: timeout) } catch { return }
      await self?.expire(approval)
    }
  }

  /// Denies a question because too many of its turn wait.
  private func refuse(_ requestID: String, _ turn: Turn) async {
    observer?.approvalRefused(turn)
    // Once for each turn: whoever asks so much must not fill the log.
    if refusedTurns.insert(turn.id).inserted {
      logger.warning(
        "A turn asks for more permissions than may wait at one time; the rest is denied",
        metadata: turn.logMetadata.merging(["limit": "\(maximumPending)", "limit_bytes": "\(maximumPendingBytes)"]) {
          $1
        })
    }
    _ = await runner.answerPermission(
      requestID, of: turn.sessionID,
      .deny(
        message: "Too much of this turn waits for a decision: \(maximumPending) tool calls with "
          + "\(maximumPendingBytes) bytes of input in all may. Try again later or with less."))
  }

  /// Decides a pending approval.
  ///
  /// - Returns: what became of it, and the rules to remember.
  func decide(
    _ approval: Approval, _ verdict: ApprovalVerdict
  ) async throws(SessionStoreError) -> (resolution: ApprovalResolution, rules: [String]) {
    let rules = pending[approval.id]?.rules ?? [approval.toolName]
    let decision = ApprovalDecision(
      state: verdict.decision == .allow ? .allowed : .denied, resolvedAt: .now(), message: verdict.message,
      updatedInput: verdict.updatedInput?.description, remember: verdict.remember)
    let resolution = try await resolve(approval, decision)
    if case .resolved = resolution {
      if verdict.remember {
        remembered[approval.sessionID, default: []].append(
          Remembered(turn: approval.turnID, rules: rules, verdict: verdict, approval: approval.id))
      }
      let isAnswered = await runner.answerPermission(
        approval.cliRequestID, of: approval.sessionID, Self.answer(verdict, rules))
      if !isAnswered {
        logger.debug("A decision came when its question had been withdrawn", metadata: Self.metadata(approval))
      }
    }
    return (resolution, rules)
  }

  /// Makes void what nobody has decided for a turn that is over.
  func turnEnded(_ turn: Turn) async {
    remembered[turn.sessionID] = nil
    refusedTurns.remove(turn.id)
    for approval in pending.values.map(\.approval) where approval.turnID == turn.id { await void(approval) }
  }

  private func withdraw(_ requestID: String, _ turn: Turn) async {
    let found = pending.values.first { $0.approval.turnID == turn.id && $0.approval.cliRequestID == requestID }
    if let found { await void(found.approval) }
  }

  private func void(_ approval: Approval) async {
    do throws(SessionStoreError) {
      _ = try await resolve(approval, ApprovalDecision(state: .void, resolvedAt: .now()))
    } catch {
      // The end of the turn makes it void in the store all the same.
      logger.warning(
        "An approval could not be made void", metadata: Self.metadata(approval).merging(["error": "\(error)"]) { $1 })
    }
    pending.removeValue(forKey: approval.id)?.timer?.cancel()
  }

  private func expire(_ approval: Approval) async {
    let message = "Nobody allowed this within the time that there was for it."
    do throws(SessionStoreError) {
      // Until it is stored a client may still decide, and so the agent isn't told.
      let resolution = try await withPatience(
        nil, while: { self.pending[approval.id] != nil },
        onFailure: { self.noteUnstored(approval, $0) }
      ) { () throws(SessionStoreError) in
        try await self.resolve(
          approval, ApprovalDecision(state: .expired, resolvedAt: .now(), message: message))
      }
      guard case .resolved = resolution else { return }
    } catch {
      // The turn is over.
      if pending[approval.id] == nil { return }
      logger.error(
        "The end of an approval's time could not be stored",
        metadata: Self.metadata(approval).merging(["error": "\(error)"]) { $1 })
    }
    _ = await runner.answerPermission(approval.cliRequestID, of: approval.sessionID, .deny(message: message))
  }

  private func noteUnstored(_ approval: Approval, _ error: SessionStoreError) {
    logger.error(
      "The end of an approval's time can't be stored yet, which is tried again",
      metadata: Self.metadata(approval).merging(["error": "\(error)"]) { $1 })
  }

  private func resolve(
    _ approval: Approval, _ decision: ApprovalDecision
  ) async throws(SessionStoreError) -> ApprovalResolution {
    pending[approval.id]?.isResolving = true
    let isLast = !pending.values.contains { $0.approval.sessionID == approval.sessionID && !$0.isResolving }
    do throws(SessionStoreError) {
      let resolution = try await store.resolveApproval(
        approval.id, decision, events: Self.resolved(approval, decision, isLast: isLast))
      pending.removeValue(forKey: approval.id)?.timer?.cancel()
      if case .resolved(_, let events) = resolution { hub.publish(events) }
      return resolution
    } catch {
      pending[approval.id]?.isResolving = false
      throw error
    }
  }

  private static func metadata(_ approval: Approval) -> Logger.Metadata {
    [
      "session": "\(approval.sessionID.lowercaseString)", "turn": "\(approval.turnID.lowercaseString)",
      "approval": "\(approval.id.lowercaseString)",
    ]
  }

  // MARK: Rules

  /// The rules that the CLI would remember for a call, such as `Bash(git log *)`; where it suggests none, the tool.
  private static func rules(for request: JSONValue) -> [String] {
    let tool = request["tool_name"]?.stringValue ?? ""
    let rules = (request["permission_suggestions"]?.arrayValue ?? [])
      .filter { $0["type"] == "addRules" && $0["behavior"] == "allow" }
      .flatMap { $0["rules"]?.arrayValue ?? [] }
      .compactMap { rule -> String? in
        guard let name = rule["toolName"]?.stringValue else { return nil }
        return rule["ruleContent"]?.stringValue.map { "\(name)(\($0))" } ?? name
      }
    return rules.isEmpty ? [tool] : rules
  }

  private static func answer(_ verdict: ApprovalVerdict, _ rules: [String]) -> PermissionAnswer {
    switch verdict.decision {
    case .deny:
      return .deny(message: verdict.message ?? "The user doesn't allow this.")
    case .allow:
      guard verdict.remember else { return .allow(updatedInput: verdict.updatedInput, updatedPermissions: nil) }
      let parsed = rules.map { rule -> JSONValue in
        guard rule.hasSuffix(")"), let opening = rule.firstIndex(of: "(") else { return ["toolName": .string(rule)] }
        return [
          "toolName": .string(String(rule[..<opening])),
          "ruleContent": .string(String(rule[rule.index(after: opening)...].dropLast())),
        ]
      }
      return .allow(
        updatedInput: verdict.updatedInput,
        updatedPermissions: [
          ["type": "addRules", "behavior": "allow", "destination": "session", "rules": .array(parsed)]
        ])
    }
  }

  // MARK: Events

  private static func requested(_ approval: Approval, _ request: JSONValue) -> [NewEvent] {
    let id = JSONValue.string(approval.id.lowercaseString)
    var payload: [String: JSONValue] = [
      "approval_id": id, "tool_use_id": .string(approval.toolUseID), "name": .string(approval.toolName),
      "input": request["input"] ?? [:], "evaluated_permission": "ask",
      "expires_at": .string(approval.expiresAt.description),
    ]
    payload["description"] = request["description"]
    return [
      NewEvent("approval.requested", turn: approval.turnID, at: approval.createdAt, .object(payload)),
      NewEvent(
        "session.status_idle", turn: approval.turnID, at: approval.createdAt,
        ["stop_reason": ["type": "requires_action", "approval_ids": [id]]]),
    ]
  }

  private static func resolved(_ approval: Approval, _ decision: ApprovalDecision, isLast: Bool) -> [NewEvent] {
    var events = [EventLog.approvalResolved(approval, decision)]
    // A turn that is over says itself how the session stands.
    if isLast && decision.state != .void {
      events.append(NewEvent("session.status_running", turn: approval.turnID, at: decision.resolvedAt))
    }
    return events
  }
}

extension EventLog {
  static func approvalResolved(_ approval: Approval, _ decision: ApprovalDecision) -> NewEvent {
    var payload: [String: JSONValue] = [
      "approval_id": .string(approval.id.lowercaseString), "tool_use_id": .string(approval.toolUseID),
      "state": .string(decision.state.rawValue),
    ]
    if let message = decision.message { payload["message"] = .string(message) }
    if decision.remember { payload["remember"] = true }
    return NewEvent("approval.resolved", turn: approval.turnID, at: decision.resolvedAt, .object(payload))
  }
}

public import Sessions
import Synchronization

#if canImport(FoundationEssentials)
  public import FoundationEssentials
#else
  public import Foundation
#endif

/// A store that fails, or takes its time, on command, and otherwise does what another one does.
public final class FaultyStore: SessionStore {
  /// What can be made to fail.
  public enum Call: Hashable, Sendable {
    case createSession, updateSession, enqueueTurn, startTurn, finishTurn, appendEvents, resolveApproval, finishDeletion
  }

  /// When a call is held up.
  public enum Moment: Sendable {
    /// Nothing has happened yet.
    case before
    /// All has happened, and only its caller doesn't know.
    case after
  }

  private struct State {
    var faults: [Call: SessionStoreError] = [:]
    var failures: [Call: Int] = [:]
    var holds: [Call: (moment: Moment, gate: Gate)] = [:]
    var held: Set<Call> = []
    var calls: [String] = []
  }

  private let base: any SessionStore
  private let state = Mutex(State())

  public init(_ base: any SessionStore = InMemorySessionStore()) {
    self.base = base
  }

  /// Makes calls fail from now on; nil lets them succeed again.
  public func fail(_ calls: Call..., with error: SessionStoreError?) {
    state.withLock { state in for call in calls { state.faults[call] = error } }
  }

  /// How many calls have failed.
  public func failures(of call: Call) -> Int { state.withLock { $0.failures[call, default: 0] } }

  /// Holds up the next call of a kind, and no later one, until the gate opens.
  public func holdNext(_ call: Call, _ moment: Moment) -> Gate {
    let gate = Gate()
    state.withLock { $0.holds[call] = (moment, gate) }
    return gate
  }

  /// Whether a call is held up, or was.
  public func isHeld(_ call: Call) -> Bool { state.withLock { $0.held.contains(call) } }

  /// The calls that have been made since the last time, in their order.
  public func takeCalls() -> [String] {
    state.withLock { state in
      defer { state.calls = [] }
      return state.calls
    }
  }

  private func counted(_ call: String = #function) -> any SessionStore {
    state.withLock { $0.calls.append(call) }
    return base
  }

  private func perform<Value: Sendable>(
    _ call: Call, _ body: () async throws(SessionStoreError) -> Value
  ) async throws(SessionStoreError) -> Value {
    let fault = state.withLock { state in
      if state.faults[call] != nil { state.failures[call, default: 0] += 1 }
      return state.faults[call]
    }
    if let fault { throw fault }
    let hold = state.withLock { $0.holds.removeValue(forKey: call) }
    if hold?.moment == .before { await wait(hold, call) }
    let value = try await body()
    if hold?.moment == .after { await wait(hold, call) }
    return value
  }

  private func wait(_ hold: (moment: Moment, gate: Gate)?, _ call: Call) async {
    state.withLock { state in _ = state.held.insert(call) }
    // Not even for a task that is cancelled: a store's call can't be.
    await Task { try? await hold?.gate.wait() }.value
  }

  // MARK: What can fail

  public func startTurn(
    _ id: UUID, at now: Timestamp, events: [NewEvent], accounts: [KeyAccount]
  ) async throws(SessionStoreError) -> TurnChange {
    try await perform(.startTurn) { () throws(SessionStoreError) in
      try await counted().startTurn(id, at: now, events: events, accounts: accounts)
    }
  }

  public func finishTurn(
    _ id: UUID, _ outcome: TurnOutcome, events: [NewEvent]
  ) async throws(SessionStoreError) -> TurnChange {
    try await perform(.finishTurn) { () throws(SessionStoreError) in
      try await counted().finishTurn(id, outcome, events: events)
    }
  }

  public func appendEvents(_ events: [NewEvent], to id: UUID) async throws(SessionStoreError) -> [Event] {
    try await perform(.appendEvents) { () throws(SessionStoreError) in
      try await counted().appendEvents(events, to: id)
    }
  }

  public func resolveApproval(
    _ id: UUID, _ decision: ApprovalDecision, events: [NewEvent]
  ) async throws(SessionStoreError) -> ApprovalResolution {
    try await perform(.resolveApproval) { () throws(SessionStoreError) in
      try await counted().resolveApproval(id, decision, events: events)
    }
  }

  public func finishDeletion(of id: UUID) async throws(SessionStoreError) {
    try await perform(.finishDeletion) { () throws(SessionStoreError) in
      try await counted().finishDeletion(of: id)
    }
  }

  public func createSession(
    _ session: Session, firstTurn: NewTurn?, events: [NewEvent], idempotency: IdempotencyClaim?,
    accounts: [KeyAccount]
  ) async throws(SessionStoreError) -> SessionAdmission {
    try await perform(.createSession) { () throws(SessionStoreError) in
      try await counted().createSession(
        session, firstTurn: firstTurn, events: events, idempotency: idempotency, accounts: accounts)
    }
  }

  public func updateSession(
    _ id: UUID, _ update: SessionUpdate, events: [NewEvent]
  ) async throws(SessionStoreError) -> (session: Session, events: [Event]) {
    try await perform(.updateSession) { () throws(SessionStoreError) in
      try await counted().updateSession(id, update, events: events)
    }
  }

  // MARK: The rest

  public func session(_ id: UUID) async throws(SessionStoreError) -> Session { try await counted().session(id) }

  public func sessions(_ query: SessionQuery) async throws(SessionStoreError) -> SessionPage {
    try await counted().sessions(query)
  }

  public func beginDeletion(of id: UUID, at now: Timestamp) async throws(SessionStoreError) -> Session {
    try await counted().beginDeletion(of: id, at: now)
  }

  public func unfinishedDeletions() async throws(SessionStoreError) -> [Session] {
    try await counted().unfinishedDeletions()
  }

  public func enqueueTurn(
    _ turn: NewTurn, events: [NewEvent], idempotency: IdempotencyClaim?, queueLimit: Int?, accounts: [KeyAccount],
    starting: [NewEvent]?
  ) async throws(SessionStoreError) -> TurnAdmission {
    // What is to go wrong with a start goes wrong with one for itself.
    let canStart = state.withLock { $0.faults[.startTurn] == nil && $0.holds[.startTurn] == nil }
    return try await perform(.enqueueTurn) { () throws(SessionStoreError) in
      try await counted().enqueueTurn(
        turn, events: events, idempotency: idempotency, queueLimit: queueLimit, accounts: accounts,
        starting: canStart ? starting : nil)
    }
  }

  public func turn(_ id: UUID) async throws(SessionStoreError) -> Turn { try await counted().turn(id) }

  public func turns(
    of sessionID: UUID, after: Int, limit: Int, states: Set<Turn.State>?
  ) async throws(SessionStoreError) -> StorePage<Turn> {
    try await counted().turns(of: sessionID, after: after, limit: limit, states: states)
  }

  public func unfinishedTurns() async throws(SessionStoreError) -> [Turn] { try await counted().unfinishedTurns() }

  public func recoverInterrupted(
    at now: Timestamp, events: @escaping @Sendable (InterruptedSession) -> [NewEvent]
  ) async throws(SessionStoreError) -> Recovery {
    try await counted().recoverInterrupted(at: now, events: events)
  }

  public func events(
    of sessionID: UUID, after: Int64, limit: Int, types: Set<String>?
  ) async throws(SessionStoreError) -> StorePage<Event> {
    try await counted().events(of: sessionID, after: after, limit: limit, types: types)
  }

  public func lastSequence(of sessionID: UUID) async throws(SessionStoreError) -> Int64 {
    try await counted().lastSequence(of: sessionID)
  }

  public func addApproval(_ approval: Approval, events: [NewEvent]) async throws(SessionStoreError) -> [Event] {
    try await counted().addApproval(approval, events: events)
  }

  public func approval(_ id: UUID) async throws(SessionStoreError) -> Approval { try await counted().approval(id) }

  public func approvals(
    of sessionID: UUID, after: UUID?, limit: Int, states: Set<Approval.State>?
  ) async throws(SessionStoreError) -> StorePage<Approval> {
    try await counted().approvals(of: sessionID, after: after, limit: limit, states: states)
  }

  public func filesOfSessions(of key: String) async throws(SessionStoreError) -> [SessionFiles] {
    try await counted().filesOfSessions(of: key)
  }

  public func noteFiles(_ size: FilesSize, of sessionID: UUID) async throws(SessionStoreError) {
    try await counted().noteFiles(size, of: sessionID)
  }

  public func usage(of key: String, at now: Timestamp) async throws(SessionStoreError) -> KeyUsage {
    try await counted().usage(of: key, at: now)
  }

  public func countGateway(_ uses: [GatewayUse], mark: String, at now: Timestamp) async throws(SessionStoreError) {
    try await counted().countGateway(uses, mark: mark, at: now)
  }

  public func forgetGatewayCredit(of sessionID: UUID) async throws(SessionStoreError) {
    try await counted().forgetGatewayCredit(of: sessionID)
  }

  public func gatewayMark() async throws(SessionStoreError) -> String? { try await counted().gatewayMark() }

  public func idempotencyRecord(
    for key: IdempotencyKey, at now: Timestamp
  ) async throws(SessionStoreError) -> IdempotencyRecord? {
    try await counted().idempotencyRecord(for: key, at: now)
  }

  public func purgeIdempotencyRecords(at now: Timestamp) async throws(SessionStoreError) -> Int {
    try await counted().purgeIdempotencyRecords(at: now)
  }

  public func checkWritable() async throws(SessionStoreError) { try await counted().checkWritable() }

  public func statistics() async throws(SessionStoreError) -> StoreStatistics { try await counted().statistics() }

  public func backup(to path: String) async throws(SessionStoreError) { try await counted().backup(to: path) }

  public func close() async { await counted().close() }
}

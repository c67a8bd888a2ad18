#if canImport(FoundationEssentials)
  public import FoundationEssentials
#else
  public import Foundation
#endif

/// A store that keeps everything in memory and forgets it with the process, for tests.
public actor InMemorySessionStore: SessionStore {
  private struct Entry {
    /// Place in the order of creation.
    let position: Int64
    var session: Session
    /// By number, ascending.
    var turns: [UUID] = []
    var events: [Event] = []
    /// Bytes of its files and of its log.
    var files: Int64 = 0
    var log: Int64 = 0
    var approvals: [UUID] = []
  }

  /// What was used in one hour.
  private struct Use {
    var turns: Int64 = 0
    var model = ModelUse()
    var besideCLI = ModelUse()
  }

  private var entries: [UUID: Entry] = [:]
  private var turns: [UUID: Turn] = [:]
  /// Ids of turns in the order of acceptance.
  private var acceptance: [UUID] = []
  private var approvals: [UUID: Approval] = [:]
  private var records: [IdempotencyKey: IdempotencyRecord] = [:]
  private var nextPosition: Int64 = 1
  private var isClosed = false
  /// What running turns may spend, in billionths of a US dollar.
  private var reserved: [UUID: Int64] = [:]
  /// By key and hour.
  private var books: [String: [Int64: Use]] = [:]
  /// What of sessions has passed the model's gateway and isn't charged yet.
  private var gatewayAccounts: [UUID: ModelUse] = [:]
  private var mark: String?

  public init() {}

  // MARK: Sessions

  public func createSession(
    _ session: Session, firstTurn: NewTurn?, events: [NewEvent], idempotency: IdempotencyClaim?,
    accounts: [KeyAccount]
  ) throws(SessionStoreError) -> SessionAdmission {
    try checkOpen()
    if let idempotency, let record = record(for: idempotency.key, at: session.createdAt) {
      guard record.digest == idempotency.digest else { return .mismatch }
      guard let entry = visibleEntry(record.sessionID) else {
        return .replayedButDeleted(sessionID: record.sessionID)
      }
      return .replayed(entry.session, firstTurn: record.turnID.flatMap { turns[$0] })
    }
    guard entries[session.id] == nil else {
      throw .alreadyExists("Session \(session.id.lowercaseString)")
    }
    if let firstTurn { try checkIsNew(firstTurn) }
    try admit { () throws in
      try Admission.checkSession(accounts, at: session.createdAt) { self.use(of: $0, at: session.createdAt) }
      if firstTurn != nil {
        try Admission.checkNewTurn(accounts, at: session.createdAt) { self.use(of: $0, at: session.createdAt) }
      }
    }
    entries[session.id] = Entry(position: nextPosition, session: session)
    nextPosition += 1
    let turn = firstTurn.map { add($0, to: session.id) }
    let added = add(events, to: session.id)
    remember(idempotency, session: session.id, turn: turn?.id, at: session.createdAt)
    return .created(session, firstTurn: turn, events: added)
  }

  public func session(_ id: UUID) throws(SessionStoreError) -> Session {
    try entry(id).session
  }

  public func sessions(_ query: SessionQuery) throws(SessionStoreError) -> SessionPage {
    try checkOpen()
    let found = entries.values
      .filter { matches($0, query) }
      .sorted { $0.position < $1.position }
    let page = query.limit.map { found.prefix(max(0, $0)) } ?? found[...]
    let next = page.count < found.count ? page.last.map { SessionCursor(rawValue: $0.position) } : nil
    return SessionPage(sessions: page.map(\.session), next: next)
  }

  private func matches(_ entry: Entry, _ query: SessionQuery) -> Bool {
    if entry.session.deletedAt != nil { return false }
    if let after = query.after, entry.position <= after.rawValue { return false }
    if let owner = query.owner, entry.session.owner != owner { return false }
    if let part = query.nameContains,
      !Self.asciiLowercase(entry.session.name).contains(Self.asciiLowercase(part))
    {
      return false
    }
    if let activity = query.activity {
      let isRunning = entry.turns.contains { turns[$0]?.state.isFinal == false }
      return isRunning == (activity == .running)
    }
    return true
  }

  private static func asciiLowercase(_ text: String) -> [UInt8] {
    text.utf8.map { (UInt8(ascii: "A")...UInt8(ascii: "Z")).contains($0) ? $0 + 32 : $0 }
  }

  public func updateSession(
    _ id: UUID, _ update: SessionUpdate, events: [NewEvent]
  ) throws(SessionStoreError) -> (session: Session, events: [Event]) {
    var entry = try entry(id)
    if let name = update.name { entry.session.name = name }
    if let lastUsed = update.lastUsed { entry.session.lastUsed = lastUsed }
    if let options = update.options { entry.session.options = options }
    if let metadata = update.metadata { entry.session.metadata = metadata }
    if let hasConversation = update.hasConversation { entry.session.hasConversation = hasConversation }
    entries[id] = entry
    return (entry.session, add(events, to: id))
  }

  public func beginDeletion(of id: UUID, at now: Timestamp) throws(SessionStoreError) -> Session {
    var entry = try entry(id)
    let session = entry.session
    entry.session = Session(
      id: session.id, name: session.name, createdAt: session.createdAt, lastUsed: session.lastUsed,
      workspace: session.workspace, owner: session.owner, parentID: session.parentID,
      options: session.options, metadata: session.metadata, hasConversation: session.hasConversation,
      deletedAt: now)
    entries[id] = entry
    return entry.session
  }

  public func finishDeletion(of id: UUID) throws(SessionStoreError) {
    try checkOpen()
    guard let entry = entries.removeValue(forKey: id) else { return }
    for turn in entry.turns { turns[turn] = nil }
    for approval in entry.approvals { approvals[approval] = nil }
    acceptance.removeAll { turns[$0] == nil }
  }

  public func unfinishedDeletions() throws(SessionStoreError) -> [Session] {
    try checkOpen()
    return entries.values
      .filter { $0.session.deletedAt != nil }
      .sorted { $0.position < $1.position }
      .map(\.session)
  }

  // MARK: Turns

  public func enqueueTurn(
    _ turn: NewTurn, events: [NewEvent], idempotency: IdempotencyClaim?, queueLimit: Int?, accounts: [KeyAccount],
    starting: [NewEvent]?
  ) throws(SessionStoreError) -> TurnAdmission {
    let entry = try entry(turn.sessionID)
    if let idempotency, let record = record(for: idempotency.key, at: turn.createdAt) {
      guard record.digest == idempotency.digest, record.sessionID == turn.sessionID,
        let earlier = record.turnID.flatMap({ turns[$0] })
      else { return .mismatch }
      return .replayed(earlier)
    }
    let unfinished = entry.turns.count { turns[$0]?.state.isFinal == false }
    if let queueLimit, unfinished > queueLimit { return .queueFull(unfinished: unfinished) }
    try checkIsNew(turn)
    try admit { () throws in
      try Admission.checkNewTurn(accounts, at: turn.createdAt) { self.use(of: $0, at: turn.createdAt) }
    }
    let added = add(turn, to: turn.sessionID)
    touch(turn.sessionID, at: turn.createdAt)
    remember(idempotency, session: turn.sessionID, turn: turn.id, at: turn.createdAt)
    let accepted = add(events, to: turn.sessionID)
    guard let starting, unfinished == 0 else { return .created(added, events: accepted) }
    var change = try startTurn(turn.id, at: turn.createdAt, events: starting, accounts: accounts)
    change.events = accepted + change.events
    return .started(change)
  }

  public func startTurn(
    _ id: UUID, at now: Timestamp, events: [NewEvent], accounts: [KeyAccount]
  ) throws(SessionStoreError) -> TurnChange {
    var turn = try turn(id)
    guard turn.state == .queued else { throw .conflict(.turnState(turn.state)) }
    if let running = entries[turn.sessionID]?.turns.first(where: { turns[$0]?.state == .running }) {
      throw .conflict(.sessionBusy(runningTurn: running))
    }
    let allowance = try admit { () throws in
      try Admission.checkStart(accounts, at: now) { self.use(of: $0, at: now) }
    }
    turn.state = .running
    turn.startedAt = now
    turns[id] = turn
    reserved[id] = allowance
    return TurnChange(turn: turn, events: add(events, to: turn.sessionID), allowance: allowance)
  }

  public func finishTurn(
    _ id: UUID, _ outcome: TurnOutcome, events: [NewEvent]
  ) throws(SessionStoreError) -> TurnChange {
    try checkOpen()
    guard var turn = turns[id] else { throw .turnNotFound(id) }
    guard outcome.state.isFinal else { throw .conflict(.turnState(outcome.state)) }
    guard !turn.state.isFinal else { throw .conflict(.turnState(turn.state)) }
    turn.state = outcome.state
    turn.finishedAt = outcome.finishedAt
    turn.result = outcome.result
    turn.structuredOutput = outcome.structuredOutput
    turn.failure = outcome.failure
    turn.usage = outcome.usage
    turn.costUSD = outcome.costUSD
    turn.durationMilliseconds = outcome.durationMilliseconds
    turn.modelTurns = outcome.modelTurns
    turns[id] = turn
    charge(turn, outcome)
    touch(turn.sessionID, at: outcome.finishedAt)
    let voided = voidApprovals(of: turn.sessionID, turn: id, at: outcome.finishedAt)
    return TurnChange(turn: turn, events: add(events, to: turn.sessionID), voidedApprovals: voided)
  }

  public func turn(_ id: UUID) throws(SessionStoreError) -> Turn {
    try checkOpen()
    guard let turn = turns[id], visibleEntry(turn.sessionID) != nil else { throw .turnNotFound(id) }
    return turn
  }

  public func turns(
    of sessionID: UUID, after: Int, limit: Int, states: Set<Turn.State>?
  ) throws(SessionStoreError) -> StorePage<Turn> {
    let turns = try entry(sessionID).turns.compactMap { self.turns[$0] }
    return page(turns, limit) { $0.number > after && states?.contains($0.state) ?? true }
  }

  private func page<Element>(
    _ all: [Element], _ limit: Int, where condition: (Element) -> Bool
  ) -> StorePage<Element> {
    var page = StorePage<Element>(limit: limit)
    for element in all where condition(element) {
      guard page.hasRoom() else { break }
      page.append(element)
    }
    return page
  }

  public func unfinishedTurns() throws(SessionStoreError) -> [Turn] {
    try checkOpen()
    return unfinished { _ in true }
  }

  private func unfinished(where condition: (Turn) -> Bool) -> [Turn] {
    acceptance.compactMap { turns[$0] }
      .filter { !$0.state.isFinal && visibleEntry($0.sessionID) != nil && condition($0) }
      .map(\.withoutPrompt)
  }

  public func recoverInterrupted(
    at now: Timestamp, events: @escaping @Sendable (InterruptedSession) -> [NewEvent]
  ) throws(SessionStoreError) -> Recovery {
    try checkOpen()
    var interrupted: [InterruptedSession] = []
    for entry in entries.values.sorted(by: { $0.position < $1.position }) {
      let id = entry.session.id
      var stopped: [Turn] = []
      for var turn in entry.turns.compactMap({ turns[$0] }) where turn.state == .running {
        turn.state = .interrupted
        turn.finishedAt = now
        turn.failure = .serverStopped
        turns[turn.id] = turn
        charge(turn, TurnOutcome(state: .interrupted, finishedAt: now, isCostUnknown: true))
        stopped.append(turn)
      }
      let voided = voidApprovals(of: id, turn: nil, at: now)
      guard entry.session.deletedAt == nil, !stopped.isEmpty || !voided.isEmpty else { continue }
      let session = InterruptedSession(sessionID: id, turns: stopped, approvals: voided)
      _ = add(events(session), to: id)
      interrupted.append(session)
    }
    return Recovery(
      interrupted: interrupted, queued: unfinished { $0.state == .queued },
      deletions: try unfinishedDeletions())
  }

  // MARK: Events

  public func appendEvents(
    _ events: [NewEvent], to sessionID: UUID
  ) throws(SessionStoreError) -> [Event] {
    try checkOpen()
    guard entries[sessionID] != nil else { throw .sessionNotFound(sessionID) }
    return add(events, to: sessionID)
  }

  public func events(
    of sessionID: UUID, after: Int64, limit: Int, types: Set<String>?
  ) throws(SessionStoreError) -> StorePage<Event> {
    page(try entry(sessionID).events, limit) { $0.sequence > after && types?.contains($0.type) ?? true }
  }

  public func lastSequence(of sessionID: UUID) throws(SessionStoreError) -> Int64 {
    Int64(try entry(sessionID).events.count)
  }

  // MARK: Approvals

  public func addApproval(
    _ approval: Approval, events: [NewEvent]
  ) throws(SessionStoreError) -> [Event] {
    let turn = try turn(approval.turnID)
    guard turn.sessionID == approval.sessionID else { throw .turnNotFound(approval.turnID) }
    guard turn.state == .running else { throw .conflict(.turnState(turn.state)) }
    guard approvals[approval.id] == nil else {
      throw .alreadyExists("Approval \(approval.id.lowercaseString)")
    }
    approvals[approval.id] = approval
    entries[approval.sessionID]?.approvals.append(approval.id)
    return add(events, to: approval.sessionID)
  }

  public func resolveApproval(
    _ id: UUID, _ decision: ApprovalDecision, events: [NewEvent]
  ) throws(SessionStoreError) -> ApprovalResolution {
    try checkOpen()
    guard var approval = approvals[id] else { throw .approvalNotFound(id) }
    guard approval.state == .pending else { return .alreadyResolved(approval) }
    approval.state = decision.state
    approval.resolvedAt = decision.resolvedAt
    approval.message = decision.message
    approval.updatedInput = decision.updatedInput
    approval.remember = decision.remember
    approvals[id] = approval
    return .resolved(approval, events: add(events, to: approval.sessionID))
  }

  public func approval(_ id: UUID) throws(SessionStoreError) -> Approval {
    try checkOpen()
    guard let approval = approvals[id], visibleEntry(approval.sessionID) != nil else {
      throw .approvalNotFound(id)
    }
    return approval
  }

  public func approvals(
    of sessionID: UUID, after: UUID?, limit: Int, states: Set<Approval.State>?
  ) throws(SessionStoreError) -> StorePage<Approval> {
    var ids = try entry(sessionID).approvals[...]
    if let after {
      guard let index = ids.firstIndex(of: after) else { throw .approvalNotFound(after) }
      ids = ids[(index + 1)...]
    }
    return page(ids.compactMap { approvals[$0] }, limit) { states?.contains($0.state) ?? true }
  }

  // MARK: Room on the disk

  public func filesOfSessions(of key: String) throws(SessionStoreError) -> [SessionFiles] {
    try checkOpen()
    return entries.values.filter { $0.session.deletedAt == nil && ($0.session.owner ?? "") == key }
      .sorted { $0.position < $1.position }.map { SessionFiles(session: $0.session.id, bytes: $0.files) }
  }

  public func noteFiles(_ size: FilesSize, of sessionID: UUID) throws(SessionStoreError) {
    try checkOpen()
    guard let known = entries[sessionID]?.files else { return }
    entries[sessionID]?.files =
      switch size {
      case .measured(let bytes): bytes
      case .more(let bytes): known + bytes
      case .atLeast(let bytes): max(known, bytes)
      }
  }

  // MARK: Usage

  public func usage(of key: String, at now: Timestamp) throws(SessionStoreError) -> KeyUsage {
    try checkOpen()
    return use(of: key, at: now)
  }

  private func use(of key: String, at now: Timestamp) -> KeyUsage {
    var usage = KeyUsage()
    for entry in entries.values where entry.session.deletedAt == nil {
      guard (entry.session.owner ?? "") == key else { continue }
      usage.sessions += 1
      usage.diskBytes += entry.files + entry.log
    }
    for turn in turns.values where !turn.state.isFinal {
      guard keys(of: turn).contains(key) else { continue }
      if turn.state == .running {
        usage.runningTurns += 1
        usage.reserved += reserved[turn.id] ?? 0
        usage.pending += gatewayAccounts[turn.sessionID]?.surplus ?? ModelUse()
      } else if visibleEntry(turn.sessionID) != nil {
        usage.queuedTurns += 1
      }
    }
    let day = UsagePeriod.hour(of: UsagePeriod.day.start(now))
    let month = UsagePeriod.hour(of: UsagePeriod.month.start(now))
    for (hour, use) in books[key] ?? [:] {
      if hour == UsagePeriod.hour(of: now) { usage.turnsThisHour += use.turns }
      if hour >= day {
        usage.tokensToday += use.model.tokens
        usage.costToday += use.model.cost
        usage.besideCLI.tokensToday += use.besideCLI.tokens
        usage.besideCLI.costToday += use.besideCLI.cost
      }
      if hour >= month {
        usage.costThisMonth += use.model.cost
        usage.besideCLI.costThisMonth += use.besideCLI.cost
      }
    }
    return usage
  }

  private func keys(of turn: Turn) -> [String] {
    KeyLimitPolicy.keys(owner: entries[turn.sessionID]?.session.owner, sender: turn.owner)
  }

  private func charge(_ turn: Turn, _ outcome: TurnOutcome) {
    let charge = outcome.charge(reserved: reserved.removeValue(forKey: turn.id))
    let surplus = settleGateway(turn.sessionID) { if mark != nil { $0 -= charge } }
    for key in keys(of: turn) { book(key, at: outcome.finishedAt, charge, besideCLI: surplus) }
  }

  private func book(_ key: String, at time: Timestamp, _ charge: ModelUse = ModelUse(), besideCLI surplus: ModelUse) {
    let hour = UsagePeriod.hour(of: time)
    var use = books[key]?[hour] ?? Use()
    use.model += charge
    use.model += surplus
    use.besideCLI += surplus
    books[key, default: [:]][hour] = use
  }

  public func countGateway(_ uses: [GatewayUse], mark: String, at now: Timestamp) throws(SessionStoreError) {
    try checkOpen()
    self.mark = mark
    for use in uses { book(use.key, at: now, besideCLI: settleGateway(use.session) { $0 += use.use }) }
  }

  public func forgetGatewayCredit(of sessionID: UUID) throws(SessionStoreError) {
    try checkOpen()
    guard !hasRunningTurn(sessionID) else { return }
    // A surplus is settled when it comes about, so that there is none.
    _ = settleGateway(sessionID) { $0.forgetCredit() }
  }

  public func gatewayMark() throws(SessionStoreError) -> String? {
    try checkOpen()
    return mark
  }

  private func hasRunningTurn(_ session: UUID) -> Bool {
    (entries[session]?.turns ?? []).contains { turns[$0]?.state == .running }
  }

  /// Changes the account of a session.
  ///
  /// - Returns: what is to be charged.
  private func settleGateway(_ session: UUID, _ change: (inout ModelUse) -> Void) -> ModelUse {
    var account = gatewayAccounts[session] ?? ModelUse()
    change(&account)
    let surplus = hasRunningTurn(session) ? ModelUse() : account.settle()
    gatewayAccounts[session] = account.isZero ? nil : account
    return surplus
  }

  private func admit<Value>(_ body: () throws -> Value) throws(SessionStoreError) -> Value {
    do {
      return try body()
    } catch let error as SessionStoreError {
      throw error
    } catch {
      throw .io("\(error)")
    }
  }

  // MARK: Idempotency

  public func idempotencyRecord(
    for key: IdempotencyKey, at now: Timestamp
  ) throws(SessionStoreError) -> IdempotencyRecord? {
    try checkOpen()
    return record(for: key, at: now)
  }

  public func purgeIdempotencyRecords(at now: Timestamp) throws(SessionStoreError) -> Int {
    try checkOpen()
    let count = records.count
    records = records.filter { !$0.value.isExpired(at: now) }
    return count - records.count
  }

  // MARK: Operation

  public func checkWritable() throws(SessionStoreError) {
    try checkOpen()
  }

  public func statistics() throws(SessionStoreError) -> StoreStatistics {
    try checkOpen()
    var statistics = StoreStatistics(
      sessions: 0, turns: Dictionary(uniqueKeysWithValues: Turn.State.allCases.map { ($0, 0) }),
      events: 0, pendingApprovals: 0, bytes: 0)
    for entry in entries.values {
      statistics.events += Int64(entry.events.count)
      guard entry.session.deletedAt == nil else { continue }
      statistics.sessions += 1
      for turn in entry.turns.compactMap({ turns[$0] }) { statistics.turns[turn.state, default: 0] += 1 }
      statistics.pendingApprovals += entry.approvals.count { approvals[$0]?.state == .pending }
    }
    return statistics
  }

  public func backup(to path: String) throws(SessionStoreError) {
    throw .io("a store in memory has no file")
  }

  public func close() {
    isClosed = true
  }

  // MARK: Parts

  private func checkOpen() throws(SessionStoreError) {
    if isClosed { throw .io("the store is closed") }
  }

  private func visibleEntry(_ id: UUID) -> Entry? {
    entries[id].flatMap { $0.session.deletedAt == nil ? $0 : nil }
  }

  private func entry(_ id: UUID) throws(SessionStoreError) -> Entry {
    try checkOpen()
    guard let entry = visibleEntry(id) else { throw .sessionNotFound(id) }
    return entry
  }

  private func checkIsNew(_ turn: NewTurn) throws(SessionStoreError) {
    if turns[turn.id] != nil { throw .alreadyExists("Turn \(turn.id.lowercaseString)") }
  }

  private func add(_ new: NewTurn, to sessionID: UUID) -> Turn {
    let turn = Turn(
      id: new.id, sessionID: sessionID, number: (entries[sessionID]?.turns.count ?? 0) + 1,
      prompt: new.prompt, options: new.options, owner: new.owner, state: .queued, createdAt: new.createdAt)
    turns[turn.id] = turn
    acceptance.append(turn.id)
    entries[sessionID]?.turns.append(turn.id)
    for key in keys(of: turn) {
      books[key, default: [:]][UsagePeriod.hour(of: new.createdAt), default: Use()].turns += 1
    }
    return turn
  }

  private func add(_ new: [NewEvent], to sessionID: UUID) -> [Event] {
    let last = entries[sessionID]?.events.count ?? 0
    let events = new.enumerated().map { offset, event in
      Event(
        sessionID: sessionID, sequence: Int64(last + offset + 1), type: event.type, turnID: event.turnID,
        processedAt: event.processedAt, payload: event.payload)
    }
    entries[sessionID]?.events += events
    entries[sessionID]?.log += events.reduce(0) { $0 + Int64($1.payload.utf8.count) }
    return events
  }

  private func touch(_ sessionID: UUID, at time: Timestamp) {
    guard let lastUsed = entries[sessionID]?.session.lastUsed, lastUsed < time else { return }
    entries[sessionID]?.session.lastUsed = time
  }

  private func voidApprovals(of sessionID: UUID, turn: UUID?, at time: Timestamp) -> [Approval] {
    var voided: [Approval] = []
    for id in entries[sessionID]?.approvals ?? [] {
      guard var approval = approvals[id], approval.state == .pending, turn == nil || approval.turnID == turn
      else { continue }
      approval.state = .void
      approval.resolvedAt = time
      approvals[id] = approval
      voided.append(approval)
    }
    return voided
  }

  private func record(for key: IdempotencyKey, at now: Timestamp) -> IdempotencyRecord? {
    records[key].flatMap { $0.isExpired(at: now) ? nil : $0 }
  }

  private func remember(_ claim: IdempotencyClaim?, session: UUID, turn: UUID?, at time: Timestamp) {
    guard let claim else { return }
    records[claim.key] = IdempotencyRecord(
      key: claim.key, digest: claim.digest, sessionID: session, turnID: turn, createdAt: time)
  }
}

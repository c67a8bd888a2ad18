public import Foundation
internal import GRDB
public import Sessions

extension SQLiteSessionStore {
  public func enqueueTurn(
    _ turn: NewTurn, events: [NewEvent], idempotency: IdempotencyClaim?, queueLimit: Int?, accounts: [KeyAccount],
    starting: [NewEvent]?
  ) async throws(SessionStoreError) -> TurnAdmission {
    try await writer.perform(.power) { database in
      let (session, owner) = try database.sessionPositionAndOwner(turn.sessionID)
      if let idempotency,
        let record = try database.idempotencyRecord(idempotency.key, at: turn.createdAt)
      {
        guard record.digest == idempotency.digest, record.sessionID == turn.sessionID,
          let earlier = try record.turnID.flatMap({ try database.turnRowOrNil($0) })
        else { return .mismatch }
        return .replayed(earlier.turn)
      }
      let unfinished =
        try database.first(
          "SELECT count(*) FROM turns WHERE session = ? AND state IN ('queued', 'running')", [session]
        ) { Int(try $0.integer(0)) } ?? 0
      if let queueLimit, unfinished > queueLimit { return .queueFull(unfinished: unfinished) }
      try database.checkIsNew(turn)
      try Admission.checkNewTurn(accounts, at: turn.createdAt) { try database.usage(of: $0, at: turn.createdAt) }
      let added = try database.insert(turn, session: session, sessionID: turn.sessionID, owner: owner)
      try database.touch(session: session, at: turn.createdAt)
      try database.remember(idempotency, session: turn.sessionID, turn: turn.id, at: turn.createdAt)
      let accepted = try database.append(events, session: session, sessionID: turn.sessionID)
      guard let starting, unfinished == 0 else { return .created(added, events: accepted) }
      var change = try database.start(
        try database.turnRow(turn.id), at: turn.createdAt, events: starting, accounts: accounts)
      change.events = accepted + change.events
      return .started(change)
    }
  }

  public func startTurn(
    _ id: UUID, at now: Timestamp, events: [NewEvent], accounts: [KeyAccount]
  ) async throws(SessionStoreError) -> TurnChange {
    // Were the start lost with the power, the turn would be found queued, and its prompt would run twice.
    try await writer.perform(.power) { database in
      try database.start(try database.turnRow(id), at: now, events: events, accounts: accounts)
    }
  }

  public func finishTurn(
    _ id: UUID, _ outcome: TurnOutcome, events: [NewEvent]
  ) async throws(SessionStoreError) -> TurnChange {
    guard outcome.state.isFinal else { throw .conflict(.turnState(outcome.state)) }
    return try await writer.perform(.power) { database in
      guard var row = try database.turnRowOrNil(id) else { throw SessionStoreError.turnNotFound(id) }
      guard !row.turn.state.isFinal else { throw SessionStoreError.conflict(.turnState(row.turn.state)) }
      row.turn.state = outcome.state
      row.turn.finishedAt = outcome.finishedAt
      row.turn.result = outcome.result
      row.turn.structuredOutput = outcome.structuredOutput
      row.turn.failure = outcome.failure
      row.turn.usage = outcome.usage
      row.turn.costUSD = outcome.costUSD
      row.turn.durationMilliseconds = outcome.durationMilliseconds
      row.turn.modelTurns = outcome.modelTurns
      try database.saveOutcome(of: row)
      try database.charge(row, outcome)
      try database.touch(session: row.sessionPosition, at: outcome.finishedAt)
      let voided = try database.voidApprovals(turn: row.position, at: outcome.finishedAt)
      return TurnChange(
        turn: row.turn,
        events: try database.append(events, session: row.sessionPosition, sessionID: row.turn.sessionID),
        voidedApprovals: voided.map(\.approval))
    }
  }

  public func turn(_ id: UUID) async throws(SessionStoreError) -> Turn {
    try await reader.perform { try $0.turnRow(id).turn }
  }

  public func turns(
    of sessionID: UUID, after: Int, limit: Int, states: Set<Turn.State>?
  ) async throws(SessionStoreError) -> StorePage<Turn> {
    try await scanner.perform { database in
      let session = try database.sessionPosition(sessionID)
      var arguments: StatementArguments = [session, after]
      let inStates =
        try states.map { try condition("turns.state", oneOf: $0.map(\.rawValue), &arguments) } ?? ""
      return try database.page(
        """
        SELECT \(TurnRow.columns) FROM \(TurnRow.source)
        WHERE turns.session = ? AND turns.number > ? \(inStates) ORDER BY turns.number
        """, arguments, limit: limit
      ) { try TurnRow($0).turn }
    }
  }

  public func unfinishedTurns() async throws(SessionStoreError) -> [Turn] {
    try await scanner.perform { try $0.turns(in: [.queued, .running]) }
  }

  public func recoverInterrupted(
    at now: Timestamp, events: @escaping @Sendable (InterruptedSession) -> [NewEvent]
  ) async throws(SessionStoreError) -> Recovery {
    try await writer.perform(.power) { database in
      var turns: [Int64: [Turn]] = [:]
      var approvals: [Int64: [Approval]] = [:]
      var ids: [Int64: UUID] = [:]
      let running = try database.all(
        """
        SELECT \(TurnRow.columns) FROM \(TurnRow.source) WHERE turns.state = 'running'
        ORDER BY turns.position
        """, [], TurnRow.init)
      for var row in running {
        row.turn.state = .interrupted
        row.turn.finishedAt = now
        row.turn.failure = .serverStopped
        try database.saveOutcome(of: row)
        try database.charge(row, TurnOutcome(state: .interrupted, finishedAt: now, isCostUnknown: true))
        guard !row.isInDeletion else { continue }
        turns[row.sessionPosition, default: []].append(row.turn)
        ids[row.sessionPosition] = row.turn.sessionID
      }
      for row in try database.voidApprovals(turn: nil, at: now) where !row.isInDeletion {
        approvals[row.sessionPosition, default: []].append(row.approval)
        ids[row.sessionPosition] = row.approval.sessionID
      }
      let interrupted = try ids.sorted { $0.key < $1.key }.map { position, id in
        let session = InterruptedSession(
          sessionID: id, turns: turns[position] ?? [], approvals: approvals[position] ?? [])
        _ = try database.append(events(session), session: position, sessionID: id)
        return session
      }
      return Recovery(
        interrupted: interrupted, queued: try database.turns(in: [.queued]),
        deletions: try database.unfinishedDeletions())
    }
  }
}

extension Database {
  /// Has a turn run. Throws errors of `SessionStoreError` before anything is changed.
  fileprivate func start(
    _ queued: TurnRow, at now: Timestamp, events: [NewEvent], accounts: [KeyAccount]
  ) throws -> TurnChange {
    var row = queued
    guard row.turn.state == .queued else { throw SessionStoreError.conflict(.turnState(row.turn.state)) }
    let running = try first(
      "SELECT id FROM turns WHERE session = ? AND state = 'running'", [row.sessionPosition]
    ) { try $0.uuid(0) }
    if let running { throw SessionStoreError.conflict(.sessionBusy(runningTurn: running)) }
    let allowance = try Admission.checkStart(accounts, at: now) { try usage(of: $0, at: now) }
    row.turn.state = .running
    row.turn.startedAt = now
    try run(
      "UPDATE turns SET state = 'running', started_at = ?, reserved = ? WHERE position = ?",
      [now.microseconds, allowance, row.position])
    return TurnChange(
      turn: row.turn, events: try append(events, session: row.sessionPosition, sessionID: row.turn.sessionID),
      allowance: allowance)
  }

  /// Unfinished turns in the order of their acceptance, without their prompts.
  fileprivate func turns(in states: Set<Turn.State>) throws -> [Turn] {
    try all(
      """
      SELECT \(TurnRow.columnsWithoutPrompt) FROM \(TurnRow.source)
      WHERE turns.state IN ('queued', 'running') AND sessions.deleted_at IS NULL ORDER BY turns.position
      """, [], TurnRow.init
    ).map(\.turn).filter { states.contains($0.state) }
  }

  /// Writes the columns that the end of a turn changes.
  fileprivate func saveOutcome(of row: TurnRow) throws {
    let turn = row.turn
    try run(
      """
      UPDATE turns SET state = ?, finished_at = ?, result = CAST(? AS TEXT), structured_output = ?,
        failure_code = CAST(? AS TEXT), failure_detail = CAST(? AS TEXT),
        failure_retry_after = ?, input_tokens = ?, output_tokens = ?, cache_read_tokens = ?,
        cache_creation_tokens = ?, cost_usd = ?, duration_ms = ?, model_turns = ?
      WHERE position = ?
      """,
      [
        turn.state.rawValue, turn.finishedAt?.microseconds, freeText(turn.result), turn.structuredOutput,
        freeText(turn.failure?.code), freeText(turn.failure?.detail),
        turn.failure?.retryAfter, turn.usage?.inputTokens, turn.usage?.outputTokens,
        turn.usage?.cacheReadTokens, turn.usage?.cacheCreationTokens, turn.costUSD,
        turn.durationMilliseconds, turn.modelTurns, row.position,
      ])
  }
}

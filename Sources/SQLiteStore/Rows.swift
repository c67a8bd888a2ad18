internal import Foundation
internal import GRDB
internal import Sessions

// Rows of the tables, and the statements that several operations share.

/// A session with its place in the table, which is how other tables refer to it.
struct SessionRow {
  static let columns = """
    sessions.position, sessions.id, sessions.name, sessions.created_at, sessions.last_used, \
    sessions.workspace, sessions.owner, sessions.parent_id, sessions.options, sessions.metadata, \
    sessions.has_conversation, sessions.deleted_at, sessions.network
    """

  let position: Int64
  let session: Session

  init(_ row: Row) throws {
    position = try row.integer(0)
    session = Session(
      id: try row.uuid(1), name: try row.freeText(2), createdAt: try row.timestamp(3),
      lastUsed: try row.timestamp(4), workspace: try row.freeText(5), owner: try row.freeTextOrNil(6),
      parentID: try row.uuidOrNil(7), options: try row.string(8), metadata: try row.string(9),
      hasConversation: try row.flag(10), network: try row.stateOrNil(12), deletedAt: try row.timestampOrNil(11))
  }
}

struct TurnRow {
  static let columns = """
    turns.position, turns.session, sessions.id, turns.id, turns.number, turns.prompt, turns.options, \
    turns.owner, turns.state, turns.created_at, turns.started_at, turns.finished_at, turns.result, \
    turns.structured_output, turns.failure_code, turns.failure_detail, \
    turns.failure_retry_after, turns.input_tokens, turns.output_tokens, turns.cache_read_tokens, \
    turns.cache_creation_tokens, turns.cost_usd, turns.duration_ms, turns.model_turns, \
    sessions.deleted_at IS NOT NULL, sessions.owner, turns.reserved
    """
  /// For many turns at a time, whose prompts would take much memory.
  static let columnsWithoutPrompt = columns.replacingOccurrences(of: "turns.prompt", with: "''")
  static let source = "turns JOIN sessions ON sessions.position = turns.session"

  let position: Int64
  let sessionPosition: Int64
  var turn: Turn
  /// Whether the deletion of its session has begun.
  let isInDeletion: Bool
  let sessionOwner: String?
  /// What it may spend while it runs, in billionths of a US dollar.
  let reserved: Int64?

  init(_ row: Row) throws {
    position = try row.integer(0)
    sessionPosition = try row.integer(1)
    turn = Turn(
      id: try row.uuid(3), sessionID: try row.uuid(2), number: Int(try row.integer(4)),
      prompt: try row.freeText(5), options: try row.string(6), owner: try row.freeTextOrNil(7),
      state: try row.state(8), createdAt: try row.timestamp(9), startedAt: try row.timestampOrNil(10),
      finishedAt: try row.timestampOrNil(11), result: try row.freeTextOrNil(12),
      structuredOutput: try row.stringOrNil(13), failure: try Self.failure(row),
      usage: try Self.usage(row), costUSD: try row.decode(Double?.self, atIndex: 21),
      durationMilliseconds: try row.integerOrNil(22), modelTurns: try row.integerOrNil(23).map { Int($0) })
    isInDeletion = try row.flag(24)
    sessionOwner = try row.freeTextOrNil(25)
    reserved = try row.integerOrNil(26)
  }

  private static func failure(_ row: Row) throws -> TurnFailure? {
    guard let code = try row.freeTextOrNil(14) else { return nil }
    return TurnFailure(
      code: code, detail: try row.freeText(15), retryAfter: try row.integerOrNil(16).map { Int($0) })
  }

  private static func usage(_ row: Row) throws -> TokenUsage? {
    guard let input = try row.integerOrNil(17) else { return nil }
    return TokenUsage(
      inputTokens: input, outputTokens: try row.integer(18), cacheReadTokens: try row.integer(19),
      cacheCreationTokens: try row.integer(20))
  }
}

struct ApprovalRow {
  static let columns = """
    approvals.position, approvals.session, approvals.id, sessions.id, turns.id, approvals.tool_name, \
    approvals.tool_use_id, approvals.input, approvals.cli_request_id, approvals.created_at, \
    approvals.expires_at, approvals.state, approvals.resolved_at, approvals.message, \
    approvals.updated_input, approvals.remember, sessions.deleted_at IS NOT NULL
    """
  static let source = "approvals \(joins)"
  /// The pending approvals of all sessions. SQLite would read the whole table for them, which is in the order
  /// that is asked for.
  static let pendingSource = "approvals INDEXED BY approvals_pending \(joins)"
  private static let joins = """
    JOIN turns ON turns.position = approvals.turn JOIN sessions ON sessions.position = approvals.session
    """

  let position: Int64
  let sessionPosition: Int64
  var approval: Approval
  /// Whether the deletion of its session has begun.
  let isInDeletion: Bool

  init(_ row: Row) throws {
    position = try row.integer(0)
    sessionPosition = try row.integer(1)
    approval = Approval(
      id: try row.uuid(2), sessionID: try row.uuid(3), turnID: try row.uuid(4),
      toolName: try row.freeText(5), toolUseID: try row.freeText(6), input: try row.string(7),
      cliRequestID: try row.freeText(8), createdAt: try row.timestamp(9), expiresAt: try row.timestamp(10),
      state: try row.state(11), resolvedAt: try row.timestampOrNil(12), message: try row.freeTextOrNil(13),
      updatedInput: try row.stringOrNil(14), remember: try row.flag(15))
    isInDeletion = try row.flag(16)
  }
}

extension Database {
  // MARK: Looking up

  /// A session whose deletion has not begun.
  func sessionRow(_ id: UUID) throws -> SessionRow {
    guard let row = try sessionRowOrNil(id) else { throw SessionStoreError.sessionNotFound(id) }
    return row
  }

  func sessionRowOrNil(_ id: UUID) throws -> SessionRow? {
    try first(
      "SELECT \(SessionRow.columns) FROM sessions WHERE id = ? AND deleted_at IS NULL", [id], SessionRow.init)
  }

  /// The position alone of a session whose deletion has not begun.
  func sessionPosition(_ id: UUID) throws -> Int64 {
    let position = try first("SELECT position FROM sessions WHERE id = ? AND deleted_at IS NULL", [id]) {
      try $0.integer(0)
    }
    guard let position else { throw SessionStoreError.sessionNotFound(id) }
    return position
  }

  func sessionPositionAndOwner(_ id: UUID) throws -> (position: Int64, owner: String?) {
    let found = try first("SELECT position, owner FROM sessions WHERE id = ? AND deleted_at IS NULL", [id]) {
      (position: try $0.integer(0), owner: try $0.freeTextOrNil(1))
    }
    guard let found else { throw SessionStoreError.sessionNotFound(id) }
    return found
  }

  /// A turn, also of a session whose deletion has begun.
  func turnRowOrNil(_ id: UUID) throws -> TurnRow? {
    try first("SELECT \(TurnRow.columns) FROM \(TurnRow.source) WHERE turns.id = ?", [id], TurnRow.init)
  }

  /// A turn of a session whose deletion has not begun.
  func turnRow(_ id: UUID) throws -> TurnRow {
    guard let row = try turnRowOrNil(id), !row.isInDeletion else { throw SessionStoreError.turnNotFound(id) }
    return row
  }

  func idempotencyRecord(_ key: IdempotencyKey, at now: Timestamp) throws -> IdempotencyRecord? {
    let record = try first(
      """
      SELECT digest, session_id, turn_id, created_at FROM idempotency
      WHERE key = CAST(? AS TEXT) AND scope = CAST(? AS TEXT) AND owner = CAST(? AS TEXT)
      """, [freeText(key.key), freeText(key.scope), freeText(key.owner ?? "")]
    ) { row in
      IdempotencyRecord(
        key: key, digest: Array(try row.decode(Data.self, atIndex: 0)), sessionID: try row.uuid(1),
        turnID: try row.uuidOrNil(2), createdAt: try row.timestamp(3))
    }
    return record.flatMap { $0.isExpired(at: now) ? nil : $0 }
  }

  func checkIsNew(_ turn: NewTurn) throws {
    if try first("SELECT 1 FROM turns WHERE id = ?", [turn.id], { _ in true }) == true {
      throw SessionStoreError.alreadyExists("Turn \(turn.id.lowercaseString)")
    }
  }

  // MARK: Writing

  /// Adds a turn and counts it for its keys.
  ///
  /// - Parameter owner: of the session.
  func insert(_ new: NewTurn, session: Int64, sessionID: UUID, owner: String?) throws -> Turn {
    let number =
      try first("SELECT max(number) FROM turns WHERE session = ?", [session]) {
        try $0.integerOrNil(0).map { Int($0) }
      } ?? nil
    let turn = Turn(
      id: new.id, sessionID: sessionID, number: (number ?? 0) + 1, prompt: new.prompt,
      options: new.options, owner: new.owner, state: .queued, createdAt: new.createdAt)
    try run(
      """
      INSERT INTO turns (id, session, number, prompt, options, owner, state, created_at)
      VALUES (?, ?, ?, CAST(? AS TEXT), ?, CAST(? AS TEXT), ?, ?)
      """,
      [
        turn.id, session, turn.number, freeText(turn.prompt), turn.options, freeText(turn.owner),
        turn.state.rawValue, turn.createdAt.microseconds,
      ])
    for key in KeyLimitPolicy.keys(owner: owner, sender: new.owner) {
      try book(key, at: new.createdAt, turns: 1)
    }
    return turn
  }

  /// Adds events to the end of the log of a session.
  func append(_ new: [NewEvent], session: Int64, sessionID: UUID) throws -> [Event] {
    if new.isEmpty { return [] }
    var sequence = try lastSequence(session: session)
    let statement = try cachedStatement(
      sql: """
        INSERT INTO events (session, sequence, type, turn_id, processed_at, payload)
        VALUES (?, ?, ?, ?, ?, ?)
        """)
    let bytes = new.reduce(Int64(0)) { $0 + Int64($1.payload.utf8.count) }
    try run("UPDATE room SET log = log + ? WHERE session = ?", [bytes, session])
    return try new.map { event in
      sequence += 1
      try statement.execute(arguments: [
        session, sequence, event.type, event.turnID, event.processedAt.microseconds, event.payload,
      ])
      return Event(
        sessionID: sessionID, sequence: sequence, type: event.type, turnID: event.turnID,
        processedAt: event.processedAt, payload: event.payload)
    }
  }

  /// The log has no gaps and loses nothing, so its largest number also counts it.
  func lastSequence(session: Int64) throws -> Int64 {
    let last = try first("SELECT max(sequence) FROM events WHERE session = ?", [session]) {
      try $0.integerOrNil(0)
    }
    return (last ?? nil) ?? 0
  }

  func touch(session: Int64, at time: Timestamp) throws {
    try run(
      "UPDATE sessions SET last_used = max(last_used, ?) WHERE position = ?", [time.microseconds, session])
  }

  func remember(
    _ claim: IdempotencyClaim?, session: UUID, turn: UUID?, at time: Timestamp
  ) throws {
    guard let claim else { return }
    // An expired record with this key may still be there.
    try run(
      """
      INSERT OR REPLACE INTO idempotency (owner, scope, key, digest, session_id, turn_id, created_at)
      VALUES (CAST(? AS TEXT), CAST(? AS TEXT), CAST(? AS TEXT), ?, ?, ?, ?)
      """,
      [
        freeText(claim.key.owner ?? ""), freeText(claim.key.scope), freeText(claim.key.key),
        Data(claim.digest), session, turn, time.microseconds,
      ])
  }

  /// Makes pending approvals void and returns them in the order in which they were added.
  ///
  /// - Parameter turn: only those of this turn; nil for all turns of all sessions.
  func voidApprovals(turn: Int64?, at time: Timestamp) throws -> [ApprovalRow] {
    let pending =
      if let turn {
        try all(
          """
          SELECT \(ApprovalRow.columns) FROM \(ApprovalRow.source)
          WHERE approvals.turn = ? AND approvals.state = 'pending' ORDER BY approvals.position
          """, [turn], ApprovalRow.init)
      } else {
        try all(
          """
          SELECT \(ApprovalRow.columns) FROM \(ApprovalRow.pendingSource)
          WHERE approvals.state = 'pending' ORDER BY approvals.position
          """, [], ApprovalRow.init)
      }
    return try pending.map { row in
      var row = row
      row.approval.state = .void
      row.approval.resolvedAt = time
      try run(
        "UPDATE approvals SET state = 'void', resolved_at = ? WHERE position = ?",
        [time.microseconds, row.position])
      return row
    }
  }
}

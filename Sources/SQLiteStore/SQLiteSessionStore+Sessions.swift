public import Foundation
internal import GRDB
public import Sessions

extension SQLiteSessionStore {
  public func createSession(
    _ session: Session, firstTurn: NewTurn?, events: [NewEvent], idempotency: IdempotencyClaim?,
    accounts: [KeyAccount]
  ) async throws(SessionStoreError) -> SessionAdmission {
    try await writer.perform(.power) { database in
      if let idempotency,
        let record = try database.idempotencyRecord(idempotency.key, at: session.createdAt)
      {
        guard record.digest == idempotency.digest else { return .mismatch }
        guard let row = try database.sessionRowOrNil(record.sessionID) else {
          return .replayedButDeleted(sessionID: record.sessionID)
        }
        let turn = try record.turnID.flatMap { try database.turnRowOrNil($0)?.turn }
        return .replayed(row.session, firstTurn: turn)
      }
      if try database.first("SELECT 1 FROM sessions WHERE id = ?", [session.id], { _ in true }) == true {
        throw SessionStoreError.alreadyExists("Session \(session.id.lowercaseString)")
      }
      if let firstTurn { try database.checkIsNew(firstTurn) }
      let now = session.createdAt
      try Admission.checkSession(accounts, at: now) { try database.usage(of: $0, at: now) }
      if firstTurn != nil { try Admission.checkNewTurn(accounts, at: now) { try database.usage(of: $0, at: now) } }
      try database.run(
        """
        INSERT INTO sessions (id, name, created_at, last_used, workspace, owner, parent_id, options, metadata,
          has_conversation, deleted_at, network)
        VALUES (?, CAST(? AS TEXT), ?, ?, CAST(? AS TEXT), CAST(? AS TEXT), ?, ?, ?, ?, ?, ?)
        """,
        [
          session.id, freeText(session.name), session.createdAt.microseconds, session.lastUsed.microseconds,
          freeText(session.workspace), freeText(session.owner), session.parentID, session.options,
          session.metadata, session.hasConversation, session.deletedAt?.microseconds,
          session.network?.rawValue,
        ])
      let position = database.lastInsertedRowID
      try database.run("INSERT INTO room (session, files, log) VALUES (?, 0, 0)", [position])
      let turn = try firstTurn.map {
        try database.insert($0, session: position, sessionID: session.id, owner: session.owner)
      }
      let added = try database.append(events, session: position, sessionID: session.id)
      try database.remember(idempotency, session: session.id, turn: turn?.id, at: session.createdAt)
      return .created(session, firstTurn: turn, events: added)
    }
  }

  public func session(_ id: UUID) async throws(SessionStoreError) -> Session {
    try await reader.perform { try $0.sessionRow(id).session }
  }

  public func sessions(_ query: SessionQuery) async throws(SessionStoreError) -> SessionPage {
    try await scanner.perform { database in
      var conditions = ["deleted_at IS NULL"]
      var arguments = StatementArguments()
      func add(_ condition: String, _ values: StatementArguments = []) {
        conditions.append(condition)
        arguments += values
      }
      if let after = query.after { add("position > ?", [after.rawValue]) }
      if let owner = query.owner { add("owner = CAST(? AS TEXT)", [freeText(owner)]) }
      if let part = query.nameContains {
        // SQLite's lower() leaves everything but ASCII as it is.
        add("instr(lower(name), lower(CAST(? AS TEXT))) > 0", [freeText(part)])
      }
      if let activity = query.activity {
        let exists = """
          EXISTS (SELECT 1 FROM turns
            WHERE turns.session = sessions.position AND turns.state IN ('queued', 'running'))
          """
        add(activity == .running ? exists : "NOT \(exists)")
      }
      var sql = """
        SELECT \(SessionRow.columns) FROM sessions WHERE \(conditions.joined(separator: " AND "))
        ORDER BY position
        """
      let limit = query.limit.map { max(0, $0) }
      if let limit {
        // One row more tells whether the list goes on.
        sql += " LIMIT ?"
        arguments += [limit == .max ? limit : limit + 1]
      }
      var rows = try database.all(sql, arguments, SessionRow.init)
      var next: SessionCursor?
      if let limit, rows.count > limit {
        rows.removeLast(rows.count - limit)
        next = rows.last.map { SessionCursor(rawValue: $0.position) }
      }
      return SessionPage(sessions: rows.map(\.session), next: next)
    }
  }

  public func updateSession(
    _ id: UUID, _ update: SessionUpdate, events: [NewEvent]
  ) async throws(SessionStoreError) -> (session: Session, events: [Event]) {
    try await writer.perform(.power) { database in
      let row = try database.sessionRow(id)
      var session = row.session
      if let name = update.name { session.name = name }
      if let lastUsed = update.lastUsed { session.lastUsed = lastUsed }
      if let options = update.options { session.options = options }
      if let metadata = update.metadata { session.metadata = metadata }
      if let hasConversation = update.hasConversation { session.hasConversation = hasConversation }
      try database.run(
        """
        UPDATE sessions SET name = CAST(? AS TEXT), last_used = ?, options = ?, metadata = ?,
          has_conversation = ?
        WHERE position = ?
        """,
        [
          freeText(session.name), session.lastUsed.microseconds, session.options, session.metadata,
          session.hasConversation, row.position,
        ])
      return (session, try database.append(events, session: row.position, sessionID: id))
    }
  }

  public func beginDeletion(of id: UUID, at now: Timestamp) async throws(SessionStoreError) -> Session {
    try await writer.perform(.power) { database in
      let position = try database.sessionPosition(id)
      try database.run(
        "UPDATE sessions SET deleted_at = ? WHERE position = ?", [now.microseconds, position])
      let session = try database.first(
        "SELECT \(SessionRow.columns) FROM sessions WHERE position = ?", [position], SessionRow.init)
      guard let session else { throw InvalidColumn() }
      return session.session
    }
  }

  public func finishDeletion(of id: UUID) async throws(SessionStoreError) {
    // A part of a log takes some milliseconds.
    let part: Int64 = 2000
    var isMore = true
    while isMore {
      isMore = try await writer.perform { database in
        let first = try database.first(
          """
          SELECT sessions.position, events.sequence
          FROM sessions JOIN events ON events.session = sessions.position
          WHERE sessions.id = ? ORDER BY events.sequence LIMIT 1
          """, [id]
        ) { (session: try $0.integer(0), sequence: try $0.integer(1)) }
        guard let first else { return false }
        try database.run(
          "DELETE FROM events WHERE session = ? AND sequence < ?", [first.session, first.sequence + part])
        return true
      }
    }
    try await writer.perform(.power) { try $0.run("DELETE FROM sessions WHERE id = ?", [id]) }
  }

  public func unfinishedDeletions() async throws(SessionStoreError) -> [Session] {
    try await scanner.perform { try $0.unfinishedDeletions() }
  }
}

extension Database {
  func unfinishedDeletions() throws -> [Session] {
    try all(
      "SELECT \(SessionRow.columns) FROM sessions WHERE deleted_at IS NOT NULL ORDER BY position", [],
      SessionRow.init
    ).map(\.session)
  }
}

internal import Foundation
internal import GRDB
public import Sessions

extension SQLiteSessionStore {
  public func usage(of key: String, at now: Timestamp) async throws(SessionStoreError) -> KeyUsage {
    try await scanner.perform { try $0.usage(of: key, at: now) }
  }
}

extension Database {
  func usage(of key: String, at now: Timestamp) throws -> KeyUsage {
    var usage = KeyUsage()
    let sessions = try first(
      "SELECT count(*) FROM sessions WHERE owner IS CAST(? AS TEXT) AND deleted_at IS NULL",
      [freeText(key.isEmpty ? nil : key)]
    ) { try $0.integer(0) }
    usage.sessions = sessions ?? 0
    // A turn that runs in a session that is being deleted goes on spending; one that waits there won't run.
    let turns = try first(
      """
      SELECT count(*) FILTER (WHERE turns.state = 'running'),
        count(*) FILTER (WHERE turns.state = 'queued' AND sessions.deleted_at IS NULL),
        coalesce(sum(turns.reserved) FILTER (WHERE turns.state = 'running'), 0)
      FROM turns INDEXED BY turns_by_state JOIN sessions ON sessions.position = turns.session
      WHERE turns.state IN ('queued', 'running')
        AND (sessions.owner = CAST(? AS TEXT) OR coalesce(turns.owner, sessions.owner, '') = CAST(? AS TEXT))
      """, [freeText(key), freeText(key)]
    ) { (running: try $0.integer(0), queued: try $0.integer(1), reserved: try $0.integer(2)) }
    if let turns { (usage.runningTurns, usage.queuedTurns, usage.reserved) = turns }
    let hour = UsagePeriod.hour(of: now)
    let day = UsagePeriod.hour(of: UsagePeriod.day.start(now))
    let books = try first(
      """
      SELECT coalesce(sum(turns) FILTER (WHERE hour = ?), 0), coalesce(sum(tokens) FILTER (WHERE hour >= ?), 0),
        coalesce(sum(cost) FILTER (WHERE hour >= ?), 0), coalesce(sum(cost), 0)
      FROM usage WHERE key = CAST(? AS TEXT) AND hour >= ?
      """, [hour, day, day, freeText(key), UsagePeriod.hour(of: UsagePeriod.month.start(now))]
    ) { row in
      (
        turns: try row.integer(0), tokens: try row.integer(1), today: try row.integer(2), month: try row.integer(3)
      )
    }
    if let books {
      (usage.turnsThisHour, usage.tokensToday, usage.costToday, usage.costThisMonth) = books
    }
    return usage
  }

  /// Writes what a turn used into the books of its keys.
  func charge(_ row: TurnRow, _ outcome: TurnOutcome) throws {
    let charge = outcome.charge(reserved: row.reserved)
    guard charge.tokens != 0 || charge.cost != 0 else { return }
    for key in KeyLimitPolicy.keys(owner: row.sessionOwner, sender: row.turn.owner) {
      try book(key, at: outcome.finishedAt, turns: 0, tokens: charge.tokens, cost: charge.cost)
    }
  }

  func book(_ key: String, at time: Timestamp, turns: Int64, tokens: Int64, cost: Int64) throws {
    try run(
      """
      INSERT INTO usage (key, hour, turns, tokens, cost) VALUES (CAST(? AS TEXT), ?, ?, ?, ?)
      ON CONFLICT (key, hour) DO UPDATE SET turns = turns + excluded.turns, tokens = tokens + excluded.tokens,
        cost = cost + excluded.cost
      """, [freeText(key), UsagePeriod.hour(of: time), turns, tokens, cost])
  }
}

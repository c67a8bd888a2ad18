public import Foundation
internal import GRDB
public import Sessions

extension SQLiteSessionStore {
  public func filesOfSessions(of key: String) async throws(SessionStoreError) -> [SessionFiles] {
    try await scanner.perform { database in
      try database.all(
        """
        SELECT sessions.id, room.files FROM sessions JOIN room ON room.session = sessions.position
        WHERE sessions.owner IS CAST(? AS TEXT) AND sessions.deleted_at IS NULL ORDER BY sessions.position
        """, [freeText(key.isEmpty ? nil : key)]
      ) { SessionFiles(session: try $0.uuid(0), bytes: try $0.integerOrNil(1)) }
    }
  }

  public func noteFiles(_ size: FilesSize, of sessionID: UUID) async throws(SessionStoreError) {
    let (value, bytes) =
      switch size {
      case .measured(let bytes): ("?", bytes)
      case .more(let bytes): ("coalesce(files, 0) + ?", bytes)
      case .atLeast(let bytes): ("max(coalesce(files, 0), ?)", bytes)
      }
    try await writer.perform { database in
      try database.run(
        "UPDATE room SET files = \(value) WHERE session = (SELECT position FROM sessions WHERE id = ?)",
        [bytes, sessionID])
    }
  }

  public func usage(of key: String, at now: Timestamp) async throws(SessionStoreError) -> KeyUsage {
    try await scanner.perform { try $0.usage(of: key, at: now) }
  }

  public func countGateway(
    _ uses: [GatewayUse], mark: String, at now: Timestamp
  ) async throws(SessionStoreError) {
    try await writer.perform { database in
      try database.run(
        "INSERT INTO gateway_log (id, mark) VALUES (1, ?) ON CONFLICT (id) DO UPDATE SET mark = excluded.mark", [mark])
      for use in uses {
        let surplus = try database.settleGateway(use.session) { $0 += use.use }
        try database.book(use.key, at: now, turns: 0, besideCLI: surplus)
      }
    }
  }

  public func forgetGatewayCredit(of sessionID: UUID) async throws(SessionStoreError) {
    try await writer.perform { database in
      guard try database.runningTurns(sessionID) == 0 else { return }
      // A surplus is settled when it comes about, so that there is none.
      _ = try database.settleGateway(sessionID) { $0.forgetCredit() }
    }
  }

  public func gatewayMark() async throws(SessionStoreError) -> String? {
    try await reader.perform { try $0.gatewayMark() }
  }
}

extension Database {
  func usage(of key: String, at now: Timestamp) throws -> KeyUsage {
    var usage = KeyUsage()
    let sessions = try first(
      """
      SELECT count(*), coalesce(sum(coalesce(room.files, 0) + room.log), 0)
      FROM sessions JOIN room ON room.session = sessions.position
      WHERE sessions.owner IS CAST(? AS TEXT) AND sessions.deleted_at IS NULL
      """, [freeText(key.isEmpty ? nil : key)]
    ) { (count: try $0.integer(0), bytes: try $0.integer(1)) }
    if let sessions { (usage.sessions, usage.diskBytes) = sessions }
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
    if usage.runningTurns > 0 { usage.pending = try pendingUse(of: key) }
    let hour = UsagePeriod.hour(of: now)
    let day = UsagePeriod.hour(of: UsagePeriod.day.start(now))
    let books = try first(
      """
      SELECT coalesce(sum(turns) FILTER (WHERE hour = ?), 0), coalesce(sum(tokens) FILTER (WHERE hour >= ?), 0),
        coalesce(sum(cost) FILTER (WHERE hour >= ?), 0), coalesce(sum(cost), 0),
        coalesce(sum(beside_tokens) FILTER (WHERE hour >= ?), 0),
        coalesce(sum(beside_cost) FILTER (WHERE hour >= ?), 0), coalesce(sum(beside_cost), 0)
      FROM usage WHERE key = CAST(? AS TEXT) AND hour >= ?
      """, [hour, day, day, day, day, freeText(key), UsagePeriod.hour(of: UsagePeriod.month.start(now))]
    ) { row in try (0..<7).map { try row.integer($0) } }
    if let books {
      usage.turnsThisHour = books[0]
      usage.tokensToday = books[1]
      usage.costToday = books[2]
      usage.costThisMonth = books[3]
      usage.besideCLI.tokensToday = books[4]
      usage.besideCLI.costToday = books[5]
      usage.besideCLI.costThisMonth = books[6]
    }
    return usage
  }

  private func pendingUse(of key: String) throws -> ModelUse {
    try all(
      """
      SELECT gateway_accounts.tokens, gateway_accounts.cost
      FROM turns INDEXED BY turns_by_state JOIN sessions ON sessions.position = turns.session
        JOIN gateway_accounts ON gateway_accounts.session = sessions.id
      WHERE turns.state = 'running'
        AND (sessions.owner = CAST(? AS TEXT) OR coalesce(turns.owner, sessions.owner, '') = CAST(? AS TEXT))
      """, [freeText(key), freeText(key)]
    ) { ModelUse(tokens: try $0.integer(0), cost: try $0.integer(1)).surplus }
    .reduce(into: ModelUse()) { $0 += $1 }
  }

  /// Writes what a turn used into the books of its keys, with what was taken in its session beside the CLI.
  func charge(_ row: TurnRow, _ outcome: TurnOutcome) throws {
    let charge = outcome.charge(reserved: row.reserved)
    let isCounted = try gatewayMark() != nil
    let surplus = try settleGateway(row.turn.sessionID) { if isCounted { $0 -= charge } }
    for key in KeyLimitPolicy.keys(owner: row.sessionOwner, sender: row.turn.owner) {
      try book(key, at: outcome.finishedAt, turns: 0, charge, besideCLI: surplus)
    }
  }

  /// - Parameters:
  ///   - charge: what was told of.
  ///   - surplus: what was taken beside.
  func book(
    _ key: String, at time: Timestamp, turns: Int64, _ charge: ModelUse = ModelUse(),
    besideCLI surplus: ModelUse = ModelUse()
  ) throws {
    guard turns != 0 || !charge.isZero || !surplus.isZero else { return }
    try run(
      """
      INSERT INTO usage (key, hour, turns, tokens, cost, beside_tokens, beside_cost)
        VALUES (CAST(? AS TEXT), ?, ?, ?, ?, ?, ?)
      ON CONFLICT (key, hour) DO UPDATE SET turns = turns + excluded.turns, tokens = tokens + excluded.tokens,
        cost = cost + excluded.cost, beside_tokens = beside_tokens + excluded.beside_tokens,
        beside_cost = beside_cost + excluded.beside_cost
      """,
      [
        freeText(key), UsagePeriod.hour(of: time), turns, charge.tokens + surplus.tokens, charge.cost + surplus.cost,
        surplus.tokens, surplus.cost,
      ])
  }

  // MARK: The gateway

  fileprivate func gatewayMark() throws -> String? {
    try first("SELECT mark FROM gateway_log", []) { try $0.string(0) }
  }

  fileprivate func runningTurns(_ session: UUID) throws -> Int64 {
    try first(
      """
      SELECT count(*) FROM turns JOIN sessions ON sessions.position = turns.session
      WHERE sessions.id = ? AND turns.state = 'running'
      """, [session]
    ) { try $0.integer(0) } ?? 0
  }

  /// Changes the account of a session.
  ///
  /// - Returns: what is to be charged.
  fileprivate func settleGateway(_ session: UUID, _ change: (inout ModelUse) -> Void) throws -> ModelUse {
    let before =
      try first("SELECT tokens, cost FROM gateway_accounts WHERE session = ?", [session]) {
        ModelUse(tokens: try $0.integer(0), cost: try $0.integer(1))
      } ?? ModelUse()
    var account = before
    change(&account)
    if account.isZero && before.isZero { return ModelUse() }
    let surplus = try runningTurns(session) > 0 ? ModelUse() : account.settle()
    if account.isZero {
      try run("DELETE FROM gateway_accounts WHERE session = ?", [session])
    } else {
      try run(
        """
        INSERT INTO gateway_accounts (session, tokens, cost) VALUES (?, ?, ?)
        ON CONFLICT (session) DO UPDATE SET tokens = excluded.tokens, cost = excluded.cost
        """, [session, account.tokens, account.cost])
    }
    return surplus
  }
}

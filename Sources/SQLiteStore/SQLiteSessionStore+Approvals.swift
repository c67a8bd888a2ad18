public import Foundation
internal import GRDB
public import Sessions

extension SQLiteSessionStore {
  public func addApproval(
    _ approval: Approval, events: [NewEvent]
  ) async throws(SessionStoreError) -> [Event] {
    try await writer.perform(.power) { database in
      let turn = try database.turnRow(approval.turnID)
      guard turn.turn.sessionID == approval.sessionID else {
        throw SessionStoreError.turnNotFound(approval.turnID)
      }
      guard turn.turn.state == .running else {
        throw SessionStoreError.conflict(.turnState(turn.turn.state))
      }
      if try database.first("SELECT 1 FROM approvals WHERE id = ?", [approval.id], { _ in true }) == true {
        throw SessionStoreError.alreadyExists("Approval \(approval.id.lowercaseString)")
      }
      try database.run(
        """
        INSERT INTO approvals (id, session, turn, tool_name, tool_use_id, input, cli_request_id, created_at,
          expires_at, state, resolved_at, message, updated_input, remember)
        VALUES (?, ?, ?, CAST(? AS TEXT), CAST(? AS TEXT), ?, CAST(? AS TEXT), ?, ?, ?, ?, CAST(? AS TEXT),
          ?, ?)
        """,
        [
          approval.id, turn.sessionPosition, turn.position, freeText(approval.toolName),
          freeText(approval.toolUseID), approval.input, freeText(approval.cliRequestID),
          approval.createdAt.microseconds, approval.expiresAt.microseconds, approval.state.rawValue,
          approval.resolvedAt?.microseconds, freeText(approval.message), approval.updatedInput,
          approval.remember,
        ])
      return try database.append(events, session: turn.sessionPosition, sessionID: approval.sessionID)
    }
  }

  public func resolveApproval(
    _ id: UUID, _ decision: ApprovalDecision, events: [NewEvent]
  ) async throws(SessionStoreError) -> ApprovalResolution {
    try await writer.perform(.power) { database in
      guard var row = try database.approvalRow(id) else { throw SessionStoreError.approvalNotFound(id) }
      guard row.approval.state == .pending else { return .alreadyResolved(row.approval) }
      row.approval.state = decision.state
      row.approval.resolvedAt = decision.resolvedAt
      row.approval.message = decision.message
      row.approval.updatedInput = decision.updatedInput
      row.approval.remember = decision.remember
      try database.run(
        """
        UPDATE approvals SET state = ?, resolved_at = ?, message = CAST(? AS TEXT), updated_input = ?,
          remember = ?
        WHERE position = ?
        """,
        [
          decision.state.rawValue, decision.resolvedAt.microseconds, freeText(decision.message),
          decision.updatedInput, decision.remember, row.position,
        ])
      return .resolved(
        row.approval,
        events: try database.append(events, session: row.sessionPosition, sessionID: row.approval.sessionID))
    }
  }

  public func approval(_ id: UUID) async throws(SessionStoreError) -> Approval {
    try await reader.perform { database in
      guard let row = try database.approvalRow(id), !row.isInDeletion else {
        throw SessionStoreError.approvalNotFound(id)
      }
      return row.approval
    }
  }

  public func approvals(
    of sessionID: UUID, after: UUID?, limit: Int, states: Set<Approval.State>?
  ) async throws(SessionStoreError) -> StorePage<Approval> {
    try await scanner.perform { database in
      let session = try database.sessionPosition(sessionID)
      let position = try after.map { after in
        guard let row = try database.approvalRow(after), row.sessionPosition == session else {
          throw SessionStoreError.approvalNotFound(after)
        }
        return row.position
      }
      var arguments: StatementArguments = [session, position ?? 0]
      let inStates =
        try states.map { try condition("approvals.state", oneOf: $0.map(\.rawValue), &arguments) } ?? ""
      return try database.page(
        """
        SELECT \(ApprovalRow.columns) FROM \(ApprovalRow.source)
        WHERE approvals.session = ? AND approvals.position > ? \(inStates) ORDER BY approvals.position
        """, arguments, limit: limit
      ) { try ApprovalRow($0).approval }
    }
  }

  public func idempotencyRecord(
    for key: IdempotencyKey, at now: Timestamp
  ) async throws(SessionStoreError) -> IdempotencyRecord? {
    try await reader.perform { try $0.idempotencyRecord(key, at: now) }
  }

  public func purgeIdempotencyRecords(at now: Timestamp) async throws(SessionStoreError) -> Int {
    try await writer.perform { database in
      let oldest = now.advanced(by: .zero - IdempotencyRecord.lifetime)
      try database.run("DELETE FROM idempotency WHERE created_at <= ?", [oldest.microseconds])
      return database.changesCount
    }
  }
}

extension Database {
  /// An approval, also of a session whose deletion has begun.
  fileprivate func approvalRow(_ id: UUID) throws -> ApprovalRow? {
    try first(
      "SELECT \(ApprovalRow.columns) FROM \(ApprovalRow.source) WHERE approvals.id = ?", [id],
      ApprovalRow.init)
  }
}

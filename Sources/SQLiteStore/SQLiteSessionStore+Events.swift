public import Foundation
internal import GRDB
public import Sessions

extension SQLiteSessionStore {
  public func appendEvents(
    _ events: [NewEvent], to sessionID: UUID
  ) async throws(SessionStoreError) -> [Event] {
    try await writer.perform { database in
      let position = try database.first("SELECT position FROM sessions WHERE id = ?", [sessionID]) {
        try $0.integer(0)
      }
      guard let position else { throw SessionStoreError.sessionNotFound(sessionID) }
      return try database.append(events, session: position, sessionID: sessionID)
    }
  }

  public func events(
    of sessionID: UUID, after: Int64, limit: Int, types: Set<String>?
  ) async throws(SessionStoreError) -> StorePage<Event> {
    try await scanner.perform { database in
      var arguments: StatementArguments = [try database.sessionPosition(sessionID), after]
      let ofTypes = try types.map { try condition("type", oneOf: Array($0), &arguments) } ?? ""
      return try database.page(
        """
        SELECT sequence, type, turn_id, processed_at, payload FROM events
        WHERE session = ? AND sequence > ? \(ofTypes) ORDER BY sequence
        """, arguments, limit: limit
      ) { row in
        Event(
          sessionID: sessionID, sequence: try row.integer(0), type: try row.string(1),
          turnID: try row.uuidOrNil(2), processedAt: try row.timestamp(3), payload: try row.string(4))
      }
    }
  }

  public func lastSequence(of sessionID: UUID) async throws(SessionStoreError) -> Int64 {
    try await reader.perform { database in
      try database.lastSequence(session: try database.sessionPosition(sessionID))
    }
  }
}

/// A condition to go behind another one in SQL: the column has one of the values.
///
/// The values travel as one JSON array, so that the statement is the same for any number of them and is compiled
/// once.
func condition(
  _ column: String, oneOf values: [String], _ arguments: inout StatementArguments
) throws -> String {
  arguments += [String(decoding: try JSONEncoder().encode(values), as: UTF8.self)]
  return "AND \(column) IN (SELECT value FROM json_each(?))"
}

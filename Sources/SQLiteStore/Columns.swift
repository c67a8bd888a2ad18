internal import Foundation
internal import GRDB
internal import Sessions

// How values get into columns and out of them.
//
// GRDB passes strings to SQLite as C strings, which end at the first NUL. Text that people or models wrote may
// hold one, so it travels as bytes: `CAST(? AS TEXT)` on the way in, the column's bytes on the way out. JSON has
// no raw NUL and takes the shorter way.

/// The argument for `CAST(? AS TEXT)`.
func freeText(_ text: String?) -> Data? {
  text.map { Data($0.utf8) }
}

extension Row {
  func freeText(_ index: Int) throws -> String {
    guard let text = try freeTextOrNil(index) else { throw InvalidColumn() }
    return text
  }

  func freeTextOrNil(_ index: Int) throws -> String? {
    try withUnsafeData(atIndex: index) { $0.map { String(decoding: $0, as: UTF8.self) } }
  }

  func string(_ index: Int) throws -> String {
    try decode(String.self, atIndex: index)
  }

  func stringOrNil(_ index: Int) throws -> String? {
    try decode(String?.self, atIndex: index)
  }

  func integer(_ index: Int) throws -> Int64 {
    try decode(Int64.self, atIndex: index)
  }

  func integerOrNil(_ index: Int) throws -> Int64? {
    try decode(Int64?.self, atIndex: index)
  }

  func uuid(_ index: Int) throws -> UUID {
    try decode(UUID.self, atIndex: index)
  }

  func uuidOrNil(_ index: Int) throws -> UUID? {
    try decode(UUID?.self, atIndex: index)
  }

  func timestamp(_ index: Int) throws -> Timestamp {
    Timestamp(microseconds: try integer(index))
  }

  func timestampOrNil(_ index: Int) throws -> Timestamp? {
    try integerOrNil(index).map { Timestamp(microseconds: $0) }
  }

  func flag(_ index: Int) throws -> Bool {
    try integer(index) != 0
  }

  func state<State: RawRepresentable<String>>(_ index: Int) throws -> State {
    guard let state = State(rawValue: try string(index)) else { throw InvalidColumn() }
    return state
  }

  func stateOrNil<State: RawRepresentable<String>>(_ index: Int) throws -> State? {
    try stringOrNil(index) == nil ? nil : try state(index)
  }
}

/// A column holds what the schema doesn't allow.
struct InvalidColumn: Error {}

extension Database {
  /// Runs a statement, compiled once for each connection.
  func run(_ sql: String, _ arguments: StatementArguments = StatementArguments()) throws {
    try cachedStatement(sql: sql).execute(arguments: arguments)
  }

  /// Runs `body` within a transaction that writes, whose own statements are compiled once, too.
  func transaction(_ body: () throws -> Void) throws {
    try run("BEGIN IMMEDIATE")
    do {
      try body()
      try run("COMMIT")
    } catch {
      // Some errors have ended it already. One that goes on could not be followed by another.
      if isInsideTransaction { try rollback() }
      throw error
    }
  }

  /// The first row, decoded, or nil if there is none.
  func first<Value>(
    _ sql: String, _ arguments: StatementArguments, _ decode: (Row) throws -> Value
  ) throws -> Value? {
    let rows = try Row.fetchCursor(cachedStatement(sql: sql), arguments: arguments)
    return try rows.next().map(decode)
  }

  func all<Value>(
    _ sql: String, _ arguments: StatementArguments = StatementArguments(), _ decode: (Row) throws -> Value
  ) throws -> [Value] {
    let rows = try Row.fetchCursor(cachedStatement(sql: sql), arguments: arguments)
    var values: [Value] = []
    while let row = try rows.next() { values.append(try decode(row)) }
    return values
  }

  /// Reads no more rows than go into the page, and one that tells whether there are more.
  func page<Element>(
    _ sql: String, _ arguments: StatementArguments, limit: Int, _ decode: (Row) throws -> Element
  ) throws -> StorePage<Element> {
    var page = StorePage<Element>(limit: limit)
    let limit = max(0, limit)
    let rows = try Row.fetchCursor(
      cachedStatement(sql: sql + " LIMIT ?"), arguments: arguments + [limit == .max ? limit : limit + 1])
    while let row = try rows.next(), page.hasRoom() { page.append(try decode(row)) }
    return page
  }
}

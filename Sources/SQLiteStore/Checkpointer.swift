internal import GRDB
internal import GRDBSQLite
internal import Synchronization

/// Writes the log back into the database, on a connection of its own.
///
/// SQLite does that within the commit that has made the log long enough, which then waits for the disk twice more: one
/// turn of thirty would, and so would a thread that only appends events and is told that nothing waits for the disk.
final class Checkpointer: Sendable {
  private struct State {
    /// The pages of the log.
    var pages = 0
    /// What they were at the last attempt.
    var tried = 0
    var isRunning = false
    var isClosed = false
  }

  /// Pages that the log grows by before it is written back: 4 MiB, as SQLite has it.
  private static let interval = 1000
  /// Pages from which on commits write it back themselves. The log begins anew only if all of it has been written back,
  /// which those that come in quick succession would put off for ever.
  private static let limit = 4 * interval
  /// How often in a row what has come in the meantime is written back too.
  private static let rounds = 4

  private let queue: DatabaseQueue
  private let state = Mutex(State())

  /// - Parameter queue: may write, and is used by nobody else from now on.
  init(_ queue: DatabaseQueue) {
    self.queue = queue
  }

  /// Takes this over from the connection that writes, which must not be used any more when this is gone.
  func relieve(_ writer: Database) {
    sqlite3_wal_hook(
      writer.sqliteConnection,
      { context, writer, name, pages in
        guard let context else { return SQLITE_OK }
        Unmanaged<Checkpointer>.fromOpaque(context).takeUnretainedValue().committed(Int(pages), writer, name)
        return SQLITE_OK
      }, Unmanaged.passUnretained(self).toOpaque())
  }

  /// - Parameter pages: so many are in the log now.
  private func committed(_ pages: Int, _ writer: OpaquePointer?, _ name: UnsafePointer<CChar>?) {
    if pages >= Self.limit {
      // What it returns is left aside, as SQLite does: the commit is in the log, and the next one tries again.
      _ = sqlite3_wal_checkpoint_v2(writer, name, SQLITE_CHECKPOINT_PASSIVE, nil, nil)
      return
    }
    let isDue = state.withLock { state in
      state.pages = pages
      // It has begun anew.
      if pages < state.tried { state.tried = 0 }
      guard !state.isClosed, !state.isRunning, pages >= state.tried + Self.interval else { return false }
      state.tried = pages
      state.isRunning = true
      return true
    }
    guard isDue else { return }
    queue.asyncWriteWithoutTransaction { database in
      self.writeBack(database)
      self.state.withLock { $0.isRunning = false }
    }
  }

  private func writeBack(_ database: Database) {
    for _ in 0..<Self.rounds {
      do {
        let written = try database.checkpoint(.passive).checkpointedFrameCount
        let pages = state.withLock { state in
          state.tried = state.pages
          return state.pages
        }
        if pages <= written { return }
      } catch {
        // Nothing is lost, and a disk that fails, or is full, shows in the commits. The next attempt comes with more of
        // them.
        return
      }
    }
  }

  /// Waits for what is under way, and closes the connection. To be called before the writer's is closed.
  func close() {
    state.withLock { $0.isClosed = true }
    // Fails only while a statement is in use; the file is then closed with the queue.
    try? queue.close()
  }
}

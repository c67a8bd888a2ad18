/// Settings of a `SQLiteSessionStore`.
public struct SQLiteStoreConfiguration: Sendable {
  /// Absolute path of the database file. Its directory is made if it is missing (mode 0700), the file gets mode
  /// 0600, and beside it lie `-wal` and `-shm` files with the same mode.
  public var path: String
  /// How long to wait for another process that writes to the database before an operation fails with `busy`.
  public var busyTimeout: Duration
  /// How much memory each of the connections may use for pages of the database, in KiB.
  public var cacheKibibytes: Int
  /// The size in bytes over which the database file doesn't grow; operations fail with `diskFull` there. Nil for
  /// no limit but the disk's.
  public var maximumBytes: Int64?
  /// Whether the calling thread may be held up by the database file for a moment. Events that are appended there are
  /// written by that thread, if nothing else is being written, and not by one of the store's. Default: no.
  public var mayBlock: @Sendable () -> Bool = { false }
  /// Told of each call how long it took, waiting included. It must be quick.
  public var onCall: (@Sendable (Call, Duration) -> Void)?

  /// Which connection answers a call.
  public enum Call: Sendable, Hashable, CaseIterable {
    /// A change that waits for the disk.
    case write
    /// Events, which don't.
    case append
    /// A look-up by id.
    case read
    /// A list or a part of a log.
    case scan
  }

  public init(
    path: String, busyTimeout: Duration = .seconds(5), cacheKibibytes: Int = 1024, maximumBytes: Int64? = nil
  ) {
    self.path = path
    self.busyTimeout = busyTimeout
    self.cacheKibibytes = cacheKibibytes
    self.maximumBytes = maximumBytes
  }
}

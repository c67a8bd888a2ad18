import CLinux
import Glibc

/// Why an operation on a file of a workspace was not carried out. Nothing was changed then, unless it says so.
public enum FileError: Error, Sendable, Equatable {
  case notFound
  /// A part of the path before the last is no directory.
  case notADirectory
  case isADirectory
  /// The path, or a part of it, is a symbolic link. None is ever followed.
  case symbolicLink
  /// A device, a FIFO or a socket.
  case special
  case exists
  case directoryNotEmpty
  case nameTooLong
  case permissionDenied
  /// A directory can't be moved into itself.
  case intoItself
  /// What the client knew of the file doesn't hold any more.
  case conditionFailed
  /// The bytes that arrived aren't those that the client's digest was made of.
  case digestMismatch
  /// One file has more bytes than are allowed.
  case uploadTooLarge(limit: Int64)
  /// The workspace would have more bytes or more entries than are allowed.
  case quotaExceeded(WorkspaceLimits.Kind, limit: Int64)
  case diskFull
  /// The bytes are no archive of a known kind, or a damaged one.
  case invalidArchive
  /// An entry of the archive would lie or lead outside, or is no file, folder or link.
  case unsafeArchive
  case system(WorkspaceError)

  init(_ operation: String, _ code: Int32 = errno) {
    switch code {
    // EXDEV: the path would have led out of the workspace.
    case ENOENT, EXDEV: self = .notFound
    case ENOTDIR: self = .notADirectory
    case EISDIR: self = .isADirectory
    case ELOOP: self = .symbolicLink
    case ENXIO, ENODEV: self = .special
    case EEXIST: self = .exists
    case ENOTEMPTY: self = .directoryNotEmpty
    case ENAMETOOLONG: self = .nameTooLong
    case EACCES, EPERM, EROFS: self = .permissionDenied
    case ENOSPC, EDQUOT: self = .diskFull
    default: self = .system(WorkspaceError(operation: operation, errno: code))
    }
  }
}

/// What a session's workspace may hold.
public struct WorkspaceLimits: Sendable, Equatable {
  public enum Kind: String, Sendable {
    case bytes
    case entries
  }

  /// Bytes on the disk. Default 10 GiB.
  public var bytes: Int64 = 10 << 30
  /// Files, directories and links. Default 1,000,000.
  public var entries: Int64 = 1_000_000
  /// Bytes of one file that is uploaded. Default 4 GiB.
  public var uploadBytes: Int64 = 4 << 30
  /// Bytes of the disk that are left free: what would take them fails with `diskFull`. Default none.
  public var reservedBytes: Int64 = 0

  public init() {}

  func excess(of usage: WorkspaceUsage) -> FileError? {
    if usage.bytes > bytes { return .quotaExceeded(.bytes, limit: bytes) }
    if usage.entries > entries { return .quotaExceeded(.entries, limit: entries) }
    return nil
  }

  /// Counts what is below a directory, not much further than its limit.
  func count(_ directory: CInt) throws(FileError) -> WorkspaceUsage {
    var counted = clinux_tree_usage()
    guard clinux_tree_walk(directory, UInt64(clamping: entries), nil, &counted) == 0 else {
      throw FileError("count usage")
    }
    return WorkspaceUsage(bytes: Int64(clamping: counted.bytes), entries: Int64(clamping: counted.entries))
  }
}

/// What a workspace holds.
public struct WorkspaceUsage: Sendable, Equatable {
  /// Bytes on the disk.
  public var bytes: Int64
  /// Files, directories and links.
  public var entries: Int64
}

/// A file descriptor that is closed at the end.
struct Descriptor: ~Copyable {
  let raw: CInt

  /// Takes what a system call returned; throws when that is no descriptor.
  init(_ raw: CInt, _ operation: String) throws(FileError) {
    guard raw >= 0 else { throw FileError(operation) }
    self.raw = raw
  }

  deinit { close(raw) }

  /// The status of what it is open at.
  borrowing func status() throws(FileError) -> FileStatus { try FileStatus(of: raw) }
}

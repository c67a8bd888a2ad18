import CLinux
import Glibc

/// What is known of an entry of a workspace.
public struct FileStatus: Sendable, Hashable {
  public enum Kind: String, Sendable {
    case file
    case directory
    /// Never followed.
    case symbolicLink = "symlink"
    /// A device, a FIFO or a socket.
    case special
  }

  public let kind: Kind
  /// Bytes, for a file.
  public let size: Int64
  /// Seconds since 1970.
  public let modified: Int64
  public let modifiedNanoseconds: Int32
  /// Permission bits.
  public let mode: UInt32

  /// The entity tag that nginx gives the file: the time of its change in seconds and its size.
  public var entityTag: String { "\"\(String(modified, radix: 16))-\(String(size, radix: 16))\"" }

  init(_ status: stat) {
    switch status.st_mode & S_IFMT {
    case S_IFREG: kind = .file
    case S_IFDIR: kind = .directory
    case S_IFLNK: kind = .symbolicLink
    default: kind = .special
    }
    size = kind == .directory ? 0 : Int64(status.st_size)
    modified = Int64(status.st_mtim.tv_sec)
    modifiedNanoseconds = Int32(truncatingIfNeeded: status.st_mtim.tv_nsec)
    mode = status.st_mode & 0o777
  }

  init(of descriptor: CInt) throws(FileError) {
    var status = stat()
    guard fstat(descriptor, &status) == 0 else { throw FileError("fstat") }
    self.init(status)
  }

  /// Of the entry itself, also if it is a link.
  init(of name: ArraySlice<UInt8>, in directory: CInt) throws(FileError) {
    var status = stat()
    guard withSystemName(name, { fstatat(directory, $0, &status, AT_SYMLINK_NOFOLLOW) }) == 0 else {
      throw FileError("fstatat")
    }
    self.init(status)
  }
}

/// Opens a reference to an entry, without access to its content.
let pathOnly = Int32(CLINUX_O_PATH)

/// Opens paths below a directory.
struct Beneath {
  let directory: CInt

  func open(_ path: RelativePath, _ flags: Int32, isCached: Bool = false) -> CInt {
    path.withSystemPath { clinux_open_beneath(directory, $0, flags, 0, isCached ? 1 : 0) }
  }

  /// A reference to an entry, whatever it is; a link at the end isn't followed.
  func reference(_ path: RelativePath) throws(FileError) -> Descriptor {
    try Descriptor(open(path, pathOnly | O_NOFOLLOW), "openat2")
  }

  func directory(_ path: RelativePath) throws(FileError) -> Descriptor {
    try Descriptor(open(path, O_RDONLY | O_DIRECTORY), "openat2")
  }

  /// A regular file for reading; a FIFO or device is refused without waiting for it.
  func file(_ path: RelativePath) throws(FileError) -> Descriptor {
    let descriptor = try Descriptor(open(path, O_RDONLY | O_NONBLOCK | O_NOCTTY), "openat2")
    switch try descriptor.status().kind {
    case .file: return descriptor
    case .directory: throw .isADirectory
    default: throw .special
    }
  }

  /// A directory that is made, with those above it, if it doesn't exist.
  func makingDirectory(_ path: RelativePath) throws(FileError) -> Descriptor {
    var count: Int64 = 0
    return try makingDirectory(path, counting: &count)
  }

  /// - Parameter count: is raised by the number of directories that were made.
  func makingDirectory(_ path: RelativePath, counting count: inout Int64) throws(FileError) -> Descriptor {
    let existing = open(path, O_RDONLY | O_DIRECTORY)
    if existing >= 0 || errno != ENOENT { return try Descriptor(existing, "openat2") }
    var current = try directory(.root)
    for component in path.components {
      let made = withSystemName(component) { mkdirat(current.raw, $0, 0o755) }
      guard made == 0 || errno == EEXIST else { throw FileError("mkdirat") }
      if made == 0 { count += 1 }
      // Not the path again: somebody may have put a link in the place of what was just made.
      let next = withSystemName(component) {
        clinux_open_beneath(current.raw, $0, O_RDONLY | O_DIRECTORY, 0, 0)
      }
      current = try Descriptor(next, "openat2")
    }
    return current
  }
}

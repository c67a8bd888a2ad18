import CLinux
import Glibc
import NIOConcurrencyHelpers
import Synchronization

#if canImport(FoundationEssentials)
  import FoundationEssentials
#else
  import Foundation
#endif

/// A file in the making, in a directory beside the workspaces where neither clients nor agents see it. It is removed
/// unless it was moved to its place.
struct StagedFile: ~Copyable {
  let name: String
  private let directory: CInt

  static func newName() -> String { UUID().uuidString.lowercased() }

  init(in directory: CInt) throws(FileError) {
    name = Self.newName()
    self.directory = directory
  }

  /// A file that is there already.
  init(existing name: String, in directory: CInt) {
    self.name = name
    self.directory = directory
  }

  deinit { unlinkat(directory, name, 0) }

  /// Becomes the file itself if it is on the same file system, or else a copy.
  func take(_ source: CInt, size: Int64, isEmpty: Bool) throws(FileError) {
    if !isEmpty, clinux_link_open_file(source, directory, name) == 0 { return }
    try copy(source, from: 0, size: size)
  }

  /// Becomes a copy of a part of a file.
  func copy(_ source: CInt, from offset: Int64, size: Int64) throws(FileError) {
    let target = try create()
    try copyRange(source, offset..<(offset + size), to: target.raw)
  }

  private func create() throws(FileError) -> Descriptor {
    try Descriptor(openat(directory, name, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0o600), "create")
  }

  /// Becomes a small file.
  func write(_ content: Data) throws(FileError) {
    let file = try create()
    var rest = content[...]
    while !rest.isEmpty {
      // A disk that is about to be full takes a part, and says so at the next one.
      let count = rest.withUnsafeBytes { Glibc.write(file.raw, $0.baseAddress, $0.count) }
      guard count > 0 || errno == EINTR else { throw FileError("write") }
      rest = rest.dropFirst(max(count, 0))
    }
  }

  func setMode(_ mode: UInt32) throws(FileError) {
    guard fchmodat(directory, name, mode, 0) == 0 else { throw FileError("chmod") }
  }

  /// - Parameter time: seconds since 1970.
  func setModificationTime(_ time: Int64) throws(FileError) {
    let times = [timespec(tv_sec: time_t(time), tv_nsec: 0), timespec(tv_sec: time_t(time), tv_nsec: 0)]
    guard utimensat(directory, name, times, AT_SYMLINK_NOFOLLOW) == 0 else { throw FileError("utimens") }
  }

  func status() throws(FileError) -> FileStatus { try FileStatus(of: Array(name.utf8)[...], in: directory) }
}

/// Copies a part of a file to where another one stands.
func copyRange(_ source: CInt, _ range: Range<Int64>, to target: CInt) throws(FileError) {
  guard clinux_copy_range(source, off_t(range.lowerBound), target, UInt64(range.count)) == 0 else {
    throw FileError("copy")
  }
}

/// Locks for sessions, of which some share one. They are held for a few system calls by threads that may wait.
struct SessionLocks: Sendable {
  private let locks = (0..<64).map { _ in NIOLock() }

  subscript(session: UUID) -> NIOLock { locks[Int(session.uuid.15) % locks.count] }
}

/// What workspaces held lately, so that many uploads in a row don't count the tree each time.
final class UsageCache: Sendable {
  private struct Entry {
    var usage: WorkspaceUsage
    let time: ContinuousClock.Instant
  }

  private static let lifetime: Duration = .seconds(5)
  private let entries = Mutex<[UUID: Entry]>([:])

  func recent(_ session: UUID) -> WorkspaceUsage? {
    entries.withLock { entries in
      guard let entry = entries[session], ContinuousClock.now - entry.time < Self.lifetime else { return nil }
      return entry.usage
    }
  }

  func set(_ session: UUID, _ usage: WorkspaceUsage) {
    entries.withLock { entries in
      if entries.count >= 1000 { entries = entries.filter { ContinuousClock.now - $0.value.time < Self.lifetime } }
      entries[session] = Entry(usage: usage, time: .now)
    }
  }

  func add(_ session: UUID, bytes: Int64, entries count: Int64) {
    entries.withLock { entries in
      entries[session]?.usage.bytes += bytes
      entries[session]?.usage.entries += count
    }
  }

  func forget(_ session: UUID) { entries.withLock { $0[session] = nil } }
}

import CArchive
import CLinux
import Glibc
import Synchronization

#if canImport(FoundationEssentials)
  public import FoundationEssentials
#else
  public import Foundation
#endif

public enum ArchiveFormat: String, Sendable, CaseIterable {
  case tarGzip = "tar.gz"
  case zip
}

/// An archive of a folder that is made while it is read, piece by piece: it needs neither a copy nor memory for more
/// than a piece. The same tree always gives the same bytes.
public final class ArchiveStream: Sendable {
  private let maker: Mutex<ArchiveMaker?>

  fileprivate init(_ maker: sending ArchiveMaker) {
    self.maker = Mutex(maker)
  }

  /// The next piece; nil at the end. After an error there is nothing more.
  ///
  /// - Throws: ``FileError``, also when the folder was moved meanwhile, when a path has more than 65,535 bytes, or when
  ///   there are more names than a zip archive's list may have.
  public func next() async throws -> [UInt8]? {
    while true {
      let piece: [UInt8]? = try await Workspaces.runLong { [self] in
        try maker.withLock { maker in
          let current = maker
          maker = nil
          guard let current, let piece = try current.next() else { return nil }
          maker = current
          return piece
        }
      }
      // Holes and what is left out take time and give nothing. Others have their turn meanwhile.
      if piece?.isEmpty != true { return piece }
    }
  }
}

extension Workspaces {
  /// Begins an archive of a folder. Links are kept as links, and what is neither file, folder nor link is left out.
  ///
  /// - Throws: ``FileError``
  public func archive(_ path: RelativePath, of session: UUID, as format: ArchiveFormat) async throws -> ArchiveStream {
    try await run { [self] in
      let workspace = try workspace(session)
      let directory = try Beneath(directory: workspace.raw).directory(path)
      return ArchiveStream(try ArchiveMaker(directory, format))
    }
  }
}

/// Makes an archive in steps.
private final class ArchiveMaker {
  /// A folder on the way down: where it is, so that the way up can be checked, and its names, which are read in
  /// pages, as a folder may hold more than memory should.
  private struct Level {
    let device: dev_t
    let inode: ino_t
    /// The length of its path.
    let pathLength: Int
    var names: [DirectoryListing.Cursor] = []
    var next = 0
    var isComplete = false
  }

  /// What the library has written and nobody has taken yet.
  private final class Output {
    var bytes: [UInt8] = []
  }

  private static let pieceLength = 128 << 10
  private static let pageLength = 10_000
  /// Entries and pieces of files that one call takes in at most, and what a page of names counts for.
  private static let workOfPiece = 512
  private static let workOfPage = 128
  /// A path, which the library keeps several times while it is written. A zip archive can't have a longer one.
  private static let maximumPath = 65_535
  /// The list of all entries at the end of a zip archive, which the library keeps in memory: 128 MiB.
  private static let maximumList = 128 << 20
  /// Bytes of an entry in it besides its path.
  private static let listEntry = 80
  /// Years that every format and program knows. The library fails on times whose year is no 32-bit number.
  private static let times: ClosedRange<Int64> = 0...253_402_300_799

  private let archive: OpaquePointer
  private let entry: OpaquePointer
  private let output = Output()
  private var current: CInt
  private var path: [UInt8] = []
  private var levels: [Level] = []
  private var file: (descriptor: CInt, rest: Int64)?
  private var buffer = [UInt8](repeating: 0, count: 64 << 10)
  private var isClosed = false
  private let isZip: Bool
  private var listLength = 0
  private var work = 0

  init(_ directory: borrowing Descriptor, _ format: ArchiveFormat) throws(FileError) {
    guard let archive = archive_write_new() else { throw FileError("archive", ENOMEM) }
    guard let entry = archive_entry_new() else {
      archive_write_free(archive)
      throw FileError("archive", ENOMEM)
    }
    self.archive = archive
    self.entry = entry
    isZip = format == .zip
    current = openat(directory.raw, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC)
    guard current >= 0 else { throw FileError("openat") }
    switch format {
    case .tarGzip:
      archive_write_add_filter_gzip(archive)
      // Without the time of its making.
      archive_write_set_filter_option(archive, "gzip", "timestamp", nil)
      archive_write_set_format_pax_restricted(archive)
    case .zip:
      archive_write_set_format_zip(archive)
    }
    archive_write_set_bytes_per_block(archive, 32 << 10)
    archive_write_set_bytes_in_last_block(archive, 1)
    let result = archive_write_open(
      archive, Unmanaged.passUnretained(output).toOpaque(), nil,
      { _, client, bytes, count in
        guard let client, let bytes else { return -1 }
        Unmanaged<Output>.fromOpaque(client).takeUnretainedValue().bytes
          .append(contentsOf: UnsafeRawBufferPointer(start: bytes, count: count))
        return count
      }, nil)
    guard result == ARCHIVE_OK else { throw libraryError() }
    try enter(current)
  }

  deinit {
    archive_write_free(archive)
    archive_entry_free(entry)
    if current >= 0 { close(current) }
    if let file { close(file.descriptor) }
  }

  /// The next piece, which is empty if nothing has come out yet; nil at the end.
  func next() throws(FileError) -> [UInt8]? {
    let locale = clinux_enter_utf8()
    defer { clinux_leave_utf8(locale) }
    work = 0
    while output.bytes.count < Self.pieceLength, work < Self.workOfPiece, !isClosed {
      work += 1
      if file != nil {
        try copyPiece()
      } else if try !advance() {
        guard archive_write_close(archive) >= ARCHIVE_WARN else { throw libraryError() }
        isClosed = true
      }
    }
    let piece = output.bytes
    output.bytes = []
    output.bytes.reserveCapacity(Self.pieceLength + (64 << 10))
    return piece.isEmpty && isClosed ? nil : piece
  }

  private func libraryError() -> FileError {
    .system(WorkspaceError(operation: "archive", errno: archive_errno(archive)))
  }

  private func enter(_ directory: CInt) throws(FileError) {
    var status = stat()
    guard fstat(directory, &status) == 0 else { throw FileError("fstat") }
    levels.append(Level(device: status.st_dev, inode: status.st_ino, pathLength: path.count))
  }

  /// Takes the next entry in. Returns false when there is none.
  private func advance() throws(FileError) -> Bool {
    guard var level = levels.popLast() else { return false }
    if level.next == level.names.count, !level.isComplete {
      work += Self.workOfPage
      let page = try readNames(of: current, after: level.names.last, limit: Self.pageLength)
      (level.names, level.isComplete, level.next) = (page.names, page.isComplete, 0)
    }
    guard level.next < level.names.count else {
      if level.isComplete { try leave() } else { levels.append(level) }
      return true
    }
    let name = level.names[level.next].name
    level.next += 1
    path.removeSubrange(level.pathLength...)
    levels.append(level)
    do throws(FileError) {
      try add(name)
    } catch .notFound {
      // Removed since its name was read.
    }
    return true
  }

  private func leave() throws(FileError) {
    guard let above = levels.last else { return }
    let parent = openat(current, "..", O_RDONLY | O_DIRECTORY | O_CLOEXEC)
    guard parent >= 0 else { throw FileError("openat") }
    var status = stat()
    guard fstat(parent, &status) == 0, status.st_dev == above.device, status.st_ino == above.inode else {
      close(parent)
      // The folder was moved: what is above it now may be anywhere.
      throw .notFound
    }
    close(current)
    current = parent
  }

  private func add(_ name: [UInt8]) throws(FileError) {
    if !path.isEmpty { path.append(0x2f) }
    path += name
    guard path.count <= Self.maximumPath else { throw .nameTooLong }
    let status = try FileStatus(of: name[...], in: current)
    switch status.kind {
    case .special: return
    case .symbolicLink:
      var target = [CChar](repeating: 0, count: 4097)
      let length = withSystemName(name[...]) { readlinkat(current, $0, &target, 4096) }
      guard length >= 0 else { throw FileError("readlink") }
      target[length] = 0
      try writeHeader(status, size: 0, S_IFLNK, permissions: 0o777, target: target)
    case .directory:
      let child = try open(name, O_DIRECTORY)
      do throws(FileError) {
        try writeHeader(status, size: 0, S_IFDIR, permissions: status.mode)
        try enter(child)
      } catch {
        close(child)
        throw error
      }
      close(current)
      current = child
    case .file:
      let descriptor = try open(name, O_NONBLOCK | O_NOCTTY)
      do throws(FileError) {
        let opened = try FileStatus(of: descriptor)
        guard opened.kind == .file else {
          close(descriptor)
          return
        }
        try writeHeader(opened, size: opened.size, S_IFREG, permissions: opened.mode)
        file = (descriptor, opened.size)
      } catch {
        close(descriptor)
        throw error
      }
    }
  }

  private func open(_ name: [UInt8], _ flags: Int32) throws(FileError) -> CInt {
    let descriptor = withSystemName(name[...]) { clinux_open_own(current, $0, O_RDONLY | flags) }
    guard descriptor >= 0 else {
      // Something else has taken its place.
      throw errno == ELOOP || errno == ENOTDIR ? .notFound : FileError("openat")
    }
    return descriptor
  }

  private func writeHeader(
    _ status: FileStatus, size: Int64, _ type: mode_t, permissions: UInt32, target: [CChar]? = nil
  ) throws(FileError) {
    if isZip {
      listLength += path.count + Self.listEntry
      guard listLength <= Self.maximumList else {
        throw .system(WorkspaceError(operation: "list all that is in a zip archive", errno: EFBIG))
      }
    }
    archive_entry_clear(entry)
    path.append(0)
    path.withUnsafeBufferPointer { bytes in
      bytes.withMemoryRebound(to: CChar.self) { archive_entry_set_pathname(entry, $0.baseAddress) }
    }
    path.removeLast()
    archive_entry_set_filetype(entry, type)
    archive_entry_set_perm(entry, permissions)
    archive_entry_set_size(entry, size)
    archive_entry_set_mtime(entry, time_t(min(max(status.modified, Self.times.lowerBound), Self.times.upperBound)), 0)
    archive_entry_set_uid(entry, 0)
    archive_entry_set_gid(entry, 0)
    if let target { archive_entry_set_symlink(entry, target) }
    // A warning is a name that is no UTF-8, which is kept as it is.
    guard archive_write_header(archive, entry) >= ARCHIVE_WARN else { throw libraryError() }
  }

  /// Copies a piece of the file at hand. What a file grows by meanwhile is left out; what it shrinks by is filled up
  /// with zeros by the library.
  private func copyPiece() throws(FileError) {
    guard let (descriptor, rest) = file else { return }
    let wanted = Int(min(rest, Int64(buffer.count)))
    let count = wanted == 0 ? 0 : read(descriptor, &buffer, wanted)
    if count < 0, errno == EINTR { return }
    guard count >= 0 else { throw FileError("read") }
    if count > 0 {
      guard archive_write_data(archive, buffer, count) == count else { throw libraryError() }
      file = (descriptor, rest - Int64(count))
      if rest > count { return }
    }
    close(descriptor)
    file = nil
    guard archive_write_finish_entry(archive) >= ARCHIVE_WARN else { throw libraryError() }
  }
}

import CArchive
import CLinux
import Glibc

extension Workspaces {
  /// Unpacks a tar archive (plain, or packed by gzip, bzip2, xz or zstd) or a zip archive beside the workspaces.
  ///
  /// Nothing of it is kept if an entry has an absolute name or `..`, is a device, lies behind a link, is a link that
  /// leads out, or if there is more than a workspace may hold. What takes more than some 128 MiB of memory to unpack, or
  /// is packed twice, is taken for no archive.
  ///
  /// - Throws: ``FileError``
  public func unpack(_ body: BodyFile, part: Range<Int64>? = nil) async throws -> StagedTree {
    try await Self.runLong { [self] in
      let name = StagedFile.newName()
      guard mkdirat(stagingDescriptor, name, 0o700) == 0 else { throw FileError("mkdir") }
      do {
        let source = try body.open()
        let usage: WorkspaceUsage
        let directory = try Descriptor(
          openat(stagingDescriptor, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC), "openat")
        if let part {
          // The library reads to the end of a file.
          let staged = try StagedFile(in: stagingDescriptor)
          try staged.copy(source.raw, from: part.lowerBound, size: part.upperBound - part.lowerBound)
          let copy = try Descriptor(openat(stagingDescriptor, staged.name, O_RDONLY | O_CLOEXEC), "openat")
          usage = try ArchiveUnpacker(into: directory.raw, limits).unpack(copy.raw)
        } else {
          usage = try ArchiveUnpacker(into: directory.raw, limits).unpack(source.raw)
        }
        return StagedTree(name: name, usage: usage, self)
      } catch {
        _ = clinux_remove_tree(stagingDescriptor, name, .max)
        throw error
      }
    }
  }
}

/// Unpacks an archive below a directory that is empty and that nobody else writes to.
private struct ArchiveUnpacker {
  private let beneath: Beneath
  private let limits: WorkspaceLimits
  private var usage = WorkspaceUsage(bytes: 0, entries: 0)

  init(into directory: CInt, _ limits: WorkspaceLimits) {
    beneath = Beneath(directory: directory)
    self.limits = limits
  }

  func unpack(_ source: CInt) throws(FileError) -> WorkspaceUsage {
    var unpacker = self
    let locale = clinux_enter_utf8()
    defer { clinux_leave_utf8(locale) }
    guard let archive = archive_read_new() else { throw FileError("archive", ENOMEM) }
    defer { archive_read_free(archive) }
    archive_read_support_format_tar(archive)
    archive_read_support_format_zip(archive)
    archive_read_support_filter_gzip(archive)
    archive_read_support_filter_bzip2(archive)
    archive_read_support_filter_zstd(archive)
    let reader = XZReader.isXZ(source) ? try XZReader(source) : nil
    defer { withExtendedLifetime(reader) {} }
    let opened =
      if let reader {
        archive_read_open(
          archive, Unmanaged.passUnretained(reader).toOpaque(), nil,
          { _, client, buffer in
            guard let client, let piece = Unmanaged<XZReader>.fromOpaque(client).takeUnretainedValue().next() else {
              return Int(ARCHIVE_FATAL)
            }
            buffer?.pointee = UnsafeRawPointer(piece.baseAddress)
            return piece.count
          }, nil)
      } else {
        archive_read_open_fd(archive, source, 64 << 10)
      }
    // Each layer takes memory of its own; the last one is the file itself.
    guard opened == ARCHIVE_OK, archive_filter_count(archive) <= (reader == nil ? 2 : 1) else { throw .invalidArchive }
    var entry: OpaquePointer?
    while true {
      let result = archive_read_next_header(archive, &entry)
      if result == ARCHIVE_EOF { return unpacker.usage }
      guard result >= ARCHIVE_WARN, let entry, Self.isFrugal(archive) else { throw .invalidArchive }
      try unpacker.add(entry, archive)
    }
  }

  /// Whether the entry at hand is packed in a way that needs little memory. Of those that zip has, the rest needs up to
  /// 4 GiB, as the archive likes.
  private static func isFrugal(_ archive: OpaquePointer) -> Bool {
    guard archive_format(archive) & ARCHIVE_FORMAT_BASE_MASK == ARCHIVE_FORMAT_ZIP,
      let name = archive_format_name(archive).map({ String(cString: $0) })
    else { return true }
    return name.hasSuffix("(uncompressed)") || name.hasSuffix("(deflation)") || name.hasSuffix("(bzip)")
  }

  private static func path(_ text: UnsafePointer<CChar>?) throws(FileError) -> RelativePath {
    guard let text else { throw .invalidArchive }
    var bytes = UnsafeRawBufferPointer(start: text, count: strlen(text))[...]
    while bytes.starts(with: [0x2e, 0x2f]) { bytes = bytes.dropFirst(2) }
    if bytes.elementsEqual([0x2e]) { bytes = bytes.dropFirst() }
    do throws(RelativePath.Malformation) {
      return try RelativePath(bytes)
    } catch {
      throw .unsafeArchive
    }
  }

  private mutating func add(_ entry: OpaquePointer, _ archive: OpaquePointer) throws(FileError) {
    let path = try Self.path(archive_entry_pathname(entry) ?? archive_entry_pathname_utf8(entry))
    guard let parentPath = path.parent else { return }
    // Those above it, which the archive may leave out, are checked with the next entry: a path has no more than 2048.
    var made: Int64 = 0
    defer { usage.entries += made }
    usage.entries += 1
    guard usage.entries <= limits.entries else { throw .quotaExceeded(.entries, limit: limits.entries) }
    do throws(FileError) {
      let parent = try beneath.makingDirectory(parentPath, counting: &made)
      if archive_entry_hardlink(entry) != nil {
        let target = try beneath.file(try Self.path(archive_entry_hardlink(entry)))
        try link(target.raw, path.name, in: parent.raw)
        return
      }
      switch archive_entry_filetype(entry) {
      case S_IFDIR:
        let before = made
        _ = try beneath.makingDirectory(path, counting: &made)
        // It has been counted as an entry.
        if made > before { made -= 1 }
      case S_IFREG:
        try write(archive, path.name, in: parent.raw, entry)
      case S_IFLNK:
        guard let target = archive_entry_symlink(entry), Self.staysInside(target, depth: parentPath.components.count)
        else { throw FileError.unsafeArchive }
        try replacing(path.name, in: parent.raw) { symlinkat(target, parent.raw, $0) }
      default:
        throw FileError.unsafeArchive
      }
    } catch .symbolicLink, .notADirectory {
      // An entry that lies behind a link or a file of the archive's own.
      throw .unsafeArchive
    }
  }

  private func link(_ target: CInt, _ name: ArraySlice<UInt8>, in parent: CInt) throws(FileError) {
    try replacing(name, in: parent) { clinux_link_open_file(target, parent, $0) }
  }

  /// Makes an entry; of several with the same name the last one stays, as with tar.
  private func replacing(
    _ name: ArraySlice<UInt8>, in parent: CInt, _ make: (UnsafePointer<CChar>) -> CInt
  ) throws(FileError) {
    let result = withSystemName(name) { name in
      let first = make(name)
      if first >= 0 || errno != EEXIST { return first }
      return unlinkat(parent, name, 0) == 0 ? make(name) : -1
    }
    guard result >= 0 else { throw FileError("unpack") }
  }

  private mutating func write(
    _ archive: OpaquePointer, _ name: ArraySlice<UInt8>, in parent: CInt, _ entry: OpaquePointer
  ) throws(FileError) {
    var opened: CInt = -1
    try replacing(name, in: parent) { name in
      opened = openat(parent, name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0o600)
      return opened
    }
    let file = try Descriptor(opened, "create")
    var buffer = [UInt8](repeating: 0, count: 128 << 10)
    while true {
      let count = archive_read_data(archive, &buffer, buffer.count)
      guard count >= 0 else { throw .invalidArchive }
      if count == 0 { break }
      usage.bytes += Int64(count)
      guard usage.bytes <= limits.bytes else { throw .quotaExceeded(.bytes, limit: limits.bytes) }
      var written = 0
      while written < count {
        let part = buffer.withUnsafeBytes {
          Glibc.write(file.raw, $0.baseAddress?.advanced(by: written), count - written)
        }
        if part < 0, errno == EINTR { continue }
        guard part > 0 else { throw FileError("write") }
        written += part
      }
    }
    guard fchmod(file.raw, archive_entry_perm(entry) & 0o777 | 0o600) == 0 else { throw FileError("chmod") }
    let time = timespec(tv_sec: archive_entry_mtime(entry), tv_nsec: archive_entry_mtime_nsec(entry))
    if archive_entry_mtime_is_set(entry) != 0, futimens(file.raw, [time, time]) != 0 { throw FileError("utimens") }
  }

  /// Whether a link in a folder of this depth leads to something below the top. `..` is counted at the start only: the
  /// folders above are real ones, while behind a name there may be another link.
  private static func staysInside(_ target: UnsafePointer<CChar>, depth: Int) -> Bool {
    let components = UnsafeRawBufferPointer(start: target, count: strlen(target))
      .split(separator: 0x2f, omittingEmptySubsequences: false)
    guard let first = components.first, !first.isEmpty else { return false }
    let ups = components.prefix { $0.elementsEqual([0x2e, 0x2e]) }.count
    return ups <= depth && !components.dropFirst(ups).contains { $0.elementsEqual([0x2e, 0x2e]) }
  }
}

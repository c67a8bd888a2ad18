import CLinux
import Crypto
import Glibc
import NIOConcurrencyHelpers

#if canImport(FoundationEssentials)
  public import FoundationEssentials
#else
  public import Foundation
#endif

/// Under which conditions a file may be written or removed, by its entity tag.
public struct WriteConditions: Sendable, Equatable {
  /// The file must exist and have one of these tags; an empty list is met by any file that exists.
  public var match: [String]?
  /// The file must not exist with one of these tags; an empty list is met only if it doesn't exist.
  public var noneMatch: [String]?

  public init(match: [String]? = nil, noneMatch: [String]? = nil) {
    self.match = match
    self.noneMatch = noneMatch
  }

  func check(_ status: FileStatus?) throws(FileError) {
    if let match {
      guard let status, match.isEmpty || match.contains(status.entityTag) else { throw .conditionFailed }
    }
    if let noneMatch, let status, noneMatch.isEmpty || noneMatch.contains(status.entityTag) {
      throw .conditionFailed
    }
  }
}

/// The digest that a client says the bytes have.
public enum ExpectedDigest: Sendable, Equatable {
  case sha1([UInt8])
  case sha256([UInt8])
  case sha512([UInt8])
}

/// A file outside all workspaces into which nginx has written the body of a request. `path` is nginx's word, never
/// the client's; nil stands for an empty body.
public struct BodyFile: Sendable, Equatable {
  public let path: String?

  public init(path: String?) { self.path = path }

  func open() throws(FileError) -> Descriptor {
    let descriptor = try Descriptor(
      Glibc.open(path ?? "/dev/null", O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC), "open the body")
    if path != nil, try descriptor.status().kind != .file { throw .special }
    return descriptor
  }
}

extension Workspaces {
  // MARK: Reading

  /// The status of an entry if it can be had without waiting for a disk, so that a thread that mustn't wait may ask;
  /// nil if it can't, or if there is anything unusual.
  ///
  /// The content comes with it if it is a file of no more than `limit` bytes, and if it, too, can be had at once.
  public func lookIfCached(
    _ path: RelativePath, of session: UUID, contentUpTo limit: Int = 0
  ) -> (status: FileStatus, content: [UInt8]?)? {
    // Beneath the root, and without a link or a step upwards, it is in the session's directory.
    let whole = Array((Self.name(session) + "/").utf8) + (path.isRoot ? [UInt8(ascii: ".")] : path.bytes)
    let beneath = { [rootDescriptor] (flags: Int32) throws(FileError) in
      try Descriptor(
        withSystemName(whole[...]) { clinux_open_beneath(rootDescriptor, $0, flags | O_NOFOLLOW, 0, 1) }, "openat2")
    }
    guard let status = try? beneath(pathOnly).status() else { return nil }
    // Only what has been seen to be a file is opened: to open a pipe or a device may have consequences.
    guard status.kind == .file, status.size <= limit, let file = try? beneath(O_RDONLY | O_NONBLOCK | O_NOCTTY),
      // Another one may have taken its place, and it may be changing.
      let opened = try? file.status(), opened == status
    else { return (status, nil) }
    let size = Int(status.size)
    let content = [UInt8](unsafeUninitializedCapacity: size) { buffer, count in
      count = max(0, clinux_read_cached(file.raw, buffer.baseAddress, size))
    }
    return (status, content.count == size ? content : nil)
  }

  /// - Throws: ``FileError``
  public func status(_ path: RelativePath, of session: UUID) async throws -> FileStatus {
    try await run { [self] in
      let workspace = try workspace(session)
      return try Beneath(directory: workspace.raw).reference(path).status()
    }
  }

  /// Reads a page of a directory.
  ///
  /// - Throws: ``FileError``
  public func list(
    _ path: RelativePath, of session: UUID, after cursor: DirectoryListing.Cursor?, limit: Int
  ) async throws -> DirectoryListing {
    try await run { [self] in
      let workspace = try workspace(session)
      return try Beneath(directory: workspace.raw).list(path, after: cursor, limit: limit, pageCache)
    }
  }

  // MARK: Writing

  /// Puts a body in the place of a file, at once and whole: whoever reads sees the old or the new file. Directories
  /// above are made. A link of that name is replaced and never followed; the file's permissions are kept.
  ///
  /// - Throws: ``FileError``
  public func put(
    _ body: BodyFile, at path: RelativePath, of session: UUID, conditions: WriteConditions = WriteConditions(),
    digests: [ExpectedDigest] = []
  ) async throws -> (isNew: Bool, status: FileStatus) {
    try await Self.runLong { [self] in
      let workspace = try workspace(session)
      // Looked at before the work, and again when it is done.
      try conditions.check(try existing(path, workspace.raw))
      let source = try body.open()
      let status = try source.status()
      let size = body.path == nil ? 0 : status.size
      try checkUpload(size, of: session, workspace.raw)
      try Digests.verify(digests, source.raw)
      let staged = try StagedFile(in: stagingDescriptor)
      try staged.take(source.raw, size: size, isEmpty: body.path == nil)
      return try install(staged, at: path, of: session, workspace.raw, conditions)
    }
  }

  /// Moves a staged file to its place.
  func install(
    _ staged: borrowing StagedFile, at path: RelativePath, of session: UUID, _ workspace: CInt,
    _ conditions: WriteConditions = WriteConditions()
  ) throws(FileError) -> (isNew: Bool, status: FileStatus) {
    guard let parentPath = path.parent else { throw .isADirectory }
    let parent = try Beneath(directory: workspace).makingDirectory(parentPath)
    let lock = locks[session]
    lock.lock()
    defer { lock.unlock() }
    let old: FileStatus?
    do throws(FileError) {
      old = try FileStatus(of: path.name, in: parent.raw)
    } catch .notFound {
      old = nil
    }
    try conditions.check(old)
    if old?.kind == .directory { throw .isADirectory }
    let mode = old?.kind == .file ? old?.mode ?? 0o644 : 0o644
    try staged.setMode(mode | 0o600)
    var status = try staged.status()
    if let old, old.size == status.size, (status.modified...status.modified + 60).contains(old.modified) {
      // Written in the same second: the tags of two contents must differ.
      try staged.setModificationTime(old.modified + 1)
      status = try staged.status()
    }
    // Without a condition on the old file it is the last one that counts, also if the agent was faster.
    let mayReplace = conditions.noneMatch.map { !$0.isEmpty } ?? true
    let result = withSystemName(path.name) { name in
      staged.name.withCString { clinux_rename(stagingDescriptor, $0, parent.raw, name, mayReplace ? 1 : 0) }
    }
    guard result == 0 else { throw errno == EEXIST && !mayReplace ? .conditionFailed : FileError("rename") }
    usageCache.add(session, bytes: status.size, entries: old == nil ? 1 : 0)
    return (old == nil, status)
  }

  /// Makes a directory and those above it. Returns nil if it exists already.
  ///
  /// - Throws: ``FileError``
  public func makeDirectory(_ path: RelativePath, of session: UUID) async throws -> FileStatus? {
    try await run { [self] in
      let workspace = try workspace(session)
      if let status = try existing(path, workspace.raw) {
        guard status.kind == .directory else { throw FileError.exists }
        return nil
      }
      try checkRoom(bytes: 0, entries: Int64(path.components.count), of: session, workspace.raw)
      let made = try Beneath(directory: workspace.raw).makingDirectory(path)
      usageCache.add(session, bytes: 0, entries: Int64(path.components.count))
      return try made.status()
    }
  }

  /// Gives an entry another name. A link is moved itself. Directories above the new name are made.
  ///
  /// - Parameter replaces: whether a file of the new name is replaced.
  /// - Returns: what was moved.
  /// - Throws: ``FileError``
  @discardableResult
  public func move(
    _ path: RelativePath, to target: RelativePath, of session: UUID, replaces: Bool
  ) async throws -> FileStatus {
    guard let parentPath = path.parent, let targetParentPath = target.parent else { throw FileError.exists }
    guard !target.isWithin(path) || target == path else { throw FileError.intoItself }
    return try await run { [self] in
      let workspace = try workspace(session)
      let beneath = Beneath(directory: workspace.raw)
      let parent = try beneath.directory(parentPath)
      let status = try FileStatus(of: path.name, in: parent.raw)
      let targetParent = try beneath.makingDirectory(targetParentPath)
      let lock = locks[session]
      lock.lock()
      defer { lock.unlock() }
      let result = withSystemName(path.name) { name in
        withSystemName(target.name) { clinux_rename(parent.raw, name, targetParent.raw, $0, replaces ? 1 : 0) }
      }
      guard result == 0 else { throw errno == EINVAL ? .intoItself : FileError("rename") }
      return status
    }
  }

  /// Removes an entry; a link itself and not what it leads to.
  ///
  /// - Parameter isRecursive: whether a directory may have content. It vanishes at once with all of it.
  /// - Returns: what was removed.
  /// - Throws: ``FileError``
  @discardableResult
  public func delete(
    _ path: RelativePath, of session: UUID, isRecursive: Bool, conditions: WriteConditions = WriteConditions()
  ) async throws -> FileStatus {
    guard let parentPath = path.parent else { throw FileError.permissionDenied }
    return try await Self.runLong { [self] in
      let workspace = try workspace(session)
      let parent = try Beneath(directory: workspace.raw).directory(parentPath)
      let (status, removed) = try removeEntry(path.name, of: parent.raw, session, isRecursive, conditions)
      usageCache.forget(session)
      if let removed, clinux_remove_tree(stagingDescriptor, removed, removalLimit) != 0 {
        let error = errno == EBUSY ? FileError.directoryNotEmpty : FileError("remove")
        try restore(removed, as: path.name, of: parent.raw, workspace.raw)
        throw error
      }
      return status
    }
  }

  /// Takes an entry out of its directory. Returns what it was, and the name in the staging directory under which a
  /// tree still has to be removed.
  private func removeEntry(
    _ name: ArraySlice<UInt8>, of parent: CInt, _ session: UUID, _ isRecursive: Bool, _ conditions: WriteConditions
  ) throws(FileError) -> (status: FileStatus, grave: String?) {
    let lock = locks[session]
    lock.lock()
    defer { lock.unlock() }
    let status = try FileStatus(of: name, in: parent)
    try conditions.check(status)
    guard status.kind == .directory else {
      guard withSystemName(name, { unlinkat(parent, $0, 0) }) == 0 else { throw FileError("unlink") }
      return (status, nil)
    }
    if withSystemName(name, { unlinkat(parent, $0, AT_REMOVEDIR) }) == 0 { return (status, nil) }
    guard isRecursive, errno == ENOTEMPTY else { throw FileError("rmdir") }
    let grave = StagedFile.newName()
    let result = withSystemName(name) { clinux_rename(parent, $0, stagingDescriptor, grave, 0) }
    guard result == 0 else { throw FileError("rename") }
    return (status, grave)
  }

  /// Entries, or thrice as many folders, that one request may remove at most. A workspace can't have so many, unless its
  /// agent makes new ones while they are removed, as it still can in a folder that it works in.
  private var removalLimit: UInt64 { min(UInt64(clamping: limits.entries), .max / 4) * 4 }

  /// Puts what couldn't be removed back into the workspace, so that it counts for its quota.
  private func restore(
    _ grave: String, as name: ArraySlice<UInt8>, of parent: CInt, _ workspace: CInt
  ) throws(FileError) {
    if withSystemName(name, { clinux_rename(stagingDescriptor, grave, parent, $0, 0) }) == 0 { return }
    guard clinux_rename(stagingDescriptor, grave, workspace, grave, 0) == 0 else { throw FileError("rename") }
  }

  func existing(_ path: RelativePath, _ workspace: CInt) throws(FileError) -> FileStatus? {
    do throws(FileError) {
      return try Beneath(directory: workspace).reference(path).status()
    } catch .notFound {
      return nil
    }
  }

  // MARK: Room

  /// What a workspace holds now. A very large one is counted no further than its limit.
  ///
  /// - Throws: ``FileError``
  public func usage(of session: UUID) async throws -> WorkspaceUsage {
    try await Self.runLook { [self] in
      let workspace = try workspace(session)
      return try countUsage(of: session, workspace.raw)
    }
  }

  /// What a session takes outside of its workspace: its configuration directory, in which its agent can write as well,
  /// and bytes of uploads that go on.
  ///
  /// - Throws: ``FileError``
  public func usageOutside(of session: UUID) async throws -> (home: WorkspaceUsage, uploads: Int64) {
    try await Self.runLook { [self] in
      let directory = try Descriptor(
        Self.name(session).withCString {
          clinux_open_beneath(configurationDescriptor, $0, pathOnly | O_DIRECTORY, 0, 0)
        }, "open a configuration directory")
      return (try limits.count(directory.raw), try usageOfUploads(session))
    }
  }

  /// Whether less of the disk is free than is to stay so (``WorkspaceLimits/reservedBytes``).
  ///
  /// - Throws: ``WorkspaceError``
  public func isDiskLow() async throws -> Bool {
    try await run { [self] in try isDiskLowNow() }
  }

  func isDiskLowNow() throws(WorkspaceError) -> Bool {
    guard limits.reservedBytes > 0 else { return false }
    for descriptor in [rootDescriptor, configurationDescriptor] {
      var status = statvfs()
      guard fstatvfs(descriptor, &status) == 0 else { throw WorkspaceError(operation: "fstatvfs", errno: errno) }
      if UInt64(status.f_bavail) * UInt64(status.f_frsize) < UInt64(limits.reservedBytes) { return true }
    }
    return false
  }

  /// Whether a workspace, or a configuration directory, holds more than it may.
  public func excess(of usage: WorkspaceUsage) -> FileError? { limits.excess(of: usage) }

  func countUsage(of session: UUID, _ workspace: CInt) throws(FileError) -> WorkspaceUsage {
    let usage = try limits.count(workspace)
    usageCache.set(session, usage)
    return usage
  }

  func checkUpload(_ size: Int64, of session: UUID, _ workspace: CInt) throws(FileError) {
    guard size <= limits.uploadBytes else { throw .uploadTooLarge(limit: limits.uploadBytes) }
    try checkRoom(bytes: size, entries: 1, of: session, workspace)
  }

  func checkRoom(bytes: Int64, entries: Int64, of session: UUID, _ workspace: CInt) throws(FileError) {
    var usage = if let known = usageCache.recent(session) { known } else { try countUsage(of: session, workspace) }
    usage.bytes += bytes
    usage.entries += entries
    if let excess = excess(of: usage) { throw excess }
    let isLow: Bool
    do { isLow = try isDiskLowNow() } catch { throw .system(error) }
    if isLow { throw .diskFull }
  }
}

/// Checks digests of files.
enum Digests {
  static func verify(_ expected: [ExpectedDigest], _ descriptor: CInt, from start: Int64 = 0) throws(FileError) {
    for digest in expected {
      let isRight =
        switch digest {
        case .sha1(let bytes): try hash(descriptor, from: start, Insecure.SHA1()) == bytes
        case .sha256(let bytes): try hash(descriptor, from: start, SHA256()) == bytes
        case .sha512(let bytes): try hash(descriptor, from: start, SHA512()) == bytes
        }
      guard isRight else { throw .digestMismatch }
    }
  }

  private static func hash(
    _ descriptor: CInt, from start: Int64, _ function: some HashFunction
  ) throws(FileError) -> [UInt8] {
    var function = function
    var buffer = [UInt8](repeating: 0, count: 1 << 18)
    var offset = start
    while true {
      let count = pread(descriptor, &buffer, buffer.count, off_t(offset))
      if count < 0, errno == EINTR { continue }
      guard count >= 0 else { throw FileError("read the body") }
      if count == 0 { break }
      buffer.withUnsafeBytes { function.update(bufferPointer: UnsafeRawBufferPointer(rebasing: $0[..<count])) }
      offset += Int64(count)
    }
    return Array(function.finalize())
  }
}

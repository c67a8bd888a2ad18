import CLinux
import Glibc

#if canImport(FoundationEssentials)
  public import FoundationEssentials
#else
  public import Foundation
#endif

/// A change of one entry of a workspace.
public struct FileChange: Sendable, Hashable {
  public enum Kind: String, Sendable {
    case created
    case modified
    case deleted
  }

  public let path: RelativePath
  public let kind: Kind
  public let type: FileStatus.Kind
  /// Bytes of a file that is there.
  public let size: Int64?
  /// Nanoseconds since 1970, of what is there.
  let modified: Int64?

  public init(_ kind: Kind, _ path: RelativePath, _ status: FileStatus) {
    self.init(kind, path, status.kind, kind == .deleted ? nil : (status.size, status.modifiedTime))
  }

  init(_ kind: Kind, _ path: RelativePath, _ type: FileStatus.Kind, _ content: (size: Int64, modified: Int64)?) {
    self.path = path
    self.kind = kind
    self.type = type
    size = type == .file ? content?.size : nil
    modified = content?.modified
  }

  /// The same result, of an entry that was there before.
  public var asModification: FileChange {
    FileChange(.modified, path, type, size.flatMap { size in modified.map { (size, $0) } })
  }

  /// Whether the entry was left as `other` says.
  public func hasSameResult(as other: FileChange) -> Bool {
    guard path == other.path, (kind == .deleted) == (other.kind == .deleted) else { return false }
    if kind == .deleted || type == .directory { return true }
    return type == other.type && size == other.size && modified == other.modified
  }
}

/// What has changed between two looks at a workspace.
public struct WorkspaceChanges: Sendable, Equatable {
  /// In the order of their paths, those nearer to the top first.
  public var changes: [FileChange]
  /// How many more there are. Where a workspace is too large to be remembered, this is a guess, and at least 1.
  public var omitted = 0
  /// The folder in which all those that were omitted lie.
  public var omittedFolder = RelativePath.root

  public init(_ changes: [FileChange] = [], omitted: Int = 0) {
    self.changes = changes
    self.omitted = omitted
  }

  public var isEmpty: Bool { changes.isEmpty && omitted == 0 }
}

/// What was in a workspace at one moment, so that it can be told later what has changed.
///
/// Entries take about 50 bytes of memory each. Of a workspace with more than `limit` entries only a sum is kept, by
/// which it can be told that something has changed, but not what. Whether a file has changed is told by its inode,
/// size and time of modification.
public struct WorkspaceSnapshot: Sendable {
  /// Entries that are remembered at most.
  static let limit = 50_000

  fileprivate struct Stamp: Sendable, Equatable {
    var size: Int64
    /// Nanoseconds since 1970.
    var modified: Int64
    /// 0 is no file's, so that a stamp with it is like no other.
    var inode: UInt64
  }

  /// The entries of a directory in the order in which the system lists them, which is the same as long as nothing
  /// changes.
  fileprivate struct Directory: Sendable, Equatable {
    /// For each entry its type, its name and a NUL.
    var names: [UInt8] = []
    var stamps: [Stamp] = []
  }

  fileprivate struct Sum: Sendable, Equatable {
    var latest: Int64 = 0
    var mixed: UInt64 = 0
  }

  public fileprivate(set) var usage: WorkspaceUsage
  /// Whether the whole workspace was seen. It isn't when a directory was moved meanwhile.
  public fileprivate(set) var isWhole: Bool
  fileprivate var sum: Sum
  /// By their paths; nil if there are too many entries.
  fileprivate var directories: [[UInt8]: Directory]?

  /// Whether it can be told what has changed, and not only that something has.
  public var isDetailed: Bool { directories != nil }
}

extension Workspaces {
  /// The time by which the system marks changes, in nanoseconds since 1970.
  public static func changeTime() -> Int64 {
    var time = timespec()
    clock_gettime(CLOCK_REALTIME_COARSE, &time)
    return Int64(time.tv_sec) * 1_000_000_000 + Int64(time.tv_nsec)
  }

  /// Looks at a whole workspace.
  ///
  /// - Parameter start: files that have changed after this time count as changed at the next look.
  /// - Throws: ``FileError``
  public func snapshot(of session: UUID, changedAfter start: Int64 = .max) async throws -> WorkspaceSnapshot {
    try await Self.runLook { [self] in
      let workspace = try workspace(session)
      return try takeSnapshot(session, workspace.raw, start)
    }
  }

  /// Looks at a whole workspace again, and tells what has changed.
  ///
  /// - Parameter limit: changes that are told one by one.
  /// - Returns: no changes if one of the two looks did not see the whole workspace.
  /// - Throws: ``FileError``
  public func snapshot(
    of session: UUID, since earlier: WorkspaceSnapshot, limit: Int
  ) async throws -> (snapshot: WorkspaceSnapshot, changes: WorkspaceChanges) {
    try await Self.runLook { [self] in
      let workspace = try workspace(session)
      let snapshot = try takeSnapshot(session, workspace.raw, .max)
      return (snapshot, snapshot.changes(since: earlier, limit: limit))
    }
  }

  private func takeSnapshot(_ session: UUID, _ workspace: CInt, _ start: Int64) throws(FileError) -> WorkspaceSnapshot {
    let builder = SnapshotBuilder(start)
    var visitor = clinux_tree_visitor(
      context: Unmanaged.passUnretained(builder).toOpaque(),
      directory: { context, path, length in
        guard let context, let path else { return }
        Unmanaged<SnapshotBuilder>.fromOpaque(context).takeUnretainedValue()
          .enter(UnsafeRawBufferPointer(start: path, count: length))
      },
      entry: { context, name, status in
        guard let context, let name, let status else { return }
        Unmanaged<SnapshotBuilder>.fromOpaque(context).takeUnretainedValue().add(name, status.pointee)
      })
    var counted = clinux_tree_usage()
    guard clinux_tree_walk(workspace, UInt64(clamping: limits.entries), &visitor, &counted) == 0 else {
      throw FileError("walk a workspace")
    }
    builder.finishDirectory()
    let usage = WorkspaceUsage(bytes: Int64(clamping: counted.bytes), entries: Int64(clamping: counted.entries))
    usageCache.set(session, usage)
    return WorkspaceSnapshot(
      usage: usage, isWhole: counted.is_whole != 0, sum: builder.sum, directories: builder.directories)
  }
}

private final class SnapshotBuilder {
  private(set) var directories: [[UInt8]: WorkspaceSnapshot.Directory]? = [:]
  private(set) var sum = WorkspaceSnapshot.Sum()
  private let start: Int64
  private var path: [UInt8] = []
  private var directory = WorkspaceSnapshot.Directory()
  private var count = 0

  init(_ start: Int64) { self.start = start }

  func enter(_ path: UnsafeRawBufferPointer) {
    finishDirectory()
    guard directories != nil else { return }
    self.path = Array(path)
  }

  func add(_ name: UnsafePointer<CChar>, _ status: stat) {
    let entry = FileStatus(status)
    let changed = Int64(status.st_ctim.tv_sec) &* 1_000_000_000 &+ Int64(status.st_ctim.tv_nsec)
    sum.latest = max(sum.latest, changed)
    sum.mixed &+= (UInt64(status.st_ino) ^ UInt64(bitPattern: changed)) &* 0x9e37_79b9_7f4a_7c15
    count += 1
    guard directories != nil else { return }
    guard count <= WorkspaceSnapshot.limit else {
      directories = nil
      directory = .init()
      return
    }
    directory.names.append(entry.kind.code)
    directory.names.append(contentsOf: UnsafeRawBufferPointer(start: name, count: strlen(name) + 1))
    // That something in it has changed is told of a directory by its entries.
    let isDirectory = entry.kind == .directory
    directory.stamps.append(
      WorkspaceSnapshot.Stamp(
        size: entry.size, modified: isDirectory ? 0 : entry.modifiedTime,
        inode: isDirectory ? 1 : changed > start ? 0 : UInt64(status.st_ino)))
  }

  func finishDirectory() {
    guard directories != nil else { return }
    if !directory.stamps.isEmpty { directories?[path] = directory }
    directory = .init()
  }
}

extension WorkspaceSnapshot {
  /// What has changed since an earlier look.
  func changes(since earlier: WorkspaceSnapshot, limit: Int) -> WorkspaceChanges {
    guard let now = directories, let before = earlier.directories else {
      let isSame = sum == earlier.sum && usage == earlier.usage
      let difference = abs(usage.entries - earlier.usage.entries)
      return WorkspaceChanges(omitted: isSame ? 0 : max(1, Int(clamping: difference)))
    }
    guard isWhole, earlier.isWhole else { return WorkspaceChanges() }
    var changes: [FileChange] = []
    for (path, directory) in now {
      if let old = before[path] {
        if directory != old { directory.addChanges(since: old, path, &changes) }
      } else {
        directory.addAll(.created, path, &changes)
      }
    }
    for (path, directory) in before where now[path] == nil { directory.addAll(.deleted, path, &changes) }
    return WorkspaceChanges(sorting: changes, limit: limit)
  }
}

extension WorkspaceChanges {
  /// Takes the first changes and counts the others.
  public init(sorting all: [FileChange], limit: Int) {
    let sorted = all.map { (depth: $0.path.components.count, change: $0) }.sorted { a, b in
      a.depth == b.depth
        ? a.change.path.bytes.lexicographicallyPrecedes(b.change.path.bytes) : a.depth < b.depth
    }
    changes = sorted.prefix(max(limit, 0)).map(\.change)
    let rest = sorted.dropFirst(changes.count)
    omitted = rest.count
    guard var folder = rest.first?.change.path.parent else { return }
    for entry in rest {
      while !entry.change.path.isWithin(folder) { folder = folder.parent ?? .root }
    }
    omittedFolder = folder
  }
}

extension WorkspaceSnapshot.Directory {
  fileprivate func addAll(_ kind: FileChange.Kind, _ directory: [UInt8], _ changes: inout [FileChange]) {
    forEach { code, name, stamp in Self.add(kind, directory, name, code, stamp, &changes) }
  }

  fileprivate func addChanges(
    since earlier: Self, _ directory: [UInt8], _ changes: inout [FileChange]
  ) {
    var old: [ArraySlice<UInt8>: (code: UInt8, stamp: WorkspaceSnapshot.Stamp)] = [:]
    old.reserveCapacity(earlier.stamps.count)
    earlier.forEach { code, name, stamp in old[name] = (code, stamp) }
    forEach { code, name, stamp in
      guard let before = old.removeValue(forKey: name) else {
        return Self.add(.created, directory, name, code, stamp, &changes)
      }
      if before.code == code, before.stamp == stamp { return }
      Self.add(.modified, directory, name, code, stamp, &changes)
    }
    for (name, before) in old { Self.add(.deleted, directory, name, before.code, before.stamp, &changes) }
  }

  private func forEach(_ body: (UInt8, ArraySlice<UInt8>, WorkspaceSnapshot.Stamp) -> Void) {
    var start = names.startIndex
    for stamp in stamps {
      guard let end = names[start...].firstIndex(of: 0) else { return }
      body(names[start], names[(start + 1)..<end], stamp)
      start = end + 1
    }
  }

  private static func add(
    _ kind: FileChange.Kind, _ directory: [UInt8], _ name: ArraySlice<UInt8>, _ code: UInt8,
    _ stamp: WorkspaceSnapshot.Stamp, _ changes: inout [FileChange]
  ) {
    // A path that is too long is one that no client can name.
    guard let type = FileStatus.Kind(code: code),
      let path = try? RelativePath(directory.isEmpty ? Array(name) : directory + [0x2f] + name)
    else { return }
    changes.append(FileChange(kind, path, type, kind == .deleted ? nil : (stamp.size, stamp.modified)))
  }
}

extension FileStatus {
  /// Nanoseconds since 1970.
  var modifiedTime: Int64 { modified &* 1_000_000_000 &+ Int64(modifiedNanoseconds) }
}

extension FileStatus.Kind {
  /// A byte that isn't 0.
  fileprivate var code: UInt8 {
    switch self {
    case .file: 1
    case .directory: 2
    case .symbolicLink: 3
    case .special: 4
    }
  }

  fileprivate init?(code: UInt8) {
    switch code {
    case 1: self = .file
    case 2: self = .directory
    case 3: self = .symbolicLink
    case 4: self = .special
    default: return nil
    }
  }
}

import CLinux
import Foundation
import Glibc
import Synchronization
import TestSupport
import Testing

@testable import Workspaces

/// Trees that an agent makes so that those who count, copy, pack or remove them go wrong.
@Suite struct HostileTreeTests {
  // MARK: Modes that forbid looking

  /// Runs with the rights of an ordinary user on the files of a directory that is then that user's: root may look
  /// anywhere.
  private func asOrdinaryUser<T: Sendable>(
    with directories: [CInt], _ body: @escaping @Sendable () -> T
  ) async -> T {
    let user: uid_t = 65_534
    let isRoot = geteuid() == 0
    if isRoot { for directory in directories { fchown(directory, user, user) } }
    return await withCheckedContinuation { continuation in
      Thread.detachNewThread {
        if isRoot {
          // Of this thread alone, with root's rights over files; it ends here.
          for name in ["setfsgid", "setfsuid"] { Self.setID(name, user) }
        }
        continuation.resume(returning: body())
      }
    }
  }

  /// Calls what Swift doesn't know of the C library.
  private static func setID(_ name: String, _ id: uid_t) {
    guard let function = dlsym(nil, name) else { return }
    _ = unsafeBitCast(function, to: (@convention(c) (uid_t) -> CInt).self)(id)
  }

  /// Folders that can't be read, searched or both, with a file each that can't be read.
  private static func makeClosedTree(in top: CInt) {
    for mode: mode_t in [0o000, 0o300, 0o600, 0o500] {
      let name = String(mode, radix: 8)
      mkdirat(top, name, 0o700)
      let folder = openat(top, name, O_RDONLY | O_DIRECTORY)
      let file = openat(folder, "file", O_WRONLY | O_CREAT, 0o200)
      let content = [UInt8](repeating: 7, count: 1 << 20)
      precondition(write(file, content, content.count) == content.count)
      fchmod(file, 0)
      close(file)
      fchmod(folder, mode)
      close(folder)
    }
    fchmod(top, 0o300)
  }

  private static let names = ["0", "300", "600", "500"]

  /// Lets everybody in again, who has to remove it.
  private static func reopen(_ top: CInt) {
    fchmod(top, 0o700)
    for name in names {
      fchmodat(top, name, 0o700, 0)
      fchmodat(top, name + "/file", 0o600, 0)
    }
  }

  private static func modes(in top: CInt) -> [String] {
    names.map { name in
      var status = stat()
      fstatat(top, name, &status, AT_SYMLINK_NOFOLLOW)
      return String(status.st_mode & 0o7777, radix: 8)
    }
  }

  @Test func whatAnAgentClosesCounts() async throws {
    try await withTemporaryDirectory { directory in
      let top = open(directory, O_RDONLY | O_DIRECTORY)
      defer { close(top) }
      let (result, usage) = await asOrdinaryUser(with: [top]) {
        Self.makeClosedTree(in: top)
        // As the server holds a workspace.
        let reference = openat(top, "/proc/self/fd/\(top)", Int32(CLINUX_O_PATH) | O_DIRECTORY)
        defer { close(reference) }
        var usage = clinux_tree_usage()
        return (clinux_tree_walk(reference, 1000, nil, &usage), usage)
      }
      #expect(result == 0 && usage.is_whole != 0)
      #expect(usage.entries == 8)
      #expect(usage.bytes >= 4 << 20)
      #expect(Self.modes(in: top) == Self.names)
      var status = stat()
      #expect(fstat(top, &status) == 0 && status.st_mode & 0o777 == 0o300)
      Self.reopen(top)
    }
  }

  @Test func whatAnAgentClosesIsCopied() async throws {
    try await withTemporaryDirectory { directory in
      for name in ["old", "new"] { mkdir(directory + "/" + name, 0o700) }
      let (old, new) = (
        open(directory + "/old", O_RDONLY | O_DIRECTORY), open(directory + "/new", O_RDONLY | O_DIRECTORY)
      )
      defer {
        close(old)
        close(new)
      }
      let result = await asOrdinaryUser(with: [old, new]) {
        Self.makeClosedTree(in: old)
        var limits = clinux_copy_limits(entries: 8, bytes: 4 << 20)
        return clinux_copy_tree(old, new, nil, nil, &limits)
      }
      #expect(result == 0)
      #expect(Self.modes(in: old) == Self.names)
      #expect(Self.modes(in: new) == Self.names)
      for top in [old, new] { Self.reopen(top) }
      for name in Self.names {
        #expect(FileManager.default.contents(atPath: "\(directory)/new/\(name)/file")?.count == 1 << 20)
      }
    }
  }

  // MARK: Things that move

  /// Moves the first folder within a folder that is come to, so that there is no way back from it.
  private final class Mover: Sendable {
    let top: CInt
    let hasMoved = Mutex(false)

    init(_ top: CInt) { self.top = top }

    func enter(_ path: String) {
      guard path.contains("/") else { return }
      hasMoved.withLock { hasMoved in
        guard !hasMoved else { return }
        hasMoved = renameat(top, path, top, "moved") == 0
      }
    }
  }

  @Test func whoMovesAFolderHidesNothingElse() async throws {
    try await withTemporaryDirectory { directory in
      let top = open(directory, O_RDONLY | O_DIRECTORY)
      defer { close(top) }
      for number in 0..<20 {
        mkdirat(top, "\(number)", 0o700)
        mkdirat(top, "\(number)/sub", 0o700)
        close(openat(top, "\(number)/sub/file", O_WRONLY | O_CREAT, 0o600))
      }
      let mover = Mover(top)
      var visitor = clinux_tree_visitor(
        context: Unmanaged.passUnretained(mover).toOpaque(),
        directory: { context, path, _ in
          guard let context, let path else { return }
          Unmanaged<Mover>.fromOpaque(context).takeUnretainedValue().enter(String(cString: path))
        }, entry: { _, _, _ in })
      var usage = clinux_tree_usage()
      #expect(clinux_tree_walk(top, 1000, &visitor, &usage) == 0)
      #expect(mover.hasMoved.withLock { $0 })
      #expect(usage.entries == 60)
      #expect(usage.is_whole == 0)
    }
  }

  // MARK: Trees without an end

  @Test func depthIsNoLimitOfACopy() async throws {
    try await withTemporaryDirectory { directory in
      let workspaces = try Workspaces(root: directory + "/w", configurationRoot: directory + "/c")
      let (source, copy) = (UUID(), UUID())
      for session in [source, copy] { try await workspaces.create(session) }
      let old = open(workspaces.workspacePath(of: source), O_RDONLY | O_DIRECTORY)
      #expect(makeChain(of: 100, in: old))
      close(old)
      try await workspaces.copy(source, to: copy)
      let new = open(workspaces.workspacePath(of: copy), O_RDONLY | O_DIRECTORY)
      #expect(lengthOfChain(in: new) == 100)
      close(new)
      for session in [source, copy] { try await workspaces.remove(session) }
    }
  }

  @Test(arguments: [(entries: UInt64(19), bytes: UInt64(1 << 30)), (20, 40_960), (20, 1 << 30)])
  func aCopyHasAnEnd(entries: UInt64, bytes: UInt64) async throws {
    try await withTemporaryDirectory { directory in
      for name in ["old", "new"] { mkdir(directory + "/" + name, 0o700) }
      for number in 0..<20 {
        try Data(repeating: 7, count: 4096).write(to: URL(filePath: "\(directory)/old/\(number)"))
      }
      let (old, new) = (
        open(directory + "/old", O_RDONLY | O_DIRECTORY), open(directory + "/new", O_RDONLY | O_DIRECTORY)
      )
      defer {
        close(old)
        close(new)
      }
      var limits = clinux_copy_limits(entries: entries, bytes: bytes)
      let result = clinux_copy_tree(old, new, nil, nil, &limits)
      let code = errno
      if entries == 20 && bytes == 1 << 30 {
        #expect(result == 0)
      } else {
        #expect(result == -1 && code == E2BIG)
      }
    }
  }

  @Test func whatIsFilledAsFastAsItIsRemovedGoesBack() async throws {
    try await withTemporaryDirectory { directory in
      var limits = WorkspaceLimits()
      limits.entries = 5
      let workspaces = try Workspaces(root: directory + "/w", configurationRoot: directory + "/c", limits: limits)
      let session = UUID()
      try await workspaces.create(session)
      let top = workspaces.workspacePath(of: session)
      // More than there can be, as if it came while it is removed.
      mkdir(top + "/folder", 0o700)
      for number in 0..<30 { try Data().write(to: URL(filePath: "\(top)/folder/\(number)")) }
      let folder = try RelativePath("folder".utf8)
      await #expect(throws: FileError.directoryNotEmpty) {
        try await workspaces.delete(folder, of: session, isRecursive: true)
      }
      // It counts again, and the next one goes on.
      #expect(try FileManager.default.contentsOfDirectory(atPath: top + "/folder").count == 10)
      #expect(try FileManager.default.contentsOfDirectory(atPath: directory + "/w/.incoming").isEmpty)
      try await workspaces.delete(folder, of: session, isRecursive: true)
      #expect(try FileManager.default.contentsOfDirectory(atPath: top).isEmpty)
    }
  }

  // MARK: Archives

  private func archive(_ session: UUID, _ format: ArchiveFormat, of workspaces: Workspaces) async throws -> [UInt8] {
    let stream = try await workspaces.archive(.root, of: session, as: format)
    var bytes: [UInt8] = []
    while let piece = try await stream.next() { bytes += piece }
    return bytes
  }

  /// Only some file systems keep such times. Those of others come nearest to them.
  @Test(arguments: ArchiveFormat.allCases, [Int.max / 2, 67_768_036_191_676_799, -Int.max / 2])
  func aTimeIsHeldToWhatFormatsKnow(format: ArchiveFormat, time: Int) async throws {
    try await withTemporaryDirectory(in: "/dev/shm") { directory in
      let workspaces = try Workspaces(root: directory + "/w", configurationRoot: directory + "/c")
      let session = UUID()
      try await workspaces.create(session)
      let file = workspaces.workspacePath(of: session) + "/file"
      try Data("content".utf8).write(to: URL(filePath: file))
      let times = [timespec(tv_sec: time, tv_nsec: 0), timespec(tv_sec: time, tv_nsec: 0)]
      try #require(utimensat(AT_FDCWD, file, times, 0) == 0)
      #expect(try await archive(session, format, of: workspaces).count > 50)
    }
  }

  @Test(arguments: ArchiveFormat.allCases)
  func aPathThatIsTooLongEndsAnArchive(format: ArchiveFormat) async throws {
    try await withTemporaryDirectory { directory in
      let workspaces = try Workspaces(root: directory + "/w", configurationRoot: directory + "/c")
      let session = UUID()
      try await workspaces.create(session)
      let top = open(workspaces.workspacePath(of: session), O_RDONLY | O_DIRECTORY)
      defer { close(top) }
      #expect(makeChain(of: 261, in: top))
      #expect(try await archive(session, format, of: workspaces).count > 50)
      try await workspaces.remove(session)
      try await workspaces.create(session)
      let again = open(workspaces.workspacePath(of: session), O_RDONLY | O_DIRECTORY)
      defer { close(again) }
      #expect(makeChain(of: 262, in: again))
      await #expect(throws: FileError.nameTooLong) { try await archive(session, format, of: workspaces) }
      try await workspaces.remove(session)
    }
  }

  @Test func whatGivesNothingIsPassedInSteps() async throws {
    try await withTemporaryDirectory { directory in
      let workspaces = try Workspaces(root: directory + "/w", configurationRoot: directory + "/c")
      let session = UUID()
      try await workspaces.create(session)
      let top = workspaces.workspacePath(of: session)
      for number in 0..<3000 { mkfifo("\(top)/\(number)", 0o600) }
      try Data("content".utf8).write(to: URL(filePath: top + "/z"))
      // A hole of 100 MB, which becomes a few hundred KB.
      truncate(top + "/z", 100 << 20)
      let bytes = try await archive(session, .tarGzip, of: workspaces)
      #expect((50_000...1_000_000).contains(bytes.count))
    }
  }
}

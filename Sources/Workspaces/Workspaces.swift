import CLinux
import Crypto
import Glibc
public import NIOPosix
import Synchronization

#if canImport(FoundationEssentials)
  public import FoundationEssentials
#else
  public import Foundation
#endif

/// A file operation on the directories of sessions that failed.
public struct WorkspaceError: Error, Sendable, Equatable, CustomStringConvertible {
  public let operation: String
  public let errno: Int32

  public var description: String { "\(operation): \(String(cString: strerror(errno)))" }

  /// Whether the disk or the quota of its user is full.
  public var isDiskFull: Bool { errno == ENOSPC || errno == EDQUOT }
}

/// The directories of sessions: for each one the workspace, in which the agent works, and the CLI's configuration
/// directory, which holds the transcript and lies outside the workspace.
///
/// Directories are named by the session's id and reached from descriptors of their parents that are opened at
/// start, so that nothing that happens to a path later leads elsewhere. Blocking calls are made on a thread pool.
public final class Workspaces: Sendable {
  /// The absolute path of the directory of workspaces.
  public let root: String
  /// The absolute path of the directory of configuration directories.
  public let configurationRoot: String
  public let limits: WorkspaceLimits
  let rootDescriptor: CInt
  let configurationDescriptor: CInt
  /// A directory beside the workspaces, on the same file system, in which files are made before they are moved to
  /// their place.
  let stagingDescriptor: CInt
  let locks = SessionLocks()
  let usageCache = UsageCache()
  let pageCache = PageCache()
  let knownSigningKey = Mutex<SymmetricKey?>(nil)
  private let threads: NIOThreadPool
  /// For what may take long, so that short operations don't wait behind it.
  static let longThreads: NIOThreadPool = {
    let threads = NIOThreadPool(numberOfThreads: 4)
    threads.start()
    return threads
  }()
  /// For looks at whole trees. Each turn waits for one at its end, and must not wait for somebody's copies.
  private static let lookThreads: NIOThreadPool = {
    let threads = NIOThreadPool(numberOfThreads: 2)
    threads.start()
    return threads
  }()

  /// The name of the staging directory, which no session's id can be.
  static let staging = ".incoming"

  /// Opens the directories, which are made with mode 0700 if they don't exist.
  public init(
    root: String, configurationRoot: String, limits: WorkspaceLimits = WorkspaceLimits(),
    threads: NIOThreadPool = .singleton
  ) throws(WorkspaceError) {
    var opened: [CInt] = []
    do throws(WorkspaceError) {
      (self.root, rootDescriptor) = try Self.open(root)
      opened.append(rootDescriptor)
      (self.configurationRoot, configurationDescriptor) = try Self.open(configurationRoot)
      opened.append(configurationDescriptor)
      (_, stagingDescriptor) = try Self.open(self.root + "/" + Self.staging)
    } catch {
      for descriptor in opened { Glibc.close(descriptor) }
      throw error
    }
    self.limits = limits
    self.threads = threads
  }

  deinit {
    Glibc.close(rootDescriptor)
    Glibc.close(configurationDescriptor)
    Glibc.close(stagingDescriptor)
  }

  private static let keptInStaging = [Uploads.directory, shares, shareKey].map { Array($0.utf8) }

  /// Removes what an earlier process was making when it ended. To be called when it is certain that no other
  /// process works in the same directories.
  public func removeLeftovers() async throws {
    try await Self.runLong { [self] in
      var cursor: DirectoryListing.Cursor?
      repeat {
        let page = try readNames(of: stagingDescriptor, after: cursor, limit: 1000)
        for entry in page.names where !Self.keptInStaging.contains(entry.name) {
          guard withSystemName(entry.name[...], { clinux_remove_tree(stagingDescriptor, $0, .max) }) == 0 else {
            throw WorkspaceError(operation: "remove leftovers", errno: errno)
          }
        }
        cursor = page.isComplete ? nil : page.names.last
      } while cursor != nil
    }
  }

  /// A session's workspace, for the operations on its files.
  func workspace(_ session: UUID) throws(FileError) -> Descriptor {
    let name = Self.name(session)
    return try Descriptor(
      name.withCString { clinux_open_beneath(rootDescriptor, $0, pathOnly | O_DIRECTORY, 0, 0) }, "open a workspace")
  }

  private static func open(_ path: String) throws(WorkspaceError) -> (String, CInt) {
    try makeDirectories(path)
    let descriptor = Glibc.open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC)
    guard descriptor >= 0 else { throw WorkspaceError(operation: "open \(path)", errno: errno) }
    // The CLI finds its transcripts by the working directory's path, which must not depend on links.
    guard let real = realpath(path, nil) else {
      let code = errno
      Glibc.close(descriptor)
      throw WorkspaceError(operation: "realpath \(path)", errno: code)
    }
    defer { free(real) }
    return (String(cString: real), descriptor)
  }

  /// Makes a directory of the operator's and those above it. For paths of the configuration, not of clients.
  public static func makeDirectories(_ path: String) throws(WorkspaceError) {
    var end = path.startIndex
    while end < path.endIndex {
      end = path[path.index(after: end)...].firstIndex(of: "/") ?? path.endIndex
      let part = String(path[..<end])
      guard mkdir(part, 0o700) == 0 || errno == EEXIST || errno == EISDIR else {
        let code = errno
        // A parent that can't be written but exists is fine.
        var status = stat()
        guard stat(part, &status) == 0, status.st_mode & S_IFMT == S_IFDIR else {
          throw WorkspaceError(operation: "mkdir \(part)", errno: code)
        }
        continue
      }
    }
  }

  public func workspacePath(of session: UUID) -> String { root + "/" + Self.name(session) }
  public func configurationPath(of session: UUID) -> String { configurationRoot + "/" + Self.name(session) }

  /// Makes both directories of a session, private to the server's user. Directories that exist stay as they are.
  ///
  /// - Throws: ``WorkspaceError``, also where the disk has no more room than is to stay free.
  public func create(_ session: UUID) async throws {
    let name = Self.name(session)
    try await run { [self] in
      if try isDiskLowNow() { throw WorkspaceError(operation: "keep room on the disk", errno: ENOSPC) }
      for parent in [rootDescriptor, configurationDescriptor] {
        guard mkdirat(parent, name, 0o700) == 0 || errno == EEXIST else {
          throw WorkspaceError(operation: "mkdir \(name)", errno: errno)
        }
      }
    }
  }

  /// Removes both directories of a session with all that is in them; those that are gone already are no error.
  public func remove(_ session: UUID) async throws {
    let name = Self.name(session)
    try await Self.runLong { [self] in
      try removeAttachments(session)
      usageCache.forget(session)
      for parent in [rootDescriptor, configurationDescriptor] {
        guard clinux_remove_tree(parent, name, .max) == 0 else {
          throw WorkspaceError(operation: "remove \(name)", errno: errno)
        }
      }
    }
  }

  /// Whether the session's workspace exists and is a directory.
  public func exists(_ session: UUID) async throws -> Bool {
    let name = Self.name(session)
    return try await run { [rootDescriptor] in
      var status = stat()
      if fstatat(rootDescriptor, name, &status, AT_SYMLINK_NOFOLLOW) == 0 {
        return status.st_mode & S_IFMT == S_IFDIR
      }
      if errno == ENOENT { return false }
      throw WorkspaceError(operation: "stat \(name)", errno: errno)
    }
  }

  func run<T: Sendable>(_ body: @escaping @Sendable () throws -> T) async throws -> T {
    try await threads.runIfActive(body)
  }

  /// Like `run`, for what may take longer than some system calls.
  static func runLong<T: Sendable>(_ body: @escaping @Sendable () throws -> T) async throws -> T {
    try await longThreads.runIfActive(body)
  }

  /// Like `run`, for looks at whole trees.
  static func runLook<T: Sendable>(_ body: @escaping @Sendable () throws -> T) async throws -> T {
    try await lookThreads.runIfActive(body)
  }

  static func name(_ session: UUID) -> String { session.uuidString.lowercased() }
}

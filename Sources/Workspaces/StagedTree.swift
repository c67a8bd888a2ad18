import CLinux
import Glibc
import NIOConcurrencyHelpers
import NIOPosix
import Synchronization

#if canImport(FoundationEssentials)
  public import FoundationEssentials
#else
  public import Foundation
#endif

/// Files and folders that were made in the staging directory: of an archive, or of a repository. They can be installed
/// once, and are removed when nobody holds them any more.
public final class StagedTree: Sendable {
  /// What it holds.
  public let usage: WorkspaceUsage
  let name: String
  /// Also keeps the staging directory open.
  private let workspaces: Workspaces
  private let isRemoved = Mutex(false)

  init(name: String, usage: WorkspaceUsage, _ workspaces: Workspaces) {
    self.name = name
    self.usage = usage
    self.workspaces = workspaces
  }

  /// Blocks while the tree is removed.
  func remove() {
    guard
      !isRemoved.withLock({ was in
        defer { was = true }
        return was
      })
    else { return }
    _ = clinux_remove_tree(workspaces.stagingDescriptor, name, .max)
  }

  deinit {
    guard !isRemoved.withLock({ $0 }) else { return }
    Workspaces.longThreads.submit { [workspaces, name] _ in
      _ = clinux_remove_tree(workspaces.stagingDescriptor, name, .max)
    }
  }
}

extension Workspaces {
  /// Moves what was staged into a folder, which is made if it doesn't exist. If an entry of its top exists there
  /// already, nothing is changed.
  ///
  /// - Returns: what has appeared in the folder.
  /// - Throws: ``FileError``
  @discardableResult
  public func install(
    _ tree: StagedTree, at path: RelativePath, of session: UUID
  ) async throws -> [FileChange] {
    try await Self.runLong { [self] in
      defer { tree.remove() }
      let workspace = try workspace(session)
      try checkRoom(bytes: tree.usage.bytes, entries: tree.usage.entries, of: session, workspace.raw)
      let source = try Descriptor(
        openat(stagingDescriptor, tree.name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC), "openat")
      let target = try Beneath(directory: workspace.raw).makingDirectory(path)
      let names = try readNames(of: source.raw, after: nil, limit: .max).names
      let lock = locks[session]
      lock.lock()
      defer { lock.unlock() }
      for (index, entry) in names.enumerated() {
        let result = withSystemName(entry.name[...]) { clinux_rename(source.raw, $0, target.raw, $0, 0) }
        guard result == 0 else {
          let error = FileError("rename")
          for moved in names[..<index] {
            _ = withSystemName(moved.name[...]) { clinux_rename(target.raw, $0, source.raw, $0, 0) }
          }
          throw error
        }
      }
      usageCache.forget(session)
      var changes: [FileChange] = []
      for entry in names {
        do {
          let status = try FileStatus(of: entry.name[...], in: target.raw)
          changes.append(FileChange(.created, try path.appending(RelativePath(entry.name)), status))
        } catch FileError.notFound, is RelativePath.Malformation {
          // Gone again, or of a path that nobody can name.
        }
      }
      return changes
    }
  }
}

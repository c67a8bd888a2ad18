import CLinux
import Glibc

#if canImport(FoundationEssentials)
  public import FoundationEssentials
#else
  public import Foundation
#endif

/// Copies between the directories of a server and those of a backup.
extension Workspaces {
  /// Makes the directories of a session with what they hold elsewhere. They may be in use there: what vanishes
  /// meanwhile is left out. Sockets, pipes and devices are, too.
  ///
  /// - Parameter withFiles: whether the workspace is copied and not only made.
  /// - Throws: ``WorkspaceError``, with ENOENT if the other has no such session, with E2BIG if it becomes far more than a
  ///   workspace may hold.
  public func copy(_ session: UUID, from other: Workspaces, withFiles: Bool) async throws {
    try await create(session)
    let name = Self.name(session)
    try await Self.runLong { [self] in
      try copyTree(name, from: other.configurationDescriptor, to: configurationDescriptor)
      if withFiles { try copyTree(name, from: other.rootDescriptor, to: rootDescriptor) }
    }
  }

  /// Copies the shares, and the key that their links are signed with, into a place that has none.
  public func copyShares(from other: Workspaces) async throws {
    try await Self.runLong { [self] in
      guard let key = try other.readKey() else { return }
      try writeWhole(Data(key), Self.shareKey, in: stagingDescriptor)
      var status = stat()
      guard fstatat(other.stagingDescriptor, Self.shares, &status, AT_SYMLINK_NOFOLLOW) == 0 || errno != ENOENT else {
        return
      }
      guard mkdirat(stagingDescriptor, Self.shares, 0o700) == 0 || errno == EEXIST else {
        throw WorkspaceError(operation: "mkdir \(Self.shares)", errno: errno)
      }
      try copyTree(Self.shares, from: other.stagingDescriptor, to: stagingDescriptor)
    }
  }

  /// Brings all that was written to the disk.
  public static func synchronize() async throws {
    try await runLong { sync() }
  }

  private func copyTree(_ name: String, from source: CInt, to target: CInt) throws {
    try Self.withDirectory(source, name) { source in
      try Self.withDirectory(target, name) { target in try copyContent(of: source, to: target, "copy \(name)") }
    }
  }
}

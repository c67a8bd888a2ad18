import CLinux
import Glibc

#if canImport(FoundationEssentials)
  public import FoundationEssentials
#else
  public import Foundation
#endif

extension Workspaces {
  /// Copies a session's workspace, and what the CLI has recorded of its conversation, into the directories of another
  /// session, which must exist and be empty.
  ///
  /// The records get the new session's id in their names, so that the CLI resumes them by it. Nothing else of the
  /// configuration directory is copied. Symbolic links are copied and never followed.
  ///
  /// - Throws: ``WorkspaceError``, with E2BIG if it becomes far more than a workspace may hold; what was copied until
  ///   then is left for ``remove(_:)``.
  public func copy(_ session: UUID, to fork: UUID) async throws {
    let (name, newName) = (Self.name(session), Self.name(fork))
    try await Self.runLong { [self] in
      try copyTree(rootDescriptor, name, newName)
      // The directory in which the CLI keeps the conversations, one directory for each place that it worked in.
      try Self.withDirectory(configurationDescriptor, name) { old in
        var status = stat()
        guard fstatat(old, Self.records, &status, AT_SYMLINK_NOFOLLOW) == 0 || errno != ENOENT else { return }
        try Self.withDirectory(configurationDescriptor, newName) { new in
          guard mkdirat(new, Self.records, 0o700) == 0 else {
            throw WorkspaceError(operation: "mkdir \(Self.records)", errno: errno)
          }
          try Self.withDirectory(old, Self.records) { source in
            try Self.withDirectory(new, Self.records) { target in
              try copyContent(of: source, to: target, "copy \(Self.records)", renaming: (name, newName))
            }
          }
        }
      }
    }
  }

  private static let records = "projects"
  /// Far more than any workspace holds.
  private static let maximumCopiedEntries: UInt64 = 100_000_000

  private func copyTree(_ parent: CInt, _ name: String, _ newName: String) throws {
    try Self.withDirectory(parent, name) { source in
      try Self.withDirectory(parent, newName) { target in try copyContent(of: source, to: target, "copy \(name)") }
    }
  }

  /// Copies a directory's content. A tree that grows meanwhile, or in which things are moved to where they were not seen
  /// yet, would have no end: twice of what it holds now, or of what a workspace may, is more than an honest one comes to.
  ///
  /// - Parameter names: a part of names that is replaced by another one of the same length.
  func copyContent(
    of source: CInt, to target: CInt, _ operation: String, renaming names: (old: String, new: String)? = nil
  ) throws(WorkspaceError) {
    var held = clinux_tree_usage()
    guard clinux_tree_walk(source, Self.maximumCopiedEntries, nil, &held) == 0 else {
      throw WorkspaceError(operation: operation, errno: errno)
    }
    var bounds = clinux_copy_limits(
      entries: max(held.entries, UInt64(clamping: limits.entries)) * 2,
      bytes: max(held.bytes, UInt64(clamping: limits.bytes)) * 2)
    guard clinux_copy_tree(source, target, names?.old, names?.new, &bounds) == 0 else {
      throw WorkspaceError(operation: operation, errno: errno)
    }
  }

  static func withDirectory(_ parent: CInt, _ name: String, _ body: (CInt) throws -> Void) throws {
    let descriptor = openat(parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC)
    guard descriptor >= 0 else { throw WorkspaceError(operation: "open \(name)", errno: errno) }
    defer { close(descriptor) }
    try body(descriptor)
  }
}

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
  /// - Throws: ``WorkspaceError``; what was copied until then is left for ``remove(_:)``.
  public func copy(_ session: UUID, to fork: UUID) async throws {
    let (name, newName) = (Self.name(session), Self.name(fork))
    try await Self.runLong { [rootDescriptor, configurationDescriptor] in
      try Self.copyTree(rootDescriptor, name, newName)
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
              guard clinux_copy_tree(source, target, name, newName) == 0 else {
                throw WorkspaceError(operation: "copy \(Self.records)", errno: errno)
              }
            }
          }
        }
      }
    }
  }

  private static let records = "projects"

  private static func copyTree(_ parent: CInt, _ name: String, _ newName: String) throws {
    try withDirectory(parent, name) { source in
      try withDirectory(parent, newName) { target in
        guard clinux_copy_tree(source, target, nil, nil) == 0 else {
          throw WorkspaceError(operation: "copy \(name)", errno: errno)
        }
      }
    }
  }

  static func withDirectory(_ parent: CInt, _ name: String, _ body: (CInt) throws -> Void) throws {
    let descriptor = openat(parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC)
    guard descriptor >= 0 else { throw WorkspaceError(operation: "open \(name)", errno: errno) }
    defer { close(descriptor) }
    try body(descriptor)
  }
}

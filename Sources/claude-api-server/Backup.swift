import ArgumentParser
import Foundation
import Glibc
import SQLiteStore
import Sessions
import Workspaces

/// Where the server keeps its state, for commands that work on it.
struct StateLocation: ParsableArguments {
  @Option(help: "The server's state directory (default as for serve).")
  var stateDir: String?

  @Option(help: "The directory of the workspaces (default as for serve).")
  var workspaceRoot: String?

  @Option(help: "The server's file with settings.")
  var configFile: String?

  func configuration() async throws -> ServerConfiguration {
    let flags: [(String, String?)] = [
      ("state-dir", stateDir), ("workspace-root", workspaceRoot), ("config-file", configFile),
    ]
    do {
      return try await ServerConfiguration(
        arguments: flags.compactMap { name, value in value.map { "--\(name)=\($0)" } },
        environment: ProcessInfo.processInfo.environment)
    } catch let error as SettingsError {
      throw ValidationError("\(error)")
    }
  }
}

/// What is in a backup.
private struct Manifest: Codable {
  static let currentFormat = 1
  static let name = "backup.json"

  var format = Manifest.currentFormat
  var serverVersion = Server.version
  var createdAt: String
  /// Conversations are found by the paths of their workspaces, so these have to stay the same.
  var workspaceRoot: String
  var hasFiles: Bool
}

/// The parts of a backup, and of a state directory, which are named alike.
private struct StateParts {
  let directory: String
  var store: SQLiteStoreConfiguration { SQLiteStoreConfiguration(path: directory + "/claude-api.sqlite") }
  var conversations: String { directory + "/claude-config" }
  var manifest: URL { URL(filePath: directory + "/" + Manifest.name) }
}

struct Backup: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "Copy the store, the conversations and the workspaces into a new directory, beside a running server.",
    discussion: """
      The store is of one moment, the files are copied after that. A turn that runs meanwhile is in the copy as one
      that was interrupted, and its files may be of different moments.
      """)

  @OptionGroup var location: StateLocation
  @Flag(help: "Leave the files of the workspaces out.") var withoutFiles = false
  @Argument(help: "The directory to make.") var to: String

  func run() async throws {
    let configuration = try await location.configuration()
    let target = URL(filePath: to).standardizedFileURL.path(percentEncoded: false)
    guard access(target, F_OK) != 0 else { throw ValidationError("\(target) exists already.") }
    let state = StateParts(directory: configuration.stateDirectory)
    guard access(state.store.path, F_OK) == 0 else { throw ValidationError("There is no store in \(state.directory).") }
    let partial = StateParts(directory: target + ".partial")
    guard mkdir(partial.directory, 0o700) == 0 else {
      throw ValidationError("\(partial.directory) can't be made: \(String(cString: strerror(errno)))")
    }
    do {
      let (count, incomplete) = try await copy(configuration, state, partial)
      guard rename(partial.directory, target) == 0 else {
        throw CommandFailure("rename \(partial.directory)")
      }
      print("\(target): \(count) sessions" + (incomplete > 0 ? ", \(incomplete) of them not complete" : ""))
    } catch {
      try FileManager.default.removeItem(atPath: partial.directory)
      throw error
    }
  }

  private func copy(
    _ configuration: ServerConfiguration, _ state: StateParts, _ target: StateParts
  ) async throws -> (count: Int, incomplete: Int) {
    try await SQLiteSessionStore.backup(state.store, to: target.store.path)
    // What follows concerns the sessions of that moment: those of the copy.
    let sessions = try await sessions(of: target.store)
    let source = try Workspaces(root: configuration.workspaceRoot, configurationRoot: state.conversations)
    let copy = try Workspaces(root: target.directory + "/workspaces", configurationRoot: target.conversations)
    var incomplete = 0
    for session in sessions {
      do {
        try await copy.copy(session.id, from: source, withFiles: !withoutFiles)
      } catch let error as WorkspaceError where error.errno == ENOENT {
        // Deleted since then, which the copy of the store doesn't know.
        try complain("session \(session.id.lowercaseString) has been deleted meanwhile")
      } catch let error as WorkspaceError where error.concernsTreeOnly {
        incomplete += 1
        try complain("session \(session.id.lowercaseString) is not complete in the backup: \(error)")
      }
    }
    try await copy.copyShares(from: source)
    let manifest = Manifest(
      createdAt: Timestamp.now().description, workspaceRoot: source.root, hasFiles: !withoutFiles)
    let encoder = JSONEncoder()
    encoder.outputFormatting = [.prettyPrinted, .sortedKeys, .withoutEscapingSlashes]
    try encoder.encode(manifest).write(to: target.manifest)
    try await Workspaces.synchronize()
    return (sessions.count, incomplete)
  }
}

struct Restore: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "Make the state of a server from a backup. There must be none yet, and no server may run on it.")

  @OptionGroup var location: StateLocation
  @Argument(help: "The directory of the backup.") var from: String

  func run() async throws {
    let configuration = try await location.configuration()
    let backup = StateParts(directory: URL(filePath: from).standardizedFileURL.path(percentEncoded: false))
    let manifest = try manifest(of: backup)
    guard manifest.workspaceRoot == configuration.workspaceRoot else {
      throw ValidationError(
        "The backup's workspaces were in \(manifest.workspaceRoot), and conversations are found by that path; "
          + "restore with --workspace-root \(manifest.workspaceRoot).")
    }
    let state = StateParts(directory: configuration.stateDirectory)
    try checkUser(state.directory)
    try Workspaces.makeDirectories(state.directory)
    let lock = try await StateLock(state.directory)
    defer { withExtendedLifetime(lock) {} }
    guard access(state.store.path, F_OK) != 0 else {
      throw ValidationError("There is a store in \(state.directory) already; move it out of the way first.")
    }
    // Until it has its name, nothing is restored.
    let store = SQLiteStoreConfiguration(path: state.directory + "/restored.sqlite")
    guard unlink(store.path) == 0 || errno == ENOENT else {
      throw CommandFailure("unlink \(store.path)")
    }
    try await SQLiteSessionStore.backup(backup.store, to: store.path)
    let sessions = try await sessions(of: store)
    let source = try Workspaces(root: backup.directory + "/workspaces", configurationRoot: backup.conversations)
    let target = try Workspaces(root: configuration.workspaceRoot, configurationRoot: state.conversations)
    for session in sessions {
      do {
        try await target.copy(session.id, from: source, withFiles: manifest.hasFiles)
      } catch let error as WorkspaceError where error.errno == ENOENT {
        try complain("session \(session.id.lowercaseString) has no files in the backup")
      }
    }
    try await target.copyShares(from: source)
    try await Workspaces.synchronize()
    guard rename(store.path, state.store.path) == 0 else {
      throw CommandFailure("rename \(store.path)")
    }
    try await Workspaces.synchronize()
    print("\(state.directory): \(sessions.count) sessions")
  }

  private func manifest(of backup: StateParts) throws -> Manifest {
    guard let bytes = FileManager.default.contents(atPath: backup.manifest.path(percentEncoded: false)) else {
      throw ValidationError("\(backup.directory) is no backup: it has no \(Manifest.name).")
    }
    let manifest: Manifest
    do {
      manifest = try JSONDecoder().decode(Manifest.self, from: bytes)
    } catch {
      throw ValidationError("\(Manifest.name) can't be understood: \(error)")
    }
    guard manifest.format == Manifest.currentFormat else {
      throw ValidationError("The backup has format \(manifest.format), which version \(Server.version) doesn't know.")
    }
    return manifest
  }

  /// What root restores for another user would be out of that one's reach.
  private func checkUser(_ directory: String) throws {
    guard access(directory, F_OK) == 0 else { return }
    let owner = try FileManager.default.attributesOfItem(atPath: directory)[.ownerAccountID] as? NSNumber
    guard owner?.uint32Value != geteuid() else { return }
    throw ValidationError("\(directory) belongs to another user, who has to restore it.")
  }
}

extension WorkspaceError {
  /// Whether it comes of what an agent has made of its own files, which must not be in the way of all others' backup.
  fileprivate var concernsTreeOnly: Bool {
    [E2BIG, EACCES, EFBIG, EINVAL, ELOOP, ENAMETOOLONG, EPERM].contains(errno)
  }
}

/// A system call that failed. To be made right after it.
private struct CommandFailure: Error, CustomStringConvertible {
  let description: String

  init(_ call: String) { description = "\(call): \(String(cString: strerror(errno)))" }
}

private func complain(_ sentence: String) throws {
  try FileHandle.standardError.write(contentsOf: Data("claude-api-server: \(sentence)\n".utf8))
}

private func sessions(of configuration: SQLiteStoreConfiguration) async throws -> [Session] {
  let store = try await SQLiteSessionStore.open(configuration)
  do {
    let sessions = try await store.sessions(SessionQuery()).sessions
    await store.close()
    return sessions
  } catch {
    await store.close()
    throw error
  }
}

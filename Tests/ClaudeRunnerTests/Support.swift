import Foundation
import JSONSupport
import Logging
import Synchronization
import Testing

@testable import ClaudeRunner

/// The directory of the products, where the test bundle is too.
let products: URL = {
  #if os(macOS)
    Bundle.allBundles.first { $0.bundlePath.hasSuffix(".xctest") }.map {
      $0.bundleURL.deletingLastPathComponent()
    }
      ?? Bundle.main.bundleURL
  #else
    URL(filePath: CommandLine.arguments[0]).deletingLastPathComponent()
  #endif
}()

let fakeClaude = products.appending(path: "fake-claude").path()

/// A runner on a directory of its own, with the fake CLI.
struct Fixture: Sendable {
  let root: URL
  let runner: ClaudeRunner
  let instance = UUID().uuidString
  let said: Messages

  init(_ change: (inout ClaudeRunnerConfiguration) -> Void = { _ in }) throws {
    root = FileManager.default.temporaryDirectory.appending(path: "claude-runner-\(UUID().uuidString)")
    try FileManager.default.createDirectory(at: root, withIntermediateDirectories: true)
    var configuration = ClaudeRunnerConfiguration(instance: instance)
    configuration.executable = fakeClaude
    configuration.maximumProcesses = 4
    configuration.exitTimeout = .seconds(5)
    configuration.credentials.apiKey = "dummy"
    // The fake links the Swift runtime, which need not be where the loader looks.
    let libraries = ProcessInfo.processInfo.environment["LD_LIBRARY_PATH"]
    configuration.additionalEnvironment = libraries.map { ["LD_LIBRARY_PATH": $0] } ?? [:]
    change(&configuration)
    let said = Messages()
    self.said = said
    runner = ClaudeRunner(
      configuration: configuration, logger: Logger(label: "test") { _ in SwiftLogNoOpLogHandler() },
      unsolicited: { _, message in said.append(message) })
  }

  func session() throws -> ClaudeSession {
    let id = UUID().uuidString.lowercased()
    let workspace = root.appending(path: "workspace-\(id)")
    try FileManager.default.createDirectory(at: workspace, withIntermediateDirectories: true)
    return ClaudeSession(
      id: id, workingDirectory: workspace.path(), configDirectory: root.appending(path: "config-\(id)").path()
    )
  }

  /// Ends everything; nothing may be left of any process.
  func end() async throws -> [pid_t] {
    await runner.shutdown(grace: .zero)
    let left = StrayProcesses.ofInstance(instance).find()
    try FileManager.default.removeItem(at: root)
    return left
  }
}

/// What a handler got.
final class Messages: Sendable {
  private let messages = Mutex<[ClaudeMessage]>([])

  func append(_ message: ClaudeMessage) { messages.withLock { $0.append(message) } }
  var all: [ClaudeMessage] { messages.withLock { $0 } }
  var kinds: [ClaudeMessage.Kind] { all.map(\.kind) }
}

/// A signal that a message has come, to wait for.
struct Arrival: Sendable {
  private let stream: AsyncStream<ClaudeMessage>
  private let source: AsyncStream<ClaudeMessage>.Continuation

  init() {
    (stream, source) = AsyncStream.makeStream()
  }

  func handle(_ message: ClaudeMessage) { source.yield(message) }

  func first(where matches: (ClaudeMessage) -> Bool) async -> ClaudeMessage? {
    for await message in stream where matches(message) { return message }
    return nil
  }
}

func processExists(_ pid: pid_t) -> Bool {
  guard let status = ProcFS.status(of: pid) else { return false }
  return !status.isZombie
}

/// The failure that is expected; nil, and an issue, if there is none.
func failing(
  sourceLocation: SourceLocation = #_sourceLocation, _ body: () async throws -> some Any
) async -> ClaudeFailure? {
  do {
    _ = try await body()
    Issue.record("no failure", sourceLocation: sourceLocation)
  } catch let failure as ClaudeFailure {
    return failure
  } catch {
    Issue.record(error, sourceLocation: sourceLocation)
  }
  return nil
}

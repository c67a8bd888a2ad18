import ClaudeRunner
import DemoModel
import Foundation
import JSONSupport
import Logging
import ServiceLifecycle
import Synchronization

/// A turn of the CLI with a scripted model of this process, which costs nothing and reaches nobody: it shows whether
/// this CLI takes the flags that are used, speaks in the shapes that are read, and asks for permission.
///
/// A CLI that has passed isn't asked again until it or this program changes: what passed is written down in the state
/// directory.
struct Rehearsal {
  /// That of the server's runner; the rehearsal takes from it the CLI and its bounds.
  let configuration: ClaudeRunnerConfiguration
  let stateDirectory: String
  let probe: ClaudeProbe

  /// What is to be run, a word that is to come out, and what of the CLI's messages it takes.
  private static let word = "rehearsal-7341"
  /// It writes, since the CLI asks for nobody's permission to look.
  private static let prompt = #"[[tool Bash {"command":"touch asked && echo \#(word)"}]]"#

  private var mark: String { stateDirectory + "/cli-rehearsed" }
  private var directory: String { stateDirectory + "/rehearsal" }

  /// - Returns: whether there was anything to find out.
  /// - Throws: ``ClaudeFailure`` with the code `cli_incompatible`, which says what the CLI doesn't do, or with that of
  ///   whatever else went wrong.
  func run() async throws -> Bool {
    let passed = try identity()
    if let known = FileManager.default.contents(atPath: mark), known == Data(passed.utf8) { return false }
    let seen = try await turn()
    if let missing = seen.missing {
      throw ClaudeFailure(
        .cliIncompatible,
        "The Claude Code CLI \(probe.version) at \(probe.path) \(missing). Install a version that this server was "
          + "tested with: scripts/install-claude prints the path of one, for claude.path.")
    }
    try Data(passed.utf8).write(to: URL(filePath: mark), options: .atomic)
    return true
  }

  /// What tells this CLI and this program from others.
  private func identity() throws -> String {
    let status = try FileManager.default.attributesOfItem(
      atPath: URL(filePath: probe.path).resolvingSymlinksInPath().path(percentEncoded: false))
    let modified = (status[.modificationDate] as? Date)?.timeIntervalSince1970 ?? 0
    return "\(Server.version) \(probe.version) \(status[.size] ?? 0) \(modified) \(probe.path)\n"
  }

  // MARK: The turn

  private func turn() async throws -> Seen {
    let (ports, source) = AsyncStream.makeStream(of: Int.self)
    let quiet = Logger(label: "rehearsal") { _ in SwiftLogNoOpLogHandler() }
    let model = DemoModelServer().application(port: 0, logger: quiet) { source.yield($0) }
    let group = ServiceGroup(services: [model], logger: quiet)
    let serving = Task {
      defer { source.finish() }
      try await group.run()
    }
    var iterator = ports.makeAsyncIterator()
    guard let port = await iterator.next() else {
      try await serving.value
      throw ClaudeFailure(.startFailed, "The scripted model ended before it began.")
    }
    let outcome = await Result { try await turn(port: port) }
    serving.cancel()
    _ = await serving.result
    return try outcome.get()
  }

  private func turn(port: Int) async throws -> Seen {
    var configuration = configuration
    // Another instance, whose processes can be ended without those of the server's.
    configuration.instance += "#rehearsal"
    configuration.sandbox = nil
    configuration.maximumProcesses = 1
    configuration.turnTimeout = .seconds(60)
    configuration.stallTimeout = .seconds(30)
    configuration.gateway = nil
    configuration.credentials = ClaudeCredentials(apiKey: "rehearsal", baseURL: "http://127.0.0.1:\(port)")
    let runner = ClaudeRunner(
      configuration: configuration, logger: Logger(label: "rehearsal") { _ in SwiftLogNoOpLogHandler() })
    await runner.killStrays()
    try? FileManager.default.removeItem(atPath: directory)
    try FileManager.default.createDirectory(
      atPath: directory + "/workspace", withIntermediateDirectories: true, attributes: [.posixPermissions: 0o700])
    let session = ClaudeSession(
      id: UUID().uuidString.lowercased(), workingDirectory: directory + "/workspace",
      configDirectory: directory + "/config")
    var options = ClaudeOptions()
    options.asksForPermission = true
    options.allowedTools = []
    let seen = Mutex(Seen())
    let outcome = await withTaskCancellationHandler {
      await Result {
        try await runner.run(ClaudeTurn(session: session, options: options, prompt: Self.prompt)) { message in
          if let question = seen.withLock({ $0.note(message) }) {
            await runner.answerPermission(session: session.id, requestID: question, decision: .allow())
          }
        }
      }
    } onCancel: {
      Task { await runner.shutdown(grace: .zero) }
    }
    await runner.shutdown(grace: .zero)
    try FileManager.default.removeItem(atPath: directory)
    _ = try outcome.get()
    return seen.withLock { $0 }
  }

  /// What of the CLI's words was as it is expected.
  private struct Seen {
    private var hasBegun = false
    private var hasStreamed = false
    private var hasCalled = false
    private var hasAsked = false
    private var hasRun = false
    private var hasCounted = false

    /// - Returns: the id of a question, if the message is one.
    mutating func note(_ message: ClaudeMessage) -> String? {
      let json = message.json
      switch message.kind {
      case .system("init"): hasBegun = json["session_id"]?.stringValue != nil && json["model"]?.stringValue != nil
      case .streamEvent: hasStreamed = hasStreamed || json["event"]?["type"]?.stringValue != nil
      case .assistant:
        let blocks = json["message"]?["content"]?.arrayValue ?? []
        hasCalled = hasCalled || blocks.contains { $0["type"] == "tool_use" && $0["id"]?.stringValue != nil }
      case .controlRequest("can_use_tool"):
        let request = json["request"]
        hasAsked =
          request?["tool_name"] == "Bash" && request?["input"]?["command"] != nil && request?["tool_use_id"] != nil
        return json["request_id"]?.stringValue
      case .user:
        let blocks = json["message"]?["content"]?.arrayValue ?? []
        hasRun =
          hasRun
          || blocks.contains { $0["type"] == "tool_result" && "\($0["content"] ?? .null)".contains(Rehearsal.word) }
      case .result: hasCounted = json["usage"]?["output_tokens"] != nil && json["total_cost_usd"]?.doubleValue != nil
      default: break
      }
      return nil
    }

    /// What the CLI doesn't do; nil if it does everything.
    var missing: String? {
      let wanted = [
        (hasBegun, "doesn't say how a turn begins"), (hasStreamed, "doesn't stream the model's answers"),
        (hasCalled, "doesn't tell of tool calls"), (hasAsked, "doesn't ask for permission to use a tool"),
        (hasRun, "doesn't tell what a tool call came to"), (hasCounted, "doesn't say what a turn used"),
      ]
      let missing = wanted.filter { !$0.0 }.map(\.1)
      return missing.isEmpty ? nil : missing.joined(separator: ", ")
    }
  }
}

extension Result where Failure == any Error {
  fileprivate init(_ body: () async throws -> Success) async {
    do {
      self = .success(try await body())
    } catch {
      self = .failure(error)
    }
  }
}

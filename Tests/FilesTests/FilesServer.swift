import ClaudeAPI
import Foundation
import Hummingbird
import HummingbirdFastCGI
import JSONSupport
import Logging
import ServiceLifecycle
import SessionTestSupport
import Sessions
import TestSupport
import Testing
import Workspaces

/// The API with its files behind a real nginx, in a directory of its own, with one session.
struct FilesServer: Sendable {
  let port: Int
  /// The directory of everything; decoys for attacks lie in it.
  let directory: String
  let workspaces: Workspaces
  let service: SessionService
  let session: Session
  let nginx: Nginx

  /// Turns that do nothing.
  static let answer: ScriptedRunner.Script = { request, _ in TurnResult(text: "You said: " + request.turn.prompt) }

  /// The URL's path of the session.
  var base: String { "/sessions/" + session.id.uuidString.lowercased() }
  /// The session's workspace on the disk.
  var workspace: String { session.workspace }

  static func run<T>(
    limits: WorkspaceLimits = WorkspaceLimits(), configuration: FilesConfiguration = FilesConfiguration(),
    nginxOptions: [String] = [], runner: any TurnRunner = ScriptedRunner(answer),
    isolation: isolated (any Actor)? = #isolation,
    _ body: (FilesServer) async throws -> T
  ) async throws -> T {
    try await withTemporaryDirectory { directory in
      let workspaces = try Workspaces(
        root: directory + "/workspaces", configurationRoot: directory + "/state/claude-config", limits: limits)
      let logger = Logger(label: "test") { _ in SwiftLogNoOpLogHandler() }
      var bounds = SessionServiceConfiguration()
      bounds.watchInterval = .milliseconds(50)
      bounds.restInterval = .milliseconds(50)
      let service = SessionService(
        store: InMemorySessionStore(), workspaces: workspaces, runner: runner, configuration: bounds, logger: logger)
      let files = FilesAPI(service: service, workspaces: workspaces, configuration: configuration)
      let api = API(
        service: service, configuration: APIConfiguration(version: "test", model: .demo), files: files)
      let (listening, signal) = AsyncStream.makeStream(of: Void.self)
      let server = FastCGIServer(
        responder: api.responder(), immediateResponder: api.immediateResponder,
        configuration: .init(address: .unixSocket(path: directory + "/s")), logger: logger,
        onListening: { signal.finish() })
      let group = ServiceGroup(services: [server], logger: logger)
      let running = Task {
        defer { signal.finish() }
        try await group.run()
      }
      for await _ in listening {}
      let session = try await service.create(NewSession(name: "Test")).session
      do {
        let result = try await Nginx.with(
          in: directory, socket: directory + "/s",
          options: ["--workspaces", directory + "/workspaces"] + nginxOptions
        ) { nginx in
          try await body(
            FilesServer(
              port: nginx.port, directory: directory, workspaces: workspaces, service: service, session: session,
              nginx: nginx))
        }
        await group.triggerGracefulShutdown()
        try await running.value
        return result
      } catch {
        await group.triggerGracefulShutdown()
        try await running.value
        throw error
      }
    }
  }

  /// Sends a request with its path as it is given here.
  func send(
    _ method: String, _ target: String, _ fields: [String: String] = [:], _ body: [UInt8]? = nil
  ) async throws -> RawResponse {
    try await TestSupport.exchange(port: port, bytes(method, target, fields, body))
  }

  func send(_ method: String, _ target: String, _ fields: [String: String] = [:], text: String) async throws
    -> RawResponse
  {
    try await send(method, target, fields, Array(text.utf8))
  }

  func json(_ method: String, _ target: String, _ value: String) async throws -> RawResponse {
    try await send(method, target, ["Content-Type": "application/json"], text: value)
  }

  func bytes(_ method: String, _ target: String, _ fields: [String: String], _ body: [UInt8]?) -> [UInt8] {
    var text = "\(method) \(target) HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    for (name, value) in fields { text += "\(name): \(value)\r\n" }
    if let body { text += "Content-Length: \(body.count)\r\n" }
    return Array((text + "\r\n").utf8) + (body ?? [])
  }

  func write(_ text: String, to path: String) throws {
    let path = workspace + "/" + path
    try FileManager.default.createDirectory(
      atPath: URL(fileURLWithPath: path).deletingLastPathComponent().path, withIntermediateDirectories: true)
    try Data(text.utf8).write(to: URL(fileURLWithPath: path))
  }

  func read(_ path: String) -> String? {
    FileManager.default.contents(atPath: workspace + "/" + path).map { String(decoding: $0, as: UTF8.self) }
  }

  /// Files that are in the making.
  var staged: [String] {
    get throws {
      try FileManager.default.contentsOfDirectory(atPath: directory + "/workspaces/.incoming").filter {
        !["uploads", "shares", "share-key"].contains($0)
      }
    }
  }
}

extension RawResponse {
  var problemCode: String? {
    guard let value = try? JSONSerialization.jsonObject(with: Data(body)) as? [String: Any] else { return nil }
    return value["code"] as? String
  }

  func decode<T: Decodable>(_: T.Type) throws -> T { try JSONDecoder().decode(T.self, from: Data(body)) }
}

struct Listing: Decodable {
  struct Entry: Decodable {
    let name: String
    let name_base64: String?
    let type: String
    let size: Int?
    let modified: String
    let href: String
  }
  let path: String
  let count: Int
  let entries: [Entry]
  let next_cursor: String?
}

/// Bytes that don't repeat early.
func pattern(_ count: Int) -> [UInt8] {
  var bytes = [UInt8](repeating: 0, count: count)
  for index in bytes.indices { bytes[index] = UInt8(truncatingIfNeeded: index &* 31 ^ index >> 8) }
  return bytes
}

/// Waits, within bounds, until something is so.
func eventually(_ what: String, _ condition: () async throws -> Bool) async throws {
  let deadline = ContinuousClock.now + .seconds(30)
  while try await !condition() {
    try #require(ContinuousClock.now < deadline, "\(what)")
    try await Task.sleep(for: .milliseconds(20))
  }
}

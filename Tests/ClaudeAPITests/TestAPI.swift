import ClaudeAPI
import Foundation
import HTTPTypes
import Hummingbird
import JSONSupport
import Logging
import NIOCore
import SessionTestSupport
import Sessions
import Synchronization

@testable import HummingbirdFastCGI

/// The API on a service of its own, asked without a transport.
struct TestAPI: Sendable {
  struct Answer: Sendable {
    let status: Int
    let headers: HTTPFields
    let body: ByteBuffer

    func json() throws -> JSONValue { try JSONValue(parsing: body.readableBytesView) }
  }

  let service: SessionService
  private let responder: RouterResponder<API.Context>

  static func run<Value>(
    runner: any TurnRunner = ScriptedRunner(), store: any SessionStore = InMemorySessionStore(),
    hub: EventHub = EventHub(), _ body: (TestAPI) async throws -> Value
  ) async throws -> Value {
    try await withService(runner: runner, store: store, hub: hub) { service in
      let api = API(service: service, configuration: APIConfiguration(version: "1", model: .demo))
      return try await body(TestAPI(service: service, responder: api.responder()))
    }
  }

  func respond(
    _ method: HTTPRequest.Method, _ path: String, _ headers: [HTTPField.Name: String] = [:], body: JSONValue? = nil
  ) async throws -> Response {
    var fields = HTTPFields()
    for (name, value) in headers { fields[name] = value }
    if body != nil { fields[.contentType] = "application/json" }
    let request = Request(
      head: HTTPRequest(method: method, scheme: "http", authority: "localhost", path: path, headerFields: fields),
      body: RequestBody(buffer: ByteBuffer(bytes: body?.encoded() ?? [])))
    let source = FastCGIRequestContextSource(
      logger: Logger(label: "test") { _ in SwiftLogNoOpLogHandler() }, parameters: CGIParameters([]))
    return try await responder.respond(to: request, context: API.Context(source: source))
  }

  func send(
    _ method: HTTPRequest.Method, _ path: String, _ headers: [HTTPField.Name: String] = [:], body: JSONValue? = nil
  ) async throws -> Answer {
    let response = try await respond(method, path, headers, body: body)
    let collector = Collector()
    try await response.body.write(collector)
    return Answer(status: response.status.code, headers: response.headers, body: collector.body)
  }

  /// Opens a stream and reads it in a task of its own.
  func stream(
    _ method: HTTPRequest.Method, _ path: String, _ headers: [HTTPField.Name: String] = [:], body: JSONValue? = nil
  ) async throws -> (response: Response, reader: StreamReader) {
    var headers = headers
    headers[.accept] = "text/event-stream"
    let response = try await respond(method, path, headers, body: body)
    return (response, StreamReader(response.body))
  }

  func newSession(_ body: JSONValue = [:]) async throws -> String {
    try await send(.post, "/sessions", body: body).json()["session"]?["id"]?.stringValue ?? ""
  }
}

/// Keeps the body of an answer.
private final class Collector: ResponseBodyWriter, Sendable {
  private let stored = Mutex(ByteBuffer())
  var body: ByteBuffer { stored.withLock { $0 } }

  func write(_ buffer: ByteBuffer) async throws { _ = stored.withLock { $0.writeImmutableBuffer(buffer) } }
  func finish(_: HTTPFields?) async throws {}
}

/// Reads a stream of events as an `EventSource` does.
final class StreamReader: Sendable {
  struct Entry: Equatable {
    var id: String?
    var event: String?
    var data: String?
    var comment: String?
    var retry: String?

    func json() throws -> JSONValue { try JSONValue(parsing: (data ?? "").utf8) }
  }

  private struct Writer: ResponseBodyWriter {
    let chunks: AsyncStream<ByteBuffer>.Continuation
    let valve: Valve

    func write(_ buffer: ByteBuffer) async throws {
      chunks.yield(buffer)
      try await valve.pass()
    }

    func finish(_: HTTPFields?) async throws {}
  }

  /// While it is closed, a write isn't done, as with a client that doesn't read.
  final class Valve: Sendable {
    private let gate = Mutex<Gate?>(nil)

    func close() { gate.withLock { $0 = Gate() } }

    func open() {
      gate.withLock { gate in
        gate?.open()
        gate = nil
      }
    }

    func pass() async throws { try await gate.withLock { $0 }?.wait() }
  }

  private let task: Task<Void, any Error>
  private let entries: AsyncStream<Entry>

  init(_ body: ResponseBody, valve: Valve = Valve()) {
    let (chunks, continuation) = AsyncStream.makeStream(of: ByteBuffer.self)
    task = Task {
      defer { continuation.finish() }
      try await body.write(Writer(chunks: continuation, valve: valve))
    }
    entries = AsyncStream { continuation in
      Task {
        var text = ""
        for await chunk in chunks {
          text += String(buffer: chunk)
          while let end = text.firstRange(of: "\n\n") {
            continuation.yield(Self.entry(text[..<end.lowerBound]))
            text = String(text[end.upperBound...])
          }
        }
        continuation.finish()
      }
    }
  }

  private static func entry(_ text: Substring) -> Entry {
    var entry = Entry()
    for line in text.split(separator: "\n") {
      let parts = line.split(separator: ":", maxSplits: 1, omittingEmptySubsequences: false)
      let value = parts.count == 2 ? String(parts[1].drop { $0 == " " }) : ""
      switch parts[0] {
      case "": entry.comment = value
      case "id": entry.id = value
      case "event": entry.event = value
      case "data": entry.data = entry.data.map { $0 + "\n" + value } ?? value
      case "retry": entry.retry = value
      default: break
      }
    }
    return entry
  }

  /// The entries up to the first one that is wanted, or to the end. Heartbeats, which come when they like, are only
  /// among them if they are wanted.
  func entries(until isWanted: (Entry) -> Bool = { _ in false }) async -> [Entry] {
    var found: [Entry] = []
    for await entry in entries {
      let isWanted = isWanted(entry)
      if isWanted || entry.comment != "keep-alive" { found.append(entry) }
      if isWanted { break }
    }
    return found
  }

  /// Goes away, as a client that closes its connection, and waits until the answer's task knows it.
  func close() async {
    task.cancel()
    _ = await task.result
  }
}

import HTTPTypes
import HummingbirdFastCGI
import Logging
import NIOCore
import ServiceLifecycle
import TestSupport
import WebSockets

/// Says what it is told, until it is told "bye".
struct Echo: WebSocketApplication {
  var trusts = true

  func admit(_ request: WebSocketRequest) async -> WebSocketAdmission<Void> {
    guard request.defect == nil, request.head.path == "/echo" else {
      return .refused(
        WebSocketRefusal(status: .badRequest, headers: [.contentType: "text/plain"], body: ByteBuffer(string: "no")))
    }
    return .accepted((), isTrusted: trusts)
  }

  func serve(_ socket: WebSocket, for _: Void) async -> WebSocketClose {
    do {
      for try await message in socket.messages {
        if message == ByteBuffer(string: "bye") { return WebSocketClose(4000, "bye") }
        try await socket.send([message])
      }
    } catch {
      return WebSocketClose(1011, "\(error)")
    }
    return socket.closing ?? .normal
  }
}

/// A server on a unix socket of its own.
struct TestSockets: Sendable {
  let path: String
  private let group: ServiceGroup

  /// Has the server end as it would on SIGTERM.
  func shutDown() async { await group.triggerGracefulShutdown() }

  func open(_ target: String = "/echo", headers: [String: String] = [:]) async throws -> RawWebSocket {
    try await RawWebSocket.open(RawConnection(unixSocket: path), path: target, headers: headers)
  }

  /// Runs `body` with a server, and ends it.
  static func run<Value>(
    _ application: some WebSocketApplication, log: any LogHandler = SwiftLogNoOpLogHandler(),
    configure: (inout WebSocketServerConfiguration) -> Void = { _ in },
    _ body: (TestSockets) async throws -> Value
  ) async throws -> Value {
    try await withTemporaryDirectory { directory in
      let path = directory + "/ws.sock"
      var configuration = WebSocketServerConfiguration(address: .unixSocket(path: path))
      configure(&configuration)
      let logger = Logger(label: "test") { _ in log }
      let server = WebSocketServer(application: application, configuration: configuration, logger: logger)
      let group = ServiceGroup(services: [server], logger: logger)
      let running = Task { try await group.run() }
      do {
        try await waitUntilListening(path, running)
        let value = try await body(TestSockets(path: path, group: group))
        running.cancel()
        _ = await running.result
        return value
      } catch {
        running.cancel()
        _ = await running.result
        throw error
      }
    }
  }

  static func waitUntilListening(_ path: String, _ running: Task<Void, any Error>) async throws {
    for _ in 0..<3000 {
      do {
        _ = try RawConnection(unixSocket: path)
        return
      } catch is SystemError {
        try await Task.sleep(for: .milliseconds(10))
      }
    }
    running.cancel()
    try await running.value
  }
}

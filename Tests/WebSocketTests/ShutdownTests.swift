import HTTPTypes
import NIOCore
import Synchronization
import TestSupport
import Testing
import WebSockets

/// What a graceful shutdown does to connections in each state.
@Suite struct ShutdownTests {
  /// A connection that was accepted is never answered with its end alone, which clients take for a missing server.
  @Test func aShutdownWaitsForThoseWhoAreBeingLetIn() async throws {
    let gate = Gate()
    try await TestSockets.run(SlowDoor(gate: gate)) { sockets in
      let open = try await sockets.open()
      let entering = Task { try await sockets.open("/slow") }
      let refused = Task { try await sockets.open("/slow/refused") }
      try await gate.waitUntilAsked(times: 2)
      await sockets.shutDown()
      #expect(try await open.rest().last?.closeCode == 1001)
      gate.open()
      #expect(try await entering.value.rest().map(\.closeCode) == [1001])
      let refusal = await #expect(throws: RawWebSocket.Refused.self) { try await refused.value }
      #expect(refusal?.response.status == 403)
    }
  }

  /// One who connects and says nothing doesn't keep the server from its end.
  @Test func aShutdownDoesNotWaitForWhoSaysNothing() async throws {
    try await TestSockets.run(Echo()) { configuration in
      configuration.drainTimeout = .milliseconds(50)
      configuration.handshakeTimeout = .seconds(3600)
    } _: { sockets in
      let silent = try RawConnection(unixSocket: sockets.path)
      // The silent one was accepted before this one.
      let open = try await sockets.open()
      await sockets.shutDown()
      #expect(try await open.rest().last?.closeCode == 1001)
      #expect(try await silent.receive { _ in false }.isEmpty)
    }
  }
}

/// Lets clients in when it is told to, and has those from below `/slow` wait for that.
private struct SlowDoor: WebSocketApplication {
  let gate: Gate

  func admit(_ request: WebSocketRequest) async -> WebSocketAdmission<Void> {
    let path = request.head.path ?? ""
    if path.hasPrefix("/slow") { await gate.pass() }
    if path.hasSuffix("/refused") {
      return .refused(WebSocketRefusal(status: .forbidden, headers: [:], body: ByteBuffer()))
    }
    return .accepted((), isTrusted: true)
  }

  func serve(_ socket: WebSocket, for client: Void) async -> WebSocketClose { await Echo().serve(socket, for: client) }
}

private final class Gate: Sendable {
  private let state = Mutex((asked: 0, isOpen: false, waiting: [CheckedContinuation<Void, Never>]()))

  func pass() async {
    await withCheckedContinuation { continuation in
      let isOpen = state.withLock { state in
        state.asked += 1
        if !state.isOpen { state.waiting.append(continuation) }
        return state.isOpen
      }
      if isOpen { continuation.resume() }
    }
  }

  func open() {
    let waiting = state.withLock { state in
      state.isOpen = true
      defer { state.waiting = [] }
      return state.waiting
    }
    for continuation in waiting { continuation.resume() }
  }

  func waitUntilAsked(times: Int) async throws {
    for _ in 0..<3000 where state.withLock({ $0.asked }) < times { try await Task.sleep(for: .milliseconds(10)) }
    #expect(state.withLock { $0.asked } == times)
  }
}

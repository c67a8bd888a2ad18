import Foundation
import NIOCore
import NIOPosix
import Synchronization
import TestSupport
import Testing

@testable import ClaudeRunner

/// The way of an agent's connections to the server's socket, with both ends in the test's hand.
@Suite struct SocketRelayTests {
  /// A relay and the socket behind it, in a directory of its own.
  private struct Fixture {
    let directory: String
    let relay: SocketRelay
    let figures = SocketRelay.Figures()
    var path: String { directory + "/a" }
    var target: String { directory + "/t" }

    init(_ directory: String, _ bounds: SocketRelay.Bounds) async throws {
      self.directory = directory
      relay = try await SocketRelay.open(
        at: directory + "/a", to: directory + "/t", bounds: bounds, figures: figures,
        on: MultiThreadedEventLoopGroup.singleton.any(), onFirstBound: {})
    }

    func connect() throws -> Peer { try Peer(connectedTo: path) }

    /// Waits until so many connections are open.
    func waitForOpen(_ count: Int) async throws {
      while figures.open.load(ordering: .relaxed) != count { try await Task.sleep(for: .milliseconds(2)) }
    }
  }

  private func withRelay(
    _ change: (inout SocketRelay.Bounds) -> Void = { _ in }, _ body: (Fixture) async throws -> Void
  ) async throws {
    var bounds = SocketRelay.Bounds()
    change(&bounds)
    try await withTemporaryDirectory { directory in
      let fixture = try await Fixture(directory, bounds)
      do {
        try await body(fixture)
      } catch {
        await fixture.relay.close()
        throw error
      }
      await fixture.relay.close()
    }
  }

  /// One end of a connection. Every wait is bounded by 60 seconds.
  private final class Peer: Sendable {
    let descriptor: Int32

    init(connectedTo path: String) throws {
      descriptor = socket(AF_UNIX, Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue), 0)
      var address = sockaddr_un()
      address.sun_family = sa_family_t(AF_UNIX)
      withUnsafeMutableBytes(of: &address.sun_path) { $0.copyBytes(from: path.utf8) }
      let status = withUnsafePointer(to: &address) {
        $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
          Glibc.connect(descriptor, $0, socklen_t(MemoryLayout<sockaddr_un>.size))
        }
      }
      guard status == 0 else { throw SystemError(call: "connect") }
      bound()
    }

    /// Takes the next connection of a socket.
    static func accept(_ socket: UnixSocket) async throws -> Peer {
      try await onThread {
        var poll = pollfd(fd: socket.descriptor, events: Int16(POLLIN), revents: 0)
        guard Glibc.poll(&poll, 1, 60_000) == 1 else { throw SystemError(call: "poll", code: ETIMEDOUT) }
        return try Peer(acceptedBy: socket)
      }
    }

    private init(acceptedBy socket: UnixSocket) throws {
      descriptor = Glibc.accept(socket.descriptor, nil, nil)
      guard descriptor >= 0 else { throw SystemError(call: "accept") }
      bound()
    }

    private func bound() {
      var limit = timeval(tv_sec: 60, tv_usec: 0)
      setsockopt(descriptor, SOL_SOCKET, SO_RCVTIMEO, &limit, socklen_t(MemoryLayout<timeval>.size))
      setsockopt(descriptor, SOL_SOCKET, SO_SNDTIMEO, &limit, socklen_t(MemoryLayout<timeval>.size))
    }

    deinit { close(descriptor) }

    func send(_ bytes: [UInt8]) async throws {
      try await onThread { [self] in
        var rest = bytes[...]
        while !rest.isEmpty {
          let count = rest.withUnsafeBytes { Glibc.send(descriptor, $0.baseAddress, $0.count, Int32(MSG_NOSIGNAL)) }
          guard count > 0 else { throw SystemError(call: "send") }
          rest = rest.dropFirst(count)
        }
      }
    }

    func send(_ text: String) async throws { try await send(Array(text.utf8)) }

    /// Sends until nothing has been taken for a while, and returns how many bytes were.
    func sendUntilStalled(_ bytes: [UInt8]) async throws -> Int {
      try await onThread { [self] in
        var rest = bytes[...]
        while !rest.isEmpty {
          let count = rest.withUnsafeBytes {
            Glibc.send(descriptor, $0.baseAddress, $0.count, Int32(MSG_NOSIGNAL | MSG_DONTWAIT))
          }
          if count > 0 {
            rest = rest.dropFirst(count)
          } else {
            guard errno == EAGAIN else { throw SystemError(call: "send") }
            var poll = pollfd(fd: descriptor, events: Int16(POLLOUT), revents: 0)
            if Glibc.poll(&poll, 1, 300) == 0 { break }
          }
        }
        return bytes.count - rest.count
      }
    }

    /// Says that nothing more is sent.
    func finish() { shutdown(descriptor, Int32(SHUT_WR)) }

    /// Reads so many bytes, or all until the other side has said everything or is gone.
    func receive(_ wanted: Int = .max) async throws -> [UInt8] {
      try await onThread { [self] in
        var bytes: [UInt8] = []
        var buffer = [UInt8](repeating: 0, count: 65536)
        while bytes.count < wanted {
          let count = recv(descriptor, &buffer, min(buffer.count, wanted - bytes.count), 0)
          if count < 0, errno == ECONNRESET { break }
          guard count >= 0 else { throw SystemError(call: "recv") }
          if count == 0 { break }
          bytes += buffer[..<count]
        }
        return bytes
      }
    }

    func receiveText(_ wanted: Int = .max) async throws -> String {
      String(decoding: try await receive(wanted), as: UTF8.self)
    }
  }

  private static let pattern = (0..<(16 << 20)).map { UInt8(truncatingIfNeeded: $0 &* 31 ^ $0 >> 8) }

  @Test func eachSideMayFinishBeforeTheOther() async throws {
    try await withRelay { relay in
      let target = try UnixSocket(listeningAt: relay.target)
      for clientFirst in [true, false] {
        let client = try relay.connect()
        try await client.send("question")
        let server = try await Peer.accept(target)
        #expect(try await server.receiveText(8) == "question")
        let (first, second) = clientFirst ? (client, server) : (server, client)
        try await first.send("last word")
        first.finish()
        #expect(try await second.receiveText() == "last word")
        async let sent: Void = second.send(Self.pattern)
        #expect(try await first.receive(Self.pattern.count) == Self.pattern)
        try await sent
        second.finish()
        #expect(try await first.receive().isEmpty)
      }
      try await relay.waitForOpen(0)
    }
  }

  @Test func nothingIsLostWhenASideIsGone() async throws {
    try await withRelay { relay in
      let target = try UnixSocket(listeningAt: relay.target)
      let answer = Array(Self.pattern.prefix(300_000))
      for hasFinished in [false, true] {
        let client = try relay.connect()
        do {
          let server = try await Peer.accept(target)
          if hasFinished {
            client.finish()
            #expect(try await server.receive().isEmpty)
          }
          async let sent: Void = server.send(answer)
          #expect(try await client.receive(1000) == Array(answer.prefix(1000)))
          try await sent
        }
        #expect(try await client.receive() == Array(answer.dropFirst(1000)))
      }
      // Nor in the other direction: what a client that broke off had said has arrived.
      do {
        let client = try relay.connect()
        let server = try await Peer.accept(target)
        try await client.send("half a header")
        _ = consume client
        #expect(try await server.receiveText() == "half a header")
      }
      try await relay.waitForOpen(0)
    }
  }

  /// Neither side is read faster than the other reads.
  @Test(arguments: [true, false]) func aReaderThatDoesNotReadHoldsTheOtherBack(_ clientSends: Bool) async throws {
    try await withRelay { relay in
      let target = try UnixSocket(listeningAt: relay.target)
      let client = try relay.connect()
      let server = try await Peer.accept(target)
      let (sender, reader) = clientSends ? (client, server) : (server, client)
      let taken = try await sender.sendUntilStalled(Self.pattern)
      // The kernel keeps some hundred kilobytes for each of two connections.
      #expect(taken < 4 << 20)
      async let rest: Void = sender.send(Array(Self.pattern.dropFirst(taken)))
      #expect(try await reader.receive(Self.pattern.count) == Self.pattern)
      try await rest
    }
  }

  @Test func whatIsOverTheBoundWaitsForAPlace() async throws {
    try await withRelay({ $0.connections = 3 }) { relay in
      let target = try UnixSocket(listeningAt: relay.target)
      let clients = try (0..<10).map { _ in try relay.connect() }
      for (number, client) in clients.enumerated() { try await client.send("\(number)") }
      while relay.figures.bounded.load(ordering: .relaxed) == 0 { try await Task.sleep(for: .milliseconds(2)) }
      #expect(relay.figures.open.load(ordering: .relaxed) == 3)
      var servers: [Peer] = []
      for number in 0..<3 {
        servers.append(try await Peer.accept(target))
        #expect(try await servers[number].receiveText(1) == "\(number)")
      }
      // Nobody else is there, until one goes: then the next one in the order in which they came.
      for number in 3..<10 {
        var poll = pollfd(fd: target.descriptor, events: Int16(POLLIN), revents: 0)
        #expect(Glibc.poll(&poll, 1, 0) == 0)
        servers.removeFirst()
        servers.append(try await Peer.accept(target))
        #expect(try await servers[2].receiveText(1) == "\(number)")
        #expect(relay.figures.open.load(ordering: .relaxed) <= 3)
      }
      withExtendedLifetime(clients) {}
    }
  }

  @Test func newConnectionsHaveARate() async throws {
    try await withRelay({
      $0.connectionsPerSecond = 20
      $0.connectionBurst = 2
    }) { relay in
      let target = try UnixSocket(listeningAt: relay.target)
      let start = ContinuousClock.now
      for _ in 0..<6 {
        let client = try relay.connect()
        try await client.send("x")
        #expect(try await Peer.accept(target).receiveText(1) == "x")
      }
      // Two at once, and one by what the time before them has allowed.
      #expect(ContinuousClock.now - start >= .milliseconds(145))
    }
  }

  @Test func aClientIsToldThatNobodyListens() async throws {
    try await withRelay({ $0.connections = 1 }) { relay in
      for _ in 0..<3 {
        let client = try relay.connect()
        try await client.send("POST /v1/messages HTTP/1.1\r\nContent-Length: 1\r\n\r\nx")
        let answer = try await client.receiveText()
        #expect(answer.hasPrefix("HTTP/1.1 502 ") && answer.contains(#""type":"api_error""#), "\(answer)")
        #expect(answer.hasSuffix("nginx does not answer on the model's socket.\"}}"), "\(answer)")
      }
      #expect(relay.figures.failed.load(ordering: .relaxed) == 3)
      // It is another socket after a restart.
      let target = try UnixSocket(listeningAt: relay.target)
      let client = try relay.connect()
      try await client.send("x")
      #expect(try await Peer.accept(target).receiveText(1) == "x")
    }
  }

  /// One that neither reads nor closes keeps its place for a moment only.
  @Test func aClientThatIsRefusedDoesNotKeepItsPlace() async throws {
    try await withRelay({ $0.refusalTimeout = .milliseconds(50) }) { relay in
      let client = try relay.connect()
      while relay.figures.failed.load(ordering: .relaxed) == 0 { try await Task.sleep(for: .milliseconds(2)) }
      try await relay.waitForOpen(0)
      withExtendedLifetime(client) {}
    }
  }

  @Test func atItsEndNothingIsLeft() async throws {
    try await withRelay({ $0.connections = 2 }) { relay in
      let target = try UnixSocket(listeningAt: relay.target)
      let clients = try (0..<4).map { _ in try relay.connect() }
      let servers = [try await Peer.accept(target), try await Peer.accept(target)]
      await relay.relay.close()
      for server in servers { #expect(try await server.receive().isEmpty) }
      for client in clients { #expect(try await client.receive().isEmpty) }
      try await relay.waitForOpen(0)
      #expect(!FileManager.default.fileExists(atPath: relay.path))
      #expect(throws: SystemError.self) { try relay.connect() }
    }
  }
}

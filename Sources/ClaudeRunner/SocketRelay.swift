import CLinux
import Glibc
import NIOCore
import NIOPosix
import NIOSupport
import Synchronization

/// Listens on a unix socket of its own and passes each connection on to another one, byte for byte.
///
/// Only ``Bounds/connections`` are open at a time, and new ones come at ``Bounds/connectionsPerSecond``; all others wait
/// in the kernel's queue of this socket and cost the one at the other end nothing. Neither side is read faster than the
/// other takes, and a side that has said all goes on being answered. Where nothing listens at the other end, a client
/// is told so in the words of the model's API.
///
/// It lives until ``close()``. All of it happens on one event loop.
final class SocketRelay: Sendable {
  struct Bounds: Sendable {
    /// Connections at a time.
    var connections = 32
    /// New ones in a second, once ``connectionBurst`` have come at once.
    var connectionsPerSecond = 50.0
    var connectionBurst = 200.0
    /// Bytes of a connection that may wait in each direction, beside what was read at once.
    var bufferedBytes = 64 << 10
    /// How long a client that can't be passed on may take to read why.
    var refusalTimeout = TimeAmount.seconds(5)
  }

  /// Counts what happens on some relays together.
  final class Figures: Sendable {
    /// Connections that are open.
    let open = Atomic(0)
    /// How often one more than the bound allows had to wait.
    let bounded = Atomic(0)
    /// Connections that could not be passed on.
    let failed = Atomic(0)
  }

  private let listener: any Channel
  private let path: String

  private init(_ listener: any Channel, _ path: String) {
    self.listener = listener
    self.path = path
  }

  /// Listens at `path`, which must be free, for this user only.
  ///
  /// - Parameters:
  ///   - target: path of the socket to which connections are passed on. It needn't be there.
  ///   - onFirstBound: called when the bound is reached for the first time.
  static func open(
    at path: String, to target: String, bounds: Bounds, figures: Figures, on eventLoop: any EventLoop,
    onFirstBound: @escaping @Sendable () -> Void
  ) async throws -> SocketRelay {
    let descriptor = clinux_listen_unix(path, 128, 0o600)
    guard descriptor >= 0 else { throw IOError(errnoCode: errno, reason: "listen") }
    let listening = eventLoop.flatSubmit { () -> EventLoopFuture<any Channel> in
      let gate = NIOLoopBound(Gate(target, bounds, figures, onFirstBound), eventLoop: eventLoop)
      return ServerBootstrap(group: eventLoop)
        // One at a time, so that the bound is exact.
        .serverChannelOption(.maxMessagesPerRead, value: 1)
        .serverChannelInitializer { channel in
          channel.eventLoop.makeCompletedFuture {
            try channel.pipeline.syncOperations.addHandlers([AcceptPause(), gate.value])
          }
        }
        .childChannelOptions(of: bounds)
        .childChannelInitializer { gate.value.passOn($0) }
        .withBoundSocket(descriptor)
    }
    do {
      return SocketRelay(try await listening.get(), path)
    } catch {
      // The channel has closed the descriptor.
      unlink(path)
      throw error
    }
  }

  /// Breaks all connections off and removes the socket.
  func close() async {
    do {
      try await listener.close()
    } catch {
      // It is closed already.
    }
    unlink(path)
  }
}

extension ServerBootstrap {
  fileprivate func childChannelOptions(of bounds: SocketRelay.Bounds) -> Self {
    childChannelOption(.allowRemoteHalfClosure, value: true)
      .childChannelOption(.maxMessagesPerRead, value: 1)
      .childChannelOption(.writeBufferWaterMark, value: bounds.waterMark)
  }
}

extension ClientBootstrap {
  fileprivate func channelOptions(of bounds: SocketRelay.Bounds) -> Self {
    channelOption(.allowRemoteHalfClosure, value: true)
      .channelOption(.maxMessagesPerRead, value: 1)
      .channelOption(.writeBufferWaterMark, value: bounds.waterMark)
  }
}

extension SocketRelay.Bounds {
  fileprivate var waterMark: ChannelOptions.Types.WriteBufferWaterMark {
    .init(low: bufferedBytes / 2, high: bufferedBytes)
  }
}

/// Decides when the next client is accepted, and connects it with the other socket.
private final class Gate: ChannelDuplexHandler {
  typealias InboundIn = any Channel
  typealias InboundOut = any Channel
  typealias OutboundIn = Never

  /// A client and the connection that it is passed on by.
  private struct Pair {
    var client: (any Channel)?
    var server: (any Channel)?
  }

  private let target: String
  private let bounds: SocketRelay.Bounds
  private let figures: SocketRelay.Figures
  private let onFirstBound: @Sendable () -> Void

  private var context: ChannelHandlerContext?
  /// By the client.
  private var pairs: [ObjectIdentifier: Pair] = [:]
  private var allowance: (connections: Double, time: NIODeadline)
  /// Whether the channel waits to be allowed to accept one more.
  private var isHeld = false
  private var wasBounded = false
  private var timer: Scheduled<Void>?

  init(
    _ target: String, _ bounds: SocketRelay.Bounds, _ figures: SocketRelay.Figures,
    _ onFirstBound: @escaping @Sendable () -> Void
  ) {
    self.target = target
    self.bounds = bounds
    self.figures = figures
    self.onFirstBound = onFirstBound
    allowance = (bounds.connectionBurst, .now())
  }

  func handlerAdded(context: ChannelHandlerContext) { self.context = context }

  func handlerRemoved(context: ChannelHandlerContext) { self.context = nil }

  // MARK: Accepting

  func read(context: ChannelHandlerContext) {
    refill()
    if pairs.count >= bounds.connections {
      isHeld = true
      figures.bounded.add(1, ordering: .relaxed)
      if !wasBounded { onFirstBound() }
      wasBounded = true
    } else if allowance.connections < 1 {
      isHeld = true
      schedule(after: .nanoseconds(Int64((1 - allowance.connections) / bounds.connectionsPerSecond * 1e9) + 1))
    } else {
      context.read()
    }
  }

  private func refill() {
    let now = NIODeadline.now()
    let seconds = Double((now - allowance.time).nanoseconds) / 1e9
    allowance = (
      min(bounds.connectionBurst, allowance.connections + seconds * bounds.connectionsPerSecond), now
    )
  }

  private func schedule(after time: TimeAmount) {
    guard timer == nil, let context else { return }
    timer = context.eventLoop.assumeIsolated().scheduleTask(in: time) {
      self.timer = nil
      self.release()
    }
  }

  private func release() {
    guard isHeld, let context else { return }
    isHeld = false
    read(context: context)
  }

  func channelRead(context: ChannelHandlerContext, data: NIOAny) {
    let client = Self.unwrapInboundIn(data)
    allowance.connections -= 1
    pairs[ObjectIdentifier(client)] = Pair(client: client)
    figures.open.add(1, ordering: .relaxed)
    client.closeFuture.assumeIsolated().whenComplete { _ in self.ended(client, \.client) }
    context.fireChannelRead(data)
  }

  func channelInactive(context: ChannelHandlerContext) {
    timer?.cancel()
    for pair in pairs.values {
      pair.client?.close(promise: nil)
      pair.server?.close(promise: nil)
    }
    context.fireChannelInactive()
  }

  // MARK: Passing on

  func passOn(_ client: any Channel) -> EventLoopFuture<Void> {
    ClientBootstrap(group: client.eventLoop)
      .channelOptions(of: bounds)
      .channelInitializer { server in
        server.eventLoop.makeCompletedFuture { try server.pipeline.syncOperations.addHandler(RelayEnd()) }
      }
      .connect(unixDomainSocketPath: target)
      .assumeIsolated()
      .flatMapThrowing { server in
        do {
          let (end, other) = (RelayEnd(), try server.pipeline.syncOperations.handler(type: RelayEnd.self))
          guard self.pairs[ObjectIdentifier(client)] != nil else { throw ChannelError.alreadyClosed }
          try client.pipeline.syncOperations.addHandler(end)
          end.join(other)
        } catch {
          // One of the two is closed already.
          server.close(promise: nil)
          throw error
        }
        self.pairs[ObjectIdentifier(client)]?.server = server
        server.closeFuture.assumeIsolated().whenComplete { _ in self.ended(client, \.server) }
      }
      .flatMapErrorThrowing { _ in
        self.figures.failed.add(1, ordering: .relaxed)
        try client.pipeline.syncOperations.addHandler(RefusalHandler(timeout: self.bounds.refusalTimeout))
      }
      .nonisolated()
  }

  /// Gives the place to the next one when both ends are closed.
  private func ended(_ client: any Channel, _ end: WritableKeyPath<Pair, (any Channel)?>) {
    let id = ObjectIdentifier(client)
    pairs[id]?[keyPath: end] = nil
    guard let pair = pairs[id], pair.client == nil, pair.server == nil else { return }
    pairs[id] = nil
    figures.open.subtract(1, ordering: .relaxed)
    release()
  }
}

/// One end of a connection that is passed on: takes what comes for the other one.
private final class RelayEnd: ChannelDuplexHandler {
  typealias InboundIn = ByteBuffer
  typealias OutboundIn = ByteBuffer
  typealias OutboundOut = ByteBuffer

  private var channel: (any Channel)?
  private var context: ChannelHandlerContext?
  private var other: RelayEnd?
  /// Whether the channel would read if the other end took anything.
  private var isHeld = false

  /// To be called once, when both ends have their channels.
  func join(_ other: RelayEnd) {
    self.other = other
    other.other = self
    for end in [self, other] where end.channel?.isActive == true { end.other?.release() }
    // The server may have thought better of it already; the client can't have, as its channel isn't used yet.
    if other.context == nil { otherIsGone() }
  }

  func handlerAdded(context: ChannelHandlerContext) {
    self.context = context
    channel = context.channel
  }

  func handlerRemoved(context: ChannelHandlerContext) { self.context = nil }

  // MARK: What comes

  func read(context: ChannelHandlerContext) {
    guard let other, other.takesBytes else {
      isHeld = true
      return
    }
    context.read()
  }

  func channelRead(context: ChannelHandlerContext, data: NIOAny) {
    other?.channel?.write(Self.unwrapInboundIn(data), promise: nil)
  }

  func channelReadComplete(context: ChannelHandlerContext) { other?.channel?.flush() }

  func userInboundEventTriggered(context: ChannelHandlerContext, event: Any) {
    if case ChannelEvent.inputClosed = event { other?.close(.output) }
  }

  func errorCaught(context: ChannelHandlerContext, error: any Error) { context.close(promise: nil) }

  func channelInactive(context: ChannelHandlerContext) {
    let other = other
    self.other = nil
    self.context = nil
    other?.otherIsGone()
  }

  // MARK: What goes

  private var takesBytes: Bool { channel.map { $0.isActive && $0.isWritable } ?? false }

  func channelActive(context: ChannelHandlerContext) { other?.release() }

  func channelWritabilityChanged(context: ChannelHandlerContext) {
    if context.channel.isWritable { other?.release() }
  }

  private func release() {
    guard isHeld, let context else { return }
    isHeld = false
    read(context: context)
  }

  private func otherIsGone() {
    other = nil
    close(.all)
  }

  /// Closes when all has gone that was taken; a close by itself would throw it away.
  private func close(_ mode: CloseMode) {
    guard let channel else { return }
    channel.writeAndFlush(ByteBuffer()).whenComplete { _ in channel.close(mode: mode, promise: nil) }
  }
}

/// Tells a client that can't be passed on, which is an HTTP client, and waits a moment until it has read that.
private final class RefusalHandler: ChannelInboundHandler {
  typealias InboundIn = ByteBuffer
  typealias OutboundOut = ByteBuffer

  private static let body =
    #"{"type":"error","error":{"type":"api_error","message":"The way to the model's API is closed: "#
    + #"nginx does not answer on the model's socket."}}"#
  private static let answer = """
    HTTP/1.1 502 Bad Gateway\r
    Content-Type: application/json\r
    Content-Length: \(body.utf8.count)\r
    Connection: close\r
    \r
    \(body)
    """

  private let timeout: TimeAmount
  private var timer: Scheduled<Void>?

  init(timeout: TimeAmount) {
    self.timeout = timeout
  }

  func channelActive(context: ChannelHandlerContext) {
    let channel = context.channel
    channel.writeAndFlush(ByteBuffer(string: Self.answer)).whenComplete { _ in
      channel.close(mode: .output, promise: nil)
    }
    timer = channel.eventLoop.scheduleTask(in: timeout) { channel.close(promise: nil) }
  }

  func channelRead(context: ChannelHandlerContext, data: NIOAny) {}

  func errorCaught(context: ChannelHandlerContext, error: any Error) { context.close(promise: nil) }

  func channelInactive(context: ChannelHandlerContext) { timer?.cancel() }
}

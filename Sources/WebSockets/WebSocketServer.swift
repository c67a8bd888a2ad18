import Glibc
import HummingbirdFastCGI
public import Logging
import NIOCore
import NIOPosix
import NIOSupport
public import ServiceLifecycle
import Synchronization

/// A server for WebSockets (RFC 6455, without extensions) behind a web server that proxies HTTP upgrades to a unix
/// socket.
///
/// One thread serves all sockets; the application's tasks run on the cooperative pool.
public struct WebSocketServer<Application: WebSocketApplication>: Service {
  private let application: Application
  private let configuration: WebSocketServerConfiguration
  private let logger: Logger
  private let onListening: @Sendable () -> Void

  /// - Parameter onListening: runs once clients can connect; they are served soon after.
  public init(
    application: Application, configuration: WebSocketServerConfiguration, logger: Logger,
    onListening: @escaping @Sendable () -> Void = {}
  ) {
    self.application = application
    self.configuration = configuration
    self.logger = logger
    self.onListening = onListening
  }

  /// Serves until graceful shutdown, which closes each socket with 1001 once its application is ready, also one that is
  /// only being opened, or until the task is cancelled, which closes all at once. Throws ``FastCGIServerError`` when it can't listen.
  public func run() async throws {
    let socket = try ListeningSocket(configuration.address, backlog: configuration.backlog)
    defer { socket.close() }
    onListening()
    let group = MultiThreadedEventLoopGroup(numberOfThreads: 1)
    do {
      try await serve(socket, on: group)
    } catch {
      try await group.shutdownGracefully()
      throw error
    }
    try await group.shutdownGracefully()
  }

  private func serve(_ socket: ListeningSocket, on group: MultiThreadedEventLoopGroup) async throws {
    // A second descriptor of the same socket, since the channel closes the one that it has.
    let descriptor = fcntl(socket.descriptor, F_DUPFD_CLOEXEC, 0)
    guard descriptor >= 0 else { throw FastCGIServerError.system(operation: "fcntl", errno: errno) }
    // Every connection that was accepted is served to its end, also if the listener is closed at that moment. Only as
    // many wait in the stream as have just been accepted.
    let connections = Connections()
    let (handshakes, arrived) = AsyncStream.makeStream(of: EventLoopFuture<Handshake<Application.Client>>.self)
    let listener: any Channel
    do {
      listener = try await ServerBootstrap(group: group)
        .serverChannelInitializer { [logger] channel in
          channel.eventLoop.makeCompletedFuture {
            try channel.pipeline.syncOperations.addHandler(
              AcceptPause { logger.error("Accepting sockets pauses", metadata: ["error": "\($0)"]) })
          }
        }
        .childChannelOption(
          .writeBufferWaterMark,
          value: .init(low: configuration.outputHighWater / 2, high: configuration.outputHighWater)
        )
        .childChannelInitializer { [configuration, application] channel in
          channel.eventLoop.makeCompletedFuture {
            connections.add(channel)
            arrived.yield(try Handshake.configure(channel, configuration, application))
          }
        }
        .withBoundSocket(descriptor).get()
    } catch {
      Glibc.close(descriptor)
      throw error
    }
    listener.closeFuture.whenComplete { _ in arrived.finish() }
    // The channel has made the queue of those who wait as short as is its default, whatever its options are.
    guard listen(socket.descriptor, CInt(clamping: configuration.backlog)) == 0 else {
      throw FastCGIServerError.system(operation: "listen", errno: errno)
    }
    await withGracefulShutdownHandler {
      await withDiscardingTaskGroup { tasks in
        for await handshake in handshakes {
          tasks.addTask { await serve(handshake, connections) }
        }
        if Task.isCancelled {
          listener.close(promise: nil)
          connections.closeAll()
        }
      }
    } onGracefulShutdown: {
      listener.close(promise: nil)
      connections.shutDown(patience: configuration.drainTimeout)
    }
  }

  private func serve(
    _ handshake: EventLoopFuture<Handshake<Application.Client>>, _ connections: Connections
  ) async {
    do {
      guard case .socket(let channel, let client, let ending) = try await handshake.get() else { return }
      connections.becameSocket(channel.channel)
      try await withTaskCancellationHandler {
        try await channel.executeThenClose { messages, outbound in
          let close = await application.serve(
            WebSocket(messages: messages, channel: channel.channel, outbound: outbound, ending: ending), for: client)
          channel.channel.triggerUserOutboundEvent(WebSocketControl.close(close), promise: nil)
          try await channel.channel.closeFuture.get()
        }
      } onCancel: {
        channel.channel.close(promise: nil)
      }
    } catch {
      // The client went away in the middle of something.
      logger.debug("A socket broke off", metadata: ["error": "\(error)"])
    }
  }
}

/// The connections of a server that are open.
private final class Connections: Sendable {
  private struct State {
    /// With whether they are sockets by now.
    var open: [ObjectIdentifier: (channel: any Channel, isSocket: Bool)] = [:]
    /// How long connections that are no sockets yet may take to become some; nil before the end has begun.
    var patience: Duration?
  }

  private let state = Mutex(State())

  func add(_ channel: any Channel) {
    let id = ObjectIdentifier(channel)
    let patience = state.withLock { state in
      state.open[id] = (channel, false)
      return state.patience
    }
    channel.closeFuture.whenComplete { [weak self] _ in
      self?.state.withLock { $0.open[id] = nil }
    }
    if let patience { close(channel, after: patience) }
  }

  func becameSocket(_ channel: any Channel) {
    let isShuttingDown = state.withLock { state in
      if let entry = state.open[ObjectIdentifier(channel)] {
        state.open[ObjectIdentifier(channel)] = (entry.channel, true)
      }
      return state.patience != nil
    }
    if isShuttingDown { channel.triggerUserOutboundEvent(WebSocketControl.shutDown, promise: nil) }
  }

  func shutDown(patience: Duration) {
    let open = state.withLock { state in
      state.patience = patience
      return Array(state.open.values)
    }
    for (channel, isSocket) in open {
      if isSocket {
        channel.triggerUserOutboundEvent(WebSocketControl.shutDown, promise: nil)
      } else {
        close(channel, after: patience)
      }
    }
  }

  /// The request of a client that was accepted is answered, and if it is to become a socket, that one with 1001: it
  /// would be told otherwise that there is no server.
  private func close(_ channel: any Channel, after patience: Duration) {
    let timer = channel.eventLoop.scheduleTask(in: TimeAmount(patience)) { [weak self] in
      guard let self, !isSocket(channel) else { return }
      channel.close(promise: nil)
    }
    channel.closeFuture.whenComplete { _ in timer.cancel() }
  }

  private func isSocket(_ channel: any Channel) -> Bool {
    state.withLock { $0.open[ObjectIdentifier(channel)]?.isSocket ?? false }
  }

  func closeAll() {
    for (channel, _) in state.withLock({ Array($0.open.values) }) { channel.close(promise: nil) }
  }
}

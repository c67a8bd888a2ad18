import CLinux
public import Hummingbird
public import Logging
public import ServiceLifecycle

/// A FastCGI responder: it listens on a unix socket for a web server such as nginx and has any Hummingbird
/// responder answer the requests.
///
///     let router = Router(context: BasicFastCGIRequestContext.self)
///     router.get("/hello") { _, _ in "Hello" }
///     let server = FastCGIServer(
///       responder: router.buildResponder(),
///       configuration: .init(address: .unixSocket(path: "/run/hello/fastcgi.sock")),
///       logger: Logger(label: "hello"))
///     try await ServiceGroup(services: [server], gracefulShutdownSignals: [.sigterm], logger: logger).run()
///
/// One thread, the reactor, serves all connections: it waits with epoll, has libfcgi decode requests that have
/// arrived whole, and runs the handlers' tasks, whose preferred executor it is. Handlers must not block. A body
/// that is streamed is sent part by part as it is written, and `write` suspends while the client is slow; such a
/// parked connection costs neither a thread nor a buffer.
///
/// When the web server closes the connection of a request, as nginx does when the client goes away, the handler's
/// task is cancelled.
public struct FastCGIServer<Responder: HTTPResponder>: Service
where Responder.Context.Source == FastCGIRequestContextSource, Responder.Context: RequestContext {
  private let responder: Responder
  private let immediateResponder: ImmediateResponder
  private let configuration: FastCGIServerConfiguration
  private let logger: Logger
  private let onListening: @Sendable () async throws -> Void

  /// - Parameters:
  ///   - immediateResponder: is asked before the responder.
  ///   - onListening: runs once the socket listens and no other server can have it. Connections that come meanwhile
  ///     wait in the backlog until it returns.
  public init(
    responder: Responder, immediateResponder: @escaping ImmediateResponder = { _, _, _ in nil },
    configuration: FastCGIServerConfiguration, logger: Logger,
    onListening: @escaping @Sendable () async throws -> Void = {}
  ) {
    self.responder = responder
    self.immediateResponder = immediateResponder
    self.configuration = configuration
    self.logger = logger
    self.onListening = onListening
  }

  /// Serves until graceful shutdown, which lets running requests end within the configured time, or until the task
  /// is cancelled, which ends them at once. Throws ``FastCGIServerError`` when it can't listen.
  public func run() async throws {
    let socket = try ListeningSocket(configuration.address, backlog: configuration.backlog)
    let reactor: Reactor
    let listener: Listener
    do {
      reactor = try Reactor()
      listener = Listener(
        socket: socket.descriptor, reactor: reactor, environment: try makeEnvironment())
      try reactor.start()
    } catch {
      socket.close()
      throw error
    }
    do {
      try await onListening()
      try await listener.start()
    } catch {
      await listener.closeAll()
      socket.close()
      reactor.stop()
      throw error
    }
    let pulse = configuration.onPulse.map { report in
      Task {
        while true {
          await listener.pulse(since: .now, report)
          do { try await Task.sleep(for: .seconds(1)) } catch { return }
        }
      }
    }
    defer { pulse?.cancel() }
    do {
      try await gracefulShutdown()
      await listener.drain(timeout: configuration.drainTimeout)
    } catch {
      // Cancelled: `gracefulShutdown()` throws nothing else.
      await listener.closeAll()
    }
    socket.close()
    reactor.stop()
  }

  private func makeEnvironment() throws(FastCGIServerError) -> ConnectionEnvironment {
    ConnectionEnvironment(
      configuration: configuration, library: try LibFCGI(), logger: logger, respondImmediately: immediateResponder,
      respond: { [responder] request, source in
        try await responder.respond(to: request, context: Responder.Context(source: source))
      })
  }
}

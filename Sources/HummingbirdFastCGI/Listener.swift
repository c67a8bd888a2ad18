import CLinux
import Glibc
import Logging

/// Accepts connections and knows those that are open.
actor Listener: Reactor.Handler {
  /// How long no connection is accepted when the process has no descriptor left.
  private static let backOff = Duration.milliseconds(100)
  /// Connections accepted before others get their turn again.
  private static let acceptsPerRound = 64

  private let reactor: Reactor
  private let taskExecutor: ReactorTaskExecutor
  private let environment: ConnectionEnvironment
  private var socket: CInt
  private var registration: Reactor.Registration?
  private var isPaused = false
  private var isDraining = false
  private var drained: CheckedContinuation<Void, Never>?
  private var heartbeat: Reactor.TimerID?

  nonisolated var unownedExecutor: UnownedSerialExecutor { reactor.asUnownedSerialExecutor() }

  init(socket: CInt, reactor: Reactor, environment: ConnectionEnvironment) {
    self.socket = socket
    self.reactor = reactor
    taskExecutor = ReactorTaskExecutor(reactor)
    self.environment = environment
  }

  func start() throws {
    environment.connectionClosed = { [weak self] in
      self?.assumeIsolated { $0.connectionClosed() }
    }
    registration = try reactor.addInput(socket, handler: self)
    beat()
  }

  private func beat() {
    guard let onHeartbeat = environment.configuration.onHeartbeat else { return }
    onHeartbeat()
    heartbeat = reactor.schedule(after: environment.configuration.heartbeatInterval) { [weak self] in
      self?.assumeIsolated { $0.beat() }
    }
  }

  nonisolated func descriptorReady(_ events: UInt32) {
    assumeIsolated { $0.acceptConnections() }
  }

  private func acceptConnections() {
    for _ in 0..<Self.acceptsPerRound {
      guard !isPaused, !isDraining else { return }
      guard environment.connections.count < environment.configuration.maximumConnections else {
        // Goes on when a connection is closed; the others wait in the backlog.
        return setAccepting(false)
      }
      let descriptor = clinux_accept(socket)
      guard descriptor >= 0 else {
        switch errno {
        case EAGAIN, ECONNABORTED: return
        default: return accepting(failedWith: errno)
        }
      }
      let connection = Connection(
        descriptor: descriptor, reactor: reactor, taskExecutor: taskExecutor, environment: environment)
      do {
        try connection.assumeIsolated { try $0.open() }
      } catch {
        environment.logger.error("A connection could not be opened", metadata: ["error": "\(error)"])
        Glibc.close(descriptor)
      }
    }
  }

  /// Out of descriptors or memory: the connection stays in the backlog, and asking again at once would spin.
  private func accepting(failedWith code: CInt) {
    environment.logger.error(
      "Accepting pauses for \(Self.backOff)", metadata: ["error": "\(String(cString: strerror(code)))"])
    setAccepting(false)
    _ = reactor.schedule(after: Self.backOff) { [weak self] in
      self?.assumeIsolated { $0.setAccepting(true) }
    }
  }

  private func setAccepting(_ isAccepting: Bool) {
    guard !isDraining, let registration, isPaused == isAccepting else { return }
    isPaused = !isAccepting
    reactor.setInput(registration, enabled: isAccepting)
  }

  private func connectionClosed() {
    if isDraining {
      if environment.connections.isEmpty, let drained {
        self.drained = nil
        drained.resume()
      }
    } else if environment.connections.count == environment.configuration.maximumConnections - 1 {
      setAccepting(true)
    }
  }

  /// Reports how long after `start` the reactor came to this.
  func pulse(since start: ContinuousClock.Instant, _ report: @Sendable (Duration) -> Void) {
    report(.now - start)
  }

  /// Stops accepting, and returns when the last request has been answered or the time is over; those that run
  /// still are cancelled then.
  func drain(timeout: Duration) async {
    stopAccepting()
    drainConnections()
    if !environment.connections.isEmpty {
      let timer = reactor.schedule(after: timeout) { [weak self] in
        self?.assumeIsolated { $0.closeAll() }
      }
      await withCheckedContinuation { continuation in
        // Looked at once more, since coming here may have taken a turn of the reactor, in which the last one closed.
        if environment.connections.isEmpty { continuation.resume() } else { drained = continuation }
      }
      reactor.cancel(timer)
    }
    if let heartbeat { reactor.cancel(heartbeat) }
    heartbeat = nil
  }

  private func drainConnections() {
    for connection in environment.connections.values { connection.assumeIsolated { $0.drain() } }
  }

  func closeAll() {
    stopAccepting()
    if !environment.connections.isEmpty {
      environment.logger.warning(
        "Closing connections whose requests have not ended",
        metadata: ["connections": "\(environment.connections.count)"])
    }
    for connection in environment.connections.values { connection.assumeIsolated { $0.close() } }
  }

  private func stopAccepting() {
    isDraining = true
    if let registration {
      reactor.remove(registration)
      self.registration = nil
    }
  }
}

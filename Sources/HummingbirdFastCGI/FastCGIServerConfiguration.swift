/// Where a ``FastCGIServer`` listens, and the bounds that it keeps.
public struct FastCGIServerConfiguration: Sendable {
  /// The source of connections.
  public enum Address: Sendable, Equatable {
    /// A stream socket at this path (at most 107 bytes), created at start with these permission bits and removed
    /// at the end. A stale socket file is replaced. Beside it lies `<path>.lock`, held while the server runs.
    case unixSocket(path: String, mode: UInt32 = 0o660)
    /// A socket that listens already, as systemd's socket activation passes it. The server doesn't close it, so
    /// connections queue up in its backlog across a restart.
    case inherited(descriptor: Int32)
  }

  public var address: Address

  /// Connections that may wait to be accepted; the kernel caps it at `net.core.somaxconn`. Default 4,096.
  public var backlog = 4096

  /// Connections that are open at once; above it, new ones wait in the backlog. Default 16,384.
  public var maximumConnections = 16_384

  /// Bytes of all FastCGI params (CGI variables and request fields) of a request; over it the answer is 431.
  /// Default 128 KiB.
  public var maximumParamsBytes = 128 << 10

  /// Bytes of a request's body, which is held in memory; over it the answer is 413. Default 16 MiB.
  public var maximumBodyBytes = 16 << 20

  /// How long a request may take to arrive once its first byte is here; then the connection is closed.
  /// A web server that buffers requests sends them whole. Default 30 s.
  public var requestTimeout: Duration = .seconds(30)

  /// Bytes of an answer that may wait for a slow reader; over it the handler's `write` suspends. Default 64 KiB.
  public var outputHighWater = 64 << 10

  /// How long unsent output may stand still before the connection is closed and the handler's task cancelled.
  /// Default 60 s.
  public var writeTimeout: Duration = .seconds(60)

  /// How long running requests may go on after a graceful shutdown has begun; then their tasks are cancelled.
  /// Connections are not accepted any more by then; connections at rest are closed by agreement with the web server,
  /// so that no request is lost. Default 30 s.
  public var drainTimeout: Duration = .seconds(30)

  /// Called on the thread that serves all connections, about once in ``heartbeatInterval`` as long as that thread gets
  /// round to it. It must not block.
  public var onHeartbeat: (@Sendable () -> Void)?

  /// Default 1 s.
  public var heartbeatInterval: Duration = .seconds(1)

  /// Told once a second how long a job had to wait for that thread; on it, so it must be quick.
  public var onPulse: (@Sendable (Duration) -> Void)?

  public init(address: Address) {
    self.address = address
  }
}

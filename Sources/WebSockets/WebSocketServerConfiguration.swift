public import HummingbirdFastCGI

/// Where a ``WebSocketServer`` listens, and the bounds that it keeps.
public struct WebSocketServerConfiguration: Sendable {
  public var address: FastCGIServerConfiguration.Address

  /// Connections that may wait to be accepted. Default 4,096.
  public var backlog = 4096

  /// Bytes of a message, in one frame or several; a larger one closes with 1009. Default 1 MiB.
  public var maximumMessageBytes = 1 << 20

  /// Frames of a message; more close with 1009. Default 1,024.
  public var maximumFragments = 1024

  /// Frames that a client may send in a second, control frames too; above it, it is not read for a while. Default 500.
  public var framesPerSecond = 500.0

  /// How many may come at once beyond that. Default 2,000.
  public var frameBurst = 2000

  /// Bytes that are read before the application trusts a client; more close with 1009. Default 8 KiB.
  public var untrustedBytes = 8 << 10

  /// How long a request may take to arrive and be decided on; then its connection is closed. Default 10 s.
  public var handshakeTimeout: Duration = .seconds(10)

  /// How often a client is pinged. Default 20 s.
  public var pingInterval: Duration = .seconds(20)

  /// How long nothing, not even a pong, may come from a client that is read; then its connection is closed. Default 60 s.
  public var idleTimeout: Duration = .seconds(60)

  /// Bytes that may wait for a slow client; above it, `send` waits. Default 64 KiB.
  public var outputHighWater = 64 << 10

  /// How long a client may take nothing of what waits for it; then its connection is closed. Default 30 s.
  public var writeTimeout: Duration = .seconds(30)

  /// How long a client may take to answer a close; then its connection is closed. Default 2 s.
  public var closeTimeout: Duration = .seconds(2)

  /// How long the application may go on with what it has from a client after the end has come, by a graceful shutdown
  /// or by the client; then the socket is closed. Default 5 s.
  public var drainTimeout: Duration = .seconds(5)

  public init(address: FastCGIServerConfiguration.Address) {
    self.address = address
  }
}

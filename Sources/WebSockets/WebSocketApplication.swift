public import HTTPTypes
public import NIOCore
import Synchronization

/// What a ``WebSocketServer`` runs for each client.
public protocol WebSocketApplication<Client>: Sendable {
  /// What is known of a client once its request is accepted.
  associatedtype Client: Sendable

  /// Decides on the request with which a client asks for a socket. One with a defect must be refused.
  func admit(_ request: WebSocketRequest) async -> WebSocketAdmission<Client>

  /// Talks to a client until the messages come to their end, or the application has nothing more to say.
  ///
  /// - Returns: with what the socket is closed, unless it is closed already.
  func serve(_ socket: WebSocket, for client: Client) async -> WebSocketClose
}

public struct WebSocketRequest: Sendable {
  /// Why a request can't become a socket, whoever sent it.
  public enum Defect: Sendable {
    case notAnUpgrade
    /// Only version 13 is spoken.
    case unsupportedVersion
    /// A header field of the handshake is missing, doubled or malformed.
    case malformed
  }

  public let head: HTTPRequest
  public let defect: Defect?

  public init(head: HTTPRequest, defect: Defect? = nil) {
    self.head = head
    self.defect = defect
  }
}

public enum WebSocketAdmission<Client: Sendable>: Sendable {
  /// - Parameter isTrusted: whether messages may have the full size from the beginning; else see
  ///   ``WebSocket/trust()``.
  case accepted(Client, isTrusted: Bool)
  case refused(WebSocketRefusal)
}

/// The answer to a request that doesn't become a socket.
public struct WebSocketRefusal: Sendable {
  public var status: HTTPResponse.Status
  public var headers: HTTPFields
  public var body: ByteBuffer

  public init(status: HTTPResponse.Status, headers: HTTPFields, body: ByteBuffer) {
    self.status = status
    self.headers = headers
    self.body = body
  }
}

/// How a socket is closed: a code of RFC 6455 or of the application's own (4000 to 4999), and a word for people.
public struct WebSocketClose: Error, Sendable, Hashable {
  public let code: UInt16
  public let reason: String

  /// - Parameter reason: at most 123 bytes are sent.
  public init(_ code: UInt16, _ reason: String) {
    self.code = code
    self.reason = reason
  }

  public static let normal = Self(1000, "")
  public static let goingAway = Self(1001, "the server stops")
  static func protocolError(_ reason: String) -> Self { Self(1002, reason) }
  static let textOnly = Self(1003, "only text messages are understood")
  static let invalidText = Self(1007, "the text is not UTF-8")
  static let tooLarge = Self(1009, "the message is too large")
}

/// One client's open socket.
public struct WebSocket: Sendable {
  /// Texts, whole and valid UTF-8. They end when the client, the server or a violation of the protocol ends the
  /// socket, and after `endMessages()`. To be iterated once; the client is not read while a text waits to be taken.
  public let messages: NIOAsyncChannelInboundStream<ByteBuffer>

  let channel: any Channel
  let outbound: NIOAsyncChannelOutboundWriter<ByteBuffer>
  let ending: WebSocketEnding

  /// Sends texts, in order. Returns when they are on their way, and waits before that while the client doesn't read.
  ///
  /// - Throws: when the socket is closed, or the task is cancelled.
  public func send(_ texts: some Sequence<ByteBuffer> & Sendable) async throws {
    try await outbound.write(contentsOf: texts)
  }

  /// From now on messages may have the full size. Before that a few kilobytes are all that is read of a client that
  /// was not trusted from the beginning.
  public func trust() {
    channel.triggerUserOutboundEvent(WebSocketControl.trust, promise: nil)
  }

  /// Takes no more messages; those that are here already are still handed over.
  public func endMessages() {
    channel.triggerUserOutboundEvent(WebSocketControl.endInput, promise: nil)
  }

  /// With what it has been closed by either side, or is about to be; nil while it is open, and if the client was lost.
  public var closing: WebSocketClose? { ending.close }
}

/// How a socket came to its end, for those outside of its event loop.
final class WebSocketEnding: Sendable {
  private let stored = Mutex<WebSocketClose?>(nil)

  var close: WebSocketClose? { stored.withLock { $0 } }

  /// The first one counts.
  func note(_ close: WebSocketClose) {
    stored.withLock { stored in
      if stored == nil { stored = close }
    }
  }
}

/// What the server and the application tell the handlers of a socket's channel.
enum WebSocketControl: Sendable {
  case trust
  case endInput
  case close(WebSocketClose)
  /// The server stops: no more messages, and 1001 as soon as the application is ready.
  case shutDown
}

import HTTPTypes
import NIOCore
import NIOHTTP1
import NIOWebSocket
import Synchronization

/// How the first request of a connection turned out.
enum Handshake<Client: Sendable>: Sendable {
  case socket(NIOAsyncChannel<ByteBuffer, ByteBuffer>, Client, WebSocketEnding)
  /// It was answered as plain HTTP, and the connection is about to be closed.
  case refused

  /// Sets a new connection up for its request.
  static func configure(
    _ channel: any Channel, _ configuration: WebSocketServerConfiguration,
    _ application: some WebSocketApplication<Client>
  ) throws -> EventLoopFuture<Handshake> {
    let decision = Decision<Client>()
    let upgrader = NIOTypedWebSocketServerUpgrader<Handshake>(
      maxFrameSize: configuration.maximumMessageBytes,
      enableAutomaticErrorHandling: false,
      shouldUpgrade: { channel, head in
        channel.eventLoop.makeFutureWithTask {
          let admission = await application.admit(WebSocketRequest(head))
          decision.admission = admission
          return if case .accepted = admission { HTTPHeaders() } else { nil }
        }
      },
      upgradePipelineHandler: { channel, _ in
        channel.eventLoop.makeCompletedFuture {
          guard case .accepted(let client) = decision.admission else {
            throw ChannelError.inappropriateOperationForState
          }
          let ending = WebSocketEnding()
          let pipeline = channel.pipeline.syncOperations
          try pipeline.addHandler(ByteGate(limit: configuration.untrustedBytes), position: .first)
          try pipeline.addHandler(WebSocketHandler(configuration: configuration, ending: ending))
          let socket = try NIOAsyncChannel<ByteBuffer, ByteBuffer>(
            wrappingChannelSynchronously: channel,
            configuration: .init(backPressureStrategy: .init(lowWatermark: 1, highWatermark: 2)))
          return .socket(socket, client, ending)
        }
      })
    let upgrade = NIOTypedHTTPServerUpgradeConfiguration<Handshake>(
      upgraders: [upgrader],
      notUpgradingCompletionHandler: { channel in
        channel.eventLoop.makeCompletedFuture {
          try channel.pipeline.syncOperations.addHandler(RefusalHandler(application, decision))
          return .refused
        }
      })
    let outcome = try channel.pipeline.syncOperations.configureUpgradableHTTPServerPipeline(
      configuration: .init(upgradeConfiguration: upgrade))
    let timer = channel.eventLoop.scheduleTask(in: TimeAmount(configuration.handshakeTimeout)) {
      channel.close(promise: nil)
    }
    outcome.whenSuccess { handshake in
      if case .socket = handshake { timer.cancel() }
    }
    channel.closeFuture.whenComplete { _ in timer.cancel() }
    return outcome
  }
}

/// What the application said, for the handlers that come after the one that asked it.
private final class Decision<Client: Sendable>: Sendable {
  private let stored = Mutex<WebSocketAdmission<Client>?>(nil)

  var admission: WebSocketAdmission<Client>? {
    get { stored.withLock { $0 } }
    set { stored.withLock { $0 = newValue } }
  }
}

/// Answers a request that doesn't become a socket.
private final class RefusalHandler<Application: WebSocketApplication>: ChannelInboundHandler, Sendable {
  typealias InboundIn = HTTPServerRequestPart
  typealias OutboundOut = HTTPServerResponsePart

  private let application: Application
  private let decision: Decision<Application.Client>

  init(_ application: Application, _ decision: Decision<Application.Client>) {
    self.application = application
    self.decision = decision
  }

  func channelRead(context: ChannelHandlerContext, data: NIOAny) {
    guard case .head(let head) = Self.unwrapInboundIn(data) else { return }
    let channel = context.channel
    if case .refused(let refusal) = decision.admission { return Self.answer(refusal, channel) }
    channel.eventLoop.makeFutureWithTask { [application] in
      await application.admit(WebSocketRequest(head))
    }.whenSuccess { admission in
      switch admission {
      case .refused(let refusal): Self.answer(refusal, channel)
      // The handshake has a defect that isn't known here; the application was not told of it.
      case .accepted: channel.close(promise: nil)
      }
    }
  }

  func errorCaught(context: ChannelHandlerContext, error: any Error) {
    context.close(promise: nil)
  }

  private static func answer(_ refusal: WebSocketRefusal, _ channel: any Channel) {
    var headers = HTTPHeaders()
    for field in refusal.headers { headers.add(name: field.name.rawName, value: field.value) }
    headers.replaceOrAdd(name: "Content-Length", value: String(refusal.body.readableBytes))
    // nginx makes no use of a second request on this connection.
    headers.add(name: "Connection", value: "close")
    let head = HTTPResponseHead(
      version: .http1_1,
      status: .init(statusCode: refusal.status.code, reasonPhrase: refusal.status.reasonPhrase), headers: headers)
    channel.write(HTTPServerResponsePart.head(head), promise: nil)
    channel.write(HTTPServerResponsePart.body(.byteBuffer(refusal.body)), promise: nil)
    channel.writeAndFlush(HTTPServerResponsePart.end(nil)).whenComplete { _ in channel.close(promise: nil) }
  }
}

extension WebSocketRequest {
  init(_ head: HTTPRequestHead) {
    var fields = HTTPFields()
    for (name, value) in head.headers {
      // The decoder lets no name pass that is none.
      if let name = HTTPField.Name(name) { fields.append(HTTPField(name: name, value: value)) }
    }
    self.init(
      head: HTTPRequest(
        method: HTTPRequest.Method(head.method.rawValue) ?? .get, scheme: nil,
        authority: head.headers.first(name: "Host"),
        path: head.uri, headerFields: fields),
      defect: Self.defect(head.headers))
  }

  private static func defect(_ headers: HTTPHeaders) -> Defect? {
    guard headers[canonicalForm: "Upgrade"].contains(where: { $0.lowercased() == "websocket" }) else {
      return .notAnUpgrade
    }
    guard headers["Sec-WebSocket-Version"] == ["13"] else { return .unsupportedVersion }
    // 16 bytes in base64.
    let keys = headers["Sec-WebSocket-Key"]
    guard keys.count == 1, keys[0].utf8.count == 24, keys[0].hasSuffix("==") else { return .malformed }
    return nil
  }
}

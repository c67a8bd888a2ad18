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
    let recorder = HeadRecorder(decision)
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
          guard case .accepted(let client, let isTrusted) = decision.admission else {
            throw ChannelError.inappropriateOperationForState
          }
          let ending = WebSocketEnding()
          let pipeline = channel.pipeline.syncOperations
          pipeline.removeHandler(recorder, promise: nil)
          if !isTrusted { try pipeline.addHandler(ByteGate(limit: configuration.untrustedBytes), position: .first) }
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
        channel.eventLoop.makeFutureWithTask {
          if case .refused(let refusal) = decision.admission { return refusal }
          if let head = decision.head, case .refused(let refusal) = await application.admit(WebSocketRequest(head)) {
            return refusal
          }
          // The handshake has a defect that isn't known here; the application was not told of it.
          return WebSocketRefusal(status: .badRequest, headers: [:], body: ByteBuffer())
        }.map { refusal in
          answer(refusal, channel)
          return .refused
        }
      })
    let pipeline = channel.pipeline.syncOperations
    let outcome = try pipeline.configureUpgradableHTTPServerPipeline(
      configuration: .init(upgradeConfiguration: upgrade))
    try pipeline.addHandler(
      recorder, position: .before(pipeline.handler(type: NIOTypedHTTPServerUpgradeHandler<Handshake>.self)))
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

/// What was asked and what the application said, for the handlers that come after the one that asked it.
private final class Decision<Client: Sendable>: Sendable {
  private let stored = Mutex<(head: HTTPRequestHead?, admission: WebSocketAdmission<Client>?)>((nil, nil))

  var head: HTTPRequestHead? {
    get { stored.withLock { $0.head } }
    set { stored.withLock { $0.head = newValue } }
  }

  var admission: WebSocketAdmission<Client>? {
    get { stored.withLock { $0.admission } }
    set { stored.withLock { $0.admission = newValue } }
  }
}

/// Remembers the head of the request, which nobody is given who comes after a refused upgrade.
private final class HeadRecorder<Client: Sendable>: ChannelInboundHandler, RemovableChannelHandler, Sendable {
  typealias InboundIn = HTTPServerRequestPart
  typealias InboundOut = HTTPServerRequestPart

  private let decision: Decision<Client>

  init(_ decision: Decision<Client>) {
    self.decision = decision
  }

  func channelRead(context: ChannelHandlerContext, data: NIOAny) {
    if decision.head == nil, case .head(let head) = Self.unwrapInboundIn(data) { decision.head = head }
    context.fireChannelRead(data)
  }
}

/// Answers a request that doesn't become a socket, and closes its connection.
private func answer(_ refusal: WebSocketRefusal, _ channel: any Channel) {
  var headers = HTTPHeaders()
  for field in refusal.headers { headers.add(name: field.name.rawName, value: field.value) }
  headers.replaceOrAdd(name: "Content-Length", value: String(refusal.body.readableBytes))
  headers.add(name: "Connection", value: "close")
  let head = HTTPResponseHead(
    version: .http1_1,
    status: .init(statusCode: refusal.status.code, reasonPhrase: refusal.status.reasonPhrase), headers: headers)
  channel.write(HTTPServerResponsePart.head(head), promise: nil)
  channel.write(HTTPServerResponsePart.body(.byteBuffer(refusal.body)), promise: nil)
  channel.writeAndFlush(HTTPServerResponsePart.end(nil)).whenComplete { _ in channel.close(promise: nil) }
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

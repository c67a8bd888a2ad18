import NIOCore
import NIOWebSocket

/// The rules of RFC 6455 above its frames: messages from fragments, control frames, the two halves of a close, and
/// the bounds in time. No extension is negotiated.
///
/// Inbound come whole texts. Outbound go texts; a close is asked for by a ``WebSocketControl``.
final class WebSocketHandler: ChannelDuplexHandler {
  typealias InboundIn = WebSocketFrame
  typealias InboundOut = ByteBuffer
  typealias OutboundIn = ByteBuffer
  typealias OutboundOut = WebSocketFrame

  private enum State {
    case open
    /// A close was sent, and the client's is awaited. All else is read and thrown away: closing with unread input
    /// could keep the close from arriving.
    case closing
    case closed
  }

  private struct Message {
    var content = ByteBuffer()
    var fragments = 0
    var text = IncrementalUTF8()
  }

  private let configuration: WebSocketServerConfiguration
  private let ending: WebSocketEnding
  private var context: ChannelHandlerContext?
  private var state = State.open
  private var isInputEnded = false
  private var isShuttingDown = false
  private var message: Message?
  /// The answer to the latest ping, while the client doesn't read. Earlier ones need none.
  private var pendingPong: ByteBuffer?
  private var lastRead = NIODeadline.now()
  private var pingTimer: Scheduled<Void>?
  private var writeTimer: Scheduled<Void>?
  private var closeTimer: Scheduled<Void>?

  init(configuration: WebSocketServerConfiguration, ending: WebSocketEnding) {
    self.configuration = configuration
    self.ending = ending
  }

  func handlerAdded(context: ChannelHandlerContext) {
    self.context = context
    lastRead = .now()
    schedulePing()
  }

  func handlerRemoved(context: ChannelHandlerContext) {
    for timer in [pingTimer, writeTimer, closeTimer] { timer?.cancel() }
    self.context = nil
  }

  func channelInactive(context: ChannelHandlerContext) {
    state = .closed
    context.fireChannelInactive()
  }

  // MARK: From the client

  func channelRead(context: ChannelHandlerContext, data: NIOAny) {
    let frame = Self.unwrapInboundIn(data)
    lastRead = .now()
    switch state {
    case .open:
      do throws(WebSocketClose) {
        try receive(frame, context)
      } catch {
        close(context, with: error, patience: configuration.closeTimeout)
      }
    case .closing where frame.opcode == .connectionClose: closeChannel(context)
    case .closing, .closed: break
    }
  }

  func channelReadComplete(context: ChannelHandlerContext) {
    context.flush()
    context.fireChannelReadComplete()
    // Nobody else asks for more once the application takes no more messages.
    if isInputEnded, state != .closed { context.read() }
  }

  private func receive(_ frame: WebSocketFrame, _ context: ChannelHandlerContext) throws(WebSocketClose) {
    guard frame.reservedBits.isEmpty else { throw .protocolError("a reserved bit is set") }
    guard frame.maskKey != nil else { throw .protocolError("the frame is not masked") }
    switch frame.opcode {
    case .text:
      guard message == nil else { throw .protocolError("a message began inside another") }
      message = Message()
      try add(frame, context)
    case .continuation:
      guard message != nil else { throw .protocolError("there is no message to continue") }
      try add(frame, context)
    case .binary:
      guard message == nil else { throw .protocolError("a message began inside another") }
      throw .textOnly
    case .ping:
      pendingPong = frame.unmaskedData
      sendPendingPong(context)
    case .pong: break
    case .connectionClose: try receiveClose(frame.unmaskedData, context)
    default: throw .protocolError("the opcode is not defined")
    }
  }

  private func add(_ frame: WebSocketFrame, _ context: ChannelHandlerContext) throws(WebSocketClose) {
    guard var message else { return }
    // Taken out, so that its buffer grows in place.
    self.message = nil
    message.fragments += 1
    guard message.fragments <= configuration.maximumFragments,
      message.content.readableBytes + frame.length <= configuration.maximumMessageBytes
    else { throw .tooLarge }
    var data = frame.unmaskedData
    guard data.withUnsafeReadableBytes({ message.text.check($0) }) else { throw .invalidText }
    if message.content.readableBytes == 0 {
      message.content = data
    } else {
      message.content.writeBuffer(&data)
    }
    guard frame.fin else {
      self.message = message
      return
    }
    guard message.text.isComplete else { throw .invalidText }
    if !isInputEnded { context.fireChannelRead(Self.wrapInboundOut(message.content)) }
  }

  /// Answers the client's close with its own code.
  private func receiveClose(_ data: ByteBuffer, _ context: ChannelHandlerContext) throws(WebSocketClose) {
    var rest = data
    guard rest.readableBytes != 1 else { throw .protocolError("the close has half a code") }
    guard let code = rest.readInteger(as: UInt16.self) else {
      return finish(context, with: .normal, answer: ByteBuffer())
    }
    switch code {
    case 1000...1003, 1007...1014, 3000...4999: break
    default: throw .protocolError("the close has a code that must not be sent")
    }
    var text = IncrementalUTF8()
    guard rest.withUnsafeReadableBytes({ text.check($0) }), text.isComplete else { throw .invalidText }
    finish(context, with: WebSocketClose(code, String(buffer: rest)), answer: ByteBuffer(integer: code))
  }

  private func finish(_ context: ChannelHandlerContext, with close: WebSocketClose, answer: ByteBuffer) {
    ending.note(close)
    state = .closing
    context.write(Self.wrapOutboundOut(WebSocketFrame(fin: true, opcode: .connectionClose, data: answer)))
      .assumeIsolated().whenComplete { [weak self] _ in
        if let self, let context = self.context { closeChannel(context) }
      }
    context.flush()
    scheduleClose(after: configuration.closeTimeout)
    endInput(context)
  }

  private func sendPendingPong(_ context: ChannelHandlerContext) {
    guard context.channel.isWritable, let data = pendingPong else { return }
    pendingPong = nil
    context.write(Self.wrapOutboundOut(WebSocketFrame(fin: true, opcode: .pong, data: data)), promise: nil)
  }

  func errorCaught(context: ChannelHandlerContext, error: any Error) {
    switch error {
    case NIOWebSocketError.invalidFrameLength: failFraming(context, .tooLarge)
    case NIOWebSocketError.fragmentedControlFrame: failFraming(context, .protocolError("a control frame is in pieces"))
    case NIOWebSocketError.multiByteControlFrameLength:
      failFraming(context, .protocolError("a control frame is too long"))
    // What follows a frame that could not be read.
    case is ByteToMessageDecoderError: break
    default: closeChannel(context)
    }
  }

  /// After a frame that can't be read there is no next one, and so no answer to the close either.
  private func failFraming(_ context: ChannelHandlerContext, _ close: WebSocketClose) {
    guard state == .open else { return }
    self.close(context, with: close, patience: min(configuration.closeTimeout, .seconds(1)))
  }

  // MARK: To the client

  func write(context: ChannelHandlerContext, data: NIOAny, promise: EventLoopPromise<Void>?) {
    guard state == .open else {
      promise?.fail(ChannelError.ioOnClosedChannel)
      return
    }
    let frame = WebSocketFrame(fin: true, opcode: .text, data: Self.unwrapOutboundIn(data))
    context.write(Self.wrapOutboundOut(frame), promise: promise)
  }

  func triggerUserOutboundEvent(context: ChannelHandlerContext, event: Any, promise: EventLoopPromise<Void>?) {
    switch event as? WebSocketControl {
    case .endInput: endInput(context)
    case .close(let close):
      if state == .open {
        self.close(context, with: isShuttingDown ? .goingAway : close, patience: configuration.closeTimeout)
      }
    case .shutDown:
      isShuttingDown = true
      endInput(context)
      closeTimer =
        closeTimer
        ?? schedule(after: configuration.drainTimeout) { handler, context in
          handler.closeTimer = nil
          handler.close(context, with: .goingAway, patience: handler.configuration.closeTimeout)
        }
    case .trust, nil:
      return context.triggerUserOutboundEvent(event, promise: promise)
    }
    promise?.succeed()
  }

  private func close(_ context: ChannelHandlerContext, with close: WebSocketClose, patience: Duration) {
    guard state == .open else { return }
    ending.note(close)
    state = .closing
    message = nil
    var data = ByteBuffer(integer: close.code)
    var reason = close.reason
    while reason.utf8.count > 123 { reason.removeLast() }
    data.writeString(reason)
    context.writeAndFlush(
      Self.wrapOutboundOut(WebSocketFrame(fin: true, opcode: .connectionClose, data: data)), promise: nil)
    scheduleClose(after: patience)
    endInput(context)
  }

  private func scheduleClose(after patience: Duration) {
    closeTimer?.cancel()
    closeTimer = schedule(after: patience) { handler, context in handler.closeChannel(context) }
  }

  private func endInput(_ context: ChannelHandlerContext) {
    guard !isInputEnded else { return }
    isInputEnded = true
    context.fireUserInboundEventTriggered(ChannelEvent.inputClosed)
    context.read()
  }

  private func closeChannel(_ context: ChannelHandlerContext) {
    state = .closed
    context.close(promise: nil)
  }

  // MARK: Time

  func channelWritabilityChanged(context: ChannelHandlerContext) {
    writeTimer?.cancel()
    writeTimer = nil
    if context.channel.isWritable {
      sendPendingPong(context)
      context.flush()
    } else {
      writeTimer = schedule(after: configuration.writeTimeout) { handler, context in handler.closeChannel(context) }
    }
    context.fireChannelWritabilityChanged()
  }

  private func schedulePing() {
    pingTimer = schedule(after: configuration.pingInterval) { handler, context in
      if NIODeadline.now() - handler.lastRead > TimeAmount(handler.configuration.idleTimeout) {
        return handler.closeChannel(context)
      }
      if handler.state == .open, context.channel.isWritable {
        context.writeAndFlush(
          Self.wrapOutboundOut(WebSocketFrame(fin: true, opcode: .ping, data: ByteBuffer())), promise: nil)
      }
      handler.schedulePing()
    }
  }

  private func schedule(
    after delay: Duration, _ action: @escaping (WebSocketHandler, ChannelHandlerContext) -> Void
  ) -> Scheduled<Void>? {
    context?.eventLoop.assumeIsolated().scheduleTask(in: TimeAmount(delay)) { [weak self] in
      if let self, let context = self.context { action(self, context) }
    }
  }
}

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
    /// The client has closed the socket or broken the rules. What it said before that is still answered.
    case ending(Ending)
    /// A close was sent, and the client's is awaited. All else is read and thrown away: closing with unread input
    /// could keep the close from arriving.
    case closing
    case closed
  }

  private struct Ending {
    var close: WebSocketClose
    var payload: ByteBuffer
    /// Whether the client has sent its close, so that ours is the last frame.
    var isAnswer: Bool
    /// How long the client's close is waited for.
    var patience: Duration

    init(_ close: WebSocketClose, patience: Duration) {
      self.close = close
      isAnswer = false
      self.patience = patience
      var reason = close.reason
      while reason.utf8.count > 123 { reason.removeLast() }
      payload = ByteBuffer(integer: close.code)
      payload.writeString(reason)
    }

    /// The answer to a close of the client: its own code, or none.
    init(answering close: WebSocketClose, code: UInt16?) {
      self.close = close
      payload = code.map { ByteBuffer(integer: $0) } ?? ByteBuffer()
      isAnswer = true
      patience = .zero
    }
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
  /// Since when the client is not read, which is then no sign of life.
  private var pausedSince: NIODeadline?
  /// The frames that the client may still send, as of some moment.
  private var allowance: (frames: Double, time: NIODeadline)
  private var readTimer: Scheduled<Void>?
  private var pingTimer: Scheduled<Void>?
  private var writeTimer: Scheduled<Void>?
  private var closeTimer: Scheduled<Void>?

  init(configuration: WebSocketServerConfiguration, ending: WebSocketEnding) {
    self.configuration = configuration
    self.ending = ending
    allowance = (Double(configuration.frameBurst), .now())
  }

  func handlerAdded(context: ChannelHandlerContext) {
    self.context = context
    lastRead = .now()
    schedulePing()
  }

  func handlerRemoved(context: ChannelHandlerContext) {
    for timer in [readTimer, pingTimer, writeTimer, closeTimer] { timer?.cancel() }
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
    allowance.frames -= 1
    switch state {
    case .open:
      do throws(WebSocketClose) {
        try receive(frame, context)
      } catch {
        end(context, Ending(error, patience: configuration.closeTimeout))
      }
    case .ending(var ending):
      guard frame.opcode == .connectionClose else { return }
      ending.isAnswer = true
      state = .ending(ending)
    case .closing where frame.opcode == .connectionClose: closeChannel(context)
    case .closing, .closed: break
    }
  }

  func channelReadComplete(context: ChannelHandlerContext) {
    context.flush()
    pausedSince = .now()
    context.fireChannelReadComplete()
    // Nobody else asks for more once the application takes no more messages.
    if isInputEnded { read(context: context) }
  }

  /// Reads on, after a pause if too much has come. Until then the kernel keeps what comes, and then the client waits.
  func read(context: ChannelHandlerContext) {
    guard readTimer == nil else { return }
    let now = NIODeadline.now()
    let seconds = Double((now - allowance.time).nanoseconds) / 1e9
    allowance = (
      min(Double(configuration.frameBurst), allowance.frames + seconds * configuration.framesPerSecond), now
    )
    guard allowance.frames < 0 else { return beginReading(context) }
    readTimer = schedule(after: .seconds(-allowance.frames / configuration.framesPerSecond)) { handler, context in
      handler.readTimer = nil
      handler.beginReading(context)
    }
  }

  private func beginReading(_ context: ChannelHandlerContext) {
    if let pausedSince {
      lastRead = lastRead + (.now() - pausedSince)
      self.pausedSince = nil
    }
    context.read()
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
      return end(context, Ending(answering: .normal, code: nil))
    }
    switch code {
    case 1000...1003, 1007...1014, 3000...4999: break
    default: throw .protocolError("the close has a code that must not be sent")
    }
    var text = IncrementalUTF8()
    guard rest.withUnsafeReadableBytes({ text.check($0) }), text.isComplete else { throw .invalidText }
    end(context, Ending(answering: WebSocketClose(code, String(buffer: rest)), code: code))
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
    end(context, Ending(close, patience: min(configuration.closeTimeout, .seconds(1))))
  }

  // MARK: To the client

  func write(context: ChannelHandlerContext, data: NIOAny, promise: EventLoopPromise<Void>?) {
    switch state {
    case .open, .ending: break
    case .closing, .closed:
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
      switch state {
      case .open:
        self.close(context, Ending(isShuttingDown ? .goingAway : close, patience: configuration.closeTimeout))
      case .ending(let ending): self.close(context, ending)
      case .closing, .closed: break
      }
    case .shutDown:
      isShuttingDown = true
      endInput(context)
      if case .open = state {
        scheduleClose(after: configuration.drainTimeout, with: Ending(.goingAway, patience: configuration.closeTimeout))
      }
    case .trust, nil:
      return context.triggerUserOutboundEvent(event, promise: promise)
    }
    promise?.succeed()
  }

  /// Takes nothing more from the client, and closes the socket when the application is done with what it has.
  private func end(_ context: ChannelHandlerContext, _ ending: Ending) {
    guard case .open = state else { return }
    self.ending.note(ending.close)
    message = nil
    state = .ending(ending)
    scheduleClose(after: configuration.drainTimeout, with: ending)
    endInput(context)
  }

  private func scheduleClose(after patience: Duration, with ending: Ending) {
    closeTimer?.cancel()
    closeTimer = schedule(after: patience) { handler, context in handler.close(context, ending) }
  }

  private func close(_ context: ChannelHandlerContext, _ ending: Ending) {
    self.ending.note(ending.close)
    message = nil
    state = .closing
    let frame = WebSocketFrame(fin: true, opcode: .connectionClose, data: ending.payload)
    if ending.isAnswer {
      context.writeAndFlush(Self.wrapOutboundOut(frame)).assumeIsolated().whenComplete { [weak self] _ in
        if let self, let context = self.context { closeChannel(context) }
      }
    } else {
      context.writeAndFlush(Self.wrapOutboundOut(frame), promise: nil)
    }
    closeTimer?.cancel()
    closeTimer = schedule(after: ending.isAnswer ? configuration.closeTimeout : ending.patience) { handler, context in
      handler.closeChannel(context)
    }
    endInput(context)
  }

  private func endInput(_ context: ChannelHandlerContext) {
    guard !isInputEnded else { return }
    isInputEnded = true
    context.fireUserInboundEventTriggered(ChannelEvent.inputClosed)
    read(context: context)
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
      if handler.pausedSince == nil,
        NIODeadline.now() - handler.lastRead > TimeAmount(handler.configuration.idleTimeout)
      {
        return handler.closeChannel(context)
      }
      if case .open = handler.state, context.channel.isWritable {
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

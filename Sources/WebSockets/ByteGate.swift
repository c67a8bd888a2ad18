import NIOCore
import NIOWebSocket

/// Lets only so many bytes of a client pass until the application trusts it, so that nobody fills the memory who
/// hasn't said who it is.
final class ByteGate: ChannelDuplexHandler {
  typealias InboundIn = ByteBuffer
  typealias InboundOut = ByteBuffer
  typealias OutboundIn = ByteBuffer
  typealias OutboundOut = ByteBuffer

  private var remaining: Int
  private var isOpen = false

  init(limit: Int) {
    remaining = limit
  }

  func channelRead(context: ChannelHandlerContext, data: NIOAny) {
    if !isOpen {
      let count = Self.unwrapInboundIn(data).readableBytes
      guard count <= remaining else {
        if remaining >= 0 {
          remaining = -1
          context.fireErrorCaught(NIOWebSocketError.invalidFrameLength)
        }
        return
      }
      remaining -= count
    }
    context.fireChannelRead(data)
  }

  func triggerUserOutboundEvent(context: ChannelHandlerContext, event: Any, promise: EventLoopPromise<Void>?) {
    guard case WebSocketControl.trust = event else {
      return context.triggerUserOutboundEvent(event, promise: promise)
    }
    isOpen = true
    promise?.succeed()
  }
}

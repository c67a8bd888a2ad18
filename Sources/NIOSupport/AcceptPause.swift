public import NIOCore

/// Has a listening channel accept nothing for a moment after that failed, as it does for want of descriptors. The
/// channel itself would try again at once, for as long as somebody waits.
///
/// Belongs in front of all handlers of a server's channel.
public final class AcceptPause: ChannelInboundHandler {
  public typealias InboundIn = any Channel
  public typealias InboundOut = any Channel

  private static let pause = TimeAmount.milliseconds(100)

  private let onPause: (any Error) -> Void
  private var timer: Scheduled<Void>?

  /// - Parameter onPause: told of each pause, with its reason.
  public init(onPause: @escaping (any Error) -> Void = { _ in }) {
    self.onPause = onPause
  }

  public func errorCaught(context: ChannelHandlerContext, error: any Error) {
    if error is IOError, timer == nil, let options = context.channel.syncOptions {
      do {
        try options.setOption(.autoRead, value: false)
        onPause(error)
        timer = context.eventLoop.assumeIsolated().scheduleTask(in: Self.pause) {
          self.timer = nil
          do {
            try options.setOption(.autoRead, value: true)
          } catch {
            // It was closed meanwhile.
          }
        }
      } catch {
        // It has just been closed.
      }
    }
    context.fireErrorCaught(error)
  }

  public func channelInactive(context: ChannelHandlerContext) {
    timer?.cancel()
    context.fireChannelInactive()
  }
}

import NIOCore
import Synchronization

/// Drains the error output of a process and keeps its end.
final class ErrorOutput: ChannelInboundHandler, Sendable {
  typealias InboundIn = ByteBuffer

  private let limit: Int
  private let bytes = Mutex<[UInt8]>([])

  init(limit: Int) {
    self.limit = limit
  }

  /// The last bytes as text, with control characters other than newline and tab left out.
  var text: String {
    let text = bytes.withLock { String(decoding: $0.suffix(limit), as: UTF8.self) }
    return String(
      text.unicodeScalars.filter { $0 == "\n" || $0 == "\t" || $0.properties.generalCategory != .control })
  }

  func channelRead(context: ChannelHandlerContext, data: NIOAny) {
    let chunk = unwrapInboundIn(data)
    bytes.withLock { bytes in
      bytes += chunk.readableBytesView.suffix(limit)
      if bytes.count > 2 * limit { bytes.removeFirst(bytes.count - limit) }
    }
  }

  func errorCaught(context: ChannelHandlerContext, error: any Error) {
    context.close(promise: nil)
  }
}

import NIOCore

/// Cuts a stream of bytes into lines, each of bounded length.
struct LineFramer {
  struct LineTooLong: Error {
    var limit: Int
  }

  let limit: Int
  private var buffer = ByteBuffer()
  /// How much of the buffer was already searched for a newline, so that a long line is searched only once.
  private var searched = 0

  init(limit: Int) {
    self.limit = limit
  }

  var hasPartialLine: Bool { buffer.readableBytes > 0 }

  mutating func append(_ bytes: ByteBuffer) {
    var bytes = bytes
    if buffer.readableBytes == 0 {
      // Also gives back the memory that an unusually long line had taken.
      buffer = bytes
      searched = 0
    } else {
      buffer.discardReadBytes()
      buffer.writeBuffer(&bytes)
    }
  }

  /// The next whole line without its newline; nil if there is none yet.
  mutating func next() throws(LineTooLong) -> ByteBuffer? {
    let view = buffer.readableBytesView
    guard let newline = view[(view.startIndex + searched)...].firstIndex(of: UInt8(ascii: "\n")) else {
      searched = view.count
      guard searched <= limit else { throw LineTooLong(limit: limit) }
      return nil
    }
    let length = newline - view.startIndex
    guard length <= limit else { throw LineTooLong(limit: limit) }
    let line = buffer.readSlice(length: length)
    buffer.moveReaderIndex(forwardBy: 1)
    searched = 0
    return line
  }
}

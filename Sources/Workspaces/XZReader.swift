import CLzma
import Glibc

/// Unpacks xz within bounded memory. libarchive's own way takes what the stream asks for, which may be 4 GiB.
///
/// For one thread at a time, and libarchive's callback ``read``.
final class XZReader {
  private static let magic: [UInt8] = [0xfd, 0x37, 0x7a, 0x58, 0x5a, 0x00]
  /// What `xz -9` asks for is half of it.
  private static let memory: UInt64 = 128 << 20
  private static let pieceLength = 128 << 10

  private let source: CInt
  private var stream = lzma_stream()
  private let input = UnsafeMutableBufferPointer<UInt8>.allocate(capacity: pieceLength)
  private let output = UnsafeMutableBufferPointer<UInt8>.allocate(capacity: pieceLength)
  private var isAtEnd = false

  static func isXZ(_ source: CInt) -> Bool {
    var bytes = [UInt8](repeating: 0, count: magic.count)
    return pread(source, &bytes, bytes.count, 0) == bytes.count && bytes == magic
  }

  /// - Parameter source: a file, which is read from where it stands and isn't closed.
  init(_ source: CInt) throws(FileError) {
    self.source = source
    guard lzma_stream_decoder(&stream, Self.memory, clzma_concatenated) == LZMA_OK else {
      throw FileError("xz", ENOMEM)
    }
  }

  deinit {
    lzma_end(&stream)
    input.deallocate()
    output.deallocate()
  }

  /// The next piece, which is good until this is called again; empty at the end, nil if there can't be one.
  func next() -> UnsafeBufferPointer<UInt8>? {
    stream.next_out = output.baseAddress
    stream.avail_out = output.count
    while !isAtEnd, stream.avail_out > 0 {
      var action = LZMA_RUN
      if stream.avail_in == 0 {
        let count = Glibc.read(source, input.baseAddress, input.count)
        if count < 0, errno == EINTR { continue }
        guard count >= 0 else { return nil }
        if count == 0 { action = LZMA_FINISH }
        stream.next_in = UnsafePointer(input.baseAddress)
        stream.avail_in = count
      }
      switch lzma_code(&stream, action) {
      case LZMA_OK: break
      case LZMA_STREAM_END: isAtEnd = true
      default: return nil
      }
    }
    return UnsafeBufferPointer(rebasing: output[..<(output.count - stream.avail_out)])
  }
}

/// Checks that bytes which come in pieces are UTF-8.
struct IncrementalUTF8 {
  /// Bytes of the current character that are still to come.
  private var missing = 0
  /// What the next one of them may be: not always all continuation bytes, because of overlong forms, surrogates, and
  /// the end of Unicode.
  private var allowed: ClosedRange<UInt8> = 0x80...0xbf

  /// Whether the text could end here.
  var isComplete: Bool { missing == 0 }

  /// - Returns: whether the text is valid so far.
  mutating func check(_ bytes: UnsafeRawBufferPointer) -> Bool {
    for byte in bytes {
      if missing > 0 {
        guard allowed.contains(byte) else { return false }
        missing -= 1
        allowed = 0x80...0xbf
      } else if byte >= 0x80 {
        switch byte {
        case 0xc2...0xdf: missing = 1
        case 0xe0: (missing, allowed) = (2, 0xa0...0xbf)
        case 0xed: (missing, allowed) = (2, 0x80...0x9f)
        case 0xe1...0xef: missing = 2
        case 0xf0: (missing, allowed) = (3, 0x90...0xbf)
        case 0xf4: (missing, allowed) = (3, 0x80...0x8f)
        case 0xf1...0xf3: missing = 3
        default: return false
        }
      }
    }
    return true
  }
}

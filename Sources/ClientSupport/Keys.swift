/// What a person pressed.
package enum Key: Equatable, Sendable {
  case text(String)
  /// Text that was pasted as a whole; its line ends are `\n`.
  case paste(String)
  case enter, newline, tab
  case left, right, up, down, home, end, wordLeft, wordRight
  case backspace, delete, deleteOrEnd, deleteWordBefore, deleteWordAfter
  case killToStart, killToEnd, yank, transpose
  case search, cancel, interrupt, suspend, clearScreen
}

/// Makes keys out of the bytes that a terminal in raw mode sends.
package struct KeyDecoder: Sendable {
  /// More of one paste is dropped, in bytes.
  private static let pasteLimit = 8 << 20

  private enum State {
    case ground
    case escape
    case csi([UInt8])
    case ss3
    case paste([UInt8])
    case utf8([UInt8], missing: Int)
  }

  private var state = State.ground

  package init() {}

  /// Whether only time can tell what was pressed: the Escape key, or the start of a sequence.
  package var isUndecided: Bool {
    if case .escape = state { true } else { false }
  }

  /// Nothing has followed an escape character, so it was the key.
  package mutating func timeOut() -> Key? {
    guard isUndecided else { return nil }
    state = .ground
    return .cancel
  }

  package mutating func decode(_ byte: UInt8) -> Key? {
    switch state {
    case .ground:
      return ground(byte)
    case .escape:
      state = .ground
      return escape(byte)
    case .csi(var parameters):
      guard (0x40...0x7e).contains(byte) else {
        if byte >= 0x20, byte < 0x40, parameters.count < 32 {
          parameters.append(byte)
          state = .csi(parameters)
        } else {
          state = .ground
        }
        return nil
      }
      state = .ground
      return csi(String(decoding: parameters, as: UTF8.self), byte)
    case .ss3:
      state = .ground
      return csi("", byte)
    case .paste(var bytes):
      let end = Array("\u{1b}[201~".utf8)
      bytes.append(byte)
      if bytes.suffix(end.count).elementsEqual(end) {
        state = .ground
        return .paste(Self.normalised(bytes.dropLast(end.count)))
      }
      // The last bytes stay, to find the end.
      if bytes.count > Self.pasteLimit { bytes.remove(at: bytes.count - end.count - 1) }
      state = .paste(bytes)
      return nil
    case .utf8(var bytes, let missing):
      guard byte & 0xc0 == 0x80 else {
        state = .ground
        return ground(byte)
      }
      bytes.append(byte)
      guard missing == 1 else {
        state = .utf8(bytes, missing: missing - 1)
        return nil
      }
      state = .ground
      return String(validating: bytes, as: UTF8.self).map { .text($0) }
    }
  }

  private mutating func ground(_ byte: UInt8) -> Key? {
    switch byte {
    case 0x01: return .home
    case 0x02: return .left
    case 0x03: return .interrupt
    case 0x04: return .deleteOrEnd
    case 0x05: return .end
    case 0x06: return .right
    case 0x07: return .cancel
    case 0x08, 0x7f: return .backspace
    case 0x09: return .tab
    case 0x0a, 0x0d: return .enter
    case 0x0b: return .killToEnd
    case 0x0c: return .clearScreen
    case 0x0e: return .down
    case 0x10: return .up
    case 0x12: return .search
    case 0x14: return .transpose
    case 0x15: return .killToStart
    case 0x17: return .deleteWordBefore
    case 0x19: return .yank
    case 0x1a: return .suspend
    case 0x1b: state = .escape
    case 0x20..<0x7f: return .text(String(UnicodeScalar(byte)))
    case 0xc2..<0xe0: state = .utf8([byte], missing: 1)
    case 0xe0..<0xf0: state = .utf8([byte], missing: 2)
    case 0xf0..<0xf5: state = .utf8([byte], missing: 3)
    default: break
    }
    return nil
  }

  private mutating func escape(_ byte: UInt8) -> Key? {
    switch byte {
    case UInt8(ascii: "["): state = .csi([])
    case UInt8(ascii: "O"): state = .ss3
    case 0x1b: state = .escape
    case 0x0a, 0x0d: return .newline
    case 0x08, 0x7f: return .deleteWordBefore
    case UInt8(ascii: "b"): return .wordLeft
    case UInt8(ascii: "f"): return .wordRight
    case UInt8(ascii: "d"): return .deleteWordAfter
    default: break
    }
    return nil
  }

  private mutating func csi(_ parameters: String, _ final: UInt8) -> Key? {
    // "1;5" and the like: held together with Control or Alt.
    let isByWord = ["1;5", "1;3", "5", "3"].contains(parameters)
    switch final {
    case UInt8(ascii: "A"): return .up
    case UInt8(ascii: "B"): return .down
    case UInt8(ascii: "C"): return isByWord ? .wordRight : .right
    case UInt8(ascii: "D"): return isByWord ? .wordLeft : .left
    case UInt8(ascii: "H"): return .home
    case UInt8(ascii: "F"): return .end
    case UInt8(ascii: "~"):
      switch parameters {
      case "1", "7": return .home
      case "4", "8": return .end
      case "3": return .delete
      case "3;5", "3;3": return .deleteWordAfter
      case "200": state = .paste([])
      default: break
      }
    default: break
    }
    return nil
  }

  private static func normalised(_ bytes: some Sequence<UInt8>) -> String {
    String(decoding: Array(bytes), as: UTF8.self).replacing("\r\n", with: "\n").replacing("\r", with: "\n")
  }
}

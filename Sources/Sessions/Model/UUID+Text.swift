#if canImport(FoundationEssentials)
  public import FoundationEssentials
#else
  public import Foundation
#endif

extension UUID {
  /// Takes the 36 characters of an id, in upper or lower case; nil for anything else.
  /// Each request has some, and Foundation's own initializer scans them by a format and takes other forms as well.
  public init?(canonical text: some StringProtocol) {
    guard text.utf8.count == 36 else { return nil }
    var text = String(text)
    guard let id = text.withUTF8({ Self.id($0) }) else { return nil }
    self.init(uuid: id)
  }

  private static func id(_ text: UnsafeBufferPointer<UInt8>) -> uuid_t? {
    var id: uuid_t = (0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
    let isWhole = withUnsafeMutableBytes(of: &id) { bytes in
      var digits = 0
      for (position, character) in text.enumerated() {
        if position == 8 || position == 13 || position == 18 || position == 23 {
          guard character == UInt8(ascii: "-") else { return false }
          continue
        }
        guard let value = value(ofHexDigit: character) else { return false }
        bytes[digits / 2] = bytes[digits / 2] << 4 | value
        digits += 1
      }
      return digits == 32
    }
    return isWhole ? id : nil
  }

  private static func value(ofHexDigit digit: UInt8) -> UInt8? {
    switch digit {
    case UInt8(ascii: "0")...UInt8(ascii: "9"): digit - UInt8(ascii: "0")
    case UInt8(ascii: "a")...UInt8(ascii: "f"): digit - UInt8(ascii: "a") + 10
    case UInt8(ascii: "A")...UInt8(ascii: "F"): digit - UInt8(ascii: "A") + 10
    default: nil
    }
  }

  /// The 36 characters in lower case, the form in which this system prints every id.
  public var lowercaseString: String {
    withUnsafeBytes(of: uuid) { bytes in
      String(unsafeUninitializedCapacity: 36) { buffer in
        var position = 0
        for (index, byte) in bytes.enumerated() {
          if index == 4 || index == 6 || index == 8 || index == 10 {
            buffer[position] = UInt8(ascii: "-")
            position += 1
          }
          buffer[position] = Self.hexDigit(byte >> 4)
          buffer[position + 1] = Self.hexDigit(byte & 15)
          position += 2
        }
        return position
      }
    }
  }

  private static func hexDigit(_ value: UInt8) -> UInt8 {
    value < 10 ? UInt8(ascii: "0") + value : UInt8(ascii: "a") + value - 10
  }
}

import JSONSupport
import NIOCore

/// Writes JSON member by member into a buffer, in the order in which a person wants to read it.
struct JSONWriter {
  private var buffer = ByteBuffer()
  private var needsComma = false

  init(capacity: Int = 512) {
    buffer.reserveCapacity(capacity)
  }

  /// The text with a line break at its end, which a terminal wants.
  consuming func finish() -> ByteBuffer {
    buffer.writeInteger(UInt8(ascii: "\n"))
    return buffer
  }

  mutating func object(_ members: (inout JSONWriter) -> Void) {
    enclosed(UInt8(ascii: "{"), UInt8(ascii: "}"), members)
  }

  mutating func array<Element>(_ elements: some Sequence<Element>, _ write: (inout JSONWriter, Element) -> Void) {
    enclosed(UInt8(ascii: "["), UInt8(ascii: "]")) { json in
      for element in elements {
        json.separate()
        write(&json, element)
        json.needsComma = true
      }
    }
  }

  mutating func field(_ name: StaticString, _ value: String?) {
    key(name)
    if let value { string(value) } else { raw("null") }
  }

  mutating func field(_ name: StaticString, _ value: Int64?) {
    key(name)
    if let value { buffer.writeString(String(value)) } else { raw("null") }
  }

  mutating func field(_ name: StaticString, _ value: Bool) {
    key(name)
    raw(value ? "true" : "false")
  }

  mutating func field(_ name: StaticString, _ value: Double?) {
    key(name)
    // Costs and durations are finite by their making; JSON has no word for what isn't.
    if let value, value.isFinite { buffer.writeString("\(value)") } else { raw("null") }
  }

  /// A member whose value is JSON text already.
  mutating func field(_ name: StaticString, json: String?) {
    key(name)
    buffer.writeString(json ?? "null")
  }

  /// A value that writes its JSON text by itself.
  mutating func raw(_ write: (inout ByteBuffer) -> Void) { write(&buffer) }

  mutating func field(_ name: StaticString, object members: (inout JSONWriter) -> Void) {
    key(name)
    object(members)
  }

  /// A member whose name is no constant.
  mutating func member(_ name: String, object members: (inout JSONWriter) -> Void) {
    separate()
    string(name)
    buffer.writeInteger(UInt8(ascii: ":"))
    object(members)
  }

  mutating func field<Element>(
    _ name: StaticString, array elements: some Sequence<Element>, _ write: (inout JSONWriter, Element) -> Void
  ) {
    key(name)
    array(elements, write)
  }

  /// A member whose name is no constant.
  mutating func member(_ name: String, _ value: String) {
    separate()
    string(name)
    buffer.writeInteger(UInt8(ascii: ":"))
    string(value)
    needsComma = true
  }

  // A page has some ten thousand names and values, and each write by itself takes longer than its bytes.

  private mutating func key(_ name: StaticString) {
    let length = name.utf8CodeUnitCount
    buffer.writeWithUnsafeMutableBytes(minimumWritableBytes: length + 4) { bytes in
      let start = needsComma ? 2 : 1
      bytes[0] = UInt8(ascii: ",")
      bytes[start - 1] = UInt8(ascii: "\"")
      let room = UnsafeMutableRawBufferPointer(rebasing: bytes[start...])
      room.copyMemory(from: UnsafeRawBufferPointer(start: name.utf8Start, count: length))
      bytes[start + length] = UInt8(ascii: "\"")
      bytes[start + length + 1] = UInt8(ascii: ":")
      return start + length + 2
    }
    needsComma = true
  }

  private mutating func separate() {
    if needsComma { buffer.writeInteger(UInt8(ascii: ",")) }
  }

  private mutating func enclosed(_ open: UInt8, _ close: UInt8, _ content: (inout JSONWriter) -> Void) {
    buffer.writeInteger(open)
    needsComma = false
    content(&self)
    buffer.writeInteger(close)
    needsComma = true
  }

  private mutating func raw(_ text: StaticString) { buffer.writeStaticString(text) }

  mutating func string(_ text: String) {
    var text = text
    text.withUTF8 { bytes in
      guard bytes.contains(where: Self.needsEscape) else {
        buffer.writeWithUnsafeMutableBytes(minimumWritableBytes: bytes.count + 2) { room in
          room[0] = UInt8(ascii: "\"")
          UnsafeMutableRawBufferPointer(rebasing: room[1...]).copyMemory(from: UnsafeRawBufferPointer(bytes))
          room[bytes.count + 1] = UInt8(ascii: "\"")
          return bytes.count + 2
        }
        return
      }
      buffer.writeInteger(UInt8(ascii: "\""))
      var start = 0
      for index in bytes.indices where Self.needsEscape(bytes[index]) {
        buffer.writeBytes(UnsafeRawBufferPointer(UnsafeBufferPointer(rebasing: bytes[start..<index])))
        writeEscaped(bytes[index])
        start = index + 1
      }
      buffer.writeBytes(UnsafeRawBufferPointer(UnsafeBufferPointer(rebasing: bytes[start...])))
      buffer.writeInteger(UInt8(ascii: "\""))
    }
  }

  private static func needsEscape(_ byte: UInt8) -> Bool { byte < 0x20 || byte == 0x22 || byte == 0x5c }

  private mutating func writeEscaped(_ byte: UInt8) {
    switch byte {
    case 0x22: buffer.writeStaticString("\\\"")
    case 0x5c: buffer.writeStaticString("\\\\")
    case 0x0a: buffer.writeStaticString("\\n")
    case 0x0d: buffer.writeStaticString("\\r")
    case 0x09: buffer.writeStaticString("\\t")
    default:
      buffer.writeStaticString("\\u00")
      for digit in [byte >> 4, byte & 15] {
        buffer.writeInteger(digit < 10 ? UInt8(ascii: "0") + digit : UInt8(ascii: "a") + digit - 10)
      }
    }
  }
}

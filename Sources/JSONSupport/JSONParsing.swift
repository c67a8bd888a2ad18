/// Why a text is not JSON.
public struct JSONParsingError: Error, Hashable, Sendable, CustomStringConvertible {
  public enum Reason: String, Hashable, Sendable {
    case unexpectedEnd = "the text ends in the middle of a value"
    case unexpectedByte = "this byte cannot stand here"
    case invalidEscape = "the escape sequence is not one of JSON"
    case invalidNumber = "the number is malformed or out of range"
    case tooDeep = "the value is nested too deeply"
    case trailingBytes = "there is more after the end of the value"
  }

  public var reason: Reason
  /// Where, in bytes from the start of the text.
  public var offset: Int

  public init(reason: Reason, offset: Int) {
    self.reason = reason
    self.offset = offset
  }

  public var description: String { "invalid JSON at byte \(offset): \(reason.rawValue)" }
}

extension JSONValue {
  /// The deepest nesting of arrays and objects that the parser accepts.
  ///
  /// The parser is recursive; the bound keeps a hostile text from exhausting the stack.
  public static let maximumDepth = 512

  /// Reads one JSON text.
  ///
  /// Strict RFC 8259, except that bytes that are not UTF-8 and lone surrogates in a string become U+FFFD, as
  /// the process that writes them can't always help it. Of a key that occurs twice the last value counts.
  ///
  /// - Throws: ``JSONParsingError`` if it is not JSON, is deeper than ``maximumDepth``, or something other than
  ///   white space follows.
  public init(parsing bytes: some Collection<UInt8>) throws(JSONParsingError) {
    let result: Result<JSONValue, JSONParsingError>? = bytes.withContiguousStorageIfAvailable {
      Self.parse($0)
    }
    self = try (result ?? Array(bytes).withUnsafeBufferPointer { Self.parse($0) }).get()
  }

  /// Reads one JSON text from memory that is only valid during the call.
  public init(parsing bytes: UnsafeRawBufferPointer) throws(JSONParsingError) {
    self = try bytes.withMemoryRebound(to: UInt8.self) { Self.parse($0) }.get()
  }

  /// Reads one JSON text.
  public init(parsing text: String) throws(JSONParsingError) {
    try self.init(parsing: text.utf8)
  }

  private static func parse(
    _ bytes: UnsafeBufferPointer<UInt8>
  ) -> Result<JSONValue, JSONParsingError> {
    Result { () throws(JSONParsingError) in
      var parser = JSONParser(bytes: bytes)
      return try parser.parseText()
    }
  }
}

private struct JSONParser {
  let bytes: UnsafeBufferPointer<UInt8>
  var position = 0
  var depth = 0

  init(bytes: UnsafeBufferPointer<UInt8>) {
    self.bytes = bytes
  }

  mutating func parseText() throws(JSONParsingError) -> JSONValue {
    let value = try parseValue()
    skipWhitespace()
    guard position == bytes.count else { throw failure(.trailingBytes) }
    return value
  }

  private func failure(_ reason: JSONParsingError.Reason) -> JSONParsingError {
    JSONParsingError(reason: reason, offset: position)
  }

  /// The byte at the position, which an end of the text makes an error.
  private func peek() throws(JSONParsingError) -> UInt8 {
    guard position < bytes.count else { throw failure(.unexpectedEnd) }
    return bytes[position]
  }

  private mutating func skipWhitespace() {
    while position < bytes.count {
      switch bytes[position] {
      case 0x20, 0x09, 0x0A, 0x0D: position += 1
      default: return
      }
    }
  }

  private mutating func parseValue() throws(JSONParsingError) -> JSONValue {
    skipWhitespace()
    switch try peek() {
    case UInt8(ascii: "{"): return try parseObject()
    case UInt8(ascii: "["): return try parseArray()
    case UInt8(ascii: "\""): return .string(try parseString())
    case UInt8(ascii: "t"): return try parse(literal: "true", as: .bool(true))
    case UInt8(ascii: "f"): return try parse(literal: "false", as: .bool(false))
    case UInt8(ascii: "n"): return try parse(literal: "null", as: .null)
    case UInt8(ascii: "-"), UInt8(ascii: "0")...UInt8(ascii: "9"): return try parseNumber()
    default: throw failure(.unexpectedByte)
    }
  }

  private mutating func parse(
    literal: StaticString, as value: JSONValue
  ) throws(JSONParsingError) -> JSONValue {
    for index in 0..<literal.utf8CodeUnitCount {
      guard try peek() == literal.utf8Start[index] else { throw failure(.unexpectedByte) }
      position += 1
    }
    return value
  }

  private mutating func enter() throws(JSONParsingError) {
    depth += 1
    guard depth <= JSONValue.maximumDepth else { throw failure(.tooDeep) }
    position += 1
  }

  private mutating func parseObject() throws(JSONParsingError) -> JSONValue {
    try enter()
    var members: [String: JSONValue] = [:]
    skipWhitespace()
    if try peek() == UInt8(ascii: "}") {
      position += 1
      depth -= 1
      return .object(members)
    }
    while true {
      skipWhitespace()
      guard try peek() == UInt8(ascii: "\"") else { throw failure(.unexpectedByte) }
      let key = try parseString()
      skipWhitespace()
      guard try peek() == UInt8(ascii: ":") else { throw failure(.unexpectedByte) }
      position += 1
      members[key] = try parseValue()
      skipWhitespace()
      switch try peek() {
      case UInt8(ascii: ","): position += 1
      case UInt8(ascii: "}"):
        position += 1
        depth -= 1
        return .object(members)
      default: throw failure(.unexpectedByte)
      }
    }
  }

  private mutating func parseArray() throws(JSONParsingError) -> JSONValue {
    try enter()
    var elements: [JSONValue] = []
    skipWhitespace()
    if try peek() == UInt8(ascii: "]") {
      position += 1
      depth -= 1
      return .array(elements)
    }
    while true {
      elements.append(try parseValue())
      skipWhitespace()
      switch try peek() {
      case UInt8(ascii: ","): position += 1
      case UInt8(ascii: "]"):
        position += 1
        depth -= 1
        return .array(elements)
      default: throw failure(.unexpectedByte)
      }
    }
  }

  // MARK: strings

  private mutating func parseString() throws(JSONParsingError) -> String {
    position += 1
    let start = position
    while try peek() != UInt8(ascii: "\"") {
      let byte = bytes[position]
      if byte == UInt8(ascii: "\\") { return try parseEscapedString(from: start) }
      guard byte >= 0x20 else { throw failure(.unexpectedByte) }
      position += 1
    }
    defer { position += 1 }
    return String(decoding: bytes[start..<position], as: UTF8.self)
  }

  private mutating func parseEscapedString(from start: Int) throws(JSONParsingError) -> String {
    var text = Array(bytes[start..<position])
    while true {
      let byte = try peek()
      switch byte {
      case UInt8(ascii: "\""):
        position += 1
        return String(decoding: text, as: UTF8.self)
      case UInt8(ascii: "\\"):
        position += 1
        try parseEscape(into: &text)
      case 0..<0x20:
        throw failure(.unexpectedByte)
      default:
        text.append(byte)
        position += 1
      }
    }
  }

  private mutating func parseEscape(into text: inout [UInt8]) throws(JSONParsingError) {
    let byte = try peek()
    switch byte {
    case UInt8(ascii: "\""), UInt8(ascii: "\\"), UInt8(ascii: "/"): text.append(byte)
    case UInt8(ascii: "b"): text.append(0x08)
    case UInt8(ascii: "f"): text.append(0x0C)
    case UInt8(ascii: "n"): text.append(0x0A)
    case UInt8(ascii: "r"): text.append(0x0D)
    case UInt8(ascii: "t"): text.append(0x09)
    case UInt8(ascii: "u"):
      position += 1
      text.append(contentsOf: String(Character(try parseUnicodeEscape())).utf8)
      return
    default: throw failure(.invalidEscape)
    }
    position += 1
  }

  /// Reads what follows `\u`, and the second half of a surrogate pair with it.
  private mutating func parseUnicodeEscape() throws(JSONParsingError) -> Unicode.Scalar {
    let replacement: Unicode.Scalar = "\u{FFFD}"
    let first = try parseHexadecimal()
    if let scalar = Unicode.Scalar(first) { return scalar }
    guard first < 0xDC00, position + 1 < bytes.count, bytes[position] == UInt8(ascii: "\\"),
      bytes[position + 1] == UInt8(ascii: "u")
    else { return replacement }
    let afterFirst = position
    position += 2
    let second = try parseHexadecimal()
    guard (0xDC00..<0xE000).contains(second) else {
      // Not a pair: what follows is read again as an escape of its own.
      position = afterFirst
      return replacement
    }
    return Unicode.Scalar(0x10000 + ((first - 0xD800) << 10) + (second - 0xDC00)) ?? replacement
  }

  private mutating func parseHexadecimal() throws(JSONParsingError) -> UInt32 {
    var value: UInt32 = 0
    for _ in 0..<4 {
      let byte = try peek()
      let digit: UInt8
      switch byte {
      case UInt8(ascii: "0")...UInt8(ascii: "9"): digit = byte - UInt8(ascii: "0")
      case UInt8(ascii: "a")...UInt8(ascii: "f"): digit = byte - UInt8(ascii: "a") + 10
      case UInt8(ascii: "A")...UInt8(ascii: "F"): digit = byte - UInt8(ascii: "A") + 10
      default: throw failure(.invalidEscape)
      }
      value = value << 4 | UInt32(digit)
      position += 1
    }
    return value
  }

  // MARK: numbers

  private mutating func skipDigits() throws(JSONParsingError) {
    guard position < bytes.count, isDigit(bytes[position]) else { throw failure(.invalidNumber) }
    while position < bytes.count, isDigit(bytes[position]) { position += 1 }
  }

  private func isDigit(_ byte: UInt8) -> Bool { byte >= UInt8(ascii: "0") && byte <= UInt8(ascii: "9") }

  private mutating func parseNumber() throws(JSONParsingError) -> JSONValue {
    let start = position
    var isInteger = true
    if bytes[position] == UInt8(ascii: "-") { position += 1 }
    if position < bytes.count, bytes[position] == UInt8(ascii: "0") {
      position += 1
    } else {
      try skipDigits()
    }
    if position < bytes.count, bytes[position] == UInt8(ascii: ".") {
      isInteger = false
      position += 1
      try skipDigits()
    }
    if position < bytes.count, bytes[position] | 0x20 == UInt8(ascii: "e") {
      isInteger = false
      position += 1
      if position < bytes.count, bytes[position] == UInt8(ascii: "+") || bytes[position] == UInt8(ascii: "-") {
        position += 1
      }
      try skipDigits()
    }
    let text = String(decoding: bytes[start..<position], as: UTF8.self)
    if isInteger, let value = Int64(text) { return .int(value) }
    guard let value = Double(text), value.isFinite else {
      throw JSONParsingError(reason: .invalidNumber, offset: start)
    }
    return .double(value)
  }
}

/// A path below a workspace, as bytes: names of files need not be valid UTF-8.
///
/// It has no empty component, no `.` and `..`, and no NUL, so that it can't lead upwards by its form. Whether it
/// leads through a symbolic link is checked where it is opened.
public struct RelativePath: Hashable, Sendable {
  /// What is wrong with a client's path.
  public enum Malformation: Error, Sendable, Equatable {
    /// A `%` without two hexadecimal digits.
    case badEscape
    case nul
    /// An empty component: `//`, or a `/` at the start.
    case emptyComponent
    /// A component `.` or `..`.
    case dotComponent
    /// A component of more than 255 bytes, or more than 4,095 bytes in all.
    case tooLong
  }

  /// The components, separated by `/`; empty for the workspace itself.
  public let bytes: [UInt8]

  public static let root = RelativePath(unchecked: [])

  private init(unchecked bytes: [UInt8]) { self.bytes = bytes }

  /// Takes a path as it is in a file system. One `/` at the end is let go.
  public init(_ bytes: some Sequence<UInt8>) throws(Malformation) {
    try self.init(decoded: Array(bytes))
  }

  private init(decoded bytes: [UInt8]) throws(Malformation) {
    var bytes = bytes
    if bytes.last == Self.separator, bytes.count > 1 { bytes.removeLast() }
    guard !bytes.isEmpty else {
      self.bytes = []
      return
    }
    guard bytes.count < 4096 else { throw .tooLong }
    var length = 0
    var dots = 0
    for index in 0...bytes.count {
      guard index < bytes.count, bytes[index] != Self.separator else {
        if length == 0 { throw .emptyComponent }
        if dots == length, dots <= 2 { throw .dotComponent }
        if length > 255 { throw .tooLong }
        length = 0
        dots = 0
        continue
      }
      if bytes[index] == 0 { throw .nul }
      if bytes[index] == UInt8(ascii: ".") { dots += 1 }
      length += 1
    }
    self.bytes = bytes
  }

  /// Takes a path as it is in a URL: escapes are decoded once.
  public init(percentEncoded text: some Sequence<UInt8>) throws(Malformation) {
    try self.init(decoded: try Self.decode(text))
  }

  private static let separator = UInt8(ascii: "/")

  /// Decodes the escapes of a URL's path.
  public static func decode(_ text: some Sequence<UInt8>) throws(Malformation) -> [UInt8] {
    let text = Array(text)
    guard text.contains(UInt8(ascii: "%")) else { return text }
    var bytes: [UInt8] = []
    bytes.reserveCapacity(text.count)
    var rest = text.makeIterator()
    while let byte = rest.next() {
      if byte != UInt8(ascii: "%") {
        bytes.append(byte)
      } else {
        guard let high = rest.next().flatMap(hexValue), let low = rest.next().flatMap(hexValue) else {
          throw .badEscape
        }
        bytes.append(high << 4 | low)
      }
    }
    return bytes
  }

  private static func hexValue(_ digit: UInt8) -> UInt8? {
    switch digit {
    case UInt8(ascii: "0")...UInt8(ascii: "9"): digit - UInt8(ascii: "0")
    case UInt8(ascii: "a")...UInt8(ascii: "f"): digit - UInt8(ascii: "a") + 10
    case UInt8(ascii: "A")...UInt8(ascii: "F"): digit - UInt8(ascii: "A") + 10
    default: nil
    }
  }

  // MARK: Parts

  public var isRoot: Bool { bytes.isEmpty }

  public var components: [ArraySlice<UInt8>] { bytes.split(separator: Self.separator) }

  /// The last component; empty for the workspace itself.
  public var name: ArraySlice<UInt8> {
    guard let last = bytes.lastIndex(of: Self.separator) else { return bytes[...] }
    return bytes[(last + 1)...]
  }

  /// The directory that holds it; nil for the workspace itself.
  public var parent: RelativePath? {
    guard !isRoot else { return nil }
    guard let last = bytes.lastIndex(of: Self.separator) else { return .root }
    return RelativePath(unchecked: Array(bytes[..<last]))
  }

  public func appending(_ other: RelativePath) throws(Malformation) -> RelativePath {
    if isRoot { return other }
    if other.isRoot { return self }
    return try RelativePath(bytes + [Self.separator] + other.bytes)
  }

  /// Whether it is the other path or lies below it.
  public func isWithin(_ other: RelativePath) -> Bool {
    other.isRoot || bytes == other.bytes || (bytes.starts(with: other.bytes) && bytes[other.bytes.count] == 0x2f)
  }

  // MARK: Texts

  /// For people: bytes that are no UTF-8 are replaced.
  public var displayText: String { String(decoding: bytes, as: UTF8.self) }

  /// The path as it is written in a URL: everything but letters, digits, `-`, `.`, `_`, `~` and the separators is
  /// escaped.
  public var percentEncoded: String { Self.encode(bytes[...], keepingSeparators: true) }

  /// Escapes bytes for a URL.
  public static func encode(_ bytes: ArraySlice<UInt8>, keepingSeparators: Bool = false) -> String {
    String(unsafeUninitializedCapacity: bytes.count * 3) { buffer in
      var length = 0
      func put(_ byte: UInt8) {
        buffer[length] = byte
        length += 1
      }
      func digit(_ value: UInt8) -> UInt8 { value < 10 ? UInt8(ascii: "0") + value : UInt8(ascii: "A") + value - 10 }
      for byte in bytes {
        switch byte {
        case UInt8(ascii: "a")...UInt8(ascii: "z"), UInt8(ascii: "A")...UInt8(ascii: "Z"),
          UInt8(ascii: "0")...UInt8(ascii: "9"), UInt8(ascii: "-"), UInt8(ascii: "."), UInt8(ascii: "_"),
          UInt8(ascii: "~"):
          put(byte)
        case separator where keepingSeparators:
          put(byte)
        default:
          put(UInt8(ascii: "%"))
          put(digit(byte >> 4))
          put(digit(byte & 15))
        }
      }
      return length
    }
  }

  /// Calls `body` with the path as the system wants it; the workspace itself is ".".
  func withSystemPath<T>(_ body: (UnsafePointer<CChar>) throws -> T) rethrows -> T {
    try withSystemName(isRoot ? [UInt8(ascii: ".")] : bytes[...], body)
  }
}

/// Calls `body` with a name, which has no NUL, as the system wants it.
func withSystemName<T>(_ name: ArraySlice<UInt8>, _ body: (UnsafePointer<CChar>) throws -> T) rethrows -> T {
  try withUnsafeTemporaryAllocation(of: CChar.self, capacity: name.count + 1) { buffer in
    for (index, byte) in name.enumerated() { buffer[index] = CChar(bitPattern: byte) }
    buffer[name.count] = 0
    guard let start = buffer.baseAddress else { preconditionFailure("a buffer of at least one byte has an address") }
    return try body(UnsafePointer(start))
  }
}

import Foundation
import Synchronization

/// A WebSocket whose frames are whatever a test wants them to be.
///
/// Every wait is bounded by 60 seconds.
public final class RawWebSocket: Sendable {
  public struct Frame: Equatable, Sendable, CustomStringConvertible {
    public var opcode: UInt8
    public var payload: [UInt8]
    public var isFinal = true

    public init(_ opcode: UInt8, _ payload: [UInt8]) {
      self.opcode = opcode
      self.payload = payload
    }

    public static func text(_ text: String) -> Frame { Frame(1, Array(text.utf8)) }
    public static func pong(_ payload: [UInt8] = []) -> Frame { Frame(10, payload) }

    public var text: String { String(decoding: payload, as: UTF8.self) }

    /// The code of a close; nil if it has none or this is something else.
    public var closeCode: Int? {
      opcode == 8 && payload.count >= 2 ? Int(payload[0]) << 8 | Int(payload[1]) : nil
    }

    public var description: String {
      opcode == 8
        ? "close \(closeCode.map(String.init) ?? "without code") \(String(decoding: payload.dropFirst(2), as: UTF8.self))"
        : "opcode \(opcode): \(text.prefix(200))"
    }
  }

  public struct Refused: Error, CustomStringConvertible {
    public let response: RawResponse
    public var description: String { "\(response.status) \(response.text)" }
  }

  /// The header fields of the 101.
  public let fields: [(name: String, value: String)]
  private let connection: RawConnection
  private let received: Mutex<[UInt8]>

  private init(_ connection: RawConnection, _ fields: [(name: String, value: String)], _ rest: [UInt8]) {
    self.connection = connection
    self.fields = fields
    received = Mutex(rest)
  }

  /// Asks for a socket.
  ///
  /// - Parameter headers: further ones; one of the handshake's own is replaced, or left out if its value is empty.
  /// - Throws: ``Refused`` with the answer if it is no 101.
  public static func open(
    _ connection: RawConnection, path: String, method: String = "GET", headers: [String: String] = [:]
  ) async throws -> RawWebSocket {
    var fields = [
      "Host": "localhost", "Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13",
      "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    ]
    for (name, value) in headers { fields[name] = value.isEmpty ? nil : value }
    let lines = fields.map { "\($0.key): \($0.value)\r\n" }.joined()
    try await connection.send("\(method) \(path) HTTP/1.1\r\n\(lines)\r\n")
    let end = Array("\r\n\r\n".utf8)
    let bytes = try await connection.receive { $0.contains(end) }
    guard let head = bytes.firstRange(of: end) else { throw Refused(response: try RawResponse(parsing: bytes)) }
    let text = String(decoding: bytes[..<head.lowerBound], as: UTF8.self).components(separatedBy: "\r\n")
    guard text[0].hasPrefix("HTTP/1.1 101 ") else {
      // nginx may keep the connection.
      let length = text.dropFirst().first { $0.lowercased().hasPrefix("content-length:") }
        .flatMap { Int($0.dropFirst("content-length:".count).trimmingCharacters(in: .whitespaces)) }
      let missing = length.map { $0 - (bytes.count - head.upperBound) } ?? Int.max
      let rest = try await connection.receive { $0.count >= missing }
      throw Refused(response: try RawResponse(parsing: bytes + rest))
    }
    let answered = text.dropFirst().map { line in
      let parts = line.split(separator: ":", maxSplits: 1).map { $0.trimmingCharacters(in: .whitespaces) }
      return (name: parts[0], value: parts.count == 2 ? parts[1] : "")
    }
    guard
      answered.contains(where: {
        $0.name.lowercased() == "sec-websocket-accept" && $0.value == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
      }) || headers["Sec-WebSocket-Key"] != nil
    else { throw SystemError(call: "Sec-WebSocket-Accept", code: EPROTO) }
    return RawWebSocket(connection, answered, Array(bytes[head.upperBound...]))
  }

  // MARK: Frames

  /// The bytes of a frame as a client has to send it, but for what is asked to be different.
  public static func bytes(
    _ opcode: UInt8, _ payload: some Collection<UInt8> = [], isFinal: Bool = true, reserved: UInt8 = 0,
    isMasked: Bool = true, length: UInt64? = nil
  ) -> [UInt8] {
    var bytes = [(isFinal ? 0x80 : 0) | reserved << 4 | opcode]
    let mask: UInt8 = isMasked ? 0x80 : 0
    switch length ?? UInt64(payload.count) {
    case let length where length <= 125: bytes.append(mask | UInt8(length))
    case let length where length <= 0xffff: bytes += [mask | 126, UInt8(length >> 8), UInt8(length & 0xff)]
    case let length: bytes += [mask | 127] + (0..<8).map { UInt8(truncatingIfNeeded: length >> (56 - 8 * $0)) }
    }
    guard isMasked else { return bytes + Array(payload) }
    let key: [UInt8] = [0x37, 0xfa, 0x21, 0x3d]
    bytes += key
    bytes.reserveCapacity(bytes.count + payload.count)
    for (index, byte) in payload.enumerated() { bytes.append(byte ^ key[index & 3]) }
    return bytes
  }

  public static func close(_ code: Int? = nil, _ reason: [UInt8] = []) -> [UInt8] {
    bytes(8, (code.map { [UInt8($0 >> 8), UInt8($0 & 0xff)] } ?? []) + reason)
  }

  public func send(raw bytes: [UInt8]) async throws { try await connection.send(bytes) }
  public func send(_ text: String) async throws { try await send(raw: Self.bytes(1, Array(text.utf8))) }

  /// The next frame; nil once the server has closed the connection.
  public func next() async throws -> Frame? {
    while true {
      if let frame = received.withLock({ Self.takeFrame(&$0) }) { return frame }
      let more = try await connection.receive { !$0.isEmpty }
      if more.isEmpty { return nil }
      received.withLock { $0 += more }
    }
  }

  /// All frames up to the end of the connection. A close is answered.
  public func rest() async throws -> [Frame] {
    var frames: [Frame] = []
    while let frame = try await next() {
      frames.append(frame)
      if frame.opcode == 8 { try await send(raw: Self.bytes(8, frame.payload.prefix(2))) }
    }
    return frames
  }

  /// Takes the first frame if it is whole.
  private static func takeFrame(_ bytes: inout [UInt8]) -> Frame? {
    guard bytes.count >= 2 else { return nil }
    var start = 2
    var length = Int(bytes[1] & 0x7f)
    if length == 126 {
      guard bytes.count >= 4 else { return nil }
      length = Int(bytes[2]) << 8 | Int(bytes[3])
      start = 4
    } else if length == 127 {
      guard bytes.count >= 10 else { return nil }
      length = bytes[2..<10].reduce(0) { $0 << 8 | Int($1) }
      start = 10
    }
    // A server masks nothing.
    guard bytes[1] & 0x80 == 0, bytes.count >= start + length else { return nil }
    var frame = Frame(bytes[0] & 0x0f, Array(bytes[start..<start + length]))
    frame.isFinal = bytes[0] & 0x80 != 0
    bytes.removeSubrange(..<(start + length))
    return frame
  }
}

import CLinux
import Dispatch
import Glibc

@testable import HummingbirdFastCGI

/// A FastCGI client that sends what it is told, byte for byte.
///
/// Its calls block, on a queue of its own, for at most `patience` seconds, after which they throw.
final class RawClient: Sendable {
  struct Failure: Error, CustomStringConvertible {
    let description: String
  }

  struct Record: Equatable {
    var type: UInt8
    var requestID: UInt16
    var content: [UInt8]
  }

  struct Answer: Equatable {
    var status: Int
    var fields: [String]
    var body: [UInt8]
    /// The protocol status of the end of request.
    var protocolStatus: UInt8

    var text: String { String(decoding: body, as: UTF8.self) }
  }

  private static let patience = 30
  private let descriptor: CInt
  private let queue = DispatchQueue(label: "raw-client")

  init(path: String) throws {
    let descriptor = clinux_connect_unix(path)
    guard descriptor >= 0 else { throw Failure(description: "connect: \(String(cString: strerror(errno)))") }
    _ = fcntl(descriptor, F_SETFL, 0)
    var timeout = timeval(tv_sec: Self.patience, tv_usec: 0)
    setsockopt(descriptor, SOL_SOCKET, SO_RCVTIMEO, &timeout, socklen_t(MemoryLayout<timeval>.size))
    setsockopt(descriptor, SOL_SOCKET, SO_SNDTIMEO, &timeout, socklen_t(MemoryLayout<timeval>.size))
    self.descriptor = descriptor
  }

  deinit {
    Glibc.close(descriptor)
  }

  /// Ends the connection in both directions; the descriptor lives as long as the client.
  func hangUp() {
    shutdown(descriptor, CInt(SHUT_RDWR))
  }

  private func onQueue<T: Sendable>(_ body: @escaping @Sendable () throws -> T) async throws -> T {
    try await withCheckedThrowingContinuation { continuation in
      queue.async { continuation.resume(with: Result { try body() }) }
    }
  }

  func send(_ bytes: [UInt8]) async throws {
    try await onQueue { [descriptor] in
      var offset = 0
      while offset < bytes.count {
        let count = bytes.withUnsafeBytes {
          Glibc.send(
            descriptor, $0.baseAddress?.advanced(by: offset), bytes.count - offset, CInt(MSG_NOSIGNAL))
        }
        guard count > 0 else { throw Failure(description: "send: \(String(cString: strerror(errno)))") }
        offset += count
      }
    }
  }

  /// The next bytes; empty at the end of the connection.
  func receive(atMost limit: Int = 64 << 10) async throws -> [UInt8] {
    try await onQueue { [descriptor] in try Self.read(descriptor, atMost: limit) }
  }

  private static func read(_ descriptor: CInt, atMost limit: Int) throws -> [UInt8] {
    var bytes = [UInt8](repeating: 0, count: limit)
    let count = recv(descriptor, &bytes, limit, 0)
    guard count >= 0 else {
      if errno == ECONNRESET { return [] }
      throw Failure(description: "recv: \(String(cString: strerror(errno)))")
    }
    return Array(bytes[..<count])
  }

  private static func readExactly(_ descriptor: CInt, _ count: Int) throws -> [UInt8]? {
    var bytes: [UInt8] = []
    while bytes.count < count {
      let part = try read(descriptor, atMost: count - bytes.count)
      if part.isEmpty { return nil }
      bytes += part
    }
    return bytes
  }

  /// The next record; nil at the end of the connection.
  func record() async throws -> Record? {
    try await onQueue { [descriptor] in
      guard let header = try Self.readExactly(descriptor, 8) else { return nil }
      guard header[0] == 1 else { throw Failure(description: "version \(header[0])") }
      let length = Int(header[4]) << 8 | Int(header[5])
      guard let content = try Self.readExactly(descriptor, length + Int(header[6])) else { return nil }
      return Record(
        type: header[1], requestID: UInt16(header[2]) << 8 | UInt16(header[3]), content: Array(content[..<length]))
    }
  }

  /// Reads records up to the end of the request; nil if the connection ends before.
  func answer(to requestID: UInt16 = 1) async throws -> Answer? {
    var output: [UInt8] = []
    while let record = try await record() {
      guard record.requestID == requestID else {
        throw Failure(description: "a record of request \(record.requestID)")
      }
      switch record.type {
      case FastCGI.RecordType.stdout: output += record.content
      case FastCGI.RecordType.endRequest:
        return try Self.parse(output, protocolStatus: record.content[4])
      default: throw Failure(description: "a record of type \(record.type)")
      }
    }
    return nil
  }

  private static func parse(_ output: [UInt8], protocolStatus: UInt8) throws -> Answer {
    if output.isEmpty { return Answer(status: 0, fields: [], body: [], protocolStatus: protocolStatus) }
    let end = Array("\r\n\r\n".utf8)
    guard let split = (0..<max(0, output.count - 3)).first(where: { Array(output[$0..<$0 + 4]) == end }) else {
      throw Failure(description: "no end of the head")
    }
    var fields = String(decoding: output[..<split], as: UTF8.self).split(separator: "\r\n").map(String.init)
    guard let status = fields.first, status.hasPrefix("Status: "), let code = Int(status.dropFirst(8).prefix(3)) else {
      throw Failure(description: "no status")
    }
    fields.removeFirst()
    return Answer(
      status: code, fields: fields, body: Array(output[(split + 4)...]), protocolStatus: protocolStatus)
  }
}

/// Builds records.
enum Wire {
  static func record(
    _ type: UInt8, _ content: [UInt8] = [], requestID: UInt16 = 1, version: UInt8 = 1, padding: UInt8 = 0
  ) -> [UInt8] {
    [
      version, type, UInt8(requestID >> 8), UInt8(requestID & 0xff), UInt8(content.count >> 8),
      UInt8(content.count & 0xff), padding, 0,
    ] + content + [UInt8](repeating: 0, count: Int(padding))
  }

  static func begin(role: UInt16 = 1, keep: Bool = true, requestID: UInt16 = 1) -> [UInt8] {
    record(1, [UInt8(role >> 8), UInt8(role & 0xff), keep ? 1 : 0, 0, 0, 0, 0, 0], requestID: requestID)
  }

  static func pairs(_ params: [(String, String)]) -> [UInt8] {
    func length(_ count: Int) -> [UInt8] {
      count < 128
        ? [UInt8(count)]
        : [UInt8(count >> 24) | 0x80, UInt8(count >> 16 & 0xff), UInt8(count >> 8 & 0xff), UInt8(count & 0xff)]
    }
    return params.flatMap { name, value in
      length(name.utf8.count) + length(value.utf8.count) + Array(name.utf8) + Array(value.utf8)
    }
  }

  /// A stream cut into records of at most `size` bytes, with its end.
  static func stream(_ type: UInt8, _ bytes: [UInt8], size: Int = 65_535, requestID: UInt16 = 1) -> [UInt8] {
    var result: [UInt8] = []
    var offset = 0
    while offset < bytes.count {
      let end = min(offset + size, bytes.count)
      result += record(type, Array(bytes[offset..<end]), requestID: requestID, padding: UInt8((end - offset) % 7))
      offset = end
    }
    return result + record(type, [], requestID: requestID)
  }

  static func request(
    _ method: String = "GET", _ uri: String, params: [(String, String)] = [], body: [UInt8] = [],
    keep: Bool = true, requestID: UInt16 = 1, recordSize: Int = 65_535
  ) -> [UInt8] {
    let all =
      [
        ("REQUEST_METHOD", method), ("REQUEST_URI", uri),
        ("CONTENT_LENGTH", body.isEmpty ? "" : String(body.count)),
      ] + params
    return begin(keep: keep, requestID: requestID)
      + stream(4, pairs(all), size: recordSize, requestID: requestID)
      + stream(5, body, size: recordSize, requestID: requestID)
  }
}

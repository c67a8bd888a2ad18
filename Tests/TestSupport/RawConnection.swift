import Foundation
import Synchronization

/// A plain connection over TCP to this machine, or over a unix socket, for requests that no HTTP client would send.
///
/// Every wait is bounded by 60 seconds.
public final class RawConnection: Sendable {
  private let descriptor: Int32

  /// - Parameter receiveBuffer: bytes that the kernel keeps for this side, roughly; nil for its default.
  public convenience init(port: Int, receiveBuffer: Int32? = nil) throws {
    try self.init(connected: connectedSocket(AF_INET, loopback(port: port), receiveBuffer: receiveBuffer))
  }

  public convenience init(unixSocket path: String) throws {
    try self.init(connected: connectedSocket(unixSocket: path))
  }

  private init(connected: Int32) throws {
    descriptor = connected
    var limit = timeval(tv_sec: 60, tv_usec: 0)
    setsockopt(descriptor, SOL_SOCKET, SO_RCVTIMEO, &limit, socklen_t(MemoryLayout<timeval>.size))
    setsockopt(descriptor, SOL_SOCKET, SO_SNDTIMEO, &limit, socklen_t(MemoryLayout<timeval>.size))
  }

  deinit { close(descriptor) }

  /// Sends as much as the other side takes before it closes.
  public func send(_ bytes: [UInt8]) async throws {
    try await onThread { [self] in
      var rest = bytes[...]
      while !rest.isEmpty {
        let count = rest.withUnsafeBytes {
          Glibc.send(descriptor, $0.baseAddress, $0.count, Int32(MSG_NOSIGNAL))
        }
        if count < 0, errno == EPIPE || errno == ECONNRESET { return }
        guard count > 0 else { throw SystemError(call: "send") }
        rest = rest.dropFirst(count)
      }
    }
  }

  public func send(_ text: String) async throws {
    try await send(Array(text.utf8))
  }

  /// Reads until `isEnough` holds for all that was read by this call, or the other side has closed.
  public func receive(until isEnough: @escaping @Sendable ([UInt8]) -> Bool) async throws -> [UInt8] {
    try await onThread { [self] in
      var bytes: [UInt8] = []
      var buffer = [UInt8](repeating: 0, count: 65536)
      while !isEnough(bytes) {
        let count = recv(descriptor, &buffer, buffer.count, 0)
        if count < 0, errno == ECONNRESET { break }
        guard count >= 0 else { throw SystemError(call: "recv") }
        if count == 0 { break }
        bytes += buffer[..<count]
      }
      return bytes
    }
  }

  public func receive(untilText text: String) async throws -> String {
    let wanted = Array(text.utf8)
    let bytes = try await receive {
      $0.count >= wanted.count && $0.suffix(65536 + wanted.count).contains(wanted)
    }
    return String(decoding: bytes, as: UTF8.self)
  }
}

/// A response as it was on the wire.
public struct RawResponse: Sendable {
  public let status: Int
  public let fields: [(name: String, value: String)]
  public let body: [UInt8]

  /// The values of all fields of this name, in any case.
  public subscript(name: String) -> [String] {
    fields.filter { $0.name.lowercased() == name.lowercased() }.map(\.value)
  }

  public var text: String { String(decoding: body, as: UTF8.self) }

  struct Malformed: Error { let bytes: String }

  /// Takes the last response of a connection apart; interim ones are skipped.
  public init(parsing bytes: [UInt8]) throws {
    let malformed = Malformed(bytes: String(decoding: bytes.prefix(2000), as: UTF8.self))
    var content = bytes[...]
    var lines: [String] = []
    var status = 100
    while status / 100 == 1 {
      guard let end = content.firstRange(of: Array("\r\n\r\n".utf8)) else { throw malformed }
      lines = String(decoding: content[..<end.lowerBound], as: UTF8.self).components(separatedBy: "\r\n")
      content = content[end.upperBound...]
      let words = lines[0].split(separator: " ", omittingEmptySubsequences: false)
      guard words.count >= 2, words[0].hasPrefix("HTTP/1."), let code = Int(words[1]) else { throw malformed }
      status = code
    }
    self.status = status
    fields = try lines.dropFirst().map { line in
      guard let colon = line.firstIndex(of: ":") else { throw malformed }
      return (
        String(line[..<colon]),
        line[line.index(after: colon)...].trimmingCharacters(in: .whitespaces)
      )
    }
    let isChunked = fields.contains { $0.name.lowercased() == "transfer-encoding" && $0.value == "chunked" }
    body = isChunked ? try Self.dechunk(content, malformed) : Array(content)
  }

  private static func dechunk(_ bytes: ArraySlice<UInt8>, _ malformed: Malformed) throws -> [UInt8] {
    var rest = bytes
    var body: [UInt8] = []
    while let end = rest.firstRange(of: Array("\r\n".utf8)) {
      guard let size = Int(String(decoding: rest[..<end.lowerBound], as: UTF8.self), radix: 16),
        end.upperBound + size + 2 <= rest.endIndex
      else { throw malformed }
      if size == 0 { return body }
      body += rest[end.upperBound..<(end.upperBound + size)]
      rest = rest[(end.upperBound + size + 2)...]
    }
    throw malformed
  }
}

/// Sends bytes over a new connection and parses what comes until the server closes it.
public func exchange(port: Int, _ bytes: [UInt8]) async throws -> RawResponse {
  let connection = try RawConnection(port: port)
  try await connection.send(bytes)
  return try RawResponse(parsing: try await connection.receive { _ in false })
}

/// The ports that were given out, so that tests which run at the same time never get the same one.
private let givenPorts = Mutex<Set<Int>>([])

/// A port of the loopback address that was free a moment ago and that no other test of this process was given.
public func freePort() throws -> Int {
  while true {
    let port = try anyFreePort()
    if givenPorts.withLock({ $0.insert(port).inserted }) { return port }
  }
}

private func anyFreePort() throws -> Int {
  let descriptor = socket(AF_INET, Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue), 0)
  guard descriptor >= 0 else { throw SystemError(call: "socket") }
  defer { close(descriptor) }
  var address = loopback(port: 0)
  var size = socklen_t(MemoryLayout<sockaddr_in>.size)
  try withUnsafeMutablePointer(to: &address) {
    try $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
      guard bind(descriptor, $0, size) == 0 else { throw SystemError(call: "bind") }
      guard getsockname(descriptor, $0, &size) == 0 else { throw SystemError(call: "getsockname") }
    }
  }
  return Int(UInt16(bigEndian: address.sin_port))
}

/// Waits until something listens on a port, and throws when the child that ought to listen has ended.
public func waitUntilListening(port: Int, child: ChildProcess) async throws {
  struct ChildEnded: Error { let exit: ChildProcess.Exit }
  while true {
    if let exit = child.exit { throw ChildEnded(exit: exit) }
    if let descriptor = try? connectedSocket(port: port) {
      close(descriptor)
      return
    }
    try await Task.sleep(for: .milliseconds(10))
  }
}

private func connectedSocket(port: Int) throws -> Int32 {
  try connectedSocket(AF_INET, loopback(port: port))
}

private func connectedSocket(unixSocket path: String) throws -> Int32 {
  var address = sockaddr_un()
  address.sun_family = sa_family_t(AF_UNIX)
  guard path.utf8.count < MemoryLayout.size(ofValue: address.sun_path) else {
    throw SystemError(call: "connect", code: ENAMETOOLONG)
  }
  withUnsafeMutableBytes(of: &address.sun_path) { $0.copyBytes(from: path.utf8) }
  return try connectedSocket(AF_UNIX, address)
}

private func connectedSocket<Address>(
  _ family: Int32, _ address: Address, receiveBuffer: Int32? = nil
) throws -> Int32 {
  let descriptor = socket(family, Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue), 0)
  guard descriptor >= 0 else { throw SystemError(call: "socket") }
  if var size = receiveBuffer {
    setsockopt(descriptor, SOL_SOCKET, SO_RCVBUF, &size, socklen_t(MemoryLayout<Int32>.size))
  }
  let result = withUnsafePointer(to: address) {
    $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
      connect(descriptor, $0, socklen_t(MemoryLayout<Address>.size))
    }
  }
  guard result == 0 else {
    let code = errno
    close(descriptor)
    throw SystemError(call: "connect", code: code)
  }
  return descriptor
}

private func loopback(port: Int) -> sockaddr_in {
  var address = sockaddr_in()
  address.sin_family = sa_family_t(AF_INET)
  address.sin_port = in_port_t(port).bigEndian
  address.sin_addr.s_addr = in_addr_t(INADDR_LOOPBACK).bigEndian
  return address
}

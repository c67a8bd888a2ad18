import Foundation

/// A unix socket of the test.
public final class UnixSocket: Sendable {
  public let descriptor: Int32

  /// Listens at a path, whose directory is made.
  public convenience init(listeningAt path: String) throws {
    try self.init(path, Int32(SOCK_STREAM.rawValue))
    guard listen(descriptor, 4096) == 0 else { throw SystemError(call: "listen") }
  }

  /// Takes datagrams at a path, whose directory is made.
  public convenience init(receivingAt path: String) throws {
    try self.init(path, Int32(SOCK_DGRAM.rawValue))
  }

  private init(_ path: String, _ type: Int32) throws {
    try FileManager.default.createDirectory(
      atPath: (path as NSString).deletingLastPathComponent, withIntermediateDirectories: true)
    descriptor = socket(AF_UNIX, type | Int32(SOCK_CLOEXEC.rawValue), 0)
    guard descriptor >= 0 else { throw SystemError(call: "socket") }
    var address = sockaddr_un()
    address.sun_family = sa_family_t(AF_UNIX)
    guard path.utf8.count < MemoryLayout.size(ofValue: address.sun_path) else {
      throw SystemError(call: "bind \(path)", code: ENAMETOOLONG)
    }
    withUnsafeMutableBytes(of: &address.sun_path) { $0.copyBytes(from: path.utf8) }
    let status = withUnsafePointer(to: &address) {
      $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
        bind(descriptor, $0, socklen_t(MemoryLayout<sockaddr_un>.size))
      }
    }
    guard status == 0 else { throw SystemError(call: "bind \(path)") }
  }

  deinit { close(descriptor) }

  /// The next datagram, or nil if there is none yet.
  public func receive() throws -> String? {
    var buffer = [UInt8](repeating: 0, count: 4096)
    let count = recv(descriptor, &buffer, buffer.count, Int32(MSG_DONTWAIT))
    if count >= 0 { return String(decoding: buffer[..<count], as: UTF8.self) }
    guard errno == EAGAIN || errno == EINTR else { throw SystemError(call: "recv") }
    return nil
  }
}

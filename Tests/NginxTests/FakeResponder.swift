import Foundation
import Synchronization
import TestSupport

/// As much of a FastCGI responder as it takes to see what nginx sends and does.
final class FakeResponder: Sendable {
  struct Request: Sendable {
    var parameters: [String: String] = [:]
    /// All of them as they came, also those that came more than once.
    var pairs: [(name: String, value: String)] = []
    var body: [UInt8] = []
  }

  /// Where a handler writes the CGI response to; called on the connection's own thread.
  struct Reply {
    fileprivate let descriptor: Int32
    fileprivate let id: UInt16

    func write(_ text: String) {
      let bytes = Array(text.utf8)
      for start in stride(from: 0, to: bytes.count, by: 60000) {
        let part = bytes[start..<min(start + 60000, bytes.count)]
        sendAll(record(type: 6, id: id, part), to: descriptor)
      }
    }

    fileprivate func end() {
      sendAll(
        record(type: 6, id: id, []) + record(type: 3, id: id, [UInt8](repeating: 0, count: 8)[...]),
        to: descriptor)
    }
  }

  let path: String
  private let listener: Int32
  private let connections = Mutex<[Int32]>([])
  private let seen = Mutex<[Request]>([])
  private let announced = Mutex<[Request]>([])
  private let refusal = Mutex<String?>(nil)
  private let isStopped = Mutex(false)
  private let handler: @Sendable (Request, Reply) -> Void

  /// The requests that were complete so far.
  var requests: [Request] { seen.withLock { $0 } }
  /// The questions whether a body is wanted; see `nginx/asked.conf`.
  var questions: [Request] { announced.withLock { $0 } }
  /// How many connections nginx has made.
  var connectionCount: Int { connections.withLock { $0.count } }

  init(path: String, handler: @escaping @Sendable (Request, Reply) -> Void) throws {
    self.path = path
    self.handler = handler
    listener = socket(AF_UNIX, Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue), 0)
    var address = sockaddr_un()
    address.sun_family = sa_family_t(AF_UNIX)
    withUnsafeMutableBytes(of: &address.sun_path) { $0.copyBytes(from: path.utf8.prefix($0.count - 1)) }
    let bound = withUnsafePointer(to: address) {
      $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
        bind(listener, $0, socklen_t(MemoryLayout<sockaddr_un>.size))
      }
    }
    guard bound == 0, listen(listener, 64) == 0 else { throw SystemError(call: "bind \(path)") }
    Thread.detachNewThread { [self] in acceptAll() }
  }

  /// Has bodies refused that it is asked for: with a status, a document and header fields, each with its line's end.
  func refuseBodies(_ status: Int, _ document: String, _ fields: String = "") {
    refusal.withLock {
      $0 =
        "Status: 403 Forbidden\r\nClaude-Api-Refusal-Status: \(status)\r\nClaude-Api-Refusal: \(document)\r\n\(fields)\r\n"
    }
  }

  /// Ends all connections. A thread that is inside a handler goes on until that returns.
  func stop() {
    // Once: after it the number of the listener's descriptor may be another one's.
    guard
      isStopped.withLock({ isStopped in
        defer { isStopped = true }
        return !isStopped
      })
    else { return }
    shutdown(listener, Int32(SHUT_RDWR))
    connections.withLock { for descriptor in $0 { shutdown(descriptor, Int32(SHUT_RDWR)) } }
  }

  private func acceptAll() {
    while true {
      let descriptor = accept(listener, nil, nil)
      guard descriptor >= 0 else { break }
      _ = fcntl(descriptor, F_SETFD, FD_CLOEXEC)
      connections.withLock { $0.append(descriptor) }
      Thread.detachNewThread { [self] in serve(descriptor) }
    }
    close(listener)
  }

  // The descriptor stays open until the process ends, so that `stop` can't hit another one.
  private func serve(_ descriptor: Int32) {
    var request = Request()
    var parameters: [UInt8] = []
    while let header = receive(8, from: descriptor) {
      let id = UInt16(header[2]) << 8 | UInt16(header[3])
      let length = Int(header[4]) << 8 | Int(header[5])
      guard let content = receive(length + Int(header[6]), from: descriptor)?.prefix(length) else { break }
      switch header[1] {
      case 1:
        request = Request()
        parameters = []
      case 4 where content.isEmpty:
        request.pairs = decode(parameters)
        request.parameters = Dictionary(request.pairs.map { ($0.name, $0.value) }) { $1 }
      case 4: parameters += content
      case 5 where content.isEmpty:
        let reply = Reply(descriptor: descriptor, id: id)
        if request.parameters["BODY_ANNOUNCED"] != nil {
          announced.withLock { $0.append(request) }
          reply.write(refusal.withLock { $0 } ?? "Status: 204 No Content\r\n\r\n")
        } else {
          seen.withLock { $0.append(request) }
          handler(request, reply)
        }
        reply.end()
      case 5: request.body += content
      default: break
      }
    }
    shutdown(descriptor, Int32(SHUT_RDWR))
  }
}

private func decode(_ bytes: [UInt8]) -> [(name: String, value: String)] {
  var parameters: [(name: String, value: String)] = []
  var position = 0
  func length() -> Int {
    defer { position += bytes[position] < 0x80 ? 1 : 4 }
    guard bytes[position] >= 0x80 else { return Int(bytes[position]) }
    return bytes[position..<(position + 4)].reduce(0) { $0 << 8 | Int($1) } & 0x7fff_ffff
  }
  while position < bytes.count {
    let (nameLength, valueLength) = (length(), length())
    let middle = position + nameLength
    let name = String(decoding: bytes[position..<middle], as: UTF8.self)
    position = middle + valueLength
    parameters.append((name, String(decoding: bytes[middle..<position], as: UTF8.self)))
  }
  return parameters
}

private func record(type: UInt8, id: UInt16, _ content: ArraySlice<UInt8>) -> [UInt8] {
  [1, type, UInt8(id >> 8), UInt8(id & 0xff), UInt8(content.count >> 8), UInt8(content.count & 0xff), 0, 0]
    + content
}

private func receive(_ count: Int, from descriptor: Int32) -> [UInt8]? {
  var bytes = [UInt8](repeating: 0, count: count)
  guard count > 0 else { return bytes }
  return recv(descriptor, &bytes, count, Int32(MSG_WAITALL)) == count ? bytes : nil
}

private func sendAll(_ bytes: [UInt8], to descriptor: Int32) {
  var rest = bytes[...]
  while !rest.isEmpty {
    let count = rest.withUnsafeBytes { send(descriptor, $0.baseAddress, $0.count, Int32(MSG_NOSIGNAL)) }
    guard count > 0 else { return }
    rest = rest.dropFirst(count)
  }
}

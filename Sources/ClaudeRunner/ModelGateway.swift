import Glibc

/// The way to the model for processes that don't have its credential.
///
/// A server on a unix socket, which is not part of this program, adds the credential. It passes a request on if
/// its `x-api-key` is the name of a file in ``tokenDirectory``. Such a token is made for each process of the CLI
/// and removed at its end; whoever has it can do no more than the process can. It has the form
/// `SESSION.ACCOUNT.SECRET`, so that the server knows what to count a request to.
public struct ModelGateway: Sendable {
  /// Absolute path of the socket. Its directory is visible in sandboxes, so nothing else may be in it.
  public var socket: String
  /// Absolute path of a directory that no agent may see.
  public var tokenDirectory: String
  /// Host and port of the model's API, by which the CLI decides what it may expect of it.
  public var host: String

  /// The account of sessions that have none.
  public static let noAccount = "none"

  public init(socket: String, tokenDirectory: String, host: String) {
    self.socket = socket
    self.tokenDirectory = tokenDirectory
    self.host = host
  }

  /// Its directory.
  public var socketDirectory: String {
    socket.lastIndex(of: "/").map { String(socket[..<$0]) } ?? "/"
  }

  /// Invalidates the tokens of earlier runs. To be called when no other server works with the same directories, which
  /// must exist. Blocks.
  ///
  /// - Throws: `start_failed` with the reason.
  public func prepare() throws(ClaudeFailure) {
    guard let directory = opendir(tokenDirectory) else { throw Self.failure("open", tokenDirectory) }
    defer { closedir(directory) }
    while let entry = readdir(directory) {
      let name = withUnsafePointer(to: &entry.pointee.d_name) {
        $0.withMemoryRebound(to: CChar.self, capacity: 256) { String(cString: $0) }
      }
      guard name != "." && name != ".." else { continue }
      guard unlinkat(dirfd(directory), name, 0) == 0 || errno == ENOENT else { throw Self.failure("remove", name) }
    }
  }

  /// Makes a token for a process of the session. Blocks.
  func admit(_ session: ClaudeSession) throws(ClaudeFailure) -> String {
    var generator = SystemRandomNumberGenerator()
    let secret = (0..<16).map { _ in
      let byte = UInt8.random(in: .min ... .max, using: &generator)
      return (byte < 16 ? "0" : "") + String(byte, radix: 16)
    }.joined()
    let token = "\(session.id).\(session.account ?? Self.noAccount).\(secret)"
    let file = open("\(tokenDirectory)/\(token)", O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0o600)
    guard file >= 0 else { throw Self.failure("make a token in", tokenDirectory) }
    close(file)
    return token
  }

  /// Invalidates a token; it is none already if it is not there. Blocks.
  func dismiss(_ token: String) throws(ClaudeFailure) {
    guard unlink("\(tokenDirectory)/\(token)") == 0 || errno == ENOENT else {
      throw Self.failure("remove a token from", tokenDirectory)
    }
  }

  /// What the CLI needs to know.
  func environment(_ token: String) -> [String: String] {
    ["ANTHROPIC_UNIX_SOCKET": socket, "ANTHROPIC_BASE_URL": "http://\(host)", "ANTHROPIC_API_KEY": token]
  }

  /// Whether something listens on the socket and takes connections.
  public var isListening: Bool {
    let kind = Int32(SOCK_STREAM.rawValue) | Int32(SOCK_CLOEXEC.rawValue) | Int32(SOCK_NONBLOCK.rawValue)
    let descriptor = Glibc.socket(AF_UNIX, kind, 0)
    guard descriptor >= 0 else { return false }
    defer { close(descriptor) }
    var address = sockaddr_un()
    address.sun_family = sa_family_t(AF_UNIX)
    let bytes = Array(socket.utf8)
    guard bytes.count < MemoryLayout.size(ofValue: address.sun_path) else { return false }
    withUnsafeMutableBytes(of: &address.sun_path) { $0.copyBytes(from: bytes) }
    return withUnsafePointer(to: &address) {
      $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
        connect(descriptor, $0, socklen_t(MemoryLayout<sockaddr_un>.size)) == 0
      }
    }
  }

  private static func failure(_ action: String, _ path: String) -> ClaudeFailure {
    ClaudeFailure(.startFailed, "The server can't \(action) \(path): \(String(cString: strerror(errno)))")
  }
}

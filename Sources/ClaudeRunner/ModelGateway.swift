import Glibc
public import Logging
public import NIOCore
import NIOPosix
import Synchronization

/// Where the way to the model leads, and what a process of the CLI may take of it.
public struct ModelGatewayConfiguration: Sendable {
  /// Absolute path of the server's socket. No agent may see it.
  public var socket: String
  /// Absolute path of a directory that no agent may see.
  public var tokenDirectory: String
  /// Absolute path of a directory for the sockets of the processes; at most ``longestSocketDirectory`` bytes.
  public var socketDirectory: String
  /// Host and port of the model's API, by which the CLI decides what it may expect of it.
  public var host: String
  /// Connections that a process, with all that it starts, may have at a time. Default 32.
  public var maximumConnections = 32

  public init(socket: String, tokenDirectory: String, socketDirectory: String, host: String) {
    self.socket = socket
    self.tokenDirectory = tokenDirectory
    self.socketDirectory = socketDirectory
    self.host = host
  }

  /// So that the path of a socket below it is not longer than the kernel allows.
  public static let longestSocketDirectory = 107 - "/XXXXXX/\(ModelAccess.socketName)".utf8.count
}

/// The way to the model for processes that don't have its credential.
///
/// A server on a unix socket, which is not part of this program, adds the credential. It passes a request on if
/// its `x-api-key` is the name of a file in ``ModelGatewayConfiguration/tokenDirectory``. Such a token is made for each
/// process of the CLI and removed at its end; whoever has it can do no more than the process can. It has the form
/// `SESSION.ACCOUNT.SECRET`, so that the server knows what to count a request to.
///
/// No process reaches the server's socket itself, whose connections all share. Each has a socket of its own, from which
/// a bounded number of connections is passed on: see ``SocketRelay``.
public final class ModelGateway: Sendable {
  /// The account of sessions that have none.
  public static let noAccount = "none"

  public let configuration: ModelGatewayConfiguration
  private let eventLoopGroup: any EventLoopGroup
  private let logger: Logger
  private let figures = SocketRelay.Figures()

  /// - Parameter eventLoopGroup: carries the bytes. It must outlive the last process.
  public init(
    _ configuration: ModelGatewayConfiguration, eventLoopGroup: any EventLoopGroup,
    logger: Logger = Logger(label: "model-gateway")
  ) {
    self.configuration = configuration
    self.eventLoopGroup = eventLoopGroup
    self.logger = logger
  }

  /// Removes the tokens and sockets of earlier runs. To be called when no other server works with the same directories,
  /// which must exist. Blocks.
  ///
  /// - Throws: `start_failed` with the reason.
  public func prepare() throws(ClaudeFailure) {
    try Self.forEachEntry(of: configuration.tokenDirectory) { (directory, name) throws(ClaudeFailure) in
      guard unlinkat(directory, name, 0) == 0 || errno == ENOENT else { throw Self.failure("remove", name) }
    }
    try Self.forEachEntry(of: configuration.socketDirectory) { (directory, name) throws(ClaudeFailure) in
      let entry = openat(directory, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC)
      guard entry >= 0 else { throw Self.failure("open", name) }
      defer { close(entry) }
      guard unlinkat(entry, ModelAccess.socketName, 0) == 0 || errno == ENOENT,
        unlinkat(directory, name, AT_REMOVEDIR) == 0
      else { throw Self.failure("remove", name) }
    }
  }

  private static func forEachEntry(
    of path: String, _ body: (_ directory: CInt, _ name: String) throws(ClaudeFailure) -> Void
  ) throws(ClaudeFailure) {
    guard let directory = opendir(path) else { throw failure("open", path) }
    defer { closedir(directory) }
    while let entry = readdir(directory) {
      let name = withUnsafePointer(to: &entry.pointee.d_name) {
        $0.withMemoryRebound(to: CChar.self, capacity: 256) { String(cString: $0) }
      }
      if name != "." && name != ".." { try body(dirfd(directory), name) }
    }
  }

  // MARK: Processes

  /// Opens the way for a process of the session. It must be closed at the end: ``dismiss(_:)``.
  func admit(_ session: ClaudeSession) async throws(ClaudeFailure) -> ModelAccess {
    var access = try await blocking { [configuration] () throws(ClaudeFailure) in
      let directory = try Self.makeDirectory(configuration)
      do throws(ClaudeFailure) {
        return ModelAccess(token: try Self.makeToken(session, configuration), directory: directory)
      } catch {
        rmdir(directory)
        throw error
      }
    }
    var bounds = SocketRelay.Bounds()
    bounds.connections = configuration.maximumConnections
    do {
      access.relay = try await SocketRelay.open(
        at: access.socket, to: configuration.socket, bounds: bounds, figures: figures,
        on: eventLoopGroup.next(),
        onFirstBound: { [logger, count = bounds.connections] in
          logger.notice(
            "An agent has as many connections to the model as it may have; further ones wait",
            metadata: ["session": "\(session.id)", "connections": "\(count)"])
        })
    } catch {
      try await dismiss(access)
      throw ClaudeFailure(.startFailed, "The server can't listen on \(access.socket): \(error)")
    }
    return access
  }

  /// Closes a process's way: its connections break off, and its token is none any more.
  func dismiss(_ access: ModelAccess) async throws(ClaudeFailure) {
    await access.relay?.close()
    try await blocking { [configuration] () throws(ClaudeFailure) in
      guard unlink("\(configuration.tokenDirectory)/\(access.token)") == 0 || errno == ENOENT else {
        throw Self.failure("remove a token from", configuration.tokenDirectory)
      }
      guard rmdir(access.directory) == 0 || errno == ENOENT else { throw Self.failure("remove", access.directory) }
    }
  }

  private static func makeToken(
    _ session: ClaudeSession, _ configuration: ModelGatewayConfiguration
  ) throws(ClaudeFailure) -> String {
    var generator = SystemRandomNumberGenerator()
    let secret = (0..<16).map { _ in
      let byte = UInt8.random(in: .min ... .max, using: &generator)
      return (byte < 16 ? "0" : "") + String(byte, radix: 16)
    }.joined()
    let token = "\(session.id).\(session.account ?? noAccount).\(secret)"
    let path = "\(configuration.tokenDirectory)/\(token)"
    let file = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0o600)
    guard file >= 0 else { throw failure("make a token in", configuration.tokenDirectory) }
    close(file)
    return token
  }

  private static func makeDirectory(_ configuration: ModelGatewayConfiguration) throws(ClaudeFailure) -> String {
    var template = Array("\(configuration.socketDirectory)/XXXXXX".utf8CString)
    guard mkdtemp(&template) != nil else { throw failure("make a directory in", configuration.socketDirectory) }
    return String(decoding: template.dropLast().map(UInt8.init(bitPattern:)), as: UTF8.self)
  }

  /// What the CLI needs to know.
  func environment(_ access: ModelAccess) -> [String: String] {
    [
      "ANTHROPIC_UNIX_SOCKET": access.socket, "ANTHROPIC_BASE_URL": "http://\(configuration.host)",
      "ANTHROPIC_API_KEY": access.token,
    ]
  }

  // MARK: Looking

  /// Whether something listens on the server's socket and takes connections.
  public var isListening: Bool {
    let kind = Int32(SOCK_STREAM.rawValue) | Int32(SOCK_CLOEXEC.rawValue) | Int32(SOCK_NONBLOCK.rawValue)
    let descriptor = Glibc.socket(AF_UNIX, kind, 0)
    guard descriptor >= 0 else { return false }
    defer { close(descriptor) }
    var address = sockaddr_un()
    address.sun_family = sa_family_t(AF_UNIX)
    let bytes = Array(configuration.socket.utf8)
    guard bytes.count < MemoryLayout.size(ofValue: address.sun_path) else { return false }
    withUnsafeMutableBytes(of: &address.sun_path) { $0.copyBytes(from: bytes) }
    return withUnsafePointer(to: &address) {
      $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
        connect(descriptor, $0, socklen_t(MemoryLayout<sockaddr_un>.size)) == 0
      }
    }
  }

  public var statistics: ModelGatewayStatistics {
    ModelGatewayStatistics(
      open: figures.open.load(ordering: .relaxed), bounded: figures.bounded.load(ordering: .relaxed),
      failed: figures.failed.load(ordering: .relaxed))
  }

  private func blocking<T: Sendable>(
    _ body: @escaping @Sendable () throws(ClaudeFailure) -> T
  ) async throws(ClaudeFailure) -> T {
    let result = await withCheckedContinuation { continuation in
      NIOThreadPool.singleton.submit { _ in
        continuation.resume(returning: Result { () throws(ClaudeFailure) in try body() })
      }
    }
    return try result.get()
  }

  private static func failure(_ action: String, _ path: String) -> ClaudeFailure {
    ClaudeFailure(.startFailed, "The server can't \(action) \(path): \(String(cString: strerror(errno)))")
  }
}

/// The way to the model of one process.
struct ModelAccess: Sendable {
  /// What the server knows it by.
  let token: String
  /// The directory of its socket, with nothing else in it; the only one that the process may see.
  let directory: String
  fileprivate(set) var relay: SocketRelay?

  fileprivate static let socketName = "model"

  var socket: String { "\(directory)/\(Self.socketName)" }

  fileprivate init(token: String, directory: String) {
    self.token = token
    self.directory = directory
  }
}

/// How the connections of all processes to the model do.
public struct ModelGatewayStatistics: Sendable, Hashable {
  /// Those that are open.
  public var open: Int
  /// How often a process had as many as it may have, so that one more would have had to wait.
  public var bounded: Int
  /// Those that the server didn't take.
  public var failed: Int
}

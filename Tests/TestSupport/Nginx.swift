import Foundation
import Glibc
import Synchronization

/// A real nginx with the project's configuration, in front of a unix socket.
public final class Nginx: Sendable {
  public let port: Int
  /// The directory with the configuration, the logs and the temporary files.
  public let prefix: String
  private let child: Mutex<ChildProcess>

  public var process: ChildProcess { child.withLock { $0 } }

  public struct Failure: Error, CustomStringConvertible {
    public let description: String
  }

  /// Writes the configuration into `prefix`, and lets nginx check it.
  ///
  /// - Parameters:
  ///   - options: further options of scripts/render-nginx.
  ///   - environment: the environment of scripts/render-nginx beside the test's own; nil removes a variable.
  public static func render(
    prefix: String, port: Int, socket: String, options: [String] = [], environment: [String: String?] = [:]
  ) async throws {
    let log = prefix + ".render.log"
    try await succeed(
      [
        repositoryRoot + "/scripts/render-nginx", prefix, "--listen", "127.0.0.1:\(port)", "--socket", socket,
      ] + options, environment: withoutCredentials.merging(environment) { $1 }, log: log)
    try await succeed(command(prefix: prefix) + ["-t"], log: log)
  }

  /// The variables that would make a test use what its user has.
  public static let withoutCredentials: [String: String?] = [
    "ANTHROPIC_API_KEY": nil, "ANTHROPIC_AUTH_TOKEN": nil, "CLAUDE_CODE_OAUTH_TOKEN": nil, "ANTHROPIC_BASE_URL": nil,
  ]

  /// Runs `body` with a running nginx whose prefix is inside `directory`.
  public static func with<Result>(
    in directory: String, socket: String, options: [String] = [], environment: [String: String?] = [:],
    isolation: isolated (any Actor)? = #isolation, _ body: (Nginx) async throws -> Result
  ) async throws -> Result {
    let prefix = directory + "/nginx"
    let port = try freePort()
    try await render(prefix: prefix, port: port, socket: socket, options: options, environment: environment)
    let nginx = Nginx(port: port, prefix: prefix, try await start(prefix: prefix, port: port))
    do {
      let result = try await body(nginx)
      await nginx.process.stop()
      return result
    } catch {
      await nginx.process.stop()
      throw error
    }
  }

  private init(port: Int, prefix: String, _ child: ChildProcess) {
    self.port = port
    self.prefix = prefix
    self.child = Mutex(child)
  }

  private static func start(prefix: String, port: Int) async throws -> ChildProcess {
    let child = try ChildProcess(command(prefix: prefix), output: prefix + ".log")
    do {
      try await waitUntilListening(port: port, child: child)
    } catch {
      await child.stop()
      throw Failure(description: "nginx did not start: \(error)\n\(text(of: prefix + ".log"))")
    }
    return child
  }

  /// Ends the master and its workers as the kernel would.
  public func kill() async {
    process.signal(SIGKILL)
    _ = await process.waitForExit()
  }

  /// Starts nginx again after it has ended, as scripts/run does it.
  public func restart() async throws {
    try FileManager.default.removeItem(atPath: prefix + "/tmp")
    try FileManager.default.createDirectory(atPath: prefix + "/tmp", withIntermediateDirectories: false)
    // Left behind if it was killed, and in the way.
    unlink(prefix + "/../m/api.sock")
    let started = try await Self.start(prefix: prefix, port: port)
    child.withLock { $0 = started }
  }

  /// Ends the workers as the kernel would; the master starts others.
  public func killWorkers() {
    for pid in workers { _ = Glibc.kill(pid, SIGKILL) }
  }

  private var workers: [Int32] {
    let master = process.pid
    return text(of: "/proc/\(master)/task/\(master)/children").split(separator: " ").compactMap { Int32($0) }
  }

  /// Takes a changed configuration up. Returns when the workers with the old one have ended, and the connections at rest
  /// with them; so there must be no others.
  public func reload() async throws {
    let old = workers
    process.signal(SIGHUP)
    for _ in 0..<3000 {
      if old.allSatisfy({ Glibc.kill($0, 0) != 0 }) { return }
      try await Task.sleep(for: .milliseconds(10))
    }
    throw Failure(description: "nginx did not take its new configuration up")
  }

  private static func command(prefix: String) -> [String] {
    let user = geteuid() == 0 ? " user root;" : ""
    return [
      "nginx", "-p", prefix, "-c", "nginx.conf", "-e", "stderr",
      "-g", "daemon off;" + user,
    ]
  }

  private static func succeed(
    _ arguments: [String], environment: [String: String?] = [:], log: String
  ) async throws {
    let exit = try await run(arguments, environment: environment, output: log)
    guard exit == .status(0) else {
      throw Failure(description: "\(arguments.joined(separator: " ")): \(exit)\n\(text(of: log))")
    }
  }
}

/// The text of a file, or nothing if it isn't there.
public func text(of path: String) -> String {
  String(decoding: FileManager.default.contents(atPath: path) ?? Data(), as: UTF8.self)
}

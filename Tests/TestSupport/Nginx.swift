import Foundation

/// A real nginx with the project's configuration, in front of a unix socket.
public struct Nginx: Sendable {
  public let port: Int
  /// The directory with the configuration, the logs and the temporary files.
  public let prefix: String
  public let process: ChildProcess

  public struct Failure: Error, CustomStringConvertible {
    public let description: String
  }

  /// Writes the configuration into `prefix`, and lets nginx check it.
  ///
  /// - Parameter options: further options of scripts/render-nginx.
  public static func render(prefix: String, port: Int, socket: String, options: [String] = []) async throws {
    let log = prefix + ".render.log"
    try await succeed(
      [
        repositoryRoot + "/scripts/render-nginx", prefix, "--listen", "127.0.0.1:\(port)", "--socket", socket,
      ] + options, log: log)
    try await succeed(command(prefix: prefix) + ["-t"], log: log)
  }

  /// Runs `body` with a running nginx whose prefix is inside `directory`.
  public static func with<Result>(
    in directory: String, socket: String, options: [String] = [],
    isolation: isolated (any Actor)? = #isolation, _ body: (Nginx) async throws -> Result
  ) async throws -> Result {
    let prefix = directory + "/nginx"
    let port = try freePort()
    try await render(prefix: prefix, port: port, socket: socket, options: options)
    return try await withChild(command(prefix: prefix), output: prefix + ".log") { child in
      do {
        try await waitUntilListening(port: port, child: child)
      } catch {
        throw Failure(description: "nginx did not start: \(error)\n\(text(of: prefix + ".log"))")
      }
      return try await body(Nginx(port: port, prefix: prefix, process: child))
    }
  }

  private static func command(prefix: String) -> [String] {
    let user = geteuid() == 0 ? " user root;" : ""
    return [
      "nginx", "-p", prefix, "-c", "nginx.conf", "-e", "stderr",
      "-g", "daemon off;" + user,
    ]
  }

  private static func succeed(_ arguments: [String], log: String) async throws {
    let exit = try await run(arguments, output: log)
    guard exit == .status(0) else {
      throw Failure(description: "\(arguments.joined(separator: " ")): \(exit)\n\(text(of: log))")
    }
  }
}

/// The text of a file, or nothing if it isn't there.
public func text(of path: String) -> String {
  String(decoding: FileManager.default.contents(atPath: path) ?? Data(), as: UTF8.self)
}

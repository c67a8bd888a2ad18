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

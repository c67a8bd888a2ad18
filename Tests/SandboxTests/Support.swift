import ClaudeRunner
import Foundation
import TestSupport

@testable import Sandbox

/// A sandbox with two sessions in a directory of its own.
struct Fixture {
  let directory: String
  let sandbox: BubblewrapSandbox
  let own: ClaudeLaunch
  let other: ClaudeLaunch

  init(in directory: String, _ change: (inout SandboxConfiguration) -> Void = { _ in }) async throws {
    self.directory = directory
    var configuration = SandboxConfiguration(supportDirectory: directory + "/state/sandbox")
    change(&configuration)
    sandbox = try await BubblewrapSandbox.prepare(configuration)
    own = try Self.launch(in: directory)
    other = try Self.launch(in: directory)
    for path in [directory + "/state/claude-api.sqlite", other.workingDirectory + "/theirs"] {
      try Data("decoy".utf8).write(to: URL(filePath: path))
    }
  }

  private static func launch(in directory: String) throws -> ClaudeLaunch {
    let id = UUID().uuidString.lowercased()
    let launch = ClaudeLaunch(
      sessionID: id, executable: "/bin/sh", arguments: [], environment: [:],
      workingDirectory: "\(directory)/w/\(id)", configDirectory: "\(directory)/state/claude-config/\(id)")
    for path in [launch.workingDirectory, launch.configDirectory] {
      try FileManager.default.createDirectory(atPath: path, withIntermediateDirectories: true)
    }
    return launch
  }

  /// Runs a script of the shell as the agent would.
  func run(
    _ script: String, _ arguments: [String] = [], prefix: [String] = []
  ) async throws -> (exit: ChildProcess.Exit, output: String) {
    let output = directory + "/output-\(UUID().uuidString)"
    let command = try sandbox.wrap(["/bin/bash", "-c", script, "bash"] + arguments, for: own)
    let exit = try await TestSupport.run(
      ["/usr/bin/env", "-i", "PATH=/usr/bin:/bin", "TOKEN=of-the-model"] + command, output: output)
    return (exit, text(of: output).trimmingCharacters(in: .whitespacesAndNewlines))
  }
}

/// Why nothing can be tested here, or nil.
let obstacle: String? = {
  for path in ["/usr/bin/bwrap", "/usr/bin/prlimit"] where access(path, X_OK) != 0 { return "there is no \(path)" }
  return nil
}()

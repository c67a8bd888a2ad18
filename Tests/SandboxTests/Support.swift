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
  /// The directory of the socket from which the session's requests go to the model.
  var gatewayDirectory: String { directory + "/state/run/agents/own" }

  init(in directory: String, _ change: (inout SandboxConfiguration) -> Void = { _ in }) async throws {
    self.directory = directory
    var configuration = SandboxConfiguration(supportDirectory: directory + "/state/sandbox")
    change(&configuration)
    sandbox = try await BubblewrapSandbox.prepare(configuration)
    own = try Self.launch(in: directory, directory + "/state/run/agents/own")
    other = try Self.launch(in: directory, directory + "/state/run/agents/other")
    for path in [directory + "/state/claude-api.sqlite", other.workingDirectory + "/theirs"] {
      try Data("decoy".utf8).write(to: URL(filePath: path))
    }
  }

  private static func launch(in directory: String, _ gateway: String) throws -> ClaudeLaunch {
    let id = UUID().uuidString.lowercased()
    let launch = ClaudeLaunch(
      sessionID: id, executable: "/bin/sh", arguments: [], environment: [:],
      workingDirectory: "\(directory)/w/\(id)", configDirectory: "\(directory)/state/claude-config/\(id)",
      gatewayDirectory: gateway, account: "somebody")
    for path in [launch.workingDirectory, launch.configDirectory, gateway] {
      try FileManager.default.createDirectory(atPath: path, withIntermediateDirectories: true)
    }
    return launch
  }

  /// Runs a script of the shell as the agent would.
  func run(
    _ script: String, _ arguments: [String] = [], network: ClaudeNetwork? = nil
  ) async throws -> (exit: ChildProcess.Exit, output: String) {
    let output = directory + "/output-\(UUID().uuidString)"
    var launch = own
    launch.network = network
    let command = try sandbox.wrap(["/bin/bash", "-c", script, "bash"] + arguments, for: launch)
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

/// Runs `body` with control groups of version 1 that are the test's own, one for each controller that this user may
/// divide; there may be none. They are removed afterwards.
func withDecoyGroups(_ body: ([String]) async throws -> Void) async throws {
  var discovery = ControlGroupDiscovery(name: "claude-api-test-\(UUID().uuidString)")
  // Not the group of version 2: it would be divided for good, with the test's process in it.
  discovery.ownGroups = discovery.ownGroups.split(separator: "\n").filter { !$0.hasPrefix("0:") }.joined(
    separator: "\n")
  let groups = discovery.find()
  func remove() async throws {
    for group in groups {
      // What was killed a moment ago may still be on its way out.
      for _ in 0..<1000 {
        for key in try FileManager.default.contentsOfDirectory(atPath: group) where key.hasPrefix("key-") {
          for name in try FileManager.default.contentsOfDirectory(atPath: "\(group)/\(key)")
          where UUID(uuidString: name) != nil {
            rmdir("\(group)/\(key)/\(name)")
          }
          rmdir("\(group)/\(key)")
        }
        if rmdir(group) == 0 { break }
        try await Task.sleep(for: .milliseconds(10))
      }
    }
  }
  do {
    try await body(groups)
  } catch {
    try await remove()
    throw error
  }
  try await remove()
}

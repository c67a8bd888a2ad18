import Foundation
import Glibc
import JSONSupport
import NIOHTTP1
import TestSupport
import Testing

/// `claude-api-server backup` and `restore`.
@Suite struct BackupTests {
  private func server(_ stack: Stack, _ arguments: [String]) async throws -> (exit: ChildProcess.Exit, text: String) {
    let log = stack.directory + "/command.\(UUID().uuidString)"
    let exit = try await TestSupport.run(
      [Stack.product("claude-api-server")] + arguments + [
        "--state-dir", stack.stateDirectory, "--workspace-root", stack.workspaceRoot,
      ], output: log)
    return (exit, text(of: log))
  }

  @Test func aBackupOfARunningServerIsRestoredWithItsConversations() async throws {
    try await Stack.run { stack in
      let files = FileManager.default
      let id = try await stack.createSession()
      #expect(try await stack.say("remember 7341", to: id) == "1: remember 7341")
      let folder = "\(stack.workspaceRoot)/\(id)/folder"
      try files.createDirectory(atPath: folder, withIntermediateDirectories: false)
      try Data("kept".utf8).write(to: URL(filePath: folder + "/file"))
      // What an agent leaves must not be in the way of a backup, such as a path that is too long for the system.
      let deep = open(folder, O_RDONLY | O_DIRECTORY)
      defer { close(deep) }
      #expect(makeChain(of: 40, in: deep))
      let share = try await stack.post("/sessions/\(id)/files/share", ["path": "folder"])
      let link = try #require(try share.json["href"]?.stringValue, "\(share.text)")
      // A turn that runs is in the backup as one that was interrupted.
      let other = try await stack.createSession()
      let running = Task { try await stack.say("fake:delay 3000", to: other) }
      try await waitUntil { try await stack.get("/sessions/\(other)/turns").text.contains("running") }
      let backup = stack.directory + "/backup"
      let made = try await server(stack, ["backup", backup])
      #expect(made.exit == .status(0), "\(made.text)")
      #expect(made.text.contains("2 sessions"))
      #expect(try await running.value == "after 3000 ms")
      // What comes after it isn't.
      #expect(try await stack.say("forget", to: id) == "2: remember 7341 | forget")

      // Nothing that lives is overwritten, whether it runs or not.
      let alive = try await server(stack, ["restore", backup])
      #expect(alive.exit != .status(0))
      #expect(alive.text.contains("another process serves on"))
      await stack.stopResponder()
      let full = try await server(stack, ["restore", backup])
      #expect(full.exit != .status(0))
      #expect(full.text.contains("There is a store in"))
      let second = try await server(stack, ["backup", backup])
      #expect(second.exit != .status(0))
      #expect(second.text.contains("exists already"))

      try files.moveItem(atPath: stack.stateDirectory, toPath: stack.directory + "/lost-state")
      try files.moveItem(atPath: stack.workspaceRoot, toPath: stack.directory + "/lost-files")
      let restored = try await server(stack, ["restore", backup])
      #expect(restored.exit == .status(0), "\(restored.text)")
      try await stack.startResponder()
      #expect(try await stack.get("/sessions").json["count"] == 2)
      #expect(try await stack.say("which?", to: id) == "2: remember 7341 | which?")
      #expect(text(of: folder + "/file") == "kept")
      let again = open(folder, O_RDONLY | O_DIRECTORY)
      defer { close(again) }
      #expect(lengthOfChain(in: again) == 40)
      let listing = try await stack.get(link, headers: ["Accept": "application/json"])
      #expect(listing.status == 200 && listing.text.contains("\"file\""), "\(listing.text)")
      // Nobody else would find such paths.
      for place in [stack.workspaceRoot, stack.directory + "/lost-files", backup + "/workspaces"] {
        let folder = open("\(place)/\(id)/folder", O_RDONLY | O_DIRECTORY)
        removeChain(in: folder)
        close(folder)
      }
      #expect(try await stack.get("/sessions/\(other)/turns").json["turns"]?.arrayValue?[0]["state"] == "interrupted")
    }
  }

  @Test func aDamagedBackupIsRefused() async throws {
    try await Stack.run { stack in
      let id = try await stack.createSession()
      #expect(try await stack.say("one", to: id) == "1: one")
      let backup = stack.directory + "/backup"
      #expect(try await server(stack, ["backup", "--without-files", backup]).exit == .status(0))
      await stack.stopResponder()
      try FileManager.default.moveItem(atPath: stack.stateDirectory, toPath: stack.directory + "/lost-state")
      let none = try await server(stack, ["restore", stack.directory])
      #expect(none.text.contains("is no backup"))
      let store = backup + "/claude-api.sqlite"
      var bytes = try #require(FileManager.default.contents(atPath: store))
      for index in 4096..<bytes.count { bytes[index] = 0x5a }
      try bytes.write(to: URL(filePath: store))
      let damaged = try await server(stack, ["restore", backup])
      #expect(damaged.exit != .status(0))
      #expect(damaged.text.contains("damaged"), "\(damaged.text)")
      #expect(!FileManager.default.fileExists(atPath: stack.stateDirectory + "/claude-api.sqlite"))
    }
  }

  private func waitUntil(_ condition: () async throws -> Bool) async throws {
    for _ in 0..<3000 {
      if try await condition() { return }
      try await Task.sleep(for: .milliseconds(10))
    }
    throw Stack.Failure("the condition did not come true")
  }
}

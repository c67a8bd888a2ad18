import Foundation
import TestSupport
import Testing
import Workspaces

/// What must hold for every path, tried with many. A path that once broke something belongs into `Fixtures/paths.txt`,
/// one on each line as it is in a URL.
@Suite struct RelativePathFuzzTests {
  /// What a path that was taken may be, whatever it was made of.
  private func check(_ path: RelativePath, _ origin: String) {
    for component in path.components {
      #expect(!component.isEmpty && component.count <= 255, "\(origin)")
      #expect(!component.elementsEqual(".".utf8) && !component.elementsEqual("..".utf8), "\(origin)")
      #expect(!component.contains(0) && !component.contains(0x2f), "\(origin)")
    }
    #expect(path.bytes.count < 4096 && path.bytes.first != 0x2f && path.bytes.last != 0x2f, "\(origin)")
    #expect(path.bytes.split(separator: 0x2f, omittingEmptySubsequences: false).count == max(path.components.count, 1))
    #expect((try? RelativePath(percentEncoded: path.percentEncoded.utf8)) == path, "\(origin)")
    #expect((try? RelativePath(path.bytes)) == path, "\(origin)")
    #expect(
      path.percentEncoded.utf8.allSatisfy { $0 > 0x20 && $0 < 0x7f && !Array("?#\"'<>&\\\r\n".utf8).contains($0) })
    if let parent = path.parent {
      #expect(path.isWithin(parent) && !parent.isWithin(path), "\(origin)")
      #expect(parent.components.count + 1 == path.components.count, "\(origin)")
      #expect((try? parent.appending(RelativePath(path.name))) == path, "\(origin)")
    } else {
      #expect(path == .root)
    }
  }

  private func check(escaped text: String) {
    let decoded = try? RelativePath.decode(text.utf8)
    let path = try? RelativePath(percentEncoded: text.utf8)
    guard let decoded else { return #expect(path == nil, "\(text)") }
    // Decoded once, and not twice.
    #expect(path == (try? RelativePath(decoded)), "\(text)")
    if let path { check(path, text) }
  }

  @Test func pathsOfPieces() {
    Fuzz.rounds(20_000) { random, _ in check(escaped: random.path()) }
  }

  @Test func anyBytes() throws {
    try Fuzz.rounds(20_000) { random, seed in
      let bytes = random.pathBytes()
      let decoded = try RelativePath.decode(RelativePath.encode(bytes[...]).utf8)
      #expect(decoded == bytes, "seed \(seed)")
      let kept = try RelativePath.decode(RelativePath.encode(bytes[...], keepingSeparators: true).utf8)
      #expect(kept == bytes, "seed \(seed)")
      if let path = try? RelativePath(bytes) { check(path, "\(bytes)") }
      check(escaped: String(decoding: bytes, as: UTF8.self))
    }
  }

  @Test func findings() throws {
    let file = URL(filePath: #filePath).deletingLastPathComponent().appending(path: "Fixtures/paths.txt")
    let lines = try String(contentsOf: file, encoding: .utf8).split(separator: "\n").filter { !$0.hasPrefix("# ") }
    #expect(lines.count > 10)
    for line in lines { check(escaped: String(line)) }
  }

  /// Whatever the path, nothing beside the workspace is seen or changed.
  @Test func operations() async throws {
    try await withTemporaryDirectory { directory in
      let workspaces = try Workspaces(root: directory + "/w", configurationRoot: directory + "/c")
      let session = UUID()
      try await workspaces.create(session)
      let top = workspaces.workspacePath(of: session)
      for path in [directory + "/decoy", directory + "/w/decoy"] {
        try FileManager.default.createDirectory(atPath: path, withIntermediateDirectories: true)
        try Data("secret".utf8).write(to: URL(filePath: path + "/file"))
      }
      symlink("../../decoy", top + "/l")
      let body = directory + "/body"
      try Data("x".utf8).write(to: URL(filePath: body))
      for (_, paths) in Fuzz.inputs(500, { random in (random.path(), random.path()) }) {
        guard let path = try? RelativePath(percentEncoded: paths.0.utf8) else { continue }
        let other = (try? RelativePath(percentEncoded: paths.1.utf8)) ?? .root
        do { _ = try await workspaces.status(path, of: session) } catch is FileError {}
        do { _ = try await workspaces.put(BodyFile(path: body), at: path, of: session) } catch is FileError {}
        do { _ = try await workspaces.move(path, to: other, of: session, replaces: true) } catch is FileError {}
        do { _ = try await workspaces.makeDirectory(other, of: session) } catch is FileError {}
        do { _ = try await workspaces.delete(other, of: session, isRecursive: true) } catch is FileError {}
      }
      for path in [directory + "/decoy", directory + "/w/decoy"] {
        #expect(try FileManager.default.contentsOfDirectory(atPath: path) == ["file"])
        #expect(text(of: path + "/file") == "secret")
      }
      let names = try FileManager.default.contentsOfDirectory(atPath: directory + "/w").sorted()
      #expect(names == [".incoming", session.uuidString.lowercased(), "decoy"].sorted())
      #expect(try FileManager.default.contentsOfDirectory(atPath: directory).sorted() == ["body", "c", "decoy", "w"])
    }
  }
}

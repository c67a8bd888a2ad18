import Testing
import Workspaces

@Suite struct RelativePathTests {
  @Test(arguments: [
    ("a/b", "a/b"), ("a/b/", "a/b"), ("", ""), ("...", "..."), (".a/..b", ".a/..b"), ("a b", "a b"), ("a\\b", "a\\b"),
  ])
  func good(text: String, result: String) throws {
    #expect(try RelativePath(text.utf8).bytes == Array(result.utf8))
  }

  @Test(
    arguments: [
      ("/", .emptyComponent), ("/a", .emptyComponent), ("a//b", .emptyComponent), ("a//", .emptyComponent),
      ("..", .dotComponent), (".", .dotComponent), ("a/../b", .dotComponent), ("a/.", .dotComponent),
      ("a/./b", .dotComponent), ("a\0b", .nul), (String(repeating: "a", count: 256), .tooLong),
      (String(repeating: "a/", count: 2049), .tooLong),
    ] as [(String, RelativePath.Malformation)])
  func bad(text: String, problem: RelativePath.Malformation) {
    #expect(throws: problem) { try RelativePath(text.utf8) }
  }

  @Test func escapesAreDecodedOnce() throws {
    #expect(
      try RelativePath(percentEncoded: "a%20b/%ff%2525".utf8).bytes == Array("a b/".utf8) + [0xff] + Array("%25".utf8))
    for text in ["%2e%2e", "a/%2E%2e/b", "..%2f"] {
      #expect(throws: RelativePath.Malformation.dotComponent) { try RelativePath(percentEncoded: text.utf8) }
    }
    for text in ["%", "%2", "%zz", "a%"] {
      #expect(throws: RelativePath.Malformation.badEscape) { try RelativePath(percentEncoded: text.utf8) }
    }
    #expect(throws: RelativePath.Malformation.nul) { try RelativePath(percentEncoded: "a%00".utf8) }
    // Not the shortest form of "/" and ".", and therefore neither.
    #expect(try RelativePath(percentEncoded: "%c0%af%c0%ae".utf8).components.count == 1)
  }

  @Test func parts() throws {
    let path = try RelativePath("a/b/c".utf8)
    #expect(path.name.elementsEqual("c".utf8))
    #expect(try path.parent == RelativePath("a/b".utf8))
    #expect(try RelativePath("a".utf8).parent == .root && RelativePath.root.parent == nil)
    let (above, beside) = (try RelativePath("a/b".utf8), try RelativePath("a/bb".utf8))
    #expect(path.isWithin(.root) && path.isWithin(above) && path.isWithin(path))
    #expect(!path.isWithin(beside) && !beside.isWithin(path))
    #expect(try RelativePath("ü /%".utf8).percentEncoded == "%C3%BC%20/%25")
  }
}

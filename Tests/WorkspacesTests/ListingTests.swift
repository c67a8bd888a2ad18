import Foundation
import Glibc
import TestSupport
import Testing

@testable import Workspaces

/// Pages of directories.
@Suite struct ListingTests {
  /// A directory that holds these entries; those with a slash at their end are directories.
  private func withDirectory(
    _ names: [[UInt8]], _ body: (_ path: String, _ descriptor: CInt) async throws -> Void
  ) async throws {
    try await withTemporaryDirectory { directory in
      let descriptor = open(directory, O_RDONLY | O_DIRECTORY)
      defer { close(descriptor) }
      for name in names { try Self.make(name, in: descriptor) }
      try await body(directory, descriptor)
    }
  }

  private static func make(_ name: [UInt8], in directory: CInt) throws {
    let isDirectory = name.last == UInt8(ascii: "/")
    let made = withSystemName(isDirectory ? name.dropLast() : name[...]) { path in
      isDirectory ? mkdirat(directory, path, 0o755) : openat(directory, path, O_CREAT | O_EXCL | O_WRONLY, 0o600)
    }
    try #require(made >= 0, "\(name)")
    if !isDirectory { close(made) }
  }

  private static func written(_ page: NamePage) -> [[UInt8]] {
    page.names.map { $0.name + ($0.isDirectory ? [UInt8(ascii: "/")] : []) }
  }

  /// Directories first, then by bytes: the plain way to say it.
  private static func sorted(_ names: [[UInt8]]) -> [[UInt8]] {
    names.sorted { a, b in
      let (first, second) = (a.last == UInt8(ascii: "/"), b.last == UInt8(ascii: "/"))
      return first == second ? a.lexicographicallyPrecedes(b) : first
    }
  }

  /// Large enough to be read in two parts where the file system allows it.
  @Test func pagesOfALargeDirectoryAreTheWholeInOrder() async throws {
    var random = SplitMix64(seed: 11)
    let all = (0..<9000).map { index in
      let name = [UInt8](repeating: 0x6e, count: 190) + Array(String(random.next(), radix: 36).utf8)
      return name + (index % 90 == 0 ? [UInt8(ascii: "/")] : [])
    }
    let expected = Self.sorted(all)
    try await withDirectory(all) { _, descriptor in
      var status = stat()
      try #require(fstat(descriptor, &status) == 0)
      for limit in [4000, 8999, 9000] {
        var found: [[UInt8]] = []
        var cursor: DirectoryListing.Cursor?
        while true {
          let page = try readNames(of: descriptor, after: cursor, limit: limit)
          #expect(page.count == expected.count && page.names.count <= limit)
          found += Self.written(page)
          if page.isComplete { break }
          let last: DirectoryListing.Cursor = try #require(page.names.last)
          cursor = last
        }
        #expect(found == expected, "limit \(limit), a directory of \(status.st_size) bytes")
      }
    }
  }

  @Test func pagesOfAnyLengthAreTheWholeInOrder() async throws {
    var random = SplitMix64(seed: 7)
    var names: Set<[UInt8]> = [[0x61], [0x61, 0x01], [0xff], [0xff, 0xfe], Array(".hidden".utf8)]
    let bytes: [UInt8] = [0x01, 0x20, 0x30, 0x31, 0x61, 0x7f, 0x80, 0xff]
    // Names that are equal at first, some of them prefixes of others, and some of bytes that are no text.
    while names.count < 400 {
      let start = ["", "same", "same start ", "zz"].randomElement(using: &random) ?? ""
      let end = (0..<Int.random(in: 1...12, using: &random)).map { _ in bytes.randomElement(using: &random) ?? 0x61 }
      names.insert(Array(start.utf8) + end)
    }
    names.insert([UInt8](repeating: 0x6e, count: 255))
    let all = names.sorted { $0.lexicographicallyPrecedes($1) }.enumerated().map { index, name in
      name + (index % 5 == 0 ? [UInt8(ascii: "/")] : [])
    }
    let expected = Self.sorted(all)
    try await withDirectory(all) { _, descriptor in
      for limit in [1, 2, 7, 100, expected.count - 1, expected.count, expected.count + 1, Int.max] {
        var found: [[UInt8]] = []
        var cursor: DirectoryListing.Cursor?
        while true {
          let page = try readNames(of: descriptor, after: cursor, limit: limit)
          #expect(page.count == expected.count && page.names.count <= limit)
          found += Self.written(page)
          if page.isComplete { break }
          let last: DirectoryListing.Cursor = try #require(page.names.last)
          cursor = last
        }
        #expect(found == expected, "limit \(limit)")
      }
      // After what isn't there, and what never was.
      let page = try readNames(of: descriptor, after: .init(isDirectory: false, name: []), limit: .max)
      #expect(Self.written(page) == expected.filter { $0.last != UInt8(ascii: "/") })
      let last = try readNames(
        of: descriptor, after: .init(isDirectory: false, name: [UInt8](repeating: 0xff, count: 200)), limit: 3)
      #expect(last.names.isEmpty && last.isComplete && last.count == expected.count)
    }
  }

  @Test func anEmptyDirectoryAndAPageOfNothing() async throws {
    try await withDirectory([]) { _, descriptor in
      let page = try readNames(of: descriptor, after: nil, limit: 10)
      #expect(page.names.isEmpty && page.count == 0 && page.isComplete)
      try Self.make(Array("x".utf8), in: descriptor)
      let none = try readNames(of: descriptor, after: nil, limit: 0)
      #expect(none.names.isEmpty && none.count == 1 && !none.isComplete)
    }
  }

  @Test func aKeptPageIsNeverOld() async throws {
    try await withDirectory((0..<10).map { Array("f\($0)".utf8) }) { path, descriptor in
      let cache = PageCache(threshold: 5, capacity: 60)
      func look(_ limit: Int = 4) throws -> [String] {
        try cache.names(of: descriptor, after: nil, limit: limit).names.map { String(decoding: $0.name, as: UTF8.self) }
      }
      func untilKept() async throws {
        let deadline = ContinuousClock.now + .seconds(30)
        while cache.count == 0 {
          try #require(ContinuousClock.now < deadline)
          _ = try look()
          try await Task.sleep(for: .milliseconds(50))
        }
      }
      // What has just been changed isn't kept yet.
      try await untilKept()
      #expect(try look() == ["f0", "f1", "f2", "f3"])
      // Small ones are read as fast.
      let unused = PageCache(threshold: 11)
      _ = try unused.names(of: descriptor, after: nil, limit: 4)
      #expect(unused.count == 0)
      for (name, expected) in [("a", ["a", "f0", "f1", "f2"]), ("b", ["a", "b", "f0", "f1"])] {
        try Self.make(Array(name.utf8), in: descriptor)
        // Nobody who may change a directory can hide that.
        var times = [timespec(tv_sec: 1000, tv_nsec: 0), timespec(tv_sec: 1000, tv_nsec: 0)]
        utimensat(AT_FDCWD, path, &times, 0)
        #expect(try look() == expected)
      }
      unlinkat(descriptor, "a", 0)
      rename(path + "/f0", path + "/z")
      #expect(try look() == ["b", "f1", "f2", "f3"])

      // However many pages are looked at, no more than so many are kept.
      let other = PageCache(threshold: 5, capacity: 60)
      let deadline = ContinuousClock.now + .seconds(30)
      while other.count == 0 {
        try #require(ContinuousClock.now < deadline)
        _ = try other.names(of: descriptor, after: nil, limit: 4)
        try await Task.sleep(for: .milliseconds(50))
      }
      for limit in 1...9 { _ = try other.names(of: descriptor, after: nil, limit: limit) }
      #expect(other.count > 0 && other.count <= 3)
    }
  }
}

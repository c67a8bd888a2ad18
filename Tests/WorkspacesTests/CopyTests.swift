import Foundation
import Glibc
import TestSupport
import Testing
import Workspaces

/// The copy of a workspace for a fork, on a file system that shares blocks and on one that doesn't.
@Suite struct CopyTests {
  @Test func aCopyIsEqualAndIndependent() async throws {
    try await withTemporaryDirectory { directory in
      try await Self.copyAndCompare(
        try Workspaces(root: directory + "/w", configurationRoot: directory + "/c"), in: directory)
    }
  }

  @Test(.enabled(if: ReflinkDisk.isSupported, "no disk with btrfs can be mounted here: it takes root and loop devices"))
  func aCopySharesBlocksWhereTheFileSystemCan() async throws {
    try await ReflinkDisk.with { disk, workspaces in
      try await Self.copyAndCompare(workspaces, in: disk.path)
      let source = UUID()
      try await workspaces.create(source)
      let size = 40 << 20
      // Nothing that could be stored in less.
      let words = (0..<UInt64(size / 8)).map { $0 &* 0x9e37_79b9_7f4a_7c15 }
      let content = words.withUnsafeBytes { Data($0) }
      let file = disk.path + "/w/\(source.uuidString.lowercased())/large"
      try content.write(to: URL(filePath: file))
      sync()
      let free = try disk.freeBytes()
      // More than would fit.
      let copies = (0..<Int(free) / size + 2).map { _ in UUID() }
      for copy in copies {
        try await workspaces.create(copy)
        try await workspaces.copy(source, to: copy)
      }
      let last = disk.path + "/w/\(try #require(copies.last).uuidString.lowercased())/large"
      #expect(FileManager.default.contents(atPath: last) == content)
      let handle = try FileHandle(forWritingTo: URL(filePath: last))
      try handle.write(contentsOf: Data("changed".utf8))
      try handle.close()
      #expect(FileManager.default.contents(atPath: file) == content)
    }
  }

  /// Makes a tree of all that there can be, copies it, and compares the two.
  private static func copyAndCompare(_ workspaces: Workspaces, in directory: String) async throws {
    let (source, copy) = (UUID(), UUID())
    try await workspaces.create(source)
    try await workspaces.create(copy)
    let top = directory + "/w/" + source.uuidString.lowercased()
    let files = FileManager.default
    try files.createDirectory(atPath: top + "/a/b/c", withIntermediateDirectories: true)
    try files.createDirectory(atPath: top + "/empty", withIntermediateDirectories: false)
    try Data().write(to: URL(filePath: top + "/nothing"))
    try Data("text".utf8).write(to: URL(filePath: top + "/a/b/c/text"))
    try Data(repeating: 7, count: 3 << 20).write(to: URL(filePath: top + "/large"))
    try Data("#!/bin/sh\n".utf8).write(to: URL(filePath: top + "/a/program"))
    chmod(top + "/a/program", 0o4751)
    // Data, a hole, data, and a hole at the end.
    let sparse = open(top + "/sparse", O_RDWR | O_CREAT, 0o600)
    #expect(pwrite(sparse, "begin", 5, 0) == 5)
    #expect(pwrite(sparse, "middle", 6, 8 << 20) == 6)
    #expect(ftruncate(sparse, 20 << 20) == 0)
    close(sparse)
    symlink("/etc/passwd", top + "/link")
    symlink("nowhere", top + "/a/dangling")
    link(top + "/large", top + "/a/second name")
    mkfifo(top + "/pipe", 0o600)
    for name in ["large", "sparse", "a/program", "empty", "a/b"] {
      var times = [timespec(tv_sec: 1_000_000_000, tv_nsec: 5), timespec(tv_sec: 1_100_000_000, tv_nsec: 7)]
      #expect(utimensat(AT_FDCWD, top + "/" + name, &times, AT_SYMLINK_NOFOLLOW) == 0)
    }
    chmod(top + "/empty", 0o500)

    try await workspaces.copy(source, to: copy)
    let target = directory + "/w/" + copy.uuidString.lowercased()
    let names = try files.subpathsOfDirectory(atPath: top).sorted()
    #expect(try files.subpathsOfDirectory(atPath: target).sorted() == names.filter { $0 != "pipe" })
    for name in names where name != "pipe" {
      var (old, new) = (stat(), stat())
      #expect(lstat(top + "/" + name, &old) == 0 && lstat(target + "/" + name, &new) == 0)
      #expect(old.st_mode & S_IFMT == new.st_mode & S_IFMT, "\(name)")
      switch old.st_mode & S_IFMT {
      case S_IFLNK:
        #expect(
          try files.destinationOfSymbolicLink(atPath: top + "/" + name)
            == files.destinationOfSymbolicLink(atPath: target + "/" + name))
      default:
        #expect(new.st_mode & 0o7777 == old.st_mode & 0o777, "\(name)")
        #expect(
          new.st_mtim.tv_sec == old.st_mtim.tv_sec && new.st_mtim.tv_nsec == old.st_mtim.tv_nsec, "\(name)")
      }
      guard old.st_mode & S_IFMT == S_IFREG else { continue }
      #expect(new.st_nlink == 1 && new.st_ino != old.st_ino)
      #expect(files.contents(atPath: top + "/" + name) == files.contents(atPath: target + "/" + name), "\(name)")
    }
    var holes = stat()
    #expect(stat(target + "/sparse", &holes) == 0 && holes.st_blocks * 512 < 2 << 20)
    chmod(top + "/empty", 0o700)
    chmod(target + "/empty", 0o700)
  }
}

/// A file system that lets files share blocks: btrfs in a file.
///
/// It is nowhere in the tree of files once it is open, so it goes with this process however that ends.
private struct ReflinkDisk {
  private let descriptor: Int32

  /// Where it is for this process.
  var path: String { "/proc/self/fd/\(descriptor)" }

  static let isSupported: Bool = {
    guard geteuid() == 0, access("/dev/loop-control", R_OK | W_OK) == 0 else { return false }
    guard let known = try? String(contentsOfFile: "/proc/filesystems", encoding: .utf8) else { return false }
    return known.contains("btrfs")
      && FileManager.default.isExecutableFile(atPath: "/usr/sbin/mkfs.btrfs")
  }()

  static func with<T>(_ body: (ReflinkDisk, Workspaces) async throws -> T) async throws -> T {
    try await withTemporaryDirectory { directory in
      let (image, place, log) = (directory + "/image", directory + "/mounted", directory + "/log")
      try FileManager.default.createDirectory(atPath: place, withIntermediateDirectories: false)
      let commands = [
        ["truncate", "-s", "256M", image], ["mkfs.btrfs", "-q", "-m", "single", image],
        ["mount", "-o", "loop", image, place],
      ]
      for command in commands {
        try #require(try await run(command, output: log) == .status(0), "\(command): \(text(of: log))")
      }
      // It finds its directories by their paths, and then keeps them open.
      let workspaces = Result { try Workspaces(root: place + "/w", configurationRoot: place + "/c") }
      let descriptor = open(place, O_RDONLY | O_DIRECTORY | O_CLOEXEC)
      try #require(try await run(["umount", "--lazy", place], output: log) == .status(0), "\(text(of: log))")
      try #require(descriptor >= 0)
      defer { close(descriptor) }
      return try await body(ReflinkDisk(descriptor: descriptor), try workspaces.get())
    }
  }

  func freeBytes() throws -> UInt64 {
    var status = statvfs()
    guard fstatvfs(descriptor, &status) == 0 else { throw SystemError(call: "fstatvfs") }
    return UInt64(status.f_bavail) * UInt64(status.f_frsize)
  }
}

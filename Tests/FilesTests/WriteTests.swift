import Foundation
import Sessions
import TestSupport
import Testing
import Workspaces

@Suite struct WriteTests {
  @Test func putReplacesWholeFiles() async throws {
    try await FilesServer.run { server in
      let file = server.base + "/files/deep/er/file.txt"
      let made = try await server.send("PUT", file, text: "one")
      #expect(made.status == 201)
      #expect(made["location"].first?.hasSuffix("/files/deep/er/file.txt") == true)
      #expect(try await server.send("GET", file)["etag"] == made["etag"])
      #expect(server.read("deep/er/file.txt") == "one")
      let replaced = try await server.send("PUT", file, text: "second")
      #expect(replaced.status == 204 && server.read("deep/er/file.txt") == "second")
      let emptied = try await server.send("PUT", file, [:], [])
      #expect(emptied.status == 204 && server.read("deep/er/file.txt")?.isEmpty == true)
      let attributes = try FileManager.default.attributesOfItem(atPath: server.workspace + "/deep/er/file.txt")
      #expect(attributes[.posixPermissions] as? Int == 0o644)
      #expect(try server.staged.isEmpty)
      chmod(server.workspace + "/deep/er/file.txt", 0o755)
      _ = try await server.send("PUT", file, text: "third")
      let kept = try FileManager.default.attributesOfItem(atPath: server.workspace + "/deep/er/file.txt")
      #expect(kept[.posixPermissions] as? Int == 0o755)
      #expect(try await server.send("PUT", server.base + "/files/deep", text: "x").problemCode == "is_a_folder")
      #expect(
        try await server.send("PUT", file + "/x", text: "x").status == 404)
    }
  }

  @Test func largeBodiesComeWhole() async throws {
    try await FilesServer.run { server in
      let body = pattern(3_000_000)
      let file = server.base + "/files/large.bin"
      #expect(try await server.send("PUT", file, [:], body).status == 201)
      #expect(try await server.send("GET", file).body == body)
      let head = server.bytes("PUT", server.base + "/files/chunked", ["Transfer-Encoding": "chunked"], nil)
      let chunked = try await exchange(port: server.port, head + Array("5\r\nhello\r\n0\r\n\r\n".utf8))
      #expect(chunked.status == 201)
      #expect(server.read("chunked") == "hello")
    }
  }

  @Test func conditions() async throws {
    try await FilesServer.run { server in
      let file = server.base + "/files/f"
      #expect(try await server.send("PUT", file, ["If-Match": "*"], text: "a").problemCode == "precondition_failed")
      #expect(server.read("f") == nil)
      let made = try await server.send("PUT", file, ["If-None-Match": "*"], text: "a")
      #expect(made.status == 201)
      let tag = try #require(made["etag"].first)
      #expect(try await server.send("PUT", file, ["If-None-Match": "*"], text: "b").status == 412)
      #expect(try await server.send("PUT", file, ["If-Match": "\"0-0\""], text: "b").status == 412)
      #expect(server.read("f") == "a")
      #expect(try await server.send("PUT", file, ["If-Match": "\"0-0\", \(tag)"], text: "bb").status == 204)
      #expect(try await server.send("DELETE", file, ["If-Match": tag]).status == 412)
      #expect(try await server.send("PUT", file, ["If-Match": "nonsense"], text: "b").status == 400)
      #expect(server.read("f") == "bb")
    }
  }

  @Test func twoThatMustBeFirst() async throws {
    try await FilesServer.run { server in
      let statuses = try await withThrowingTaskGroup(of: Int.self) { tasks in
        for index in 0..<8 {
          tasks.addTask {
            try await server.send("PUT", server.base + "/files/one", ["If-None-Match": "*"], text: "\(index)").status
          }
        }
        return try await tasks.reduce(into: []) { $0.append($1) }
      }
      #expect(statuses.count { $0 == 201 } == 1 && statuses.count { $0 == 412 } == 7)
    }
  }

  @Test func digests() async throws {
    try await FilesServer.run { server in
      let file = server.base + "/files/f"
      let right = "sha-256=:LPJNul+wow4m6DsqxbninhsWHlwfp0JecwQzYpOLmCQ=:"
      #expect(try await server.send("PUT", file, ["Content-Digest": right], text: "hello").status == 201)
      let wrong = try await server.send("PUT", file, ["Content-Digest": right], text: "hellO")
      #expect(wrong.status == 400 && wrong.problemCode == "digest_mismatch")
      #expect(server.read("f") == "hello")
      for malformed in ["sha-256=abc", "sha-256=:abcd:", "x"] {
        let response = try await server.send("PUT", file, ["Content-Digest": malformed], text: "hello")
        #expect(response.problemCode == "invalid_digest", "\(malformed)")
      }
      #expect(try await server.send("PUT", file, ["Content-Digest": "md9=:YQ==:"], text: "hello").status == 204)
      #expect(try server.staged.isEmpty)
    }
  }

  @Test func anUploadThatBreaksOffLeavesNothing() async throws {
    try await FilesServer.run { server in
      var connection: RawConnection? = try RawConnection(port: server.port)
      try await connection?.send(
        "PUT \(server.base)/files/half HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n")
      try await connection?.send([UInt8](repeating: 0x61, count: 900_000))
      #expect(server.read("half") == nil)
      #expect(try server.staged.isEmpty)
      // nginx has a part of it by now, and drops it when the client has gone.
      let bodies = server.nginx.prefix + "/tmp/body"
      try await eventually("a part") { try !files(below: bodies).isEmpty }
      connection = nil
      try await eventually("no part") { try files(below: bodies).isEmpty }
      #expect(try FileManager.default.contentsOfDirectory(atPath: server.workspace).isEmpty)
    }
  }

  private func files(below path: String) throws -> [String] {
    try FileManager.default.subpathsOfDirectory(atPath: path).filter { name in
      var isDirectory: ObjCBool = false
      return FileManager.default.fileExists(atPath: path + "/" + name, isDirectory: &isDirectory)
        && !isDirectory.boolValue
    }
  }

  @Test func twoUploadsToOneName() async throws {
    try await FilesServer.run { server in
      let contents = (0..<6).map { value in [UInt8](repeating: UInt8(0x61 + value), count: 400_000 + value) }
      let file = server.base + "/files/one"
      let reader = Task {
        var whole = true
        while !Task.isCancelled {
          let read = try await server.send("GET", file)
          if read.status == 200 { whole = whole && contents.contains(read.body) }
        }
        return whole
      }
      try await withThrowingTaskGroup(of: Void.self) { tasks in
        for content in contents {
          tasks.addTask {
            for _ in 0..<5 {
              let status = try await server.send("PUT", file, [:], content).status
              #expect(status == 201 || status == 204)
            }
          }
        }
        try await tasks.waitForAll()
      }
      reader.cancel()
      // Whoever reads sees one of them, and never a mixture.
      #expect(try await reader.value)
      let last = try Data(contentsOf: URL(fileURLWithPath: server.workspace + "/one"))
      #expect(contents.contains(Array(last)))
      #expect(try server.staged.isEmpty)
    }
  }

  @Test func contentsOfTheSameSecondHaveDifferentTags() async throws {
    try await FilesServer.run { server in
      let file = server.base + "/files/f"
      var tags: [String] = []
      for content in ["aaa", "bbb", "ccc", "ddd"] {
        tags += try await server.send("PUT", file, text: content)["etag"]
        #expect(try await server.send("GET", file)["etag"] == tags.suffix(1))
      }
      #expect(Set(tags).count == 4)
      #expect(try await server.send("PUT", file, ["If-Match": tags[2]], text: "eee").status == 412)
      #expect(try await server.send("GET", file, ["If-None-Match": tags[2]]).text == "ddd")
      let part = try await server.send("GET", file, ["Range": "bytes=1-1", "If-Range": tags[2]])
      #expect(part.status == 200 && part.text == "ddd")
    }
  }

  @Test func limits() async throws {
    var limits = WorkspaceLimits()
    limits.uploadBytes = 100_000
    limits.bytes = 300_000
    limits.entries = 10
    try await FilesServer.run(limits: limits, nginxOptions: ["--max-upload", "1m"]) { server in
      let tooLarge = try await server.send("PUT", server.base + "/files/a", [:], .init(repeating: 1, count: 100_001))
      #expect(tooLarge.status == 413 && tooLarge.problemCode == "upload_too_large")
      let farTooLarge = try await server.send(
        "PUT", server.base + "/files/a", ["Expect": "100-continue", "Content-Length": "2000000"])
      #expect(farTooLarge.status == 413 && farTooLarge.problemCode == "content_too_large")
      var last = 201
      var count = 0
      while last == 201, count < 10 {
        let response = try await server.send(
          "PUT", server.base + "/files/b\(count)", [:], .init(repeating: 1, count: 90_000))
        last = response.status
        if last != 201 { #expect(response.problemCode == "quota_exceeded") }
        count += 1
      }
      #expect(last == 507 && count == 4)
      for index in 0..<3 { _ = try await server.send("DELETE", server.base + "/files/b\(index)") }
      last = 201
      count = 0
      while last == 201, count < 20 {
        last = try await server.send("PUT", server.base + "/files/c\(count)", [:], []).status
        count += 1
      }
      #expect(last == 507 && count == 11)
      #expect(try await server.json("POST", server.base + "/folders", #"{"path":"x"}"#).status == 507)
      #expect(try server.staged.isEmpty)
    }
  }

  @Test func foldersMovesAndDeletions() async throws {
    try await FilesServer.run { server in
      let folder = try await server.json("POST", server.base + "/folders", #"{"path":"a/b/c"}"#)
      #expect(folder.status == 201)
      #expect(try await server.json("POST", server.base + "/folders", #"{"path":"a/b/c"}"#).status == 200)
      try server.write("x", to: "a/file")
      #expect(try await server.json("POST", server.base + "/folders", #"{"path":"a/file"}"#).status == 409)
      #expect(
        try await server.json("POST", server.base + "/move", #"{"from":"a/file","to":"new/name"}"#).status == 200)
      #expect(server.read("new/name") == "x" && server.read("a/file") == nil)
      try server.write("y", to: "other")
      let taken = try await server.json("POST", server.base + "/move", #"{"from":"other","to":"new/name"}"#)
      #expect(taken.status == 409 && taken.problemCode == "file_exists")
      let over = #"{"from":"other","to":"new/name","overwrite":true}"#
      #expect(try await server.json("POST", server.base + "/move", over).status == 200)
      #expect(server.read("new/name") == "y")
      let inside = try await server.json("POST", server.base + "/move", #"{"from":"a","to":"a/b/x"}"#)
      #expect(inside.problemCode == "into_itself")
      #expect(try await server.json("POST", server.base + "/move", #"{"from":"none","to":"x"}"#).status == 404)
      for bad in [#""../x""#, #""/etc/x""#, #""a//b""#, #""a/./b""#, #""a\u0000b""#, #""""#, "7"] {
        let response = try await server.json("POST", server.base + "/folders", #"{"path":\#(bad)}"#)
        #expect(response.status == 400 || response.status == 422, "\(bad)")
      }
      let full = try await server.send("DELETE", server.base + "/files/a")
      #expect(full.status == 409 && full.problemCode == "folder_not_empty")
      #expect(try await server.send("DELETE", server.base + "/files/a?recursive=true").status == 204)
      #expect(try await server.send("DELETE", server.base + "/files/a").status == 404)
      #expect(try await server.send("DELETE", server.base + "/files/?recursive=true").status == 405)
      #expect(try server.staged.isEmpty)
    }
  }
}

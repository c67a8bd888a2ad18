import ClaudeAPI
import Foundation
import Sessions
import TestSupport
import Testing
import Workspaces

@Suite struct DownloadTests {
  /// Small files sent by the responder, and all sent by nginx.
  static let bothWays = [FilesConfiguration().maximumDirectBytes, 0]

  private static func configuration(direct bytes: Int) -> FilesConfiguration {
    var configuration = FilesConfiguration()
    configuration.maximumDirectBytes = bytes
    return configuration
  }

  @Test func itMakesNoDifferenceWhoSendsAFile() async throws {
    var seen: [[String]] = []
    for limit in Self.bothWays {
      try await FilesServer.run(configuration: Self.configuration(direct: limit)) { server in
        try server.write("hello", to: "a.txt")
        var times = [timespec(tv_sec: 1_700_000_000, tv_nsec: 1), timespec(tv_sec: 1_700_000_000, tv_nsec: 1)]
        #expect(utimensat(AT_FDCWD, server.workspace + "/a.txt", &times, 0) == 0)
        let response = try await server.send("GET", server.base + "/files/a.txt")
        #expect(response.text == "hello")
        seen.append(
          response.fields.map { "\($0.name.lowercased()): \($0.value)" }
            .filter { !$0.hasPrefix("date:") && !$0.hasPrefix("x-request-id:") }.sorted())
      }
    }
    #expect(seen[0] == seen[1])
    #expect(seen[0].contains("last-modified: Tue, 14 Nov 2023 22:13:20 GMT"))
  }

  @Test func aFileIsWholeWhateverItsSize() async throws {
    let limit = FilesConfiguration().maximumDirectBytes
    try await FilesServer.run { server in
      for size in [0, 1, 8191, 8192, limit - 1, limit, limit + 1, 100_000] {
        let content = String((0..<size).map { Character(UnicodeScalar(UInt8(0x21 + $0 % 90))) })
        try server.write(content, to: "file")
        let response = try await server.send("GET", server.base + "/files/file")
        #expect(response.status == 200 && response.text == content, "\(size)")
        #expect(response["content-length"] == ["\(size)"])
      }
    }
  }

  @Test(arguments: DownloadTests.bothWays)
  func nginxSendsFiles(direct: Int) async throws {
    try await FilesServer.run(configuration: Self.configuration(direct: direct)) { server in
      try server.write("hello", to: "a/b.txt")
      let response = try await server.send("GET", server.base + "/files/a/b.txt")
      #expect(response.status == 200)
      #expect(response.text == "hello")
      #expect(response["content-type"] == ["text/plain; charset=utf-8"])
      #expect(response["content-disposition"] == ["inline; filename=\"b.txt\""])
      #expect(response["content-security-policy"].first?.hasPrefix("sandbox; default-src 'none'") == true)
      #expect(response["x-content-type-options"] == ["nosniff"])
      #expect(response["accept-ranges"] == ["bytes"])
      #expect(response["x-accel-redirect"].isEmpty)
      let tag = try #require(response["etag"].first)
      let status = try await server.workspaces.status(try .init("a/b.txt".utf8), of: server.session.id)
      #expect(status.entityTag == tag)

      let head = try await server.send("HEAD", server.base + "/files/a/b.txt")
      #expect(head.status == 200 && head.body.isEmpty && head["content-length"] == ["5"])
      let part = try await server.send("GET", server.base + "/files/a/b.txt", ["Range": "bytes=1-2"])
      #expect(part.status == 206 && part.text == "el")
      let same = try await server.send("GET", server.base + "/files/a/b.txt", ["If-None-Match": tag])
      #expect(same.status == 304)
      let wrong = try await server.send("GET", server.base + "/files/a/b.txt", ["Range": "bytes=9-"])
      #expect(wrong.status == 416 && wrong.problemCode == "range_not_satisfiable")
      let download = try await server.send("GET", server.base + "/files/a/b.txt?download=1")
      #expect(download["content-disposition"] == ["attachment; filename=\"b.txt\""])
    }
  }

  @Test(arguments: [
    ("x.html", "text/html; charset=utf-8", "inline"), ("x.svg", "image/svg+xml", "inline"),
    ("x.js", "text/javascript; charset=utf-8", "inline"), ("x.pdf", "application/pdf", "attachment"),
    ("x.bin", "application/octet-stream", "attachment"), ("Makefile", "text/plain; charset=utf-8", "inline"),
    ("x.swf", "application/octet-stream", "attachment"), ("x.PNG", "image/png", "inline"),
  ])
  func whatABrowserCouldRunIsNeutralised(name: String, type: String, disposition: String) async throws {
    try await FilesServer.run { server in
      try server.write("<script>alert(1)</script>", to: name)
      let response = try await server.send("GET", server.base + "/files/" + name)
      #expect(response["content-type"] == [type])
      #expect(response["content-disposition"].first?.hasPrefix(disposition + ";") == true)
      #expect(response["content-security-policy"].count == 1)
      #expect(response["content-security-policy"].first?.hasPrefix("sandbox;") == true)
      #expect(response["content-security-policy"].first?.contains("script") == false)
      #expect(response["x-content-type-options"] == ["nosniff"])
    }
  }

  @Test func unusualNames() async throws {
    let names: [[UInt8]] = [
      Array("with space".utf8), Array("quo\"te'<b>&amp;".utf8), Array("new\nline".utf8), Array("100%25".utf8),
      Array("a#b?c=d&e".utf8), Array("übergrößé 日本 🎉".utf8), [0xff, 0xfe, 0x61], Array("back\\slash".utf8),
      Array("...".utf8), Array(" ".utf8), Array("-rf".utf8), Array("a;b:c".utf8),
      [UInt8](repeating: 0x61, count: 255),
    ]
    try await FilesServer.run { server in
      for name in names {
        let escaped = name.map { String(format: "%%%02x", $0) }.joined()
        let put = try await server.send("PUT", server.base + "/files/dir/" + escaped, text: "content")
        #expect(put.status == 201)
      }
      let listing = try await server.send("GET", server.base + "/files/dir?format=json").decode(Listing.self)
      #expect(listing.count == names.count)
      for entry in listing.entries {
        let file = try await server.send("GET", entry.href)
        #expect(file.status == 200 && file.text == "content", "\(entry.name)")
        #expect(file["content-disposition"].first?.contains("\n") == false)
      }
      let bad = try #require(listing.entries.first { $0.name_base64 != nil })
      #expect(Data(base64Encoded: bad.name_base64 ?? "") == Data([0xff, 0xfe, 0x61]))
      let html = try await server.send("GET", server.base + "/files/dir/", ["Accept": "text/html"]).text
      #expect(html.contains("quo&quot;te&#39;&lt;b&gt;&amp;amp;"))
      #expect(!html.contains("<b>"))
      // That of the page.
      #expect(html.ranges(of: "<script").count == 1)
      #expect(html.contains("/files/dir/%FF%FEa"))
      for name in names {
        let escaped = name.map { String(format: "%%%02X", $0) }.joined()
        #expect(try await server.send("DELETE", server.base + "/files/dir/" + escaped).status == 204)
      }
      #expect(try await server.send("GET", server.base + "/files/dir?format=json").decode(Listing.self).count == 0)
    }
  }

  @Test func listings() async throws {
    try await FilesServer.run { server in
      for index in 0..<25 { try server.write("x", to: "many/f\(index)") }
      try server.write("x", to: "many/zdir/x")
      symlink("/etc/passwd", server.workspace + "/many/link")
      mkfifo(server.workspace + "/many/fifo", 0o600)
      var names: [String] = []
      var cursor = ""
      repeat {
        let page = try await server.send(
          "GET", server.base + "/files/many/?limit=4" + cursor, ["Accept": "application/json"]
        ).decode(Listing.self)
        #expect(page.count == 28 && page.entries.count <= 4)
        names += page.entries.map(\.name)
        cursor = page.next_cursor.map { "&cursor=" + $0 } ?? ""
        if let link = page.entries.first(where: { $0.name == "link" }) {
          #expect(link.type == "symlink" && link.size == nil)
        }
      } while !cursor.isEmpty
      #expect(names.first == "zdir")
      #expect(names.count == 28 && names.dropFirst().sorted() == Array(names.dropFirst()))

      let html = try await server.send("GET", server.base + "/files/many")
      #expect(html["content-type"] == ["text/html; charset=utf-8"])
      #expect(html["content-security-policy"].first?.hasPrefix("default-src 'none'") == true)
      #expect(html.text.contains("28 items"))
      for bad in ["limit=0", "limit=x", "limit=99999999", "cursor=zz", "cursor=f1", "format=xml"] {
        let response = try await server.send("GET", server.base + "/files/many?" + bad)
        #expect(response.status == 400 && response.problemCode == "invalid_parameter", "\(bad)")
      }
    }
  }

  @Test func whatIsNotThere() async throws {
    try await FilesServer.run { server in
      try server.write("x", to: "file")
      let other = "/sessions/00000000-0000-0000-0000-000000000000"
      for (target, status, code) in [
        (server.base + "/files/none", 404, "file_not_found"),
        (server.base + "/files/file/below", 404, "file_not_found"),
        (server.base + "/files/file/", 404, "file_not_found"),
        (other + "/files/", 404, "session_not_found"),
        ("/sessions/nonsense/files/", 404, "session_not_found"),
      ] {
        let response = try await server.send("GET", target)
        #expect(response.status == status && response.problemCode == code, "\(target)")
      }
      let post = try await server.send("PATCH", server.base + "/files/file", text: "")
      #expect(post.status == 405)
    }
  }
}

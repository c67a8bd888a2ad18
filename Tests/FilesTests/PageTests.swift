import CLinux
import Crypto
import Foundation
import TestSupport
import Testing

/// The pages for people.
@Suite struct PageTests {
  private static let browser = [
    "Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8"
  ]

  @Test func problemsArePagesInABrowser() async throws {
    try await FilesServer.run { server in
      try server.write("x", to: "f")
      symlink("/etc/passwd", server.workspace + "/link")
      for (target, status, code) in [
        (server.base + "/files/%3Cscript%3E", 404, "file_not_found"),
        (server.base + "/files/link", 403, "symbolic_link"),
        ("/sessions/00000000-0000-0000-0000-000000000000/files/", 404, "session_not_found"),
        ("/shared/nothing", 404, "share_not_found"), (server.base + "/files/?limit=0", 400, "invalid_parameter"),
      ] {
        let page = try await server.send("GET", target, Self.browser)
        #expect(page.status == status && page["content-type"] == ["text/html; charset=utf-8"], "\(target)")
        #expect(page.text.contains("<code>\(code)</code>") && !page.text.contains("<script"))
        #expect(page.text.contains("href=\"\(server.base)/files/\"") == target.hasPrefix(server.base))
        #expect(page["content-security-policy"].first?.hasPrefix("default-src 'none'") == true)
        for accept in [[:], ["Accept": "*/*"], ["Accept": "application/json"]] {
          #expect(try await server.send("GET", target, accept).problemCode == code, "\(target) \(accept)")
        }
      }
      // What programs do is answered for programs.
      #expect(
        try await server.send("DELETE", server.base + "/files/none", Self.browser).problemCode == "file_not_found")
      #expect(
        try await server.send("GET", server.base + "/usage", Self.browser)["content-type"] == ["application/json"])
    }
  }

  @Test func everythingCanBeReachedWithoutScript() async throws {
    try await FilesServer.run { server in
      try server.write("x", to: "a b/ü & <c>/file #1?.txt")
      for index in 0..<3 { try server.write("x", to: "a b/n\(index)") }
      let top = try await server.send("GET", server.base + "/files/", Self.browser)
      #expect(top.text.contains("href=\"\(server.base)/files/a%20b/\""))
      #expect(top.text.contains("archive?format=zip&amp;path=a%20b\""))
      let inner = try await server.send("GET", server.base + "/files/a%20b/?limit=2", Self.browser)
      #expect(inner.text.contains("href=\"\(server.base)/files/\"") && inner.text.contains("4 items"))
      let next = try #require(inner.text.firstMatch(of: /href="(\?limit=2&amp;cursor=[^"]+)"/)?.1)
      let page = try await server.send(
        "GET", server.base + "/files/a%20b/" + next.replacing("&amp;", with: "&"), Self.browser)
      #expect(page.status == 200 && page.text.contains("First page"))
      let deep = try await server.send(
        "GET", server.base + "/files/a%20b/%C3%BC%20%26%20%3Cc%3E/", Self.browser)
      #expect(deep.text.contains("ü &amp; &lt;c&gt;") && deep.text.contains("file%20%231%3F.txt?download=1"))
      #expect(deep.text.contains("aria-label=\"Download file #1?.txt"))
      #expect(
        try await server.send("GET", server.base + "/files/a%20b/%C3%BC%20%26%20%3Cc%3E/file%20%231%3F.txt").text == "x"
      )
    }
  }

  @Test func aListingHasATagOfAllThatItShows() async throws {
    try await FilesServer.run { server in
      let folder = server.base + "/files/f/"
      try server.write("x", to: "f/a")
      var tags: Set<String> = []
      func isNew(_ what: String) async throws {
        for format in ["json", "html"] {
          let response = try await server.send("GET", folder + "?format=" + format)
          let tag = try #require(response["etag"].first)
          #expect(response.status == 200 && tags.insert(tag).inserted, "\(what) \(format)")
          for known in [tag, "W/" + tag, "\"x\", \(tag)", "*"] {
            let same = try await server.send("GET", folder + "?format=" + format, ["If-None-Match": known])
            #expect(same.status == 304 && same.body.isEmpty && same["etag"] == [tag], "\(what) \(known)")
          }
          let head = try await server.send("HEAD", folder + "?format=" + format, ["If-None-Match": tag])
          #expect(head.status == 304)
        }
        let old = tags.joined(separator: ", ")
        #expect(try await server.send("GET", folder + "?format=json", ["If-None-Match": old]).status == 304)
        #expect(try await server.send("GET", folder + "?format=json&limit=1", ["If-None-Match": "\"x\""]).status == 200)
      }
      try await isNew("at first")
      try server.write("xy", to: "f/a")
      try await isNew("another size")
      // In the same directory nothing was added or removed.
      var times = [timespec(tv_sec: 1000, tv_nsec: 0), timespec(tv_sec: 1000, tv_nsec: 0)]
      utimensat(AT_FDCWD, server.workspace + "/f/a", &times, 0)
      try await isNew("another time")
      mkdir(server.workspace + "/f/b", 0o755)
      try await isNew("another entry")
      rename(server.workspace + "/f/b", server.workspace + "/f/c")
      try await isNew("another name")
      let bad = try await server.send("GET", folder, ["If-None-Match": "x"])
      #expect(bad.problemCode == "invalid_condition")
    }
  }

  /// No script but the one that the policy names by its digest may run, and only on the page of a folder.
  @Test func onlyTheServersOwnScriptRuns() async throws {
    try await FilesServer.run { server in
      try server.write("x", to: "<script>alert(1)</script>/f")
      try server.write("<script>alert(1)</script>", to: "page.html")
      let made = try await server.json("POST", server.base + "/files/share", #"{"path":""}"#)
      let href = try #require(made.text.firstMatch(of: /"href":"([^"]+)"/)?.1)
      for target in [
        server.base + "/files/", server.base + "/files/%3Cscript%3Ealert(1)%3C%2Fscript%3E/", String(href),
      ] {
        let page = try await server.send("GET", target, Self.browser)
        let policy = try #require(page["content-security-policy"].first)
        let scripts = page.text.matches(of: /<script>((?s).*?)<\/script>/).map { String($0.1) }
        #expect(scripts.count == 1 && page.text.matches(of: /<script/).count == 1, "\(target)")
        for (element, text) in [("script", scripts.first ?? ""), ("style", Self.style(page.text))] {
          let digest = Data(SHA256.hash(data: Data(text.utf8))).base64EncodedString()
          #expect(policy.contains("\(element)-src 'sha256-\(digest)';"), "\(policy)")
        }
        #expect(policy.hasPrefix("default-src 'none';") && policy.contains("connect-src 'self';"))
        #expect(!policy.contains("unsafe") && !page.text.contains(#/ (style|on[a-z]+)=/#))
      }
      let file = try await server.send("GET", server.base + "/files/page.html")
      #expect(file["content-security-policy"].first?.contains("script-src") == false)
    }
  }

  private static func style(_ page: String) -> String {
    page.firstMatch(of: /<style>((?s).*?)<\/style>/).map { String($0.1) } ?? ""
  }
}

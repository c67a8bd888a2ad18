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
}

import Foundation
import JSONSupport
import NIOCore
import NIOHTTP1
import TestSupport
import Testing

/// What a page of another site can make a browser send to a server on its user's machine, through nginx.
@Suite struct ForeignPageTests {
  private struct Page: Sendable {
    let headers: HTTPHeaders
    let isForeign: Bool
  }

  private static func pages(_ stack: Stack) -> [Page] {
    let own = "http://127.0.0.1:\(stack.nginx.port)"
    return [
      Page(headers: [:], isForeign: false),
      Page(headers: ["Origin": own, "Sec-Fetch-Site": "same-origin"], isForeign: false),
      Page(headers: ["Origin": own], isForeign: false),
      // What the user types, or a tool of the browser sends.
      Page(headers: ["Sec-Fetch-Site": "none"], isForeign: false),
      Page(headers: ["Sec-Fetch-Site": "cross-site"], isForeign: true),
      Page(headers: ["Sec-Fetch-Site": "same-site"], isForeign: true),
      Page(headers: ["Sec-Fetch-Site": "none", "Origin": "https://evil.example"], isForeign: true),
      Page(headers: ["Origin": "https://evil.example"], isForeign: true),
      Page(headers: ["Origin": "http://127.0.0.1:1"], isForeign: true),
      Page(headers: ["Origin": "http://localhost:\(stack.nginx.port)"], isForeign: true),
      Page(headers: ["Origin": "null"], isForeign: true),
    ]
  }

  @Test func aForeignPageChangesNothing() async throws {
    try await Stack.run { stack in
      let id = try await stack.createSession()
      let turn = UUID().uuidString.lowercased()
      // Without a body, these are requests that a browser sends for any page.
      let requests: [(HTTPMethod, String)] = [
        (.POST, "/sessions/\(id)/interrupt"), (.POST, "/sessions/\(id)/turns/\(turn)/cancel"),
        (.POST, "/sessions/\(id)/approvals/\(turn)"), (.POST, "/sessions/\(id)/messages"),
        (.POST, "/sessions"), (.PATCH, "/sessions/\(id)"), (.DELETE, "/sessions/\(id)/files/x"),
        (.PUT, "/sessions/\(id)/files/y"),
      ]
      for (method, path) in requests {
        for page in Self.pages(stack) {
          let answer = try await stack.request(method, path, headers: page.headers)
          let code = answer.body.isEmpty ? nil : try answer.json["code"]
          #expect((code == "foreign_origin") == page.isForeign, "\(method) \(path) \(page.headers) \(answer.text)")
          #expect((answer.status == 403) == page.isForeign, "\(method) \(path) \(page.headers)")
        }
      }
      for page in Self.pages(stack) where page.isForeign {
        for (method, path) in [(HTTPMethod.POST, "/sessions/\(id)/fork"), (.DELETE, "/sessions/\(id)")] {
          #expect(try await stack.request(method, path, headers: page.headers).status == 403)
        }
        // Looking is no change, and what it shows the browser keeps from the page.
        let seen = try await stack.get("/sessions/\(id)", headers: page.headers)
        #expect(seen.status == 200 && !seen.headers.contains(name: "access-control-allow-origin"))
      }
      #expect(try await stack.get("/sessions").json["count"] == 1)
      // A key is nothing that a browser adds by itself.
      let key = try await stack.createKey("admin")
      for page in Self.pages(stack) {
        var headers = page.headers
        headers.add(name: "Authorization", value: "Bearer \(key)")
        #expect(try await stack.request(.POST, "/sessions/\(id)/interrupt", headers: headers).status == 409)
      }
    }
  }

  /// A page may send these types, or none, without asking. Programs may leave the type of JSON out.
  @Test(arguments: [
    nil, "text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x",
    "text/plain;application/json",
  ])
  func aBodyThatAPageMaySendChangesNothing(_ type: String?) async throws {
    try await Stack.run { stack in
      let id = try await stack.createSession()
      func send(_ path: String, _ body: String, _ page: HTTPHeaders) async throws -> Stack.Answer {
        var headers = page
        if let type { headers.add(name: "Content-Type", value: type) }
        return try await stack.request(.POST, path, headers: headers, body: ByteBuffer(string: body))
      }
      let requests = [
        ("/sessions", #"{"session_name": "x"}"#), ("/sessions/\(id)/messages", #"{"prompt": "x"}"#),
        ("/sessions/\(id)/fork", "{}"), ("/sessions/\(id)/files/share", #"{"path": "."}"#),
      ]
      for (path, body) in requests {
        for page in Self.pages(stack) where page.isForeign {
          let answer = try await send(path, body, page.headers)
          #expect(try answer.json["code"] == "foreign_origin", "\(path) \(page.headers) \(answer.text)")
        }
      }
      // Also where a browser doesn't say what page it is for, a form of its own makes is no JSON.
      for (path, body) in requests where type != nil {
        let answer = try await send(path, body, [:])
        #expect((400..<500).contains(answer.status), "\(path) \(answer.text)")
      }
      #expect(try await stack.get("/sessions").json["count"] == 1)
      #expect(try await stack.get("/sessions/\(id)/turns").json["turns"]?.arrayValue?.isEmpty == true)
      if type == nil {
        #expect(try await send("/sessions/\(id)/messages", #"{"prompt": "x"}"#, [:]).status == 200)
      }
    }
  }

  /// A name of somebody else's that points at this machine makes the page's own origin of it.
  @Test func anotherNameForThisMachineIsNotAnsweredWithoutAKey() async throws {
    let names = ["localhost", "127.0.0.1", "box.test"].flatMap { ["--name", $0] }
    try await Stack.run(nginxOptions: names) { stack in
      let id = try await stack.createSession()
      let paths = ["/sessions", "/sessions/\(id)", "/metrics"]
      for path in paths {
        #expect(try await stack.get(path, headers: ["Host": "localhost"]).status == 200)
        // nginx knows no such name.
        #expect(try await stack.get(path, headers: ["Host": "evil.example"]).status == 421)
        // It knows this one, but that doesn't make the one who asks a program of this machine.
        let refused = try await stack.get(path, headers: ["Host": "box.test:\(stack.nginx.port)"])
        #expect(refused.status == 403, "\(path)")
        #expect(try refused.json["code"] == "no_keys")
      }
      let socket = try await stack.get("/sessions/\(id)/ws", headers: ["Host": "box.test"])
      #expect(try socket.json["code"] == "no_keys", "\(socket.text)")
      let key = try await stack.createKey("admin")
      var headers = Stack.credentials(key)
      headers.add(name: "Host", value: "box.test")
      #expect(try await stack.get("/sessions/\(id)", headers: headers).status == 200)
    }
  }
}

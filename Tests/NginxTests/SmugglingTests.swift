import Foundation
import Synchronization
import TestSupport
import Testing

/// What a client writes so that nginx and the responder understand different things by it.
@Suite struct SmugglingTests {
  struct Case: Sendable, CustomTestStringConvertible {
    let name: String
    let request: [UInt8]
    /// The statuses of all answers on the connection, in order.
    let statuses: [Int]
    /// The URIs of the requests that reached the responder, in order.
    let reached: [String]
    var testDescription: String { name }

    init(_ name: String, _ request: String, _ statuses: [Int], reached: [String] = []) {
      self.name = name
      self.request = Array(request.utf8)
      self.statuses = statuses
      self.reached = reached
    }
  }

  private static func request(_ line: String, _ fields: [String] = [], body: String = "") -> String {
    "\(line)\r\nHost: localhost\r\nConnection: close\r\n\(fields.map { $0 + "\r\n" }.joined())\r\n\(body)"
  }

  private static let inner = "GET /smuggled HTTP/1.1\r\nHost: localhost\r\n\r\n"

  /// Whatever is in a body never is a request, and what isn't clear is refused.
  static let framing: [Case] = {
    let length = "Content-Length: \(inner.utf8.count)"
    let chunk = String(inner.utf8.count, radix: 16) + "\r\n\(inner)\r\n0\r\n\r\n"
    var cases: [Case] = []
    func add(_ name: String, _ fields: [String], _ status: Int, body: String = inner) {
      cases.append(
        Case(
          name, request("POST /outer HTTP/1.1", fields, body: body), [status], reached: status == 200 ? ["/outer"] : [])
      )
    }
    add("a request as the body", [length], 200)
    add("a request as a chunk", ["Transfer-Encoding: chunked"], 200, body: chunk)
    add("a length and chunks", ["Content-Length: 0", "Transfer-Encoding: chunked"], 400, body: chunk)
    add("chunks and a length", ["Transfer-Encoding: chunked", "Content-Length: 4"], 400, body: chunk)
    add("a shorter length too", [length, "Content-Length: 0"], 400)
    add("the same length twice", [length, length], 400)
    add("two lengths in one", ["Content-Length: 0, \(inner.utf8.count)"], 400)
    add("a length with a sign", ["Content-Length: +\(inner.utf8.count)"], 400)
    add("a length in hexadecimal", ["Content-Length: 0x10"], 400)
    add("a length with a fraction", ["Content-Length: 4.0"], 400)
    add("a length of nothing", ["Content-Length:"], 400)
    add("a length beyond all numbers", ["Content-Length: 99999999999999999999"], 400)
    add("a space before the colon", ["Content-Length : 0", "Transfer-Encoding: chunked"], 400, body: chunk)
    add("chunks with a space before the colon", ["Transfer-Encoding : chunked"], 400, body: chunk)
    add("something like chunks", ["Transfer-Encoding: xchunked"], 501, body: chunk)
    add("chunks and identity", ["Transfer-Encoding: chunked, identity"], 501, body: chunk)
    add("chunks twice", ["Transfer-Encoding: chunked", "Transfer-Encoding: chunked"], 400, body: chunk)
    add("chunks, then identity", ["Transfer-Encoding: chunked", "Transfer-Encoding: identity"], 400, body: chunk)
    add("a vertical tab before chunks", ["Transfer-Encoding: \u{b}chunked"], 501, body: chunk)
    add("chunks in a folded line", ["Transfer-Encoding:\r\n chunked"], 400, body: chunk)
    add("a folded field", ["X-A: b\r\n Content-Length: 0"], 400)
    add("a field that begins with a tab", ["\tContent-Length: 0"], 400)
    add("the name with an underscore", ["Transfer_Encoding: chunked", length], 200)
    add("the length with an underscore", ["Content_Length: 0", length], 200)
    add("a chunk of no size", ["Transfer-Encoding: chunked"], 400, body: "zz\r\n\(inner)")
    add("a chunk of a negative size", ["Transfer-Encoding: chunked"], 400, body: "-1\r\n\(inner)")
    add("a chunk beyond all numbers", ["Transfer-Encoding: chunked"], 400, body: "fffffffffffffff\r\n\(inner)")
    add(
      "a field after the chunks", ["Transfer-Encoding: chunked"], 200,
      body: "1\r\na\r\n0\r\nX-Api-Key: smuggled\r\nContent-Length: 5\r\n\r\n")
    cases.append(
      Case("chunks in HTTP/1.0", "POST /outer HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n\(chunk)", [400]))
    // What follows a whole request is another one, with fields of its own.
    cases.append(
      Case(
        "one after the other",
        "GET /a HTTP/1.1\r\nHost: localhost\r\nX-Api-Key: first\r\n\r\n" + request("GET /b HTTP/1.1"),
        [200, 200], reached: ["/a", "/b"]))
    cases.append(
      Case(
        "a body where none is needed",
        "GET /a HTTP/1.1\r\nHost: localhost\r\n\(length)\r\n\r\n\(inner)" + request("GET /b HTTP/1.1"), [200, 200],
        reached: ["/a", "/b"]))
    cases.append(
      Case(
        "rubbish after a request", "GET /a HTTP/1.1\r\nHost: localhost\r\n\r\n\u{1}\u{2}\r\n\r\n", [200, 400],
        reached: ["/a"]))
    return cases
  }()

  /// Names of hosts, forms of targets and versions.
  static let targets: [Case] = [
    Case("an absolute target", request("GET http://localhost/a?b HTTP/1.1"), [200], reached: ["/a?b"]),
    Case("an absolute target elsewhere", request("GET http://evil.example/a HTTP/1.1"), [421]),
    Case("an absolute target with a user", request("GET http://localhost@evil.example/a HTTP/1.1"), [400]),
    Case("a tunnel", request("CONNECT localhost:22 HTTP/1.1"), [400]),
    Case("the server as such", request("OPTIONS * HTTP/1.1"), [400]),
    Case("no path", request("GET a HTTP/1.1"), [400]),
    Case("a host with a user", "GET /a HTTP/1.1\r\nHost: localhost@evil.example\r\nConnection: close\r\n\r\n", [421]),
    Case("a host with a path", "GET /a HTTP/1.1\r\nHost: localhost/evil\r\nConnection: close\r\n\r\n", [400]),
    Case("a host of dots", "GET /a HTTP/1.1\r\nHost: local..host\r\nConnection: close\r\n\r\n", [400]),
    Case("an empty host", "GET /a HTTP/1.1\r\nHost:\r\nConnection: close\r\n\r\n", [400]),
    Case("another host", "GET /a HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n", [421]),
    Case("two hosts", "GET /a HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\nConnection: close\r\n\r\n", [400]),
    Case("HTTP/1.0", "GET /a HTTP/1.0\r\n\r\n", [200], reached: ["/a"]),
    Case("HTTP/2 in clear", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", [400]),
    Case("the number of HTTP/2", request("GET /a HTTP/2.0"), [505]),
    Case("the end of a line alone", "GET /a HTTP/1.1\rHost: localhost\r\r", [400]),
    Case("NUL", request("GET /a HTTP/1.1", ["X-A: b\0c"]), [400]),
    Case("a name with a space", request("GET /a HTTP/1.1", ["X A: b"]), [400]),
    Case(
      "two authorizations", request("GET /a HTTP/1.1", ["Authorization: Bearer a", "Authorization: Bearer b"]), [400]),
    Case(
      "6,000 fields", request("GET /a HTTP/1.1", (0..<6000).map { "X-\($0): b" }), [431]),
    Case("9,000 fields of a name", request("GET /a HTTP/1.1", (0..<9000).map { _ in "a: b" }), [431]),
    // The escapes are left to the responder, and no line is broken by them.
    Case(
      "line breaks in escapes", request("GET /a%0d%0aX-Evil:%20b HTTP/1.1"), [200], reached: ["/a%0d%0aX-Evil:%20b"]),
  ]

  @Test func whatIsNotClearIsRefused() async throws {
    try await withResponder { nginx, responder in
      for test in Self.framing + Self.targets {
        let before = responder.requests.count
        let connection = try RawConnection(port: nginx.port)
        try await connection.send(test.request)
        let bytes = try await connection.receive { _ in false }
        #expect(Self.statuses(bytes) == test.statuses, "\(test.name)")
        let reached = responder.requests.dropFirst(before)
        #expect(reached.map { $0.parameters["REQUEST_URI"] ?? "" } == test.reached, "\(test.name)")
        for request in reached {
          #expect(!request.pairs.contains { $0.value == "smuggled" }, "\(test.name)")
          #expect(
            request.parameters["CONTENT_LENGTH"] == (request.body.isEmpty ? nil : String(request.body.count)),
            "\(test.name)")
          #expect(request.parameters["HTTP_TRANSFER_ENCODING"] == nil, "\(test.name)")
        }
        if test.reached == ["/a", "/b"] { #expect(reached.last?.parameters["HTTP_X_API_KEY"] == nil) }
      }
    }
  }

  /// Without any header, as one could ask in 1991; there is no place for a key.
  @Test func theOldestVersionIsAnsweredWithoutKeys() async throws {
    try await withResponder { nginx, responder in
      let connection = try RawConnection(port: nginx.port)
      try await connection.send("GET /a\r\n")
      #expect(try await connection.receive { _ in false } == Array("fine".utf8))
      #expect(responder.requests.last?.pairs.contains { $0.name.hasPrefix("HTTP_") } == false)
    }
  }

  /// A field of the client's is never taken for what nginx says of the request.
  @Test func fieldsAreNoVariables() async throws {
    try await withResponder { nginx, responder in
      let names = [
        "Body-File", "Remote-Addr", "Remote-Port", "Request-Id", "Request-Uri", "Request-Method", "Request-Scheme",
        "Document-Uri", "Script-Name", "Query-String", "Server-Name", "Server-Protocol", "Gateway-Interface", "Https",
        "Path-Info", "Remote-User", "Auth-Type", "Fcgi-Role", "Status-Listener", "X-Request-Id",
      ]
      let fields = names.map { "\($0): evil" } + ["X-Accel-Redirect: /_workspaces/x", "X-Accel-Buffering: no"]
      let answer = try await exchange(
        port: nginx.port, Array(Self.request("GET /a HTTP/1.1", fields).utf8))
      #expect(answer.status == 200 && answer.text == "fine")
      let request = try #require(responder.requests.last)
      for pair in request.pairs where pair.value.contains("evil") || pair.value.contains("_workspaces") {
        #expect(pair.name.hasPrefix("HTTP_"), "\(pair.name)")
      }
      for name in names {
        #expect(request.parameters["HTTP_" + name.uppercased().replacing("-", with: "_")] == "evil", "\(name)")
      }
      #expect(request.parameters["REMOTE_ADDR"] == "127.0.0.1" && request.parameters["REQUEST_URI"] == "/a")
      #expect(request.parameters["BODY_FILE"] == nil)
      let id = answer["x-request-id"].joined()
      #expect(request.parameters["REQUEST_ID"] == id && id.count == 32)
      // Each variable comes once, so that there is no question which one holds.
      let own = request.pairs.map(\.name).filter { !$0.hasPrefix("HTTP_") }
      #expect(Set(own).count == own.count)
    }
  }

  /// Names that come to be the same as others when dashes become underscores, and such as are special to programs.
  @Test func namesThatLookLikeOthersAreLeftOut() async throws {
    try await withResponder { nginx, responder in
      let fields = [
        "X_Api_Key: evil", "Authorization_: evil", "X.Api.Key: evil", "X!Api: evil", "X~Api: evil", ": evil",
        "Proxy: evil", "PROXY: evil", "Content_Type: evil",
      ]
      let answer = try await exchange(
        port: nginx.port, Array(Self.request("GET /a HTTP/1.1", fields.filter { !$0.hasPrefix(":") }).utf8))
      #expect(answer.status == 200)
      let request = try #require(responder.requests.last)
      #expect(!request.pairs.contains { $0.value == "evil" }, "\(request.pairs)")
    }
  }

  /// A body's file is nginx's, whatever the client writes.
  @Test func theFileOfABodyIsNginxs() async throws {
    try await withResponder { nginx, responder in
      let answer = try await exchange(
        port: nginx.port,
        Array(
          Self.request(
            "POST /sessions HTTP/1.1", ["Content-Length: 4", "Body-File: /etc/passwd", "Body_File: /etc/passwd"],
            body: "mine"
          ).utf8))
      #expect(answer.status == 200)
      let request = try #require(responder.requests.last)
      let files = request.pairs.filter { $0.name == "BODY_FILE" }.map(\.value)
      #expect(files.count == 1 && files.first?.hasPrefix(nginx.prefix + "/tmp/body/") == true, "\(files)")
      #expect(request.parameters["HTTP_BODY_FILE"] == "/etc/passwd")
      let empty = try await exchange(
        port: nginx.port, Array(Self.request("POST /sessions HTTP/1.1", ["Body-File: /etc/passwd"]).utf8))
      #expect(empty.status == 200)
      #expect(responder.requests.last?.pairs.filter { $0.name == "BODY_FILE" }.map(\.value) == [""])
    }
  }

  private func withResponder(_ body: (Nginx, FakeResponder) async throws -> Void) async throws {
    try await withTemporaryDirectory { directory in
      let responder = try FakeResponder(path: directory + "/r.sock") { _, reply in
        reply.write("Status: 200 OK\r\nContent-Type: text/plain\r\n\r\nfine")
      }
      defer { responder.stop() }
      try await Nginx.with(in: directory, socket: responder.path) { try await body($0, responder) }
    }
  }

  /// The statuses of the answers in what came over a connection.
  private static func statuses(_ bytes: [UInt8]) -> [Int] {
    String(decoding: bytes, as: UTF8.self).matches(of: #/HTTP/1\.1 ([0-9]{3}) /#).compactMap { Int($0.1) }
  }
}

import Foundation
import TestSupport
import Testing

/// What nginx answers on its own.
@Suite struct NginxProblemTests {
  struct Case: Sendable, CustomTestStringConvertible {
    let name: String
    let request: String
    let status: Int
    let code: String
    var testDescription: String { name }
  }

  struct Problem: Decodable {
    let type: String
    let title: String
    let status: Int
    let detail: String
    let code: String
    let instance: String
  }

  private static func request(_ line: String, _ fields: String...) -> String {
    "\(line)\r\nHost: localhost\r\nConnection: close\r\n\(fields.map { $0 + "\r\n" }.joined())\r\n"
  }

  static let cases: [Case] = [
    Case(name: "NUL in the path", request: request("GET /a%00 HTTP/1.1"), status: 400, code: "bad_request"),
    Case(name: "bad escape", request: request("GET /a%zz HTTP/1.1"), status: 400, code: "bad_request"),
    Case(name: "cut escape", request: request("GET /a% HTTP/1.1"), status: 400, code: "bad_request"),
    Case(name: "above the root", request: request("GET /../etc HTTP/1.1"), status: 400, code: "bad_request"),
    Case(
      name: "above the root, escaped", request: request("GET /a/%2e%2e/%2e%2e/etc HTTP/1.1"), status: 400,
      code: "bad_request"),
    Case(name: "space in the path", request: request("GET /a b HTTP/1.1"), status: 400, code: "bad_request"),
    Case(
      name: "control character", request: request("GET /a\u{1}b HTTP/1.1"), status: 400, code: "bad_request"),
    Case(name: "not HTTP", request: "\u{1}\u{2}\u{3}\r\n\r\n", status: 400, code: "bad_request"),
    Case(
      name: "method in small letters", request: request("get / HTTP/1.1"), status: 400, code: "bad_request"),
    Case(name: "no Host", request: "GET / HTTP/1.1\r\n\r\n", status: 400, code: "bad_request"),
    Case(name: "two Hosts", request: request("GET / HTTP/1.1", "Host: b"), status: 400, code: "bad_request"),
    Case(
      name: "NUL in a field", request: request("GET / HTTP/1.1", "X-A: a\0b"), status: 400,
      code: "bad_request"),
    Case(
      name: "space in a name", request: request("GET / HTTP/1.1", "X A: b"), status: 400, code: "bad_request"),
    Case(
      name: "negative length", request: request("POST / HTTP/1.1", "Content-Length: -1"), status: 400,
      code: "bad_request"),
    Case(
      name: "two lengths", request: request("POST / HTTP/1.1", "Content-Length: 1", "Content-Length: 2"),
      status: 400, code: "bad_request"),
    Case(
      name: "length and chunks",
      request: request("POST / HTTP/1.1", "Content-Length: 1", "Transfer-Encoding: chunked"), status: 400,
      code: "bad_request"),
    Case(
      name: "bad chunk", request: request("POST / HTTP/1.1", "Transfer-Encoding: chunked") + "zz\r\n",
      status: 400, code: "bad_request"),
    Case(
      name: "internal location", request: request("GET /_problem HTTP/1.1"), status: 404, code: "not_found"),
    Case(name: "TRACE", request: request("TRACE / HTTP/1.1"), status: 405, code: "method_not_allowed"),
    Case(
      name: "long body", request: request("POST / HTTP/1.1", "Content-Length: 999999999999"), status: 413,
      code: "content_too_large"),
    Case(
      name: "long body, asked first",
      request: request("POST / HTTP/1.1", "Content-Length: 999999999999", "Expect: 100-continue"),
      status: 413, code: "content_too_large"),
    Case(
      name: "long chunk",
      request: request("POST / HTTP/1.1", "Transfer-Encoding: chunked") + "fffffffff\r\na",
      status: 413, code: "content_too_large"),
    Case(
      name: "long request line", request: request("GET /\(String(repeating: "a", count: 20000)) HTTP/1.1"),
      status: 414, code: "uri_too_long"),
    Case(
      name: "foreign host", request: "GET / HTTP/1.1\r\nHost: example.org\r\nConnection: close\r\n\r\n",
      status: 421, code: "misdirected_request"),
    Case(
      name: "long field", request: request("GET / HTTP/1.1", "X-A: \(String(repeating: "a", count: 20000))"),
      status: 431, code: "header_too_large"),
    Case(
      name: "long header",
      request: "GET / HTTP/1.1\r\nHost: localhost\r\n"
        + String(repeating: "X-A: \(String(repeating: "a", count: 9000))\r\n", count: 10) + "\r\n",
      status: 431, code: "header_too_large"),
    Case(
      name: "unknown transfer coding", request: request("POST / HTTP/1.1", "Transfer-Encoding: gzip"),
      status: 501, code: "not_implemented"),
    Case(
      name: "no responder", request: request("GET / HTTP/1.1"), status: 502, code: "responder_unavailable"),
    Case(
      name: "no responder, large upload",
      request: request(
        "PUT /sessions/00000000-0000-0000-0000-000000000000/files/x HTTP/1.1", "Content-Length: 17000000")
        + String(repeating: "a", count: 17_000_000), status: 502, code: "responder_unavailable"),
    Case(
      name: "no responder, unknown method", request: request("BREW / HTTP/1.1"), status: 502,
      code: "responder_unavailable"),
    Case(
      name: "no responder, HTTP/1.0", request: "GET / HTTP/1.0\r\n\r\n", status: 502,
      code: "responder_unavailable"),
    Case(
      name: "version", request: request("GET / HTTP/9.9"), status: 505, code: "http_version_not_supported"),
  ]

  @Test func everyErrorIsAProblemDocument() async throws {
    try await withTemporaryDirectory { directory in
      let responder = try FakeResponder(path: directory + "/r.sock") { _, reply in
        reply.write("Status: 204 No Content\r\n\r\n")
      }
      defer { responder.stop() }
      let isDown: (Case) -> Bool = { $0.name.hasPrefix("no responder") }
      for (socket, cases) in [
        ("/r.sock", Self.cases.filter { !isDown($0) }), ("/none.sock", Self.cases.filter(isDown)),
      ] {
        try await Nginx.with(in: directory, socket: directory + socket) { nginx in
          for test in cases {
            let connection = try RawConnection(port: nginx.port)
            try await connection.send(test.request)
            // After a body that is too long nginx goes on reading for a while before it closes.
            let bytes = try await connection.receive { $0.suffix(3) == Array("\"}\n".utf8)[...] }
            let response = try RawResponse(parsing: bytes)
            let name = Comment(rawValue: test.name)
            #expect(response.status == test.status, name)
            #expect(response["content-type"] == ["application/problem+json"], name)
            #expect(response["server"] == ["nginx"], name)
            let problem = try JSONDecoder().decode(Problem.self, from: Data(response.body))
            #expect(problem.status == test.status, name)
            #expect(problem.code == test.code, name)
            #expect(problem.type == "about:blank", name)
            #expect(problem.title != "Error" && !problem.detail.isEmpty, name)
            #expect(problem.instance == "urn:request:" + response["x-request-id"].joined(), name)
            #expect(problem.instance.count == 44, name)
            #expect(response["retry-after"].isEmpty == (test.status != 502), name)
            #expect(response["allow"].isEmpty == (test.status != 405), name)
          }
        }
      }
    }
  }

  @Test func anEventSourceIsNotAnsweredWhileTheResponderIsDown() async throws {
    try await withTemporaryDirectory { directory in
      try await Nginx.with(in: directory, socket: directory + "/none.sock") { nginx in
        let stream = "GET /sessions/x/events HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n"
        let connection = try RawConnection(port: nginx.port)
        try await connection.send(stream + "Sec-Fetch-Mode: cors\r\n\r\n")
        #expect(try await connection.receive { _ in false } == [])
        // A program is told what is the matter.
        let told = try await exchange(port: nginx.port, Array((stream + "Connection: close\r\n\r\n").utf8))
        #expect(told.status == 502)
      }
    }
  }

  @Test func answersToHEADHaveNoBody() async throws {
    try await withTemporaryDirectory { directory in
      try await Nginx.with(in: directory, socket: directory + "/none.sock") { nginx in
        let response = try await exchange(port: nginx.port, Array(Self.request("HEAD / HTTP/1.1").utf8))
        #expect(response.status == 502)
        #expect(response["content-type"] == ["application/problem+json"])
        #expect(response.body.isEmpty)
      }
    }
  }

  @Test func theLogHasThePathButNoQuery() async throws {
    try await withTemporaryDirectory { directory in
      try await Nginx.with(in: directory, socket: directory + "/none.sock") { nginx in
        let line = "GET /sessions/x%2fy?key=secret HTTP/1.1"
        let response = try await exchange(port: nginx.port, Array(Self.request(line).utf8))
        _ = try await exchange(port: nginx.port, Array("GET /a%00?key=secret HTTP/1.1\r\n\r\n".utf8))
        await nginx.process.stop()
        let log = text(of: nginx.prefix + "/logs/access.log")
        #expect(!log.contains("secret"))
        #expect(log.contains(#""path":"/sessions/x%2fy""#))
        #expect(log.contains(#""request_id":"\#(response["x-request-id"].joined())""#))
        for line in log.split(separator: "\n") {
          #expect(try JSONSerialization.jsonObject(with: Data(line.utf8)) is [String: Any])
        }
      }
    }
  }

  /// As installed, where the journal bounds what strangers can have written.
  @Test func errorsCanGoToTheStandardError() async throws {
    try await withTemporaryDirectory { directory in
      let options = ["--error-log", "stderr"]
      try await Nginx.with(in: directory, socket: directory + "/none.sock", options: options) { nginx in
        _ = try await exchange(port: nginx.port, Array(Self.request("GET / HTTP/1.1").utf8))
        await nginx.process.stop()
        #expect(text(of: nginx.prefix + ".log").contains("connect() to unix:"))
        #expect(!FileManager.default.fileExists(atPath: nginx.prefix + "/logs/error.log"))
      }
    }
  }

  @Test func theLogCanBeRotated() async throws {
    try await withTemporaryDirectory { directory in
      try await Nginx.with(in: directory, socket: directory + "/none.sock") { nginx in
        let log = nginx.prefix + "/logs/access.log"
        try FileManager.default.moveItem(atPath: log, toPath: log + ".1")
        nginx.process.signal(SIGUSR1)
        while !FileManager.default.fileExists(atPath: log) { try await Task.sleep(for: .milliseconds(5)) }
      }
    }
  }
}

/// scripts/render-nginx with values that would change the meaning of the configuration.
@Suite struct RenderTests {
  @Test(arguments: [
    ["--socket", "/tmp/a b"], ["--socket", "/tmp/a;b"], ["--socket", "/tmp/a\nb"], ["--socket", "relative"],
    ["--socket", "/" + String(repeating: "a", count: 107)], ["--socket", "/tmp/${a}"], [],
    ["--socket", "/tmp/s", "--listen", "0.0.0.0:80;"], ["--socket", "/tmp/s", "--listen", "80"],
    ["--socket", "/tmp/s", "--max-body", "1m; autoindex on"], ["--socket", "/tmp/s", "--max-body", "big"],
    ["--socket", "/tmp/s", "--read-timeout", "1 2"], ["--socket", "/tmp/s", "--key-rate", "0"],
    ["--socket", "/tmp/s", "--exempt", "10.0.0.0/8;"], ["--socket", "/tmp/s", "--exempt", "all"],
    ["--socket", "/tmp/s", "--header-timeout", "1s;"], ["--socket", "/tmp/s", "--max-requests", "many"],
    ["--socket", "/tmp/s", "--bogus"], ["--socket"],
    // Plain HTTP stays on this machine.
    ["--socket", "/tmp/s", "--listen", "0.0.0.0:8000"], ["--socket", "/tmp/s", "--listen", "[::]:8000"],
    ["--socket", "/tmp/s", "--listen", "127.0.0.1:8000", "--listen", "192.0.2.1:8000"],
    ["--socket", "/tmp/s", "--redirect-from", "127.0.0.1:80"], ["--socket", "/tmp/s", "--name", "a;b"],
    ["--socket", "/tmp/s", "--certificate", "/c", "--name", "a"],
    ["--socket", "/tmp/s", "--certificate", "/c", "--certificate-key", "/k"],
  ])
  func refuses(arguments: [String]) async throws {
    try await withTemporaryDirectory { directory in
      let exit = try await run(
        [repositoryRoot + "/scripts/render-nginx", directory + "/prefix"] + arguments,
        output: directory + "/log")
      #expect(exit == .status(1))
      #expect(text(of: directory + "/log").hasPrefix("render-nginx: "))
      #expect(!FileManager.default.fileExists(atPath: directory + "/prefix/nginx.conf"))
    }
  }
}

/// What passes between nginx and the responder.
@Suite struct NginxResponderTests {
  private func withResponder(
    options: [String] = [],
    handler: @escaping @Sendable (FakeResponder.Request, FakeResponder.Reply) -> Void,
    _ body: (Nginx, FakeResponder) async throws -> Void
  ) async throws {
    try await withTemporaryDirectory { directory in
      let responder = try FakeResponder(path: directory + "/r.sock", handler: handler)
      defer { responder.stop() }
      try await Nginx.with(in: directory, socket: responder.path, options: options) { nginx in
        try await body(nginx, responder)
      }
    }
  }

  private func send(_ text: String, to nginx: Nginx) async throws -> RawResponse {
    try await exchange(port: nginx.port, Array(text.utf8))
  }

  @Test func parametersAreCompleteAndCleaned() async throws {
    try await withResponder { _, reply in
      reply.write("Status: 200 OK\r\nContent-Type: text/plain\r\n\r\nfine")
    } _: { nginx, responder in
      let response = try await send(
        """
        POST /a%20b/../c%2Fd?x=1&y=%00 HTTP/1.1\r
        Host: localhost:8000\r
        Connection: close, X-Secret\r
        Content-Type: application/json\r
        Content-Length: 4\r
        Proxy: http://evil.example\r
        Script-Name: /evil\r
        Content_Length: 9\r
        TE: trailers\r
        Upgrade: h2c\r
        Authorization: Bearer k\r
        \r
        body
        """, to: nginx)
      #expect(response.status == 200)
      #expect(response.text == "fine")
      let request = try #require(responder.requests.first)
      #expect(request.body == Array("body".utf8))
      let parameters = request.parameters
      #expect(parameters["REQUEST_METHOD"] == "POST")
      #expect(parameters["REQUEST_URI"] == "/a%20b/../c%2Fd?x=1&y=%00")
      #expect(parameters["DOCUMENT_URI"] == "/c/d")
      #expect(parameters["SERVER_PROTOCOL"] == "HTTP/1.1")
      #expect(parameters["REQUEST_SCHEME"] == "http")
      #expect(parameters["CONTENT_LENGTH"] == "4")
      #expect(parameters["CONTENT_TYPE"] == "application/json")
      #expect(parameters["SERVER_ADDR"] == "127.0.0.1")
      #expect(parameters["PEER_ADDR"] == "127.0.0.1")
      #expect(parameters["REMOTE_ADDR"] == "127.0.0.1")
      #expect(parameters["REQUEST_ID"] == response["x-request-id"].joined())
      #expect(parameters["HTTP_HOST"] == "localhost:8000")
      #expect(parameters["HTTP_AUTHORIZATION"] == "Bearer k")
      for name in ["PROXY", "CONNECTION", "CONTENT_LENGTH", "CONTENT_TYPE", "TE", "UPGRADE"] {
        #expect(parameters["HTTP_" + name] == nil, Comment(rawValue: name))
      }
      #expect(
        Set(parameters.keys.filter { !$0.hasPrefix("HTTP_") }) == [
          "REQUEST_ID", "REQUEST_METHOD", "REQUEST_SCHEME", "REQUEST_URI", "DOCUMENT_URI", "SERVER_PROTOCOL",
          "CONTENT_LENGTH", "CONTENT_TYPE", "REMOTE_ADDR", "PEER_ADDR", "SERVER_ADDR",
        ])
    }
  }

  @Test func aChunkedBodyArrivesWithItsLength() async throws {
    try await withResponder { _, reply in
      reply.write("Status: 204 No Content\r\n\r\n")
    } _: { nginx, responder in
      let response = try await send(
        "POST / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
          + "3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n", to: nginx)
      #expect(response.status == 204)
      let request = try #require(responder.requests.first)
      #expect(request.body == Array("abcde".utf8))
      #expect(request.parameters["CONTENT_LENGTH"] == "5")
      #expect(request.parameters["HTTP_TRANSFER_ENCODING"] == nil)
    }
  }

  @Test func expectIsAnsweredByNginx() async throws {
    try await withResponder { _, reply in
      reply.write("Status: 200 OK\r\n\r\n")
    } _: { nginx, responder in
      let connection = try RawConnection(port: nginx.port)
      try await connection.send(
        "POST / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n"
      )
      let interim = try await connection.receive(untilText: "\r\n\r\n")
      #expect(interim.hasPrefix("HTTP/1.1 100 "))
      #expect(responder.requests.isEmpty)
      try await connection.send("abc")
      let response = try RawResponse(parsing: try await connection.receive { _ in false })
      #expect(response.status == 200)
      #expect(responder.requests.first?.parameters["HTTP_EXPECT"] == nil)
    }
  }

  @Test func problemsOfTheResponderPassUnchanged() async throws {
    try await withResponder { request, reply in
      let status = (request.parameters["REQUEST_URI"] ?? "").dropFirst(2)
      reply.write("Status: \(status) x\r\nContent-Type: application/problem+json\r\n\r\n{\"mine\":\(status)}")
    } _: { nginx, _ in
      for status in [400, 401, 404, 405, 409, 413, 422, 429, 500, 502, 503, 504] {
        let response = try await send(
          "GET /?\(status) HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", to: nginx)
        #expect(response.status == status)
        #expect(response.text == "{\"mine\":\(status)}")
      }
    }
  }

  @Test func connectionsToTheResponderAreKept() async throws {
    try await withResponder { _, reply in
      reply.write("Status: 200 OK\r\n\r\n")
    } _: { nginx, responder in
      let connection = try RawConnection(port: nginx.port)
      for _ in 1...20 {
        try await connection.send("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        _ = try await connection.receive(untilText: "\r\n0\r\n\r\n")
      }
      #expect(responder.requests.count == 20)
      #expect(responder.connectionCount == 1)
    }
  }

  /// The responder waits for the client to have seen the first part before it sends the second.
  @Test func buffersNothingWhenToldSo() async throws {
    let go = DispatchSemaphore(value: 0)
    try await withResponder { _, reply in
      reply.write(
        "Status: 200 OK\r\nContent-Type: text/event-stream\r\nX-Accel-Buffering: no\r\n\r\nid: 1\n\n")
      _ = go.wait(timeout: .now() + 60)
      reply.write("id: 2\n\n")
    } _: { nginx, _ in
      let connection = try RawConnection(port: nginx.port)
      try await connection.send("GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
      let first = try await connection.receive(untilText: "id: 1\n\n")
      #expect(first.contains("id: 1\n\n") && !first.contains("id: 2"))
      go.signal()
      let second = try await connection.receive(untilText: "id: 2\n\n")
      #expect(second.contains("id: 2\n\n"))
    }
  }

  /// What waits for a turn as long as nginx lets it must not be broken off by a reload.
  @Test func anOldWorkerOutlivesEveryAnswer() async throws {
    try await withResponder(options: ["--read-timeout", "47s"]) { _, reply in
      reply.write("Status: 200 OK\r\n\r\n")
    } _: { nginx, _ in
      #expect(text(of: nginx.prefix + "/nginx.conf").contains("\nworker_shutdown_timeout 47s;\n"))
      #expect(text(of: nginx.prefix + "/claude-api/api.conf").contains("\nfastcgi_read_timeout 47s;\n"))
    }
  }

  @Test func aSilentResponderIsA504() async throws {
    let go = DispatchSemaphore(value: 0)
    defer { go.signal() }
    try await withResponder(options: ["--read-timeout", "200ms"]) { _, _ in
      _ = go.wait(timeout: .now() + 60)
    } _: { nginx, _ in
      let response = try await send(
        "GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", to: nginx)
      #expect(response.status == 504)
      #expect(response.text.contains("\"code\":\"responder_timeout\""))
      #expect(response["retry-after"] == ["5"])
    }
  }

  @Test func anAnswerThatIsNotCGIIsA502() async throws {
    try await withResponder { _, reply in
      reply.write("this is no header")
    } _: { nginx, responder in
      let response = try await send(
        "GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", to: nginx)
      #expect(response.status == 502)
      #expect(response.text.contains("\"code\":\"responder_unavailable\""))
      #expect(responder.requests.count == 1)
    }
  }

  @Test func theLimitOfABodyCanBeSet() async throws {
    try await withResponder(options: ["--max-body", "1k"]) { request, reply in
      reply.write("Status: 200 OK\r\n\r\n\(request.body.count)")
    } _: { nginx, _ in
      for (count, status) in [(1024, 200), (1025, 413)] {
        let connection = try RawConnection(port: nginx.port)
        try await connection.send(
          "POST / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: \(count)\r\n\r\n"
            + String(repeating: "a", count: count))
        let response = try RawResponse(parsing: try await connection.receive { _ in false })
        #expect(response.status == status)
      }
    }
  }
}

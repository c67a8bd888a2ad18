import Foundation
import TestSupport
import Testing

/// The way to the model: a real nginx between a client on its unix socket and an upstream of the test's own.
@Suite struct ModelGatewayTests {
  private static let session = "0f8fad5b-d9cb-469f-a165-70867728950e"
  private static let token = "\(session).k0123456789abcdef.0123456789abcdef0123456789abcdef"
  private static let secret = "sk-real-\(UUID().uuidString)"

  /// A model that answers with what it was sent, in pieces of seven bytes if it is to be a stream.
  private static let upstream = #"""
    import http.server, json, sys
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        def log_message(self, *_): pass
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or b"{}")
            usage = {"input_tokens": 11, "output_tokens": 1, "cache_read_input_tokens": 22,
                     "cache_creation_input_tokens": 33}
            if body.get("stream"):
                events = [
                    {"type": "message_start", "message": {"model": "m-1", "usage": usage}},
                    {"type": "content_block_delta", "delta": {"type": "text_delta", "text": 'the "usage" of \u00e9\u20ac: {"output_tokens": 9}'}},
                    {"type": "message_delta", "usage": {"output_tokens": 44}}, {"type": "message_stop"}]
                data = "".join(f"event: {e['type']}\ndata: {json.dumps(e, ensure_ascii=False)}\n\n" for e in events)
                pieces, kind = data.encode(), "text/event-stream; charset=utf-8"
            else:
                seen = {name: self.headers.get_all(name) for name in set(k.lower() for k in self.headers)}
                pieces = json.dumps({"model": "m-2", "usage": usage, "path": self.path, "seen": seen}).encode()
                kind = "application/json"
            self.send_response(body.get("status", 200))
            self.send_header("Content-Type", kind)
            self.send_header("Set-Cookie", "a=b")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            def write(piece):
                self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
                self.wfile.flush()
            size = body.get("pieces", 7)
            if body.get("endless"):
                # It is nearly all text, and never says how much that is.
                head = pieces.index(b"event: message_delta")
                write(pieces[:head])
                delta = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "x" * 300}}
                data = f"event: content_block_delta\ndata: {json.dumps(delta, separators=(',', ':'))}\n\n".encode() * 20
                for i in range(0, len(data), size): write(data[i:i + size])
                write(b"event: ping\ndata: {}\n\n")
                self.rfile.read(1)
                return
            for i in range(0, len(pieces), size): write(pieces[i:i + size])
            self.wfile.write(b"0\r\n\r\n")
    http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
    """#

  private struct CurlFailure: Error { let description: String }

  private struct Gateway {
    let directory: String
    let nginx: Nginx
    var log: String { text(of: nginx.prefix + "/logs/model.log") }
    var requests: [[String: Any]] {
      get throws {
        try log.split(separator: "\n").map {
          try #require(try JSONSerialization.jsonObject(with: Data($0.utf8)) as? [String: Any])
        }
      }
    }

    /// Sends a request as the CLI does.
    func post(
      _ path: String = "/v1/messages", host: String = "127.0.0.1", token: String? = ModelGatewayTests.token,
      body: String = "{}", _ options: [String] = []
    ) async throws -> (status: Int, body: String) {
      let output = directory + "/answer-\(UUID().uuidString)"
      let credential = token.map { ["-H", "x-api-key: \($0)"] } ?? []
      let exit = try await run(
        [
          "curl", "-sS", "--path-as-is", "--unix-socket", directory + "/m/api.sock", "--max-time", "60",
          "-H", "content-type: application/json", "-d", body, "-w", "\n%{http_code}",
        ] + credential + options + ["http://\(host)\(path)"], output: output)
      let lines = text(of: output).split(separator: "\n", omittingEmptySubsequences: false)
      guard exit == .status(0), let status = lines.last.flatMap({ Int($0) }) else {
        throw CurlFailure(description: "curl: \(exit) \(text(of: output))")
      }
      return (status, lines.dropLast().joined(separator: "\n"))
    }

    /// What the upstream saw of a request.
    func seen(_ options: [String] = []) async throws -> [String: [String]] {
      let answer = try await post(options)
      let object = try JSONSerialization.jsonObject(with: Data(answer.body.utf8)) as? [String: Any]
      return try #require(object?["seen"] as? [String: [String]], "\(answer)")
    }

    func post(_ options: [String]) async throws -> (status: Int, body: String) {
      try await post("/v1/messages", options)
    }
  }

  /// Runs `body` with a gateway to `base`, for which a token is valid.
  private func withGateway(
    in directory: String, base: String, environment: [String: String?]? = nil, options: [String] = [],
    _ body: (Gateway) async throws -> Void
  ) async throws {
    for name in ["m", "tokens"] {
      try FileManager.default.createDirectory(atPath: "\(directory)/\(name)", withIntermediateDirectories: true)
    }
    try Data().write(to: URL(filePath: "\(directory)/tokens/\(Self.token)"))
    var variables = environment ?? ["ANTHROPIC_API_KEY": Self.secret]
    variables["ANTHROPIC_BASE_URL"] = base
    try await Nginx.with(
      in: directory, socket: directory + "/none.sock",
      options: ["--model-socket", directory + "/m/api.sock", "--model-tokens", directory + "/tokens"] + options,
      environment: variables
    ) { nginx in
      try await body(Gateway(directory: directory, nginx: nginx))
    }
  }

  private func withPlainUpstream(
    environment: [String: String?]? = nil, options: [String] = [], _ body: (Gateway) async throws -> Void
  ) async throws {
    try await withTemporaryDirectory { directory in
      try Self.upstream.write(toFile: directory + "/upstream.py", atomically: true, encoding: .utf8)
      let port = try freePort()
      try await withChild(
        ["python3", directory + "/upstream.py", "\(port)"], output: directory + "/upstream.log"
      ) { child in
        try await waitUntilListening(port: port, child: child)
        try await withGateway(
          in: directory, base: "http://127.0.0.1:\(port)", environment: environment, options: options, body)
      }
    }
  }

  @Test func addsTheCredentialAndTakesTheTokenAway() async throws {
    try await withPlainUpstream { gateway in
      let seen = try await gateway.seen([
        "-H", "Authorization: Bearer x", "-H", "Cookie: a=b", "-H", "anthropic-beta: q",
      ])
      #expect(seen["x-api-key"] == [Self.secret])
      #expect(seen["anthropic-beta"] == ["q"])
      #expect(seen["authorization"] == nil && seen["cookie"] == nil)
      #expect(!"\(seen)".contains(Self.token))
      let headers = try await gateway.post(["-i"]).body
      #expect(!headers.contains("Set-Cookie"))
      #expect(!gateway.log.contains(Self.secret) && !gateway.log.contains(Self.token))
      #expect(!text(of: gateway.nginx.prefix + "/logs/error.log").contains(Self.secret))
    }
  }

  @Test func addsABearerToken() async throws {
    try await withPlainUpstream(environment: ["ANTHROPIC_AUTH_TOKEN": Self.secret]) { gateway in
      let seen = try await gateway.seen()
      #expect(seen["authorization"] == ["Bearer \(Self.secret)"])
      #expect(seen["x-api-key"] == nil)
    }
  }

  @Test func addsATokenOfOAuthWithItsBeta() async throws {
    try await withPlainUpstream(environment: ["CLAUDE_CODE_OAUTH_TOKEN": Self.secret]) { gateway in
      let seen = try await gateway.seen(["-H", "anthropic-beta: a,b"])
      #expect(seen["authorization"] == ["Bearer \(Self.secret)"])
      #expect(seen["x-api-key"] == nil)
      #expect(seen["anthropic-beta"] == ["a,b,oauth-2025-04-20"])
      #expect(try await gateway.seen()["anthropic-beta"] == ["oauth-2025-04-20"])
    }
  }

  @Test func readsTheCredentialFromAFile() async throws {
    try await withTemporaryDirectory { directory in
      let file = directory + "/credential"
      let port = try freePort()
      try "# of the API\n\nANTHROPIC_API_KEY=\(Self.secret)\nANTHROPIC_BASE_URL=http://127.0.0.1:\(port)/base/\n"
        .write(toFile: file, atomically: true, encoding: .utf8)
      try Self.upstream.write(toFile: directory + "/upstream.py", atomically: true, encoding: .utf8)
      try await withChild(
        ["python3", directory + "/upstream.py", "\(port)"], output: directory + "/upstream.log"
      ) { child in
        try await waitUntilListening(port: port, child: child)
        try await withGateway(
          in: directory, base: "https://not.used.example", environment: ["ANTHROPIC_API_KEY": "not used"],
          options: ["--model-credential-file", file]
        ) { gateway in
          let answer = try await gateway.post("/v1/messages?beta=true")
          #expect(answer.body.contains(Self.secret) && answer.body.contains(#""path": "/base/v1/messages?beta=true""#))
          let mode =
            try FileManager.default.attributesOfItem(
              atPath: gateway.nginx.prefix + "/model/model-credential.conf")[.posixPermissions] as? Int
          #expect(mode == 0o600)
        }
      }
    }
  }

  @Test func passesOnlyWhatItShould() async throws {
    try await withPlainUpstream { gateway in
      #expect(try await gateway.post("/v1/messages/count_tokens").status == 200)
      for path in ["/", "/v1/models", "/v1/files", "/v1/messages/", "/v1/messages/batches", "/v1/messages/../files"] {
        #expect(try await gateway.post(path).status == 404, "\(path)")
      }
      #expect(try await gateway.post(["-X", "GET"]).status == 405)
      #expect(try await gateway.post(host: "api.example.org").status == 421)
      for token in [
        nil, "", "sk-ant-api03-x", Self.token + "0", String(Self.token.dropLast()) + "0", "../tokens/" + Self.token,
        Self.token + "%00", ".", "..",
      ] {
        let refused = try await gateway.post(token: token)
        #expect(refused.status == 401, "\(token ?? "none")")
        #expect(refused.body.contains("authentication_error"))
      }
      // A process that has ended takes its token with it.
      try FileManager.default.removeItem(atPath: "\(gateway.directory)/tokens/\(Self.token)")
      #expect(try await gateway.post().status == 401)
      // Nobody can fill the disk with what is refused.
      #expect(try gateway.requests.count == 1)
    }
  }

  @Test func countsTokensWithoutChangingAnAnswer() async throws {
    try await withPlainUpstream { gateway in
      let streamed = try await gateway.post(body: #"{"stream": true}"#)
      #expect(streamed.body.contains(#"the \"usage\" of é€: {\"output_tokens\": 9}"#))
      #expect(streamed.body.contains(#""message_stop""#))
      _ = try await gateway.post()
      _ = try await gateway.post(body: #"{"status": 500}"#)
      // The log is written after the answer.
      while try gateway.requests.count < 3 { try await Task.sleep(for: .milliseconds(10)) }
      let requests = try gateway.requests
      func counts(_ index: Int) -> [Int?] {
        ["input_tokens", "output_tokens", "cache_read_tokens", "cache_creation_tokens"].map {
          requests[index][$0] as? Int
        }
      }
      #expect(counts(0) == [11, 44, 22, 33])
      #expect(counts(1) == [11, 1, 22, 33])
      #expect(counts(2) == [0, 0, 0, 0])
      #expect(requests.map { $0["session"] as? String } == Array(repeating: Self.session, count: 3))
      #expect(requests.map { $0["key"] as? String } == Array(repeating: "k0123456789abcdef", count: 3))
      #expect(requests.map { $0["model"] as? String } == ["m-1", "m-2", ""])
      #expect(requests.map { $0["status"] as? Int } == [200, 200, 500])
    }
  }

  /// Who goes away before the answer's end has got what had come by then.
  @Test(arguments: [7, 366, 100_000]) func countsWhatWasBrokenOff(_ pieces: Int) async throws {
    try await withPlainUpstream { gateway in
      let body = #"{"stream": true, "endless": true, "pieces": \#(pieces)}"#
      do {
        let connection = try RawConnection(unixSocket: gateway.directory + "/m/api.sock")
        try await connection.send(
          "POST /v1/messages HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Api-Key: \(Self.token)\r\n"
            + "Content-Type: application/json\r\nContent-Length: \(body.utf8.count)\r\n\r\n\(body)")
        _ = try await connection.receive(untilText: "event: ping")
        #expect(try gateway.requests.isEmpty)
      }
      while try gateway.requests.isEmpty { try await Task.sleep(for: .milliseconds(10)) }
      let request = try #require(try gateway.requests.first)
      #expect(request["input_tokens"] as? Int == 11)
      // 6,000 bytes beside the few of the first text.
      let output = try #require(request["output_tokens"] as? Int)
      #expect(output >= 2000 && output < 2030, "\(output)")
    }
  }

  /// An agent has a socket on which it can send what it likes, as fast as it likes.
  @Test func refusalsLeaveNothingInTheLogs() async throws {
    try await withPlainUpstream { gateway in
      let post = "POST /v1/messages HTTP/1.1\r\nHost: 127.0.0.1\r\n"
      let token = "X-Api-Key: \(Self.token)\r\n"
      let chunked = "Transfer-Encoding: chunked\r\n\r\n"
      func status(of request: String) async throws -> Int {
        let connection = try RawConnection(unixSocket: gateway.directory + "/m/api.sock")
        try await connection.send(request)
        let head = try await connection.receive(untilText: "\r\n\r\n")
        return Int(head.dropFirst("HTTP/1.1 ".count).prefix(3)) ?? 0
      }
      let requests = [
        (post + token + "Content-Length: 99999999\r\n\r\n", 413),
        (post + token + "Content-Length: 37000000\r\n\r\n", 413),
        (post + "Content-Length: 99999999\r\n\r\n", 401), (post + token + chunked + "0\r\n\r\n", 411),
        (post + token + chunked + "no number\r\n", 400), (post + chunked + "no number\r\n", 400),
        (post.replacing("127.0.0.1", with: "example.org") + "Content-Length: 99999999\r\n\r\n", 421),
        (post.replacing("127.0.0.1", with: "example.org") + chunked + "no number\r\n", 400),
        (post.replacing("/v1/", with: "/v2/") + "Content-Length: 99999999\r\n\r\n", 404),
        (post.replacing("/v1/", with: "/_model/") + token + "Content-Length: 99999999\r\n\r\n", 404),
        (post.replacing("/v1/", with: "/%ff%") + "Content-Length: 99999999\r\n\r\n", 400),
        (post + token + "X-Long: \(String(repeating: "x", count: 20_000))\r\n\r\n", 431),
      ]
      for (request, expected) in requests {
        for _ in 0..<20 {
          let answered = try await status(of: request)
          #expect(answered == expected, "\(request.prefix(200))")
        }
      }
      await gateway.nginx.process.stop()
      for log in ["error.log", "access.log", "model.log"] {
        #expect(text(of: gateway.nginx.prefix + "/logs/" + log) == "", "\(log)")
      }
    }
  }

  /// A header that doesn't come takes a connection for a moment only.
  @Test func slowHeadersAreCutOff() async throws {
    try await withPlainUpstream { gateway in
      var slow: [RawConnection] = []
      for host in ["127.0.0.1", "127.0.0.1", "example.org"] {
        let connection = try RawConnection(unixSocket: gateway.directory + "/m/api.sock")
        try await connection.send("POST /v1/messages HTTP/1.1\r\nHost: \(host)\r\nX-Ap")
        slow.append(connection)
      }
      let start = ContinuousClock.now
      for connection in slow { _ = try await connection.receive { _ in false } }
      // It would be a minute by itself.
      #expect(ContinuousClock.now - start < .seconds(40))
    }
  }

  @Test func limitsTheRateOfASession() async throws {
    try await withPlainUpstream(options: ["--model-rate", "1", "--model-burst", "2"]) { gateway in
      let statuses = try await withThrowingTaskGroup(of: Int.self) { group in
        for _ in 0..<20 { group.addTask { try await gateway.post().status } }
        return try await group.reduce(into: [Int]()) { $0.append($1) }
      }
      #expect(statuses.count { $0 == 200 } >= 3 && statuses.contains(429), "\(statuses)")
      let other = Self.session.replacing("0f", with: "1f") + Self.token.dropFirst(36)
      try Data().write(to: URL(filePath: "\(gateway.directory)/tokens/\(other)"))
      #expect(try await gateway.post(token: other).status == 200)
    }
  }

  /// An upstream with TLS, whose certificate is for `name` and signed by the authority in `ca.pem`.
  private func withTLSUpstream(name: String, _ body: (_ directory: String, _ port: Int) async throws -> Void)
    async throws
  {
    try await withTemporaryDirectory { directory in
      let port = try freePort()
      try """
      pid \(directory)/up.pid;
      error_log stderr;
      events {}
      http {
          access_log off;
          server {
              listen 127.0.0.1:\(port) ssl;
              ssl_certificate \(directory)/up.pem;
              ssl_certificate_key \(directory)/up.key;
              location / { default_type application/json; return 200 '{"key":"$http_x_api_key","sni":"$ssl_server_name"}'; }
          }
      }
      """.write(toFile: directory + "/up.conf", atomically: true, encoding: .utf8)
      let script = """
        set -e
        for ca in ca other; do
          openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=$ca -keyout $ca.key -out $ca.pem
        done
        openssl req -newkey rsa:2048 -nodes -subj /CN=up -keyout up.key -out up.csr
        echo subjectAltName=DNS:\(name) >up.ext
        openssl x509 -req -in up.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile up.ext -out up.pem
        """
      let made = try await run(["bash", "-c", "cd \(directory) && \(script)"], output: directory + "/openssl.log")
      try #require(made == .status(0), "\(text(of: directory + "/openssl.log"))")
      let user = geteuid() == 0 ? " user root;" : ""
      try await withChild(
        ["nginx", "-p", directory, "-c", "up.conf", "-e", "stderr", "-g", "daemon off;" + user],
        output: directory + "/up.log"
      ) { child in
        try await waitUntilListening(port: port, child: child)
        try await body(directory, port)
      }
    }
  }

  @Test func verifiesTheCertificateOfTheModel() async throws {
    try await withTLSUpstream(name: "localhost") { directory, port in
      let base = "https://localhost:\(port)"
      try await withGateway(in: directory, base: base, options: ["--model-ca", directory + "/ca.pem"]) { gateway in
        let answer = try await gateway.post(host: "localhost")
        #expect(answer.status == 200)
        #expect(answer.body == #"{"key":"\#(Self.secret)","sni":"localhost"}"#)
      }
    }
  }

  /// A name server that knows one address for every name.
  private static let nameServer = #"""
    import socket, sys
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.bind(("127.0.0.1", int(sys.argv[1])))
    while True:
        query, client = server.recvfrom(512)
        end = query.index(b"\0", 12) + 5
        has = query[end - 4:end - 2] == b"\0\1"
        head = query[:2] + b"\x81\x80\0\1" + (b"\0\1" if has else b"\0\0") + b"\0\0\0\0" + query[12:end]
        server.sendto(head + (b"\xc0\x0c\0\1\0\1\0\0\0\x1e\0\4\x7f\0\0\1" if has else b""), client)
    """#

  /// What can't be looked up when nginx starts is looked up later, and is held to its certificate as ever.
  @Test(arguments: ["ca.pem", "other.pem"])
  func startsWithoutKnowingWhereTheModelIs(_ ca: String) async throws {
    try await withTLSUpstream(name: "model.invalid") { directory, port in
      let names = try freePort()
      try Self.nameServer.write(toFile: directory + "/names.py", atomically: true, encoding: .utf8)
      try await withGateway(
        in: directory, base: "https://model.invalid:\(port)",
        options: ["--model-ca", "\(directory)/\(ca)", "--model-resolver", "127.0.0.1:\(names)"]
      ) { gateway in
        let early = try await gateway.post(host: "model.invalid")
        #expect(early.status == 502 && early.body.contains("can't be reached"), "\(early)")
        try await withChild(["python3", directory + "/names.py", "\(names)"], output: directory + "/names.log") {
          child in
          let log = gateway.nginx.prefix + "/logs/error.log"
          var answer = early
          for _ in 0..<20 where answer.status != 200 && !text(of: log).contains("certificate") {
            answer = try await gateway.post(host: "model.invalid")
          }
          #expect(child.exit == nil, "\(text(of: directory + "/names.log"))")
          if ca == "ca.pem" {
            #expect(answer.body == #"{"key":"\#(Self.secret)","sni":"model.invalid"}"#, "\(answer)")
          } else {
            #expect(answer.status == 502 && text(of: log).contains("certificate"), "\(answer)")
          }
        }
      }
    }
  }

  @Test(arguments: [("localhost", "other.pem"), ("other.example", "ca.pem")])
  func refusesACertificateThatIsNotTheModels(_ name: String, _ ca: String) async throws {
    try await withTLSUpstream(name: name) { directory, port in
      try await withGateway(
        in: directory, base: "https://localhost:\(port)", options: ["--model-ca", "\(directory)/\(ca)"]
      ) { gateway in
        let answer = try await gateway.post(host: "localhost")
        #expect(answer.status == 502)
        #expect(answer.body.contains("certificate") && !answer.body.contains(Self.secret))
        #expect(text(of: gateway.nginx.prefix + "/logs/error.log").contains("certificate"))
      }
    }
  }

  @Test(arguments: [
    (["ANTHROPIC_BASE_URL": "http://api.example.org"], "unencrypted"),
    (["ANTHROPIC_BASE_URL": "https://a b"], "must be http(s)"),
    (["ANTHROPIC_BASE_URL": "https://user:pw@example.org"], "must be http(s)"),
    (["ANTHROPIC_API_KEY": "a\"; include /etc/shadow; #"], "ANTHROPIC_API_KEY has a character"),
  ])
  func refusesToRender(_ environment: [String: String], _ reason: String) async throws {
    try await withTemporaryDirectory { directory in
      let exit = try await run(
        [
          repositoryRoot + "/scripts/render-model", directory + "/model", "--socket", directory + "/m", "--tokens",
          "/t",
        ],
        environment: Nginx.withoutCredentials.merging(environment.mapValues(Optional.some)) { $1 },
        output: directory + "/log")
      #expect(exit == .status(1))
      #expect(text(of: directory + "/log").contains(reason))
      if let key = environment["ANTHROPIC_API_KEY"] { #expect(!text(of: directory + "/log").contains(key)) }
    }
  }
}

import Foundation
import TestSupport
import Testing

/// Whose bodies nginx takes in.
@Suite struct NginxBodyTests {
  private static let path = "/sessions/00000000-0000-0000-0000-000000000000/files/x"
  private static let key = "cak_0123456789abcdef_" + String(repeating: "0", count: 64)

  private func withNginx(
    options: [String] = [], _ body: (Nginx, FakeResponder) async throws -> Void
  ) async throws {
    try await withTemporaryDirectory { directory in
      let responder = try FakeResponder(path: directory + "/r.sock") { request, reply in
        reply.write("Status: 200 OK\r\nContent-Type: text/plain\r\n\r\n\(request.body.count)")
      }
      defer { responder.stop() }
      try await Nginx.with(in: directory, socket: responder.path, options: options) { nginx in
        try await body(nginx, responder)
      }
    }
  }

  private static func head(_ line: String, _ fields: [String], key: String = key) -> String {
    "\(line) HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nX-Api-Key: \(key)\r\n"
      + fields.map { $0 + "\r\n" }.joined() + "\r\n"
  }

  /// The answer to a request whose body doesn't come; nginx waits for it a while before it closes the connection.
  private func answer(to request: String, _ nginx: Nginx) async throws -> RawResponse {
    let connection = try RawConnection(port: nginx.port)
    try await connection.send(request)
    return try RawResponse(parsing: try await connection.receive(until: Self.isDocumentWhole))
  }

  private static let isDocumentWhole: @Sendable ([UInt8]) -> Bool = {
    $0.last { $0 != UInt8(ascii: "\n") } == UInt8(ascii: "}")
  }

  private func status(of request: String, _ nginx: Nginx) async throws -> Int {
    try await exchange(port: nginx.port, Array(request.utf8)).status
  }

  /// Of bodies that nginx has taken in, in whole or in part.
  private static func temporaryFiles(_ nginx: Nginx) -> [String] {
    FileManager.default.enumerator(atPath: nginx.prefix + "/tmp")?.compactMap { $0 as? String }.filter {
      var isFolder: ObjCBool = false
      return FileManager.default.fileExists(atPath: nginx.prefix + "/tmp/" + $0, isDirectory: &isFolder)
        && !isFolder.boolValue
    } ?? []
  }

  static let announcements: [(line: String, fields: [String])] = [
    ("PUT \(path)", ["Content-Length: 60000"]),
    ("PUT \(path)", ["Content-Length: 4000000000", "Expect: 100-continue"]),
    ("PUT \(path)?a=%20b", ["Transfer-Encoding: chunked"]),
    ("PATCH \(path.replacing("files/x", with: "uploads/y"))", ["Content-Length: 123456"]),
    ("POST /sessions", ["Content-Length: 16000000"]),
    ("POST /sessions/1/messages", ["Content-Length: 16000000"]),
    ("GET \(path)", ["Content-Length: 16000000"]),
    ("GET /", ["Transfer-Encoding: chunked"]),
  ]

  @Test(arguments: announcements)
  func aBodyThatIsRefusedIsNotTakenIn(_ line: String, _ fields: [String]) async throws {
    try await withNginx { nginx, responder in
      responder.refuseBodies(
        401, #"{"code":"unauthorized","detail":"„Grüße“"}"#,
        "WWW-Authenticate: Bearer\r\nRetry-After: 7\r\nRateLimit: \"a\";r=0\r\nRateLimit-Policy: \"a\";q=1\r\n")
      let connection = try RawConnection(port: nginx.port)
      try await connection.send(Self.head(line, fields))
      // None of the body has to be there for the answer.
      let bytes = try await connection.receive(until: Self.isDocumentWhole)
      // Who waits for `100 Continue` isn't told to go on.
      #expect(bytes.starts(with: "HTTP/1.1 401 ".utf8))
      let answer = try RawResponse(parsing: bytes)
      #expect(answer["content-type"] == ["application/problem+json"])
      #expect(String(decoding: answer.body, as: UTF8.self) == #"{"code":"unauthorized","detail":"„Grüße“"}"#)
      #expect(answer["www-authenticate"] == ["Bearer"] && answer["retry-after"] == ["7"])
      #expect(answer["ratelimit"] == [#""a";r=0"#] && answer["ratelimit-policy"] == [#""a";q=1"#])
      #expect(answer["claude-api-refusal"].isEmpty && answer["x-request-id"].count == 1)
      let question = try #require(responder.questions.first)
      let method = line.split(separator: " ")[0]
      let target = line.split(separator: " ")[1]
      #expect(question.parameters["REQUEST_METHOD"] == String(method))
      #expect(question.parameters["REQUEST_URI"] == String(target))
      #expect(question.parameters["HTTP_X_API_KEY"] == Self.key && question.body.isEmpty)
      #expect(question.parameters["REQUEST_ID"] == answer["x-request-id"].first)
      let length = fields.first { $0.hasPrefix("Content-Length") }.map { String($0.dropFirst(16)) }
      #expect(question.parameters["CONTENT_LENGTH"] == length)
      #expect(responder.questions.count == 1 && responder.requests.isEmpty)
      #expect(Self.temporaryFiles(nginx).isEmpty)
      // What comes all the same is thrown away.
      if length != nil { try await connection.send(String(repeating: "a", count: 100_000)) }
      #expect(Self.temporaryFiles(nginx).isEmpty)
    }
  }

  @Test(.timeLimit(.minutes(5))) func aRefusalHasItsStatus() async throws {
    try await withNginx { nginx, responder in
      for status in [400, 401, 403, 404, 405, 413, 429, 500, 503, 507] {
        responder.refuseBodies(status, #"{"status":\#(status)}"#, "Allow: GET\r\n")
        let answer = try await answer(to: Self.head("PUT \(Self.path)", ["Content-Length: 60000"]), nginx)
        #expect(answer.status == status)
        #expect(answer.body == Array(#"{"status":\#(status)}"#.utf8))
        #expect(answer["allow"] == ["GET"])
      }
      // A request ends for nginx when it has seen that its client is gone.
      var log: [Substring] = []
      while log.count < 10 {
        try await Task.sleep(for: .milliseconds(2))
        log = text(of: nginx.prefix + "/logs/access.log").split(separator: "\n")
      }
      #expect(log.count == 10 && log.allSatisfy { $0.contains(#""method":"PUT""#) })
    }
  }

  @Test(arguments: announcements.filter { !$0.fields.contains("Content-Length: 4000000000") })
  func aBodyThatIsWelcomeComesAsItIs(_ line: String, _ fields: [String]) async throws {
    try await withNginx { nginx, responder in
      let length = fields.compactMap { Int($0.dropFirst(16)) }.first
      let body =
        length.map { String(repeating: "a", count: $0) }
        ?? "\(String(70000, radix: 16))\r\n\(String(repeating: "a", count: 70000))\r\n0\r\n\r\n"
      let answer = try await exchange(port: nginx.port, Array((Self.head(line, fields) + body).utf8))
      #expect(answer.status == 200)
      let request = try #require(responder.requests.first)
      #expect(responder.requests.count == 1 && responder.questions.count == 1)
      #expect(request.parameters["REQUEST_METHOD"] == responder.questions[0].parameters["REQUEST_METHOD"])
      let isUpload = line.contains("/files/") || line.contains("/uploads/") || line == "POST /sessions"
      #expect((request.parameters["BODY_FILE"]?.isEmpty == false) == isUpload)
      #expect(request.body.count == (isUpload ? 0 : length ?? 70000))
      #expect(request.parameters["CONTENT_LENGTH"] == String(length ?? 70000))
      #expect(request.parameters["BODY_ANNOUNCED"] == nil)
      // It is this that file names are compared with.
      let target = String(line.split(separator: " ")[1].split(separator: "?")[0])
      #expect(request.parameters["DOCUMENT_URI"] == target)
    }
  }

  @Test func smallBodiesAndNoneAreNotAskedFor() async throws {
    try await withNginx { nginx, responder in
      for (line, length) in [("PUT \(Self.path)", 59999), ("POST /sessions", 9999), ("POST /x", 1), ("PUT /x", 0)] {
        let request = Self.head(line, ["Content-Length: \(length)"]) + String(repeating: "a", count: length)
        let answer = try await status(of: request, nginx)
        #expect(answer == 200)
      }
      for line in ["GET \(Self.path)", "GET /", "DELETE \(Self.path)", "HEAD /", "OPTIONS \(Self.path)"] {
        let answer = try await status(of: Self.head(line, []), nginx)
        #expect(answer == 200)
      }
      #expect(responder.questions.isEmpty && responder.requests.count == 9)
    }
  }

  /// Nobody may say whether there is room: that is no full disk.
  @Test(arguments: ["PUT \(path)", "POST /x"])
  func withoutAnAnswerTheResponderIsUnavailable(_ line: String) async throws {
    try await withNginx { nginx, responder in
      responder.stop()
      let answer = try await answer(to: Self.head(line, ["Content-Length: 60000"]), nginx)
      #expect(answer.status == 502 && answer["retry-after"] == ["2"])
      #expect(String(decoding: answer.body, as: UTF8.self).contains("responder_unavailable"))
    }
  }

  @Test(.timeLimit(.minutes(5))) func aKeyHasANumberOfUploadsAtATime() async throws {
    try await withNginx(options: ["--exempt", "none", "--max-uploads", "3", "--body-timeout", "1h"]) {
      nginx, responder in
      let upload = Self.head("PUT \(Self.path)", ["Content-Length: 60000"])
      var dripping: [RawConnection] = []
      for _ in 0..<3 {
        let connection = try RawConnection(port: nginx.port)
        try await connection.send(upload + "x")
        dripping.append(connection)
      }
      while responder.questions.count < 3 { try await Task.sleep(for: .milliseconds(2)) }
      let refused = try await answer(to: upload, nginx)
      #expect(refused.status == 429 && refused["retry-after"] == ["1"])
      #expect(responder.questions.count == 3)
      // Other requests of the key, and uploads of other keys, go on.
      #expect(try await status(of: Self.head("GET /", []), nginx) == 200)
      let other = Self.head(
        "PUT \(Self.path)", ["Content-Length: 60000"], key: Self.key.replacing("0123", with: "3210"))
      let body = String(repeating: "a", count: 60000)
      let answer = try await status(of: (other + body), nginx)
      #expect(answer == 200)
      try await dripping[0].send(String(repeating: "a", count: 59999))
      let ended = try RawResponse(parsing: try await dripping[0].receive { _ in false })
      #expect(ended.status == 200)
      dripping.removeFirst()
      // nginx keeps the place until it has seen that the client is gone.
      while try await status(of: upload + body, nginx) != 200 { try await Task.sleep(for: .milliseconds(2)) }
    }
  }
}

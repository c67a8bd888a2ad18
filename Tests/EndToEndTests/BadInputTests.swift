import Foundation
import JSONSupport
import NIOCore
import NIOHTTP1
import TestSupport
import Testing

/// Bad input gets a problem document with the right status that names the field, and leaves nothing behind.
@Suite struct BadInputTests {
  struct Case: Sendable, CustomTestStringConvertible {
    var name: String
    var path = "/sessions"
    var type: String? = "application/json"
    var body: [UInt8]
    var status: Int
    var code: String
    var mentions = ""

    var testDescription: String { name }

    init(
      _ name: String, path: String = "/sessions", type: String? = "application/json", _ body: String, _ status: Int,
      _ code: String, _ mentions: String = ""
    ) {
      self.init(name, path: path, type: type, bytes: Array(body.utf8), status, code, mentions)
    }

    init(
      _ name: String, path: String = "/sessions", type: String? = "application/json", bytes: [UInt8], _ status: Int,
      _ code: String, _ mentions: String = ""
    ) {
      self.name = name
      self.path = path
      self.type = type
      body = bytes
      self.status = status
      self.code = code
      self.mentions = mentions
    }
  }

  static let bodies: [Case] = [
    Case("no JSON", "hello", 400, "invalid_json"),
    Case("half of JSON", #"{"initial_prompt": "x"#, 400, "invalid_json"),
    Case("JSON twice", "{}{}", 400, "invalid_json"),
    Case("no body", "", 400, "invalid_json", "empty"),
    Case("an array", "[]", 422, "invalid_body", "object"),
    Case("a deep nest", String(repeating: "[", count: 100_000), 400, "invalid_json"),
    Case(
      "invalid UTF-8", bytes: Array(#"{"initial_prompt":""#.utf8) + [0xff, 0xfe] + Array(#""}"#.utf8), 400,
      "invalid_json"),
    Case("a number", #"{"initial_prompt": 5}"#, 422, "invalid_field", "initial_prompt"),
    Case("an object", #"{"session_name": {}}"#, 422, "invalid_field", "session_name"),
    Case("white space", #"{"initial_prompt": " \n\t "}"#, 422, "invalid_field", "initial_prompt"),
    Case("NUL", #"{"initial_prompt": "a\u0000b"}"#, 422, "invalid_field", "initial_prompt"),
    Case("an unknown field", #"{"initial_promt": "x"}"#, 422, "unknown_field", "initial_promt"),
    Case("a name with a line break", #"{"session_name": "a\nb"}"#, 422, "invalid_field", "session_name"),
    Case(
      "a form", type: "application/x-www-form-urlencoded", "initial_prompt=x", 415, "unsupported_media_type",
      "application/json"),
    Case("text", type: "text/plain", "{}", 415, "unsupported_media_type"),
    Case(
      "10 MB of prompt", #"{"initial_prompt": ""# + String(repeating: "x", count: 10 << 20) + #""}"#, 413,
      "prompt_too_large", "initial_prompt"),
  ]

  @Test func creatingASession() async throws {
    try await Stack.run { stack in
      for input in Self.bodies { try await check(input, stack) }
      #expect(try await stack.get("/sessions").json["count"] == 0)
      #expect(
        try FileManager.default.contentsOfDirectory(atPath: stack.workspaceRoot).filter { !$0.hasPrefix(".") }.isEmpty)
    }
  }

  @Test func sendingAMessage() async throws {
    try await Stack.run { stack in
      let id = try await stack.createSession()
      let cases: [(String, String, Int, String)] = [
        ("missing", "{}", 422, "invalid_field"), ("null", #"{"prompt": null}"#, 422, "invalid_field"),
        ("empty", #"{"prompt": ""}"#, 422, "invalid_field"), ("a list", #"{"prompt": []}"#, 422, "invalid_field"),
      ]
      for (name, body, status, code) in cases {
        try await check(Case(name, path: "/sessions/\(id)/messages", body, status, code, "prompt"), stack)
      }
      // None of them has become a turn.
      #expect(try await stack.say("first", to: id) == "1: first")
    }
  }

  private func check(_ input: Case, _ stack: Stack) async throws {
    var headers: HTTPHeaders = [:]
    if let type = input.type { headers.add(name: "Content-Type", value: type) }
    let answer = try await stack.request(.POST, input.path, headers: headers, body: ByteBuffer(bytes: input.body))
    #expect(answer.status == input.status, "\(input.name): \(answer.text)")
    #expect(answer.headers.first(name: "content-type") == "application/problem+json", "\(input.name)")
    let json = try answer.json
    #expect(json["status"] == .int(Int64(input.status)), "\(input.name)")
    #expect(json["code"] == .string(input.code), "\(input.name)")
    #expect(json["detail"]?.stringValue?.contains(input.mentions) == true || input.mentions.isEmpty, "\(input.name)")
  }

  @Test func aBodyOverNginxsLimitIsRefusedBeforeItIsSent() async throws {
    try await Stack.run { stack in
      let id = try await stack.createSession()
      let head =
        "POST /sessions/\(id)/messages HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 17825792\r\n"
        + "Connection: close\r\n\r\n"
      let answer = try await exchange(port: stack.nginx.port, Array(head.utf8))
      #expect(answer.status == 413)
      #expect(try JSONValue(parsing: answer.body)["code"] == "content_too_large")
    }
  }

  @Test func idsThatAreNone() async throws {
    try await Stack.run { stack in
      let port = stack.nginx.port
      let strange = [
        "/sessions/x", "/sessions/1234", "/sessions/%2e%2e", "/sessions/\(UUID())x",
        "/sessions/%7B\(UUID())%7D", "/sessions/\(UUID().uuidString.replacing("-", with: ""))",
        "/sessions/\(UUID())",
      ]
      for path in strange {
        let answer = try await exchange(
          port: port, Array("GET \(path) HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".utf8))
        #expect(answer.status == 404, "\(path)")
        #expect(answer["content-type"] == ["application/problem+json"], "\(path)")
      }
      for path in ["/sessions/%00", "/sessions/%zz", "/sessions/../../etc/passwd", "/sessions/..%2f..%2fetc"] {
        let answer = try await exchange(
          port: port, Array("GET \(path) HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".utf8))
        #expect(answer.status == 400, "\(path)")
        #expect(answer["content-type"] == ["application/problem+json"], "\(path)")
      }
    }
  }

  @Test func wrongMethodsAndPaths() async throws {
    try await Stack.run { stack in
      let put = try await stack.request(.PUT, "/sessions")
      #expect(put.status == 405)
      #expect(put.headers.first(name: "allow")?.split(separator: ", ").sorted() == ["GET", "HEAD", "POST"])
      #expect(try await stack.request(.GET, "/nothing").json["code"] == "not_found")
      let head = try await stack.request(.HEAD, "/sessions")
      #expect(head.status == 200)
      #expect(head.body.isEmpty)
    }
  }

  @Test func aChunkedBodyIsABodyLikeAnyOther() async throws {
    try await Stack.run { stack in
      let text = #"{"initial_prompt":"chunked"}"#
      let chunks = [text.prefix(7), text.dropFirst(7)].map { "\(String($0.utf8.count, radix: 16))\r\n\($0)\r\n" }
        .joined()
      let request =
        "POST /sessions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n"
        + "Connection: close\r\n\r\n\(chunks)0\r\n\r\n"
      let answer = try await exchange(port: stack.nginx.port, Array(request.utf8))
      #expect(answer.status == 200)
      #expect(try JSONValue(parsing: answer.body)["initial_response"] == "1: chunked")
    }
  }

  /// The agent gets a prompt as it is, whatever a command line would make of it.
  @Test func promptsThatLookLikeSomethingElse() async throws {
    try await Stack.run { stack in
      let prompts = [
        "/help", "/compact now", "-p", "--version", "$(id)", "`id`", "a\nb\r\n\tc", "\u{1F600}\u{2028}", "\\n \"q\"",
      ]
      for prompt in prompts {
        let id = try await stack.createSession()
        #expect(try await stack.say(prompt, to: id) == "1: \(prompt)")
      }
    }
  }
}

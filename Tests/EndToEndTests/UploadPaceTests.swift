import Foundation
import JSONSupport
import NIOCore
import NIOHTTP1
import TestSupport
import Testing

/// What a key brings is held to a rate, before it is sent.
@Suite struct UploadPaceTests {
  private static let rate = 1_000_000

  private func withTenants(
    _ body: (_ stack: Stack, _ first: HTTPHeaders, _ second: HTTPHeaders) async throws -> Void
  ) async throws {
    try await Stack.run(settings: ["upload-max-rate-of-key": "\(Self.rate)"]) { stack in
      try await body(
        stack, Stack.credentials(try await stack.createKey("user")),
        Stack.credentials(try await stack.createKey("user")))
    }
  }

  private func newSession(_ stack: Stack, _ headers: HTTPHeaders) async throws -> String {
    try #require(try await stack.post("/sessions", [:], headers: headers).json["session"]?["id"]?.stringValue)
  }

  private func upload(_ bytes: Int, to session: String, _ stack: Stack, _ headers: HTTPHeaders) async throws
    -> Stack.Answer
  {
    try await stack.request(
      .PUT, "/sessions/\(session)/files/f", headers: headers, body: ByteBuffer(repeating: 1, count: bytes))
  }

  @Test func aBodyWaitsForTheEarlierOnesOfItsKey() async throws {
    try await withTenants { stack, first, second in
      let (own, others) = (try await newSession(stack, first), try await newSession(stack, second))
      #expect(try await upload(3 * Self.rate, to: own, stack, first).status == 201)
      // A second's worth was there at once: two are missing, and what the next one takes.
      let start = ContinuousClock.now
      async let next = upload(100_000, to: own, stack, first)
      // Nothing else waits: small bodies, requests without one, others' bodies.
      #expect(try await upload(50_000, to: own, stack, first).status == 204)
      #expect(try await stack.get("/sessions/\(own)", headers: first).status == 200)
      #expect(try await upload(Self.rate, to: others, stack, second).status == 201)
      #expect(try await next.status == 204)
      #expect(ContinuousClock.now - start > .milliseconds(1500))
    }
  }

  @Test func whatWouldWaitLongIsRefusedBeforeItIsSent() async throws {
    try await withTenants { stack, first, _ in
      let own = try await newSession(stack, first)
      // Of this one nobody knows the length before it is there.
      let connection = try RawConnection(port: stack.nginx.port)
      let fields = first.map { "\($0.name): \($0.value)\r\n" }.joined()
      let bytes = 40 * Self.rate
      try await connection.send(
        "PUT /sessions/\(own)/files/f HTTP/1.1\r\nHost: localhost\r\n\(fields)Transfer-Encoding: chunked\r\n\r\n"
          + "\(String(bytes, radix: 16))\r\n\(String(repeating: "a", count: bytes))\r\n0\r\n\r\n")
      #expect(try await connection.receive(untilText: "\r\n\r\n").hasPrefix("HTTP/1.1 201 "))
      for path in ["/sessions/\(own)/files/f", "/sessions/\(own)/messages", "/sessions"] {
        let answer = try await stack.request(
          path.hasSuffix("f") ? .PUT : .POST, path, headers: first, body: ByteBuffer(repeating: 1, count: 100_000))
        #expect(answer.status == 429, "\(answer.text)")
        #expect(try answer.json["code"] == "too_many_requests")
        let seconds = answer.headers.first(name: "retry-after").flatMap { Int($0) } ?? 0
        #expect((20...40).contains(seconds), "\(seconds)")
      }
    }
  }
}

import Foundation
import TestSupport
import Testing

/// nginx as it is installed for others, with a certificate made for the test.
@Suite struct TLSTests {
  /// Runs `body` with an nginx that answers for localhost and api.example.
  private func withTLS(
    _ body: (_ directory: String, _ port: Int, _ plain: Int) async throws -> Void,
    seen: (FakeResponder) throws -> Void = { _ in }
  ) async throws {
    try await withTemporaryDirectory { directory in
      let certificate = try await run(
        [repositoryRoot + "/scripts/make-certificate", directory + "/tls", "api.example"], output: directory + "/log")
      #expect(certificate == .status(0), "\(text(of: directory + "/log"))")
      let responder = try FakeResponder(path: directory + "/r.sock") { request, reply in
        let scheme = request.parameters["REQUEST_SCHEME"] ?? "none"
        let protocolName = request.parameters["SERVER_PROTOCOL"] ?? "none"
        reply.write("Status: 200 OK\r\nContent-Type: text/plain\r\n\r\n\(scheme) \(protocolName)")
      }
      defer { responder.stop() }
      let plain = try freePort()
      try FileManager.default.createDirectory(
        atPath: directory + "/acme/.well-known/acme-challenge", withIntermediateDirectories: true)
      try Data("proof".utf8).write(to: URL(filePath: directory + "/acme/.well-known/acme-challenge/token"))
      try await Nginx.with(
        in: directory, socket: directory + "/r.sock",
        options: [
          "--certificate", directory + "/tls/certificate.pem", "--certificate-key", directory + "/tls/key.pem",
          "--name", "localhost", "--name", "api.example", "--redirect-from", "127.0.0.1:\(plain)", "--acme-root",
          directory + "/acme",
        ]
      ) { nginx in
        try await body(directory, nginx.port, plain)
        try seen(responder)
      }
    }
  }

  private func curl(_ directory: String, _ port: Int, _ arguments: [String]) async throws -> String {
    let output = directory + "/curl.\(UUID().uuidString)"
    let exit = try await run(
      [
        "curl", "-sS", "-i", "--noproxy", "*", "--max-time", "20", "--cacert", directory + "/tls/certificate.pem",
        "--resolve", "api.example:\(port):127.0.0.1", "--resolve", "other.example:\(port):127.0.0.1",
      ] + arguments, output: output)
    return exit == .status(0) ? text(of: output) : "\(exit) \(text(of: output))"
  }

  @Test func speaksHTTP2WithStrictTransportSecurity() async throws {
    try await withTLS { directory, port, _ in
      let answer = try await curl(directory, port, ["https://api.example:\(port)/"])
      #expect(answer.hasPrefix("HTTP/2 200"), "\(answer)")
      #expect(answer.contains("strict-transport-security: max-age=63072000\r\n"))
      #expect(answer.hasSuffix("https HTTP/2.0"))
      let old = try await curl(directory, port, ["--http1.1", "https://api.example:\(port)/"])
      #expect(old.hasPrefix("HTTP/1.1 200"))
      // The name belongs to all services of the machine.
      let local = try await curl(directory, port, ["https://localhost:\(port)/"])
      #expect(local.hasPrefix("HTTP/2 200") && !local.contains("strict-transport-security"))
      let foreign = try await curl(directory, port, ["-k", "https://other.example:\(port)/"])
      #expect(foreign.hasPrefix("HTTP/2 421") && foreign.contains("misdirected_request"))
      let plain = try await curl(directory, port, ["http://api.example:\(port)/"])
      #expect(plain.contains(" 400") && plain.contains("bad_request"))
    }
  }

  /// HTTP/2 tells a body's length only if the client likes to.
  @Test func bodiesOfUnknownLengthAreAskedForOrRefused() async throws {
    try await withTLS { directory, port, _ in
      let data = directory + "/data"
      try Data(repeating: 1, count: 3_000_000).write(to: URL(filePath: data))
      let path = "https://api.example:\(port)/sessions/00000000-0000-0000-0000-000000000000/files/x"
      func send(_ method: String) async throws -> String {
        try await curl(directory, port, ["-X", method, "--data-binary", "@" + data, "-H", "Content-Length:", path])
      }
      for method in ["PUT", "POST"] {
        let answer = try await send(method)
        #expect(answer.hasPrefix("HTTP/2 200"), "\(answer)")
      }
      for method in ["GET", "DELETE"] {
        let answer = try await send(method)
        #expect(answer.hasPrefix("HTTP/2 413") && answer.contains("content_too_large"), "\(answer)")
      }
      for method in ["GET", "DELETE"] {
        let answer = try await curl(directory, port, ["-X", method, path])
        #expect(answer.hasPrefix("HTTP/2 200") && answer.hasSuffix("https HTTP/2.0"), "\(answer)")
      }
    } seen: { responder in
      #expect(responder.questions.map { $0.parameters["REQUEST_METHOD"] } == ["PUT", "POST"])
      #expect(responder.requests.map { $0.parameters["REQUEST_METHOD"] } == ["PUT", "POST", "GET", "DELETE"])
    }
  }

  @Test func refusesOldProtocolsAndKeepsNoTickets() async throws {
    try await withTLS { directory, port, _ in
      func connect(_ arguments: [String]) async throws -> String {
        let output = directory + "/openssl.\(UUID().uuidString)"
        _ = try await run(
          ["openssl", "s_client", "-connect", "127.0.0.1:\(port)", "-servername", "api.example"] + arguments,
          output: output)
        return text(of: output)
      }
      for version in ["-tls1", "-tls1_1"] {
        // Without this level of security openssl itself would not offer them.
        #expect(try await connect([version, "-cipher", "ALL:@SECLEVEL=0"]).contains("Cipher is (NONE)"), "\(version)")
      }
      let modern = try await connect(["-tls1_3"])
      #expect(modern.contains("TLSv1.3, Cipher is TLS_"))
      let old = try await connect(["-tls1_2"])
      #expect(old.contains("TLSv1.2, Cipher is ECDHE-"))
      #expect(!old.contains("TLS session ticket:"))
      #expect(try await connect(["-tls1_2", "-cipher", "AES128-SHA:AES128-GCM-SHA256"]).contains("Cipher is (NONE)"))
    }
  }

  @Test func plainHTTPLeadsToHTTPSExceptForChallenges() async throws {
    try await withTLS { directory, port, plain in
      let answer = try await curl(directory, port, ["http://127.0.0.1:\(plain)/sessions?limit=2", "-H", "Host: evil"])
      #expect(answer.hasPrefix("HTTP/1.1 308"))
      #expect(answer.contains("Location: https://localhost:\(port)/sessions?limit=2\r\n"))
      let base = "http://127.0.0.1:\(plain)/.well-known/acme-challenge/"
      #expect(try await curl(directory, port, [base + "token"]).hasSuffix("proof"))
      #expect(try await curl(directory, port, [base + "none"]).contains("404"))
      #expect(try await curl(directory, port, ["--path-as-is", base + "../x"]).contains("308"))
      #expect(try await curl(directory, port, ["--path-as-is", base + "../../../tls/key.pem"]).contains("400"))
    }
  }
}

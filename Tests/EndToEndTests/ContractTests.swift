import Foundation
import JSONSupport
import TestSupport
import Testing

/// The OpenAPI document against the running system, by tools that others have made.
@Suite(.enabled(if: Stack.contractTools != nil, "CLAUDE_API_TEST_CONTRACT_TOOLS names no directory"))
struct ContractTests {
  @Test func theDocumentIsValid() async throws {
    try await Stack.run { stack in
      let path = stack.directory + "/openapi.json"
      let answer = try await stack.get("/openapi.json")
      try Data(answer.body).write(to: URL(filePath: path))
      let log = stack.directory + "/validator.log"
      let exit = try await TestSupport.run([Self.tool("openapi-spec-validator"), path], output: log)
      #expect(exit == .status(0), "\(text(of: log))")
    }
  }

  /// Requests that fit the document and requests that don't, one by one and along its links, through nginx.
  @Test func schemathesisFindsNothing() async throws {
    // Its many sessions need no process of their own at once.
    try await Stack.run(settings: ["claude-max-processes": "4", "queue-max-length": "100"]) { stack in
      let key = try await stack.createKey("admin")
      let contract = repositoryRoot + "/Tests/EndToEndTests/Contract"
      let log = stack.directory + "/schemathesis.log"
      let exit = try await TestSupport.run(
        [
          Self.tool("schemathesis"), "--config-file",
          contract + "/schemathesis.toml",
          "run", "http://127.0.0.1:\(stack.nginx.port)/openapi.json", "--header", "Authorization: Bearer \(key)",
          "--report", "ndjson", "--report-ndjson-path", stack.directory + "/report.ndjson",
        ], environment: ["SCHEMATHESIS_HOOKS": "hooks", "PYTHONPATH": contract], output: log)
      #expect(exit == .status(0), "\(text(of: log).suffix(20_000))")
      #expect(stack.responderLog.contains("internal_error") == false, "\(stack.responderLog.suffix(4000))")
    }
  }

  private static func tool(_ name: String) throws -> String { try #require(Stack.contractTools) + "/" + name }
}

import Foundation
import TestSupport
import Testing

/// The page of a folder in a headless Chromium.
@Suite(.enabled(if: chromium != nil, "there is no chromium on PATH"))
struct BrowserTests {
  /// `CLAUDE_API_TEST_SCREENSHOTS` names a directory in which pictures of it are kept.
  @Test func aFolderShowsWhatChangesAndKeepsThePlace() async throws {
    try await FilesServer.run { server in
      mkdir(server.workspace + "/shared", 0o755)
      let made = try await server.json("POST", server.base + "/files/share", #"{"path":"shared"}"#)
      let href = try #require(made.text.firstMatch(of: /"href":"([^"]+)"/)?.1)
      let browser = server.directory + "/browser"
      let arguments = [
        try #require(chromium), "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
        "--no-first-run", "--no-proxy-server", "--user-data-dir=\(browser)", "--remote-debugging-port=0", "about:blank",
      ]
      let origin = "http://127.0.0.1:\(server.port)"
      let pictures = ProcessInfo.processInfo.environment["CLAUDE_API_TEST_SCREENSHOTS"].map { [$0] } ?? []
      let log = server.directory + "/browser-test.log"
      try await withChild(
        arguments, environment: ["HOME": server.directory], output: server.directory + "/chromium.log"
      ) { _ in
        // Debian's own, for which its package of websockets is.
        let exit = try await run(
          [
            "/usr/bin/python3", "\(repositoryRoot)/Tests/FilesTests/Browser/folder_page.py", browser,
            "\(origin)\(server.base)/files", server.workspace, origin + href,
          ] + pictures, output: log)
        #expect(exit == .status(0), "\(text(of: log).suffix(4000))")
      }
    }
  }
}

private let chromium: String? = (ProcessInfo.processInfo.environment["PATH"] ?? "").split(separator: ":")
  .map { $0 + "/chromium" }.first { FileManager.default.isExecutableFile(atPath: $0) }

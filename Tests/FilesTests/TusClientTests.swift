import Foundation
import TestSupport
import Testing

/// The directory of the programs of a Python environment, if tuspy is in it.
private let tools: String? = {
  guard let programs = ProcessInfo.processInfo.environment["CLAUDE_API_TEST_CONTRACT_TOOLS"] else { return nil }
  let libraries = programs + "/../lib"
  let versions = (try? FileManager.default.contentsOfDirectory(atPath: libraries)) ?? []
  let isThere = versions.contains {
    FileManager.default.fileExists(atPath: "\(libraries)/\($0)/site-packages/tusclient")
  }
  return isThere ? programs : nil
}()

/// Uploads by a client of the tus protocol that others have written.
@Suite(.enabled(if: tools != nil, "CLAUDE_API_TEST_CONTRACT_TOOLS names no environment with tuspy"))
struct TusClientTests {
  private static let program = """
    import sys
    from tusclient import client
    url, file, path = sys.argv[1:]
    tus = client.TusClient(url)
    first = tus.uploader(file, chunk_size=150_000, metadata={'path': path}, upload_checksum=True)
    first.upload(stop_at=300_000)
    # As after a crash: only the address is known.
    second = tus.uploader(file, chunk_size=150_000, url=first.url, upload_checksum=True)
    print('goes on at', second.get_offset())
    second.upload()
    """

  @Test func anUploadIsGoneOnWith() async throws {
    try await FilesServer.run { server in
      let content = pattern(1_000_000)
      let file = server.directory + "/local.bin"
      try Data(content).write(to: URL(fileURLWithPath: file))
      let log = server.directory + "/tus.log"
      let exit = try await run(
        [
          try #require(tools) + "/python3", "-c", Self.program,
          "http://127.0.0.1:\(server.port)\(server.base)/uploads", file, "größe/big.bin",
        ], output: log)
      #expect(exit == .status(0), "\(text(of: log))")
      #expect(text(of: log).contains("goes on at 300000"))
      #expect(FileManager.default.contents(atPath: server.workspace + "/größe/big.bin") == Data(content))
      #expect(try server.staged.isEmpty)
    }
  }
}

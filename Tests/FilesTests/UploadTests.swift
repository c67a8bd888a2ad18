import Foundation
import Sessions
import TestSupport
import Testing
import Workspaces

/// Uploads in parts by the tus protocol.
@Suite struct UploadTests {
  private static let version = ["Tus-Resumable": "1.0.0"]

  private func create(_ server: FilesServer, _ path: String, length: Int) async throws -> RawResponse {
    let metadata = "path " + Data(path.utf8).base64EncodedString()
    return try await server.send(
      "POST", server.base + "/uploads",
      ["Tus-Resumable": "1.0.0", "Upload-Length": "\(length)", "Upload-Metadata": metadata], [])
  }

  private func patch(
    _ server: FilesServer, _ target: String, offset: Int, _ bytes: [UInt8], checksum: String? = nil
  ) async throws -> RawResponse {
    var fields = Self.version
    fields["Content-Type"] = "application/offset+octet-stream"
    fields["Upload-Offset"] = "\(offset)"
    fields["Upload-Checksum"] = checksum
    return try await server.send("PATCH", target, fields, bytes)
  }

  @Test func inParts() async throws {
    try await FilesServer.run { server in
      let options = try await server.send("OPTIONS", server.base + "/uploads")
      #expect(options.status == 204 && options["tus-version"] == ["1.0.0"])
      let content = pattern(500_000)
      let made = try await create(server, "big/file.bin", length: content.count)
      #expect(made.status == 201)
      let target = try #require(made["location"].first)
      #expect(try await patch(server, target, offset: 0, Array(content[..<200_000])).status == 204)
      let wrong = try await patch(server, target, offset: 100, [1])
      #expect(wrong.status == 409 && wrong["tus-resumable"] == ["1.0.0"])
      let tooLong = try await patch(server, target, offset: 200_000, content)
      #expect(tooLong.status == 413)
      let head = try await server.send("HEAD", target, Self.version)
      #expect(head.status == 200 && head["upload-offset"] == ["200000"] && head["upload-length"] == ["500000"])
      #expect(head["cache-control"] == ["no-store"])
      #expect(try await server.workspaces.usageOutside(of: server.session.id).uploads >= 200_000)
      #expect(server.read("big/file.bin") == nil)
      let bad = try await patch(
        server, target, offset: 200_000, Array(content[200_000...]), checksum: "sha1 Kq5sNclPz7QV2+lfQIuc6R7oRu0=")
      #expect(bad.status == 460)
      let last = try await patch(server, target, offset: 200_000, Array(content[200_000...]))
      #expect(last.status == 204 && last["upload-offset"] == ["500000"])
      #expect(FileManager.default.contents(atPath: server.workspace + "/big/file.bin") == Data(content))
      #expect(try await server.send("HEAD", target, Self.version).status == 404)
      #expect(try server.staged.isEmpty)
    }
  }

  @Test func endsAndErrors() async throws {
    try await FilesServer.run { server in
      #expect(try await create(server, "empty", length: 0).status == 201)
      #expect(server.read("empty")?.isEmpty == true)
      let made = try await create(server, "gone", length: 10)
      let target = try #require(made["location"].first)
      #expect(try await server.send("DELETE", target, Self.version).status == 204)
      #expect(try await patch(server, target, offset: 0, [1]).status == 404)
      #expect(try await server.send("POST", server.base + "/uploads", ["Upload-Length": "5"], []).status == 412)
      #expect(try await create(server, "../x", length: 5).problemCode == "invalid_path")
      #expect(try await create(server, "x", length: -1).problemCode == "invalid_upload")
      #expect(try await create(server, "x", length: 1 << 40).problemCode == "upload_too_large")
      for _ in 0..<20 { _ = try await create(server, "many", length: 5) }
      #expect(try await create(server, "many", length: 5).status == 429)
      try await server.service.delete(server.session.id)
      #expect(
        try FileManager.default.contentsOfDirectory(atPath: server.directory + "/workspaces/.incoming/uploads").isEmpty)
    }
  }
}

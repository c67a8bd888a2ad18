import Foundation
import JSONSupport
import TestSupport
import Testing

/// The responder and nginx on a small file system of their own, in a sandbox that can write nothing else.
@Suite struct FullDiskTests {
  private static let size = 32 << 20

  /// What runs in the sandbox. Bodies go to the small file system too where `BODIES` names a directory of it.
  private static let start = """
    set -eu
    if [ -n "${BODIES:-}" ]; then
      mkdir "$BODIES"
      rm -rf "$PREFIX/tmp"
      ln -s "$BODIES" "$PREFIX/tmp"
    fi
    "$SERVER" serve --state-dir="$TOP/state" --workspace-root="$TOP/small/w" --socket-path="$TOP/s/r.sock" \\
      --claude-path="$CLAUDE" --sandbox-mode=off --demo-model-url=http://127.0.0.1:9 \\
      --readiness-min-free-disk="$RESERVE" \\
      --git-allowed-sources="file://$TOP/repository" &
    nginx -p "$PREFIX" -c nginx.conf -e stderr -g "daemon off;$USER_LINE" &
    wait -n
    """

  private struct Small: Sendable {
    let port: Int
    let directory: String
    let session: String

    var files: String { "/sessions/\(session)/files" }

    func send(
      _ method: String, _ target: String, _ fields: [String: String] = [:], _ body: [UInt8]? = nil
    ) async throws -> RawResponse {
      var head = "\(method) \(target) HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
      for (name, value) in fields { head += "\(name): \(value)\r\n" }
      if let body { head += "Content-Length: \(body.count)\r\n" }
      return try await exchange(port: port, Array((head + "\r\n").utf8) + (body ?? []))
    }

    func names() async throws -> [String] {
      let listing = try JSONValue(parsing: try await send("GET", files + "/?format=json").body)
      guard case .array(let entries)? = listing["entries"] else { return ["no listing: \(listing)"] }
      return entries.compactMap { $0["name"]?.stringValue }
    }

    func code(_ response: RawResponse) -> String? {
      (try? JSONValue(parsing: response.body))?["code"]?.stringValue
    }

    func expectFull(_ response: RawResponse, _ what: String) {
      #expect(response.status == 507 && code(response) == "disk_full", "\(what): \(response.status) \(response.text)")
    }
  }

  private func withSmallDisk(
    withBodies: Bool = false, reserve: Int = 0, _ body: (Small) async throws -> Void
  ) async throws {
    try await withTemporaryDirectory { directory in
      let port = try freePort()
      let prefix = directory + "/nginx"
      try await Nginx.render(
        prefix: prefix, port: port, socket: directory + "/s/r.sock", options: ["--workspaces", directory + "/small/w"])
      for name in ["small", "s", "repository"] { mkdir(directory + "/" + name, 0o700) }
      let environment: [String: String?] = [
        "TOP": directory, "PREFIX": prefix, "RESERVE": "\(reserve)",
        "BODIES": withBodies ? directory + "/small/bodies" : nil,
        "SERVER": Stack.product("claude-api-server"), "CLAUDE": Stack.product("fake-claude"),
        "USER_LINE": geteuid() == 0 ? " user root;" : "", "ANTHROPIC_API_KEY": nil, "ANTHROPIC_BASE_URL": nil,
      ]
      let log = directory + "/log"
      try await withChild(
        [
          "bwrap", "--die-with-parent", "--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc", "--bind", directory,
          directory, "--size", "\(Self.size)", "--tmpfs", directory + "/small", "--", "bash", "-c", Self.start,
        ], environment: environment, output: log
      ) { child in
        try await waitUntilListening(port: port, child: child)
        do {
          let session = try await createSession(port: port)
          try await body(Small(port: port, directory: directory, session: session))
        } catch {
          throw Stack.Failure("\(error)\n\(text(of: log).suffix(4000))")
        }
      }
    }
  }

  private func createSession(port: Int) async throws -> String {
    let request = "POST /sessions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}"
    for _ in 0..<3000 {
      let response = try await exchange(port: port, Array(request.utf8))
      if response.status == 200, let id = try JSONValue(parsing: response.body)["session"]?["id"]?.stringValue {
        return id
      }
      // The responder isn't there yet.
      try #require(response.status == 502, "\(response.text)")
      try await Task.sleep(for: .milliseconds(10))
    }
    throw Stack.Failure("no session could be made")
  }

  private static func bytes(_ megabytes: Int, _ value: UInt8 = 0x61) -> [UInt8] {
    [UInt8](repeating: value, count: megabytes << 20)
  }

  @Test func nothingIsTornByAFullDisk() async throws {
    try await withSmallDisk { small in
      #expect(try await small.send("PUT", small.files + "/keep", [:], Array("old".utf8)).status == 201)
      let large = Self.bytes(40)
      small.expectFull(try await small.send("PUT", small.files + "/keep", [:], large), "PUT over a file")
      small.expectFull(try await small.send("PUT", small.files + "/new/deep", [:], large), "PUT of a new file")
      #expect(try await small.send("GET", small.files + "/keep").text == "old")
      #expect(try await small.names() == ["keep"])

      let boundary = "--x\r\nContent-Disposition: form-data; name=\"f\"; filename="
      let form =
        Array("\(boundary)\"one\"\r\n\r\n".utf8) + Self.bytes(8) + Array("\r\n\(boundary)\"two\"\r\n\r\n".utf8)
        + large + Array("\r\n--x--\r\n".utf8)
      small.expectFull(
        try await small.send("POST", small.files, ["Content-Type": "multipart/form-data; boundary=x"], form), "a form")
      #expect(try await small.names() == ["keep"])

      // In parts: what was there of it before stays, and it can be gone on with.
      let tus = ["Tus-Resumable": "1.0.0"]
      let made = try await small.send(
        "POST", "/sessions/\(small.session)/uploads",
        tus.merging(["Upload-Length": "\(48 << 20)", "Upload-Metadata": "filename YmlnLmJpbg=="]) { $1 }, [])
      let upload = try #require(made["location"].first)
      func patch(_ offset: Int, _ bytes: [UInt8]) async throws -> RawResponse {
        try await small.send(
          "PATCH", upload,
          tus.merging(["Upload-Offset": "\(offset)", "Content-Type": "application/offset+octet-stream"]) { $1 }, bytes)
      }
      #expect(try await patch(0, Self.bytes(8)).status == 204)
      small.expectFull(try await patch(8 << 20, large), "a part of an upload")
      #expect(try await small.send("HEAD", upload, tus)["upload-offset"] == ["\(8 << 20)"])
      #expect(try await patch(8 << 20, Self.bytes(4)).status == 204)
      #expect(try await small.send("DELETE", upload, tus).status == 204)

      let archive = small.directory + "/large.tar.gz"
      let script = "head -c 100000000 /dev/zero >\"$1/zeros\" && tar -C \"$1\" -czf \"$2\" zeros"
      #expect(
        try await run(["bash", "-c", script, "x", small.directory, archive], output: archive + ".log") == .status(0))
      let packed = Array(try Data(contentsOf: URL(filePath: archive)))
      small.expectFull(
        try await small.send("POST", "/sessions/\(small.session)/archive?path=out", [:], packed), "an archive")
      #expect(try await small.names() == ["keep"])

      let repository = """
        set -eu
        cd "$1"
        export GIT_CONFIG_GLOBAL=/dev/null GIT_CONFIG_NOSYSTEM=1
        git init -q
        head -c 40000000 /dev/urandom >large
        git add large
        git -c user.name=a -c user.email=a@example.org commit -qm one
        """
      #expect(
        try await run(
          ["bash", "-c", repository, "x", small.directory + "/repository"], output: archive + ".log") == .status(0))
      let clone = #"{"git":{"url":"file://\#(small.directory)/repository"}}"#
      small.expectFull(try await small.send("POST", "/sessions", [:], Array(clone.utf8)), "a repository")

      // Nothing of all that is left: a file of nearly the whole disk has room.
      let rest = try await small.send("PUT", small.files + "/rest", [:], Self.bytes(28))
      #expect(rest.status == 201, "\(rest.text)")
      #expect(try await small.names() == ["keep", "rest"])
    }
  }

  @Test func whatIsKeptFreeIsNotFilled() async throws {
    try await withSmallDisk(reserve: 16 << 20) { small in
      func message(_ prompt: String) async throws -> RawResponse {
        try await small.send(
          "POST", "/sessions/\(small.session)/messages", ["Content-Type": "application/json"],
          Array("{\"prompt\":\"\(prompt)\"}".utf8))
      }
      #expect(try await message("hello").status == 200)
      for name in ["a", "b"] {
        let response = try await small.send("PUT", small.files + "/" + name, [:], Self.bytes(10))
        #expect(response.status == 201, "\(response.text)")
      }
      // As if the disk was full.
      small.expectFull(try await small.send("PUT", small.files + "/c", [:], Array("c".utf8)), "a file")
      small.expectFull(try await small.send("POST", "/sessions", [:], Array("{}".utf8)), "a session")
      small.expectFull(try await small.send("POST", "/sessions/\(small.session)/fork", [:], Array("{}".utf8)), "a fork")
      small.expectFull(try await message("fake:hang"), "a turn")
      #expect(try await small.names() == ["a", "b"])

      #expect(try await small.send("DELETE", small.files + "/b").status == 204)
      #expect(try await message("hello").status == 200)
      #expect(try await small.send("PUT", small.files + "/c", [:], Array("c".utf8)).status == 201)
    }
  }

  @Test func aBodyForWhichNginxHasNoRoom() async throws {
    try await withSmallDisk(withBodies: true) { small in
      #expect(try await small.send("PUT", small.files + "/keep", [:], Array("old".utf8)).status == 201)
      small.expectFull(try await small.send("PUT", small.files + "/keep", [:], Self.bytes(40)), "a body")
      #expect(try await small.send("GET", small.files + "/keep").text == "old")
      // On the same file system the body becomes the file, and needs no second room.
      let most = try await small.send("PUT", small.files + "/most", [:], Self.bytes(24))
      #expect(most.status == 201, "\(most.text)")
      #expect(try await small.names() == ["keep", "most"])
    }
  }
}

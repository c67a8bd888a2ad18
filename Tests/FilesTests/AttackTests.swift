import CLinux
import ClaudeAPI
import Foundation
import Sessions
import Synchronization
import TestSupport
import Testing
import Workspaces

/// What an agent or a client could try. All decoys lie in the test's own directory.
@Suite struct AttackTests {
  /// A directory beside the workspaces with a secret, which nothing may read or change.
  private func withDecoy(
    directBytes: Int = FilesConfiguration().maximumDirectBytes,
    _ body: (FilesServer, _ decoy: String) async throws -> Void
  ) async throws {
    var configuration = FilesConfiguration()
    configuration.maximumDirectBytes = directBytes
    try await FilesServer.run(configuration: configuration) { server in
      let decoy = server.directory + "/decoy"
      mkdir(decoy, 0o755)
      try Data("secret".utf8).write(to: URL(fileURLWithPath: decoy + "/file"))
      mkdir(decoy + "/empty", 0o755)
      try await body(server, decoy)
      #expect(text(of: decoy + "/file") == "secret")
      #expect(try FileManager.default.contentsOfDirectory(atPath: decoy).sorted() == ["empty", "file"])
      #expect(try FileManager.default.contentsOfDirectory(atPath: decoy + "/empty").isEmpty)
      // What was staged and not used goes after the answer.
      for _ in 0..<1000 where try !server.staged.isEmpty { try await Task.sleep(for: .milliseconds(10)) }
      #expect(try server.staged.isEmpty)
    }
  }

  @Test(arguments: DownloadTests.bothWays)
  func linksAreNeverFollowed(direct: Int) async throws {
    try await withDecoy(directBytes: direct) { server, decoy in
      try server.write("inside", to: "real/inside.txt")
      symlink(decoy, server.workspace + "/dir")
      symlink(decoy + "/file", server.workspace + "/file")
      symlink("real", server.workspace + "/near")
      symlink("/proc/self/root" + decoy, server.workspace + "/magic")
      symlink("loop", server.workspace + "/loop")
      for path in ["dir", "dir/", "dir/file", "file", "near/inside.txt", "magic/file", "loop", "loop/x"] {
        for method in ["GET", "HEAD"] {
          let response = try await server.send(method, "\(server.base)/files/\(path)")
          #expect(response.status == 403 || response.status == 404, "\(method) \(path)")
          #expect(!response.text.contains("secret"))
        }
      }
      for path in ["dir/file", "dir/new", "dir/empty/new", "magic/file", "dir/a/b/c"] {
        #expect(try await server.send("PUT", "\(server.base)/files/\(path)", text: "x").status == 403, "\(path)")
        #expect(try await server.send("DELETE", "\(server.base)/files/\(path)").status == 403, "\(path)")
        let form = multipart([("f", path, "x")])
        #expect(try await server.send("POST", server.base + "/files", form.fields, form.body).status == 403)
        let folder = try await server.json("POST", server.base + "/folders", #"{"path":"\#(path)"}"#)
        #expect(folder.status == 403, "\(path)")
        let out = try await server.json("POST", server.base + "/move", #"{"from":"real","to":"\#(path)"}"#)
        #expect(out.status == 403, "\(path)")
        let back = try await server.json("POST", server.base + "/move", #"{"from":"\#(path)","to":"stolen"}"#)
        #expect(back.status == 403, "\(path)")
      }
      // The links themselves can be replaced and removed.
      #expect(try await server.send("PUT", server.base + "/files/file", text: "mine").status == 204)
      #expect(server.read("file") == "mine")
      #expect(try await server.send("DELETE", server.base + "/files/dir?recursive=1").status == 204)
      let moved = try await server.json("POST", server.base + "/move", #"{"from":"near","to":"elsewhere/near"}"#)
      #expect(moved.status == 200)
    }
  }

  @Test func pathsThatClimb() async throws {
    try await withDecoy { server, _ in
      let up = [
        "../decoy/file", "..%2f..%2fdecoy/file", "%2e%2e/%2e%2e/decoy/file", "..\\..\\decoy\\file",
        "a/../../decoy/file",
        "//decoy/file", "%2fdecoy/file", "..%00/file", "%c0%ae%c0%ae/%c0%ae%c0%ae/decoy/file",
        "..%c0%af..%c0%afdecoy/file", "%252e%252e/decoy/file", "./file", ".%2e/file", "..;/decoy/file",
        "../.incoming/uploads", "..%2f.incoming",
      ]
      for path in up {
        for (method, body) in [("GET", nil), ("PUT", "x"), ("DELETE", nil)] as [(String, String?)] {
          let response = try await server.send(
            method, "\(server.base)/files/\(path)", [:], body.map { Array($0.utf8) })
          #expect(response.status >= 400 || method != "GET", "\(method) \(path)")
          #expect(!response.text.contains("secret"))
        }
      }
      let root = try FileManager.default.contentsOfDirectory(atPath: server.directory + "/workspaces")
      #expect(root.sorted() == [".incoming", server.session.id.uuidString.lowercased()].sorted())
    }
  }

  @Test func internalLocationsAreClosed() async throws {
    try await withDecoy { server, _ in
      try server.write("x", to: "f")
      let id = server.session.id.uuidString.lowercased()
      for target in ["/_workspaces/\(id)/f", "/_workspaces/", "/_workspaces/../decoy/file", "//_workspaces/\(id)/f"] {
        #expect(try await server.send("GET", target).status >= 400, "\(target)")
      }
      // nginx and the responder must mean the same path.
      let response = try await server.send("GET", "/x/../sessions/\(id)/files/f")
      #expect(response.status == 404 || response.status == 400)
    }
  }

  @Test func specialFilesDoNotHang() async throws {
    try await withDecoy { server, _ in
      mkfifo(server.workspace + "/fifo", 0o600)
      let socket = clinux_listen_unix(server.workspace + "/socket", 1, 0o600)
      defer { close(socket) }
      var names = ["fifo", "socket", "device"]
      // A device that everybody may make, and one that is somebody's work to read.
      try #require(mknod(server.workspace + "/device", S_IFCHR | 0o600, 0) == 0)
      if mknod(server.workspace + "/zero", S_IFCHR | 0o666, makeDevice(1, 5)) == 0 { names.append("zero") }
      for name in names {
        #expect(try await server.send("GET", server.base + "/files/" + name).problemCode == "special_file")
        #expect(try await server.json("POST", server.base + "/files/share", #"{"path":"\#(name)"}"#).status == 403)
      }
      let archive = try await server.send("GET", server.base + "/archive")
      #expect(archive.status == 200)
      // A write takes the place of such a file and goes nowhere else.
      for name in names where name != "socket" {
        #expect(try await server.send("PUT", server.base + "/files/" + name, text: "x").status == 204)
        #expect(server.read(name) == "x")
      }
      #expect(try await server.send("DELETE", server.base + "/files/socket").status == 204)
    }
  }

  private func makeDevice(_ major: UInt64, _ minor: UInt64) -> dev_t { dev_t(major << 8 | minor) }

  @Test func aFileThatIsSwappedForALink() async throws {
    try await withDecoy { server, decoy in
      let (file, saved, trap) = (server.workspace + "/f", server.workspace + "/saved", server.workspace + "/trap")
      try server.write("inside", to: "f")
      symlink(decoy + "/file", trap)
      let share = try await server.json("POST", server.base + "/files/share", #"{"path":"f"}"#)
      let href = try #require(share.text.firstMatch(of: /"href":"([^"]+)"/)?.1).description
      let isDone = Mutex(false)
      let swapper = Task.detached {
        var rounds = 0
        while !isDone.withLock({ $0 }) {
          rename(file, saved)
          rename(trap, file)
          rename(file, trap)
          rename(saved, file)
          rounds += 1
          await Task.yield()
        }
        return rounds
      }
      let served = try await withThrowingTaskGroup(of: Int.self) { tasks in
        for index in 0..<4 {
          tasks.addTask {
            var served = 0
            for _ in 0..<150 {
              let target = index == 0 ? href : server.base + "/files/f"
              let response = try await server.send("GET", target)
              #expect(!response.text.contains("secret"))
              #expect(response.status == 200 || response.status == 403 || response.status == 404, "\(response.status)")
              if response.status == 200 { served += 1 }
            }
            return served
          }
        }
        return try await tasks.reduce(0, +)
      }
      isDone.withLock { $0 = true }
      #expect(await swapper.value > 0)
      #expect(served > 0)
      // The error log tells of links that nginx met, but not by whose link they were asked for.
      let token = try #require(href.split(separator: "/").last)
      for log in ["access.log", "error.log"] {
        #expect(!text(of: server.nginx.prefix + "/logs/" + log).contains(token))
      }
    }
  }

  @Test func whatTheServerKeepsIsOutOfReach() async throws {
    try await withDecoy { server, _ in
      let id = server.session.id.uuidString.lowercased()
      let state = server.directory + "/state"
      let transcripts = "\(state)/claude-config/\(id)/projects/x"
      try FileManager.default.createDirectory(atPath: transcripts, withIntermediateDirectories: true)
      for file in [state + "/claude-api.sqlite", transcripts + "/t.jsonl", "\(state)/claude-config/\(id)/.credentials"]
      {
        try Data("secret".utf8).write(to: URL(fileURLWithPath: file))
      }
      symlink(state, server.workspace + "/state")
      symlink("../../state/claude-config/\(id)", server.workspace + "/config")
      let made = try await server.json("POST", server.base + "/files/share", #"{"path":""}"#)
      let href = try #require(made.text.firstMatch(of: /"href":"([^"]+)"/)?.1).description
      for base in [server.base + "/files", href] {
        for path in [
          "state/claude-api.sqlite", "config/projects/x/t.jsonl", "config/.credentials",
          "../../state/claude-api.sqlite", "..%2f..%2fstate%2fclaude-api.sqlite",
          "../../state/claude-config/\(id)/projects/x/t.jsonl", "%2e%2e/%2e%2e/state/claude-config/\(id)/.credentials",
          "../.incoming/share-key", "..%2f.incoming%2fshares%2f\(id)", "../.incoming/uploads/",
        ] {
          let response = try await server.send("GET", base + "/" + path)
          #expect(response.status >= 400 && !response.text.contains("secret"), "\(path)")
        }
      }
      for path in [".incoming", ".incoming/share-key", "_workspaces"] {
        #expect(try await server.send("GET", "/sessions/\(path)").status >= 400)
        #expect(try await server.send("GET", "/_workspaces/\(path)").status >= 400)
        #expect(try await server.send("GET", "/_shared/\(path)").status >= 400)
      }
      for path in ["state", "config"] {
        let archive = try await server.send("GET", server.base + "/archive?format=zip&path=" + path)
        #expect(archive.status == 403)
      }
      let whole = try await server.send("GET", server.base + "/archive?format=zip")
      #expect(whole.status == 200 && !String(decoding: whole.body, as: UTF8.self).contains("secret"))
    }
  }

  @Test func pathsByChance() async throws {
    try await withDecoy { server, _ in
      try server.write("inside", to: "a/b")
      symlink("../../decoy", server.workspace + "/a/l")
      for (seed, path) in Fuzz.inputs(200, { random in random.path() }) {
        for (method, body) in [("GET", nil), ("PUT", "x"), ("DELETE", nil)] as [(String, String?)] {
          let response = try await server.send(
            method, "\(server.base)/files/\(path)", [:], body.map { Array($0.utf8) })
          #expect(
            response.status < 500 && !response.text.contains("secret"),
            "\(method) \(path): \(response.status), seed \(seed)")
        }
      }
      let root = try FileManager.default.contentsOfDirectory(atPath: server.directory + "/workspaces")
      #expect(root.sorted() == [".incoming", server.session.id.uuidString.lowercased()].sorted())
    }
  }

  @Test func aWriteDoesNotReachTheOtherNameOfAFile() async throws {
    try await withDecoy { server, decoy in
      try FileManager.default.linkItem(atPath: decoy + "/file", toPath: server.workspace + "/hard")
      #expect(try await server.send("PUT", server.base + "/files/hard", text: "x").status == 204)
      #expect(server.read("hard") == "x")
      try FileManager.default.linkItem(atPath: decoy + "/file", toPath: server.workspace + "/hard2")
      #expect(try await server.send("DELETE", server.base + "/files/hard2").status == 204)
    }
  }

  @Test(arguments: DownloadTests.bothWays)
  func linksThatAreSwappedIn(direct: Int) async throws {
    try await withDecoy(directBytes: direct) { server, decoy in
      let (real, saved, trap) = (server.workspace + "/d", server.workspace + "/saved", server.workspace + "/trap")
      mkdir(real, 0o755)
      symlink(decoy, trap)
      try server.write("inside", to: "d/file")
      try server.write("inside", to: "movable")
      let isDone = Mutex(false)
      let swapper = Task.detached {
        var rounds = 0
        while !isDone.withLock({ $0 }) {
          rename(real, saved)
          rename(trap, real)
          rename(real, trap)
          rename(saved, real)
          rounds += 1
          await Task.yield()
        }
        return rounds
      }
      try await withThrowingTaskGroup(of: Void.self) { tasks in
        for _ in 0..<4 {
          tasks.addTask {
            for round in 0..<40 {
              let file = try await server.send("GET", server.base + "/files/d/file")
              #expect(!file.text.contains("secret"))
              _ = try await server.send("PUT", server.base + "/files/d/empty/new\(round)", text: "x")
              _ = try await server.send("DELETE", server.base + "/files/d/empty?recursive=1")
              let listing = try await server.send("GET", server.base + "/files/d/?format=json")
              #expect(!listing.text.contains("\"empty\",\"type\":\"directory\",\"size\":null,\"secret"))
              let archive = try await server.send("GET", server.base + "/archive?format=zip&path=d")
              #expect(!String(decoding: archive.body, as: UTF8.self).contains("secret"))
              try await writeInOtherWays(server, "d/empty/\(round)", archive.body)
            }
          }
        }
        try await tasks.waitForAll()
      }
      isDone.withLock { $0 = true }
      #expect(await swapper.value > 0)
    }
  }

  /// All that makes files but PUT. What comes of it depends on the moment.
  private func writeInOtherWays(_ server: FilesServer, _ path: String, _ archive: [UInt8]) async throws {
    let form = multipart([("f", path + "form", "x")])
    _ = try await server.send("POST", server.base + "/files", form.fields, form.body)
    _ = try await server.json("POST", server.base + "/folders", #"{"path":"\#(path)folder"}"#)
    _ = try await server.json("POST", server.base + "/move", #"{"from":"movable","to":"\#(path)moved"}"#)
    _ = try await server.json("POST", server.base + "/move", #"{"from":"\#(path)moved","to":"movable"}"#)
    _ = try await server.send("POST", server.base + "/archive?path=\(path)archive", [:], archive)
    let tus = ["Tus-Resumable": "1.0.0"]
    let metadata = "path " + Data((path + "tus").utf8).base64EncodedString()
    let made = try await server.send(
      "POST", server.base + "/uploads", tus.merging(["Upload-Length": "1", "Upload-Metadata": metadata]) { $1 }, [])
    guard let target = made["location"].first else { return }
    let part = ["Content-Type": "application/offset+octet-stream", "Upload-Offset": "0"]
    if try await server.send("PATCH", target, tus.merging(part) { $1 }, [0x78]).status != 204 {
      _ = try await server.send("DELETE", target, tus)
    }
  }

  @Test func longPathsAndDeepTrees() async throws {
    try await withDecoy { server, _ in
      let long = String(repeating: "a", count: 4096)
      #expect(try await server.send("GET", server.base + "/files/" + long).problemCode == "invalid_path")
      let deep = String(repeating: "a/", count: 6000)
      #expect(
        try await server.send("PUT", server.base + "/files/" + deep + "x", text: "x").problemCode == "invalid_path")
      let huge = try await server.send("GET", server.base + "/files/" + String(repeating: "a", count: 65_536))
      #expect(huge.status == 414)
      // 10,000 folders in each other, which an agent can make.
      try await onThread {
        var current = open(server.workspace, O_RDONLY | O_DIRECTORY)
        for _ in 0..<10_000 {
          mkdirat(current, "d", 0o755)
          let next = openat(current, "d", O_RDONLY | O_DIRECTORY)
          close(current)
          current = next
        }
        close(current)
      }
      let usage = try await server.send("GET", server.base + "/usage")
      #expect(usage.text.contains("\"entries\":10000"))
      #expect(try await server.send("GET", server.base + "/files/d/d/d/?format=json").status == 200)
      #expect(try await server.send("GET", server.base + "/archive").status == 200)
      #expect(try await server.send("DELETE", server.base + "/files/d?recursive=true").status == 204)
    }
  }

  @Test func sessionsAreApart() async throws {
    try await withDecoy { server, _ in
      try server.write("mine", to: "f")
      let other = try await server.service.create(NewSession(name: "Other")).session
      let base = "/sessions/" + other.id.uuidString.lowercased()
      let id = server.session.id.uuidString.lowercased()
      for path in ["f", "../\(id)/f", "%2e%2e/\(id)/f", "..%2f\(id)/f"] {
        let response = try await server.send("GET", "\(base)/files/\(path)")
        #expect(response.status >= 400, "\(path)")
      }
      try await server.service.delete(server.session.id)
      #expect(try await server.send("GET", server.base + "/files/f").problemCode == "session_not_found")
    }
  }

  @Test func theWorkspaceGoesDuringADownload() async throws {
    try await FilesServer.run { server in
      let size = 40_000_000
      try server.write("", to: "large")
      truncate(server.workspace + "/large", off_t(size))
      let connection = try RawConnection(port: server.port)
      try await connection.send(server.bytes("GET", server.base + "/files/large", [:], nil))
      var received = try await connection.receive { $0.count > 1000 }.count
      try await server.service.delete(server.session.id)
      received += try await connection.receive { _ in false }.count
      #expect(received > size)
    }
  }

  @Test func aFileThatGrowsWhileItIsSent() async throws {
    try await FilesServer.run { server in
      let size = 40_000_000
      try server.write("", to: "large")
      truncate(server.workspace + "/large", off_t(size))
      let connection = try RawConnection(port: server.port)
      try await connection.send(server.bytes("GET", server.base + "/files/large", [:], nil))
      var received = try await connection.receive { $0.count > 1000 }
      truncate(server.workspace + "/large", off_t(2 * size))
      received += try await connection.receive { _ in false }
      let response = try RawResponse(parsing: received)
      #expect(response["content-length"] == ["\(size)"] && response.body.count == size)
      let archive = try await server.send("GET", server.base + "/archive")
      #expect(archive.status == 200)
    }
  }

  @Test func manyFilesInOneFolder() async throws {
    let count = Int(ProcessInfo.processInfo.environment["CLAUDE_API_TEST_FOLDER_SIZE"] ?? "") ?? 200_000
    var limits = WorkspaceLimits()
    limits.entries = 2_000_000
    try await FilesServer.run(limits: limits) { server in
      mkdir(server.workspace + "/many", 0o755)
      try await withThrowingTaskGroup(of: Void.self) { tasks in
        for part in 0..<4 {
          tasks.addTask {
            try await onThread {
              for index in stride(from: part, to: count, by: 4) {
                close(creat("\(server.workspace)/many/f\(index)", 0o600))
              }
            }
          }
        }
        try await tasks.waitForAll()
      }
      let before = residentBytes()
      var seen: Set<String> = []
      var cursor = ""
      for _ in 0..<4 {
        let page = try await server.send("GET", server.base + "/files/many/?format=json&limit=1000" + cursor)
          .decode(Listing.self)
        #expect(page.count == count && page.entries.count == 1000)
        seen.formUnion(page.entries.map(\.name))
        cursor = "&cursor=" + (page.next_cursor ?? "")
      }
      #expect(seen.count == 4000)
      let html = try await server.send("GET", server.base + "/files/many/")
      #expect(html.status == 200 && html.body.count < 2_000_000 && html.text.contains("Next page"))
      // The names alone would be more.
      #expect(residentBytes() - before < 48 << 20, "\(residentBytes() - before)")
      let usage = try await server.send("GET", server.base + "/usage")
      #expect(usage.text.contains("\"entries\":\(count + 1)"))
      // Takes as long as the disk does.
      try await server.workspaces.delete(try .init("many".utf8), of: server.session.id, isRecursive: true)
      #expect(try server.staged.isEmpty)
    }
  }

  private func residentBytes() -> Int {
    let fields = text(of: "/proc/self/statm").split(separator: " ")
    return (fields.count > 1 ? Int(fields[1]) ?? 0 : 0) * Int(sysconf(Int32(_SC_PAGESIZE)))
  }

  @Test func aFileThatShrinksWhileItIsSent() async throws {
    try await FilesServer.run { server in
      try server.write("", to: "large")
      truncate(server.workspace + "/large", 40_000_000)
      let connection = try RawConnection(port: server.port)
      try await connection.send(server.bytes("GET", server.base + "/files/large", [:], nil))
      _ = try await connection.receive { $0.count > 1000 }
      truncate(server.workspace + "/large", 10)
      _ = try await connection.receive { _ in false }
      #expect(try await server.send("GET", server.base + "/files/large")["content-length"] == ["10"])
    }
  }
}

import Foundation
import Sessions
import TestSupport
import Testing

@Suite struct FormTests {
  @Test func severalFiles() async throws {
    try await FilesServer.run { server in
      let tricky = pattern(700_000) + Array("\r\n--boundary-\r\n--".utf8) + pattern(10)
      let form = multipart([
        ("a", "one.txt", Array("one".utf8)), ("b", "sub/dir/two.txt", []), ("c", "large.bin", tricky),
        ("d", "quo%22te.txt", Array("x".utf8)), ("e", "", []),
      ])
      let response = try await server.send("POST", server.base + "/files/up", form.fields, form.body)
      #expect(response.status == 201)
      #expect(server.read("up/one.txt") == "one")
      #expect(server.read("up/sub/dir/two.txt")?.isEmpty == true)
      #expect(server.read("up/quo\"te.txt") == "x")
      #expect(FileManager.default.contents(atPath: server.workspace + "/up/large.bin") == Data(tricky))
      #expect(try server.staged.isEmpty)
    }
  }

  @Test func curl() async throws {
    try await FilesServer.run { server in
      let file = server.directory + "/local.txt"
      try Data("from curl".utf8).write(to: URL(fileURLWithPath: file))
      let exit = try await run(
        [
          "curl", "-sS", "--fail", "-F", "file=@\(file)", "-F", "file=@\(file);filename=x/\"y\".txt",
          "http://127.0.0.1:\(server.port)\(server.base)/files",
        ], output: server.directory + "/curl.log")
      #expect(exit == .status(0), "\(text(of: server.directory + "/curl.log"))")
      #expect(server.read("local.txt") == "from curl" && server.read("x/\"y\".txt") == "from curl")
    }
  }

  @Test func badForms() async throws {
    try await FilesServer.run { server in
      let good = multipart([("a", "one.txt", "one")])
      for cut in [1, 5, 60, good.body.count - 1] {
        let response = try await server.send(
          "POST", server.base + "/files", good.fields, Array(good.body.dropLast(cut + 4)))
        #expect(response.problemCode == "invalid_form", "\(cut)")
      }
      for name in ["../x", "/etc/x", "a//b", "a/../../b", ".."] {
        let form = multipart([("ok", "good.txt", "x"), ("bad", name, "x")])
        let response = try await server.send("POST", server.base + "/files", form.fields, form.body)
        #expect(response.status == 400 && response.problemCode == "invalid_path", "\(name)")
      }
      let field = multipart([("a", nil, "x")])
      #expect(
        try await server.send("POST", server.base + "/files", field.fields, field.body).problemCode == "unknown_field")
      let type = try await server.send("POST", server.base + "/files", ["Content-Type": "text/plain"], text: "x")
      #expect(type.status == 415)
      var foreign = good.fields
      foreign["Origin"] = "http://evil.example"
      #expect(try await server.send("POST", server.base + "/files", foreign, good.body).status == 403)
      foreign["Origin"] = "http://localhost"
      #expect(try FileManager.default.contentsOfDirectory(atPath: server.workspace).isEmpty)
      #expect(try await server.send("POST", server.base + "/files", foreign, good.body).status == 201)
      #expect(try server.staged.isEmpty)
    }
  }
}

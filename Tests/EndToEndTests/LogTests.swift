import Foundation
import JSONSupport
import NIOCore
import NIOHTTP1
import TestSupport
import Testing

/// What the logs of the responder and of nginx hold, and what they never hold.
@Suite struct LogTests {
  /// Texts that belong to somebody, each sent in another place.
  private struct Secrets {
    private(set) var all: [String: String] = [:]

    mutating func new(_ place: String) -> String {
      let text = "secret\(UUID().uuidString.replacing("-", with: ""))"
      all[text] = place
      return text
    }
  }

  private func allLogs(_ stack: Stack) throws -> [(path: String, text: String)] {
    let files = try FileManager.default.subpathsOfDirectory(atPath: stack.nginx.prefix)
      .filter { $0.hasPrefix("logs/") }.map { stack.nginx.prefix + "/" + $0 }
    return ([stack.directory + "/responder.log", stack.directory + "/model.log", stack.nginx.prefix + ".log"] + files)
      .map { ($0, text(of: $0)) }
  }

  /// Everything that a client can say, said to a server that logs all it can, in good and in bad requests, with and
  /// without a responder behind nginx.
  @Test(arguments: ["logfmt", "json"])
  func noSecretIsLogged(_ format: String) async throws {
    try await Stack.run(settings: ["log-level": "debug", "log-format": format]) { stack in
      var secrets = Secrets()
      let key = try await stack.createKey("user")
      let good: HTTPHeaders = ["Authorization": "Bearer \(key)"]
      let wrongKey = "cak_0123456789abcdef_" + String(repeating: "ab", count: 32)

      // Keys, right and wrong, in all places where somebody may think that they belong.
      for headers: HTTPHeaders in [
        good, ["X-Api-Key": key], ["Authorization": "Bearer \(wrongKey)"], ["X-Api-Key": secrets.new("a key")],
        ["Authorization": "Basic \(secrets.new("a password"))"], ["Cookie": "session=\(secrets.new("a cookie"))"],
        ["X-\(secrets.new("a name"))": "x"], ["Referer": "http://x/\(secrets.new("a referrer"))"],
        ["User-Agent": secrets.new("an agent")], ["Idempotency-Key": secrets.new("a key of a repetition")],
      ] {
        _ = try await stack.request(
          .POST, "/sessions?key=\(secrets.new("a query"))", headers: headers,
          body: ByteBuffer(string: #"{"initial_prompt":"\#(secrets.new("a body"))"}"#))
      }

      // A conversation.
      var json = good
      json.add(name: "Content-Type", value: "application/json")
      let created = try await stack.post(
        "/sessions",
        [
          "initial_prompt": .string(secrets.new("a prompt")), "session_name": .string(secrets.new("a session's name")),
          "append_system_prompt": .string(secrets.new("a system prompt")),
          "metadata": ["x": .string(secrets.new("metadata"))],
        ], headers: good)
      #expect(created.status == 200, "\(created.text)")
      let id = try created.json["session"]?["id"]?.stringValue ?? ""
      for prompt in [
        secrets.new("a prompt"), "fake:error 529", "fake:raw \(secrets.new("rubbish of the CLI"))",
        "fake:exit 3 \(secrets.new("the last words of the CLI"))", "fake:unknown",
      ] {
        _ = try await stack.post("/sessions/\(id)/messages", ["prompt": .string(prompt)], headers: good)
      }
      for body in [
        #"{"prompt": "\#(secrets.new("half a body"))"#, #"{"\#(secrets.new("a field's name"))": 1}"#,
        #"{"prompt": ["\#(secrets.new("a wrong value"))"]}"#,
        #"{"prompt": "\#(secrets.new("a long prompt") + String(repeating: "x", count: 300_000))"}"#,
        #"{"prompt": "\#(secrets.new("too long a prompt") + String(repeating: "x", count: 5 << 20))"}"#,
      ] {
        _ = try await stack.request(
          .POST, "/sessions/\(id)/messages", headers: json, body: ByteBuffer(string: body))
      }
      _ = try await stack.get(
        "/sessions/\(id)/events?types=\(secrets.new("a parameter"))", headers: good)

      // Files, and links to them.
      let content = secrets.new("a file's content")
      let put = try await stack.request(
        .PUT, "/sessions/\(id)/files/report.txt", headers: good, body: ByteBuffer(string: content))
      #expect(put.status == 201, "\(put.text)")
      let share = try await stack.post("/sessions/\(id)/files/share", ["path": "report.txt"], headers: good)
      let href = try share.json["href"]?.stringValue ?? ""
      let token = String(href.dropFirst("/shared/".count))
      #expect(href.hasPrefix("/shared/") && token.utf8.count > 20, "\(share.text)")
      #expect(try await stack.get(href).text == content)
      for path in [href + "/", href + "/x", href + "?x=1", "/shared/\(secrets.new("a token that is none"))"] {
        _ = try await stack.get(path)
      }
      // Something else is in the file's place, about which nginx complains.
      let file = "\(stack.workspaceRoot)/\(id)/report.txt"
      try FileManager.default.removeItem(atPath: file)
      try FileManager.default.createSymbolicLink(atPath: file, withDestinationPath: "/etc/hostname")
      _ = try await stack.get(href)
      // A path that nginx can't read, and a responder that isn't there.
      _ = try await exchange(
        port: stack.nginx.port, Array("GET /a%00?\(secrets.new("a bad path")) HTTP/1.1\r\n\r\n".utf8))
      await stack.stopResponder()
      #expect(try await stack.get(href).status == 502)
      #expect(try await stack.get("/sessions", headers: good).status == 502)
      await stack.nginx.process.stop()

      let parts = key.split(separator: "_").map(String.init) + [wrongKey.split(separator: "_").map(String.init)[2]]
      for (path, log) in try allLogs(stack) {
        for (secret, place) in secrets.all {
          // Names of fields become part of the message to the client only.
          #expect(!log.contains(secret), "\(place) is in \(path)")
        }
        #expect(!log.contains(parts[2]) && !log.contains(parts[3]), "a key is in \(path)")
        #expect(!log.contains(token), "a link is in \(path)")
        if let signature = token.split(separator: ".").last, signature.utf8.count > 10 {
          #expect(!log.contains(signature), "a link's signature is in \(path)")
        }
      }
      // The logs were really written.
      #expect(stack.responderLog.contains("Turn ended") && stack.responderLog.contains("Access"))
      #expect(text(of: stack.nginx.prefix + "/logs/access.log").contains(id))
    }
  }

  /// A request and a turn can be followed from nginx's log to the responder's.
  @Test func theLogsTellOneStory() async throws {
    try await Stack.run(settings: ["log-format": "json"]) { stack in
      let key = try await stack.createKey("user")
      let headers: HTTPHeaders = ["Authorization": "Bearer \(key)", "X-Request-Id": "made-up", "Request-Id": "made-up"]
      let created = try await stack.post("/sessions", [:], headers: headers)
      let id = try created.json["session"]?["id"]?.stringValue ?? ""
      let answer = try await stack.post("/sessions/\(id)/messages", ["prompt": "hello"], headers: headers)
      let turn = try answer.json["turn_id"]?.stringValue ?? ""
      let requestID = try #require(answer.headers.first(name: "x-request-id"))
      // nginx asks for their bodies first, which is none of their story.
      let path = "/sessions/\(id)/files/f"
      let large = ByteBuffer(repeating: 0, count: 100_000)
      var uploads: [(id: String, status: String)] = []
      for (headers, status) in [(headers, 201), ([:], 401)] {
        let upload = try await stack.request(.PUT, path, headers: headers, body: large)
        #expect(upload.status == status)
        uploads.append((try #require(upload.headers.first(name: "x-request-id")), String(status)))
      }
      let metrics = try await stack.get("/metrics").text
      await stack.stopResponder()
      await stack.nginx.process.stop()

      let lines = try stack.responderLog.split(separator: "\n").map { line in
        try #require(try JSONSerialization.jsonObject(with: Data(line.utf8)) as? [String: String], "\(line)")
      }
      for line in lines { #expect(line["time"] != nil && line["level"] != nil && line["msg"]?.isEmpty == false) }
      let access = try #require(lines.first { $0["msg"] == "Access" && $0["request_id"] == requestID })
      #expect(
        access["session"] == id && access["status"] == "200" && access["key"] == String(key.split(separator: "_")[1]))
      #expect(access["route"] == "POST /sessions/{session_id}/messages")
      let end = try #require(lines.first { $0["msg"] == "Turn ended" && $0["turn"] == turn })
      #expect(end["session"] == id && end["state"] == "completed" && end["ms"].flatMap { Int($0) } != nil)
      let nginx = text(of: stack.nginx.prefix + "/logs/access.log").split(separator: "\n")
      for (id, status) in uploads {
        let own = lines.filter { $0["request_id"] == id }
        #expect(own.map { $0["status"] } == [status] && own[0]["route"] == "PUT /sessions/{session_id}/files/**")
        #expect(nginx.count { $0.contains(id) && $0.contains("\"status\":\(status)") } == 1)
        let label = "{method=\"PUT\",route=\"/sessions/{session_id}/files/{path}\",status=\"\(status)\"}"
        #expect(metrics.contains("claude_api_http_requests_total\(label) 1\n"))
      }
      #expect(nginx.contains { $0.contains(requestID) && $0.contains("/sessions/\(id)/messages") })
      #expect(!stack.responderLog.contains("made-up") && !nginx.contains { $0.contains("made-up") })
    }
  }
}

import Foundation
import JSONSupport
import NIOHTTP1
import TestSupport
import Testing

/// WebSockets through nginx, with everything behind it.
@Suite struct SocketTests {
  private func isType(_ type: JSONValue) -> (JSONValue) -> Bool { { $0["type"] == type } }

  private func sequences(_ messages: [JSONValue]) -> [Int64] { messages.compactMap { $0["sequence"]?.intValue } }

  // MARK: nginx

  @Test func aConversationGoesThroughNginx() async throws {
    try await Stack.run { stack in
      let id = try await stack.createSession()
      // What a client says of itself in nginx's own headers doesn't count: this one would be refused for its address.
      let socket = try await stack.socket(
        id, headers: ["Claude-Api-Remote-Addr": "10.0.0.1", "X-Request-Id": "forged", "Origin": "http://127.0.0.1"])
      let request = socket.raw.fields.first { $0.name == "X-Request-Id" }?.value
      #expect(request?.count == 32, "\(socket.raw.fields)")
      #expect(try await socket.next()["type"] == "ready")
      try await socket.send(["type": "message", "id": "m", "prompt": "fake:count 300"])
      var messages = try await socket.messages(until: isType("agent.message"))
      // The turn is far from its end when its first words are here.
      #expect(messages.contains { $0["type"] == "reply" && $0["id"] == "m" })
      #expect(try await stack.get("/sessions/\(id)/turns").json["turns"]?[0]?["state"] == "running")
      messages += try await socket.messages(until: isType("turn.completed"))
      let log = try await stack.get("/sessions/\(id)/events?limit=1000").json["events"]?.arrayValue
      #expect(messages.filter { $0["sequence"] != nil } == log)
      #expect(try await socket.ask(["type": "ping", "id": "p"]) == ["type": "pong", "id": "p"])
      // Frames reach the responder as they are, and its close the client.
      try await socket.raw.send(raw: RawWebSocket.bytes(1, [0xff]))
      #expect(try await socket.end() == 1007)
      let unmasked = try await stack.socket(id)
      try await unmasked.raw.send(raw: RawWebSocket.bytes(9, [], isMasked: false))
      #expect(try await unmasked.end() == 1002)
      // A graceful end says so, and doesn't wait for sockets.
      let last = try await stack.socket(id)
      #expect(try await last.next()["type"] == "ready")
      let ending = Task { try await last.end() }
      #expect(await stack.stopResponder() == .status(0))
      #expect(try await ending.value == 1001)
    }
  }

  @Test func whatIsNoSocketIsAProblemDocument() async throws {
    try await Stack.run { stack in
      let id = try await stack.createSession()
      let path = "/sessions/\(id)/ws"
      func check(_ status: Int, _ code: JSONValue, _ answer: Stack.Answer) throws {
        #expect(answer.status == status, "\(answer.text)")
        #expect(try answer.json["code"] == code)
        #expect(answer.headers["content-type"] == ["application/problem+json"])
        #expect(answer.headers["x-request-id"].count == 1)
      }
      let plain = try await stack.get(path)
      try check(426, "upgrade_required", plain)
      #expect(plain.headers["upgrade"] == ["websocket"])
      try check(405, "method_not_allowed", try await stack.post(path, ["a": 1]))
      try check(404, "session_not_found", try await stack.get("/sessions/\(UUID().uuidString)/ws"))
      func refusal(_ headers: [String: String], _ path: String) async throws -> RawResponse {
        do {
          _ = try await RawWebSocket.open(
            RawConnection(port: stack.nginx.port), path: path, headers: headers)
        } catch let refused as RawWebSocket.Refused {
          return refused.response
        }
        throw Stack.Failure("it was opened")
      }
      let foreign = try await refusal(["Origin": "https://evil.example"], path)
      #expect(foreign.status == 403 && foreign.text.contains("origin_not_allowed"))
      let cursor = try await refusal([:], path + "?after=99")
      #expect(cursor.status == 409 && cursor.text.contains("unknown_cursor"))
      #expect(try await refusal(["Host": "evil.example"], path).status == 421)
      // Many in a row: no connection to the responder is used for two.
      for _ in 0..<20 {
        #expect(try await stack.get(path).status == 426)
        #expect(try await stack.socket(id).next()["type"] == "ready")
      }
      await stack.stopResponder()
      try check(502, "responder_unavailable", try await stack.get(path))
    }
  }

  @Test func keysBySubcommandAndAnOthersClient() async throws {
    try await Stack.run { stack in
      let key = try await stack.createKey("user")
      let id = try await stack.createSession([:], key: key)
      let script = stack.directory + "/client.py"
      try Self.pythonClient.write(toFile: script, atomically: true, encoding: .utf8)
      let log = stack.directory + "/client.log"
      let exit = try await TestSupport.run(
        ["/usr/bin/python3", script, "ws://127.0.0.1:\(stack.nginx.port)/sessions/\(id)/ws", key], output: log)
      #expect(exit == .status(0), "\(text(of: log))")
      #expect(text(of: log).hasSuffix("turn.completed\nclosed 4401\n"), "\(text(of: log))")
      // The key is in no log.
      for file in ["/responder.log", "/nginx/logs/access.log", "/nginx/logs/error.log", "/nginx.log"] {
        #expect(!text(of: stack.directory + file).contains(String(key.suffix(64))), "\(file)")
      }
    }
  }

  /// The client of the library `websockets`, which others wrote. It compresses where it may.
  private static let pythonClient = """
    import asyncio, json, sys, websockets

    async def main(url, key):
        async with websockets.connect(url) as socket:
            await socket.send(json.dumps({"type": "authenticate", "key": key}))
            print(json.loads(await socket.recv())["type"])
            await (await socket.ping())
            await socket.send(json.dumps({"type": "message", "id": "1", "prompt": "Hello"}))
            async for message in socket:
                message = json.loads(message)
                print(message["type"])
                if message["type"] == "turn.completed":
                    break
        try:
            async with websockets.connect(url) as socket:
                await socket.send(json.dumps({"type": "authenticate", "key": key[:-1] + "x"}))
                async for message in socket:
                    pass
        except websockets.ConnectionClosed as closed:
            print("closed", closed.rcvd.code)

    asyncio.run(main(*sys.argv[1:]))

    """

  @Test func aRevokedKeyEndsItsStreamsOnBothTransports() async throws {
    try await Stack.run { stack in
      let admin = try await stack.createKey("admin")
      let key = try await stack.createKey("user")
      let id = try await stack.createSession([:], key: key)
      let socket = try await stack.socket(id, headers: ["Authorization": "Bearer \(key)"])
      #expect(try await socket.next()["type"] == "ready")
      let lasting = try await stack.socket(id, headers: ["X-Api-Key": admin])
      #expect(try await lasting.next()["type"] == "ready")
      let stream = try RawConnection(port: stack.nginx.port)
      try await stream.send(
        "GET /sessions/\(id)/events?stream=1 HTTP/1.1\r\nHost: localhost\r\nX-Api-Key: \(key)\r\n\r\n")
      #expect(try await stream.receive(untilText: "retry: 1000").contains(" 200 "))
      try await stack.keys(["revoke", String(key.split(separator: "_")[1])])
      #expect(try await socket.end() == 4401)
      #expect(try await stream.receive(untilText: "0\r\n\r\n").contains("not valid any more"))
      #expect(try await lasting.ask(["type": "ping"])["type"] == "pong")
    }
  }

  // MARK: Resuming

  @Test func aClientThatComesBackMissesNothing() async throws {
    try await Stack.run { stack in
      let id = try await stack.createSession()
      var socket = try await stack.socket(id, "?deltas=false")
      var seen: [Int64] = []
      for round in 1...4 {
        try await socket.send(
          ["type": "message", "prompt": "fake:count 200 \(round)", "idempotency_key": "\(round)"])
        seen += sequences(try await socket.messages { ($0["sequence"]?.intValue ?? 0) > Int64(round * 60) })
        if round % 2 == 0 { await stack.stopResponder() } else { await stack.killResponder() }
        // What was on its way before the end counts too.
        seen += sequences(try await socket.messages { _ in false })
        try await stack.startResponder()
        socket = try await stack.socket(id, "?deltas=false&after=\(seen.last ?? 0)")
      }
      try await socket.send(["type": "message", "prompt": "last"])
      try await stack.until {
        try await stack.get("/sessions/\(id)/turns").json["turns"]?.arrayValue?.last?["state"] == "completed"
      }
      let last = try #require(try await stack.get("/sessions/\(id)/events?limit=1").json["last"]?.intValue)
      seen += sequences(try await socket.messages { $0["sequence"] == .int(last) })
      #expect(seen == Array(1...last))
    }
  }

  // MARK: Slow readers

  /// One begins to read again after the turn, and one doesn't until it is cut off.
  @Test func readersThatStopReadingHoldNobodyUpAndGoOnByTheirCursors() async throws {
    try await Stack.run { stack in
      let id = try await stack.createSession()
      let late = try await stack.socket(id, "?deltas=false", receiveBuffer: 64 << 10)
      let silent = try await stack.socket(id, "?deltas=false", receiveBuffer: 64 << 10)
      for socket in [late, silent] { #expect(try await socket.next()["type"] == "ready") }
      // Far more than what all buffers on the way hold.
      #expect(try await stack.say("fake:speak 150 100000", to: id) == "spoken")
      let log = try await stack.log(id)
      func check(_ socket: SocketClient, isClosedWith code: JSONValue) async throws {
        var seen = try await socket.messages { _ in false }
        #expect(seen.popLast()?["closed"] == code)
        #expect(!seen.isEmpty && seen.count < log.count)
        let cursor = try #require(seen.last?["sequence"]?.intValue)
        let again = try await stack.socket(id, "?deltas=false&after=\(cursor)")
        #expect(try await again.next()["after"] == .int(cursor))
        seen += try await again.messages { $0["sequence"] == .int(log.last?.sequence ?? 0) }
        #expect(seen == log.map(\.json))
      }
      try await check(late, isClosedWith: 1013)
      try await stack.until(atMost: .seconds(60)) {
        try PrometheusText(try await stack.get("/metrics").text)
          .value("claude_api_event_streams", ["transport": "websocket"]) == 0
      }
      // Its close would come after all that it hasn't read.
      try await check(silent, isClosedWith: nil)
    }
  }

  // MARK: Steering

  @Test func interruptsAndApprovals() async throws {
    try await Stack.run { stack in
      let id = try await stack.createSession(["permission_mode": "ask"])
      let (one, two) = (try await stack.socket(id), try await stack.socket(id))
      try await one.send(["type": "message", "prompt": "fake:partial"])
      _ = try await one.messages(until: isType("agent.message"))
      let stopped = try await two.ask(["type": "interrupt"])
      #expect(stopped["status"] == 200 && stopped["body"]?["state"] == "interrupted")
      _ = try await one.messages(until: isType("turn.interrupted"))
      try await one.send(["type": "message", "prompt": "fake:ask"])
      let wanted = try await one.messages(until: isType("approval.requested")).last?["approval_id"]?.stringValue ?? ""
      let seen = try await two.messages(until: isType("approval.requested")).last?["approval_id"]?.stringValue
      #expect(seen == wanted)
      let decision: JSONValue = [
        "type": "approval", "approval_id": .string(wanted), "decision": "allow", "updated_input": ["command": "rm y"],
      ]
      #expect(try await two.ask(decision)["body"]?["state"] == "allowed")
      #expect(try await one.ask(decision)["problem"]?["code"] == "approval_resolved")
      try await stack.until {
        try await stack.get("/sessions/\(id)/turns").json["turns"]?.arrayValue?.last?["state"] == "completed"
      }
    }
  }

  // MARK: Many

  /// More of them at once than a listener's queue takes by default, while the responder is busy.
  @Test func manyClientsAtOnceWaitAndAreNotRefused() async throws {
    try await Stack.run { stack in
      let id = try await stack.createSession()
      let responder = try #require(await stack.responder)
      responder.signal(SIGSTOP)
      defer { responder.signal(SIGCONT) }
      var clients: [RawConnection] = []
      for _ in 0..<300 {
        let client = try RawConnection(port: stack.nginx.port)
        try await client.send(
          "GET /sessions/\(id)/ws HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            + "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n")
        clients.append(client)
      }
      let path = stack.directory + "/s/websocket.sock"
      try await stack.until {
        text(of: "/proc/net/unix").split(separator: "\n").count { $0.hasSuffix(path) } > 300
          || text(of: stack.nginx.prefix + "/logs/access.log").contains(#""status":502"#)
      }
      responder.signal(SIGCONT)
      for client in clients {
        #expect(try await client.receive(untilText: "\r\n").hasPrefix("HTTP/1.1 101 "))
      }
    }
  }

  @Test func idleSocketsTakeNoThreads() async throws {
    try await Stack.run { stack in
      let id = try await stack.createSession()
      let responder = try #require(await stack.responder)
      func threads() throws -> Int {
        try FileManager.default.contentsOfDirectory(atPath: "/proc/\(responder.pid)/task").count
      }
      // The first ones start what is there for all.
      var sockets: [SocketClient] = []
      for _ in 0..<5 { sockets.append(try await stack.socket(id, "?after=latest")) }
      let before = try threads()
      for _ in 0..<200 { sockets.append(try await stack.socket(id, "?after=latest")) }
      for socket in sockets { #expect(try await socket.next()["type"] == "ready") }
      #expect(try threads() <= before + 1)
      _ = try await stack.say("Hello", to: id)
      for socket in sockets { _ = try await socket.messages(until: isType("turn.completed")) }
    }
  }
}

/// The same with the real CLI.
@Suite(.enabled(if: Stack.realCLI != nil, "CLAUDE_API_TEST_CLAUDE names no CLI"))
struct RealSocketTests {
  @Test func aConversationWithTheRealCLI() async throws {
    let path = try #require(Stack.realCLI)
    try await Stack.run(cli: .real(path: path)) { stack in
      let id = try await stack.createSession(["permission_mode": "ask"])
      let socket = try await stack.socket(id)
      try await socket.send(["type": "message", "prompt": #"[[say Working.]] [[tool Bash {"command":"touch one"}]]"#])
      try await Self.allowNext(socket)
      let last = try await socket.messages { $0["type"] == "turn.completed" }.last?["sequence"]?.intValue ?? 0
      #expect(last > 0)
      #expect(FileManager.default.fileExists(atPath: "\(stack.workspaceRoot)/\(id)/one"))
      // Across a restart of the responder, with the cursor.
      #expect(await stack.stopResponder() == .status(0))
      try await stack.startResponder()
      let again = try await stack.socket(id, "?after=\(last)")
      try await again.send(["type": "message", "prompt": #"[[tool Bash {"command":"tail -f /dev/null"}]]"#])
      try await Self.allowNext(again)
      let stopped = try await again.ask(["type": "interrupt"])
      #expect(stopped["body"]?["state"] == "interrupted")
      try await again.send(["type": "message", "prompt": "[[say usable]]"])
      let turn = try await again.messages { $0["type"] == "turn.completed" }
      let texts = turn.map(\.description).joined()
      #expect(texts.contains("usable"))
    }
  }

  /// Allows the tool call that is asked for next.
  private static func allowNext(_ socket: SocketClient) async throws {
    let asked = try await socket.messages { $0["type"] == "approval.requested" }.last
    let id = try #require(asked?["approval_id"]?.stringValue)
    let reply = try await socket.ask(["type": "approval", "approval_id": .string(id), "decision": "allow"])
    #expect(reply["body"]?["state"] == "allowed")
  }
}

extension Stack {
  func socket(
    _ session: String, _ query: String = "", headers: [String: String] = [:], receiveBuffer: Int32? = nil
  ) async throws -> SocketClient {
    var headers = headers
    headers["Host"] = headers["Host"] ?? "127.0.0.1"
    return SocketClient(
      try await RawWebSocket.open(
        RawConnection(port: nginx.port, receiveBuffer: receiveBuffer), path: "/sessions/\(session)/ws\(query)",
        headers: headers), onMessage: Self.holdToContract)
  }

  /// Runs claude-api-server keys.
  @discardableResult
  func keys(_ arguments: [String]) async throws -> String {
    let log = directory + "/keys.\(UUID().uuidString).log"
    let exit = try await TestSupport.run(
      [Self.product("claude-api-server"), "keys"] + arguments + ["--state-dir", stateDirectory], output: log)
    guard exit == .status(0) else { throw Failure("keys: \(exit) \(text(of: log))") }
    return text(of: log)
  }

  func createSession(_ body: JSONValue, key: String) async throws -> String {
    let answer = try await post("/sessions", body, headers: ["X-Api-Key": key])
    guard answer.status == 200, let id = try answer.json["session"]?["id"]?.stringValue else {
      throw Failure("POST /sessions: \(answer.status) \(answer.text)")
    }
    return id
  }
}

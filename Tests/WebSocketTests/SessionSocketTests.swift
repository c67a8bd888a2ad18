import Foundation
import HTTPTypes
import Hummingbird
import JSONSupport
import NIOCore
import SessionTestSupport
import Sessions
import Synchronization
import TestSupport
import Testing
import WebSockets

@testable import ClaudeAPI

/// Events and commands of a session over its socket, against the real listener.
@Suite struct SessionSocketTests {
  private func isType(_ type: JSONValue) -> (JSONValue) -> Bool { { $0["type"] == type } }

  private func sequences(_ messages: [JSONValue]) -> [Int64] { messages.compactMap { $0["sequence"]?.intValue } }

  // MARK: Events

  @Test func theEventsAreThoseOfTheLog() async throws {
    try await SessionServer.run { server in
      let id = try await server.newSession(["initial_prompt": "Hi"])
      let socket = try await server.open(id)
      #expect(try await socket.next() == ["type": "ready", "session_id": .string(id), "after": 0, "last": 8])
      let backlog = try await socket.messages(until: isType("turn.completed"))
      #expect(backlog == (try await server.send(.get, "/sessions/\(id)/events"))["events"]?.arrayValue)
      _ = try await server.send(.post, "/sessions/\(id)/messages", body: ["prompt": "Ho"])
      let live = try await socket.messages(until: isType("turn.completed"))
      #expect(sequences(live) == Array(9...16))
      #expect(
        live.filter { $0["sequence"] == nil }.map { $0["type"] } == ["event_start", "event_delta", "event_delta"])
      try await socket.raw.send(raw: RawWebSocket.close(1000))
      #expect(try await socket.end() == 1000)
      try await waitUntil { server.hub.readerCount == 0 }
    }
  }

  @Test func theCursorAndTheChoiceAreThoseOfStreams() async throws {
    try await SessionServer.run { server in
      let id = try await server.newSession(["initial_prompt": "Hi"])
      func first(_ query: String, _ headers: [String: String] = [:]) async throws -> [Int64] {
        let socket = try await server.open(id, query, headers: headers)
        let messages = try await socket.messages(until: isType("turn.completed"))
        return sequences(messages)
      }
      #expect(try await first("?after=5") == [6, 7, 8])
      #expect(try await first("?after=5", ["Last-Event-ID": "7"]) == [8])
      #expect(try await first("?types=turn.completed,user.message") == [1, 8])
      let quiet = try await server.open(id, "?after=latest&deltas=false&types=agent.message,turn.completed")
      #expect(try await quiet.next()["after"] == 8)
      let (answer, events) = try await quiet.ask(
        ["type": "message", "prompt": "Ho"], awaiting: isType("turn.completed"))
      #expect(answer["status"] == 202)
      #expect(events.map { $0["type"] } == ["agent.message", "turn.completed"])
      for (query, code) in [
        ("?after=x", "invalid_parameter"), ("?types=", "invalid_parameter"),
        ("?deltas=2", "invalid_parameter"), ("?limit=3", "unknown_parameter"), ("?key=x", "unknown_parameter"),
      ] {
        #expect(try await server.refusal(id, query) == "400 \(code)")
      }
      #expect(try await server.refusal(id, "?after=99") == "409 unknown_cursor")
      #expect(try await server.refusal(id, headers: ["Last-Event-ID": "x"]) == "400 invalid_cursor")
    }
  }

  @Test func aDeletedSessionEndsItsSockets() async throws {
    try await SessionServer.run { server in
      let id = try await server.newSession()
      let sockets = [try await server.open(id), try await server.open(id)]
      for socket in sockets { _ = try await socket.next() }
      _ = try await server.send(.delete, "/sessions/\(id)")
      for socket in sockets {
        #expect(try await socket.next()["type"] == "session.status_terminated")
        #expect(try await socket.end() == 4410)
      }
      #expect(try await server.refusal(id) == "404 session_not_found")
    }
  }

  @Test func aServerThatStopsSaysSo() async throws {
    try await SessionServer.run { server in
      let id = try await server.newSession()
      let socket = try await server.open(id)
      _ = try await socket.next()
      server.service.endStreams()
      #expect(try await socket.end() == 1001)
    }
  }

  /// A client that doesn't read is disconnected, no turn waits for it, and it goes on by its cursor.
  @Test func aSlowReaderIsDisconnectedAndResumes() async throws {
    var bounds = EventHubConfiguration()
    bounds.maximumBufferedEvents = 20
    let text = String(repeating: "x", count: 100_000)
    try await SessionServer.run(
      hub: EventHub(configuration: bounds),
      transport: { transport in
        transport.outputHighWater = 16 << 10
      }
    ) { server in
      let id = try await server.newSession()
      let socket = try await server.open(id, "?deltas=false")
      #expect(try await socket.next()["type"] == "ready")
      for _ in 0..<40 {
        let answer = try await server.send(.post, "/sessions/\(id)/messages", body: ["prompt": .string(text)])
        #expect(answer["response"]?.stringValue?.utf8.count == 100_006)
      }
      let read = try await socket.messages { _ in false }
      #expect(read.last?["closed"] == 1013)
      let seen = sequences(read)
      #expect(seen == Array(1...Int64(seen.count)) && seen.count < 320)
      let again = try await server.open(id, "?deltas=false&after=\(seen.last ?? 0)")
      let rest = try await again.messages { $0["sequence"] == 320 }
      #expect(seen + sequences(rest) == Array(1...320))
    }
  }

  /// One that never reads again is cut off, and nothing of it is left.
  @Test func aClientThatNeverReadsIsCutOff() async throws {
    var bounds = EventHubConfiguration()
    bounds.maximumBufferedEvents = 20
    let text = String(repeating: "x", count: 200_000)
    try await SessionServer.run(
      hub: EventHub(configuration: bounds), transport: { $0.writeTimeout = .milliseconds(300) }
    ) { server in
      let id = try await server.newSession()
      let socket = try await server.open(id, "?deltas=false")
      #expect(try await socket.next()["type"] == "ready")
      for _ in 0..<20 {
        _ = try await server.send(.post, "/sessions/\(id)/messages", body: ["prompt": .string(text)])
      }
      try await waitUntil { server.hub.readerCount == 0 }
      #expect(try await socket.end() == nil)
    }
  }

  @Test func aClientThatIsSilentIsPingedAndAtLastGivenUp() async throws {
    try await SessionServer.run(transport: { transport in
      transport.pingInterval = .milliseconds(50)
      transport.idleTimeout = .seconds(6)
    }) { server in
      let id = try await server.newSession()
      let living = try await server.open(id)
      let silent = try await server.open(id)
      let isOver = Mutex(false)
      let answering = Task {
        // Each ping is answered, as long as a silent one is borne.
        while !isOver.withLock({ $0 }), let frame = try await living.raw.next() {
          if frame.opcode == 9 { try await living.raw.send(raw: RawWebSocket.bytes(10, frame.payload)) }
        }
      }
      while let frame = try await silent.raw.next() { #expect(frame.opcode == 1 || frame.opcode == 9) }
      isOver.withLock { $0 = true }
      try await answering.value
      #expect(try await living.ask(["type": "ping"]) == ["type": "pong"])
    }
  }

  // MARK: Commands

  @Test func aMessageIsAcceptedAndItsTurnComesAsEvents() async throws {
    try await SessionServer.run { server in
      let id = try await server.newSession()
      let socket = try await server.open(id, "?deltas=false")
      _ = try await socket.next()
      try await socket.send([
        "type": "message", "id": "m1", "prompt": "Hi", "metadata": ["a": 1], "max_turns": 3,
      ])
      let messages = try await socket.messages(until: isType("turn.completed"))
      let reply = try #require(messages.first { $0["type"] == "reply" })
      #expect(reply["id"] == "m1" && reply["to"] == "message" && reply["status"] == 202 && reply["replayed"] == false)
      let turn = try #require(reply["body"]?["id"]?.stringValue)
      #expect(reply["body"]?["prompt"] == "Hi" && reply["body"]?["metadata"] == ["a": 1])
      #expect(messages.last?["turn_id"]?.stringValue == turn)
      #expect(messages.contains { $0["content"]?[0]?["text"] == "Echo: Hi" })
    }
  }

  @Test func messagesKeepTheirOrder() async throws {
    let runner = ScriptedRunner()
    try await SessionServer.run(runner: runner) { server in
      let id = try await server.newSession()
      let socket = try await server.open(id, "?deltas=false")
      for number in 1...10 { try await socket.send(["type": "message", "prompt": "\(number)"]) }
      try await socket.send(["type": "ping", "id": "last"])
      var ends = 0
      var isPonged = false
      while ends < 10 || !isPonged {
        let message = try await socket.next()
        if message["type"] == "turn.completed" { ends += 1 }
        if message["type"] == "pong" { isPonged = message["id"] == "last" }
        #expect(message["closed"] == nil)
      }
      #expect(runner.prompts == (1...10).map(String.init))
    }
  }

  @Test func anIdempotencyKeyIsTheSameOverBothTransports() async throws {
    let runner = ScriptedRunner()
    try await SessionServer.run(runner: runner) { server in
      let id = try await server.newSession()
      let socket = try await server.open(id, "?deltas=false")
      let message: JSONValue = ["type": "message", "prompt": "Once", "idempotency_key": "k"]
      let first = try await socket.ask(message)
      let second = try await socket.ask(message)
      #expect(first["replayed"] == false && second["replayed"] == true)
      #expect(first["body"]?["id"] == second["body"]?["id"])
      let http = try await server.send(
        .post, "/sessions/\(id)/messages", headers: [.idempotencyKey: "k"], body: ["prompt": "Once"])
      #expect(http["turn_id"] == first["body"]?["id"])
      let other = try await socket.ask(["type": "message", "id": 7, "prompt": "Twice", "idempotency_key": "k"])
      #expect(other["problem"]?["code"] == "invalid_field")
      let mismatch = try await socket.ask(["type": "message", "prompt": "Twice", "idempotency_key": "k"])
      #expect(mismatch["status"] == 422 && mismatch["problem"]?["code"] == "idempotency_mismatch")
      let bad = try await socket.ask(["type": "message", "prompt": "Twice", "idempotency_key": "a b"])
      #expect(bad["problem"]?["code"] == "invalid_idempotency_key")
      #expect(runner.prompts == ["Once"])
    }
  }

  @Test func whatIsWrongIsAProblemAndTheSocketStaysOpen() async throws {
    try await SessionServer.run { server in
      let id = try await server.newSession()
      let socket = try await server.open(id)
      for (text, code) in [
        ("{", "invalid_json"), ("", "invalid_json"), ("[]", "invalid_body"), ("1", "invalid_body"),
        ("{}", "invalid_field"), (#"{"type":"x"}"#, "invalid_field"), (#"{"type":1}"#, "invalid_field"),
        (#"{"type":"message"}"#, "invalid_field"), (#"{"type":"message","prompt":""}"#, "invalid_field"),
        (#"{"type":"message","prompt":"a","promt":"b"}"#, "unknown_field"),
        (#"{"type":"message","prompt":"a","max_turns":"b"}"#, "invalid_field"),
        (#"{"type":"message","prompt":"a","approval_id":"b"}"#, "unknown_field"),
        (#"{"type":"ping","prompt":"a"}"#, "unknown_field"), (#"{"type":"interrupt","x":1}"#, "unknown_field"),
        (#"{"type":"interrupt"}"#, "nothing_runs"), (#"{"type":"approval"}"#, "approval_not_found"),
        (
          #"{"type":"approval","approval_id":"7b3d6f0e-6a2c-4a3e-9c39-0f6a5f8c9a11","decision":"allow"}"#,
          "approval_not_found"
        ),
        (#"{"type":"approval","approval_id":"7b3d6f0e-6a2c-4a3e-9c39-0f6a5f8c9a11","decision":"x"}"#, "invalid_field"),
        (#"{"type":"authenticate","key":"x"}"#, "already_authenticated"),
        (String(repeating: "[", count: 2000), "invalid_json"),
      ] {
        try await socket.raw.send(text)
        let answer = try await socket.messages(until: isType("error")).last
        let problem = answer?["problem"]
        #expect(problem?["code"]?.stringValue == code, "\(text)")
        #expect(problem?["status"] == answer?["status"] && problem?["type"] == "about:blank", "\(text)")
        #expect(problem?["title"]?.stringValue != nil && problem?["detail"]?.stringValue != nil, "\(text)")
      }
      // Whatever is wrong with a command, its id says which one it was.
      for (text, id) in [
        (#"{"type":"x","id":"a"}"#, "a"), (#"{"id":"b"}"#, "b"), (#"{"type":1,"id":"c"}"#, "c"),
        (#"{"type":"message","id":"d"}"#, "d"),
      ] {
        try await socket.raw.send(text)
        #expect(try await socket.messages(until: isType("error")).last?["id"]?.stringValue == id, "\(text)")
      }
      let named = try await socket.ask(["type": "interrupt", "id": "i1"])
      #expect(named["id"] == "i1" && named["to"] == "interrupt" && named["status"] == 409)
      #expect(try await socket.ask(["type": "ping", "id": "p"]) == ["type": "pong", "id": "p"])
    }
  }

  @Test func anInterruptStopsTheRunningTurn() async throws {
    let gate = Gate()
    let runner = ScriptedRunner { request, say in
      try await gate.wait()
      return try await ScriptedRunner.echo(request, say)
    }
    try await SessionServer.run(runner: runner) { server in
      let id = try await server.newSession()
      let socket = try await server.open(id)
      _ = try await socket.ask(["type": "message", "prompt": "Hi"], awaiting: isType("session.status_running"))
      let reply = try await socket.ask(["type": "interrupt", "id": "i"])
      #expect(reply["to"] == "interrupt" && reply["status"] == 200 && reply["body"]?["state"] == "interrupted")
    }
  }

  @Test func anApprovalIsDecidedByTheFirstOfTwoClients() async throws {
    let answers = PermissionAnswers()
    let runner = ScriptedRunner(
      { request, say in
        await say(CLIMessages.ask("q1"))
        let answer = try await answers.answer(to: "q1")
        return TurnResult(text: "\(answer)", accounts: TurnAccounts())
      }, answers: answers)
    try await SessionServer.run(runner: runner) { server in
      let id = try await server.newSession(["permission_mode": "ask"])
      let (one, two) = (try await server.open(id), try await server.open(id))
      try await one.send(["type": "message", "prompt": "Hi"])
      func approval(_ socket: SocketClient) async throws -> String {
        let event = try await socket.messages(until: isType("approval.requested")).last
        return try #require(
          event?["approval_id"]?.stringValue, "\(String(describing: event))")
      }
      let wanted = try await approval(one)
      #expect(try await approval(two) == wanted)
      let decision: JSONValue = ["type": "approval", "approval_id": .string(wanted), "decision": "allow"]
      let first = try await one.ask(decision)
      #expect(first["status"] == 200 && first["body"]?["state"] == "allowed")
      let second = try await two.ask(decision)
      #expect(second["status"] == 409 && second["problem"]?["code"] == "approval_resolved")
      #expect(second["problem"]?["approval"]?["id"]?.stringValue == wanted)
      _ = try await two.messages(until: isType("turn.completed"))
    }
  }

  // MARK: Access

  @Test func aKeyInTheHeaderCountsAsForRequests() async throws {
    try await SessionServer.run { server in
      let (user, other) = (try await server.key(.user), try await server.key(.user))
      let id = try await server.newSession(key: user)
      let (bound, elsewhere) = (
        try await server.key(.user, session: id), try await server.key(.user, session: UUID().uuidString)
      )
      for key in [user, try await server.key(.admin), bound] {
        let socket = try await server.open(id, key: key)
        #expect(try await socket.next()["type"] == "ready")
        #expect(try await socket.ask(["type": "message", "prompt": "Hi"])["status"] == 202)
      }
      for key in [other, elsewhere, try await server.key(.read)] {
        #expect(try await server.refusal(id, key: key) == "404 session_not_found")
      }
      #expect(try await server.refusal(id, key: KeySecret()) == "401 unauthorized")
      #expect(try await server.refusal(id, headers: ["X-Api-Key": "x"]) == "401 unauthorized")
      #expect(try await server.refusal("x", key: user) == "404 session_not_found")
      let reader = try await server.open(id, key: try await server.key(.read, session: id))
      #expect(try await reader.next()["type"] == "ready")
      for command: JSONValue in [
        ["type": "message", "prompt": "Hi"], ["type": "interrupt"],
        ["type": "approval", "approval_id": "x", "decision": "allow"],
      ] {
        let refused = try await reader.ask(command)
        #expect(refused["status"] == 403 && refused["problem"]?["code"] == "read_only_key")
      }
      #expect(try await reader.ask(["type": "ping"])["type"] == "pong")
    }
  }

  @Test func aKeyInTheFirstMessageDoesAsWell() async throws {
    try await SessionServer.run { server in
      let (user, other) = (try await server.key(.user), try await server.key(.user))
      let id = try await server.newSession(key: user)
      let socket = try await server.open(id, "?after=latest")
      let last = try await server.service.lastSequence(of: UUID(uuidString: id)!)
      try await socket.send(["type": "authenticate", "id": "a", "key": .string(user.text)])
      #expect(
        try await socket.next()
          == ["type": "ready", "id": "a", "session_id": .string(id), "after": .int(last), "last": .int(last)])
      #expect(try await socket.ask(["type": "message", "prompt": "Hi"])["status"] == 202)
      for (first, status) in [
        (["type": "authenticate", "key": .string(KeySecret().text)], 401), (["type": "authenticate"], 401),
        (["type": "authenticate", "key": 1], 422), (["type": "ping"], 401), (["type": "message", "prompt": "Hi"], 401),
        (["type": "authenticate", "key": .string(other.text)], 404), ("x", 422),
      ] as [(JSONValue, Int64)] {
        let refused = try await server.open(id)
        try await refused.send(first)
        let answer = try await refused.next()
        #expect(answer["type"] == "error" && answer["status"] == .int(status), "\(first)")
        #expect(try await refused.end() == 4000 + status, "\(first)")
      }
      // Whether a session exists is told to nobody without a key.
      let missing = try await server.open(UUID().uuidString)
      try await missing.send(["type": "authenticate", "key": .string(user.text)])
      #expect(try await missing.next()["problem"]?["code"] == "session_not_found")
      #expect(try await missing.end() == 4404)
      let late = try await server.open(id, "?after=99999")
      try await late.send(["type": "authenticate", "key": .string(user.text)])
      #expect(try await late.next()["problem"]?["code"] == "unknown_cursor")
      #expect(try await late.end() == 4409)
    }
  }

  @Test func aKeyHasToComeInTime() async throws {
    try await SessionServer.run(configure: { configuration in
      // Long enough for both to be open at the same time.
      configuration.authenticationTimeout = .seconds(3)
      configuration.maximumUnauthenticated = 2
    }) { server in
      let user = try await server.key(.user)
      let id = try await server.newSession(key: user)
      let silent = [try await server.open(id), try await server.open(id)]
      #expect(try await server.refusal(id) == "503 too_many_sockets")
      for socket in silent { #expect(try await socket.end() == 4401) }
      // Places are free again, also those of clients that vanished.
      for _ in 0..<5 {
        let socket = try await eventually { try await server.open(id) }
        try await socket.send(["type": "authenticate", "key": .string(user.text)])
        #expect(try await socket.next()["type"] == "ready")
      }
    }
  }

  /// Nobody takes all the places of those who haven't said who they are.
  @Test func aNetworkHasSomeOfThePlacesWithoutAKey() async throws {
    try await SessionServer.run(configure: { configuration in
      configuration.maximumUnauthenticated = 6
      configuration.maximumUnauthenticatedOfNetwork = 2
    }) { server in
      let user = try await server.key(.user)
      let id = try await server.newSession(key: user)
      func open(_ address: String) async throws -> SocketClient {
        try await server.open(id, headers: ["Claude-Api-Remote-Addr": address])
      }
      for (first, second, other) in [
        ("192.0.2.1", "192.0.2.1", "192.0.2.2"), ("2001:db8::1", "2001:db8::2", "2001:db8:0:1::1"),
      ] {
        var held = [try await open(first), try await open(second)]
        let refused = try await server.refusal(id, headers: ["Claude-Api-Remote-Addr": first])
        #expect(refused == "503 too_many_sockets", "\(first)")
        held.append(try await open(other))
        // Who shows a key needs none of them.
        let known = try await server.open(id, key: user, headers: ["Claude-Api-Remote-Addr": first])
        #expect(try await known.next()["type"] == "ready")
        // Nor does who has shown one.
        try await held[0].send(["type": "authenticate", "key": .string(user.text)])
        #expect(try await held[0].next()["type"] == "ready")
        held.append(try await open(first))
        held = []
        let again = try await eventually { try await open(first) }
        try await again.send(["type": "authenticate", "key": .string(user.text)])
        #expect(try await again.next()["type"] == "ready")
      }
      // Behind a proxy all are on this machine.
      let local = [try await open("127.0.0.1"), try await open("127.0.0.1"), try await open("127.0.0.1")]
      #expect(local.count == 3)
    }
  }

  /// Commands that come too fast wait, all of them and in order, whatever number of sockets a key has.
  @Test func aKeyHasARateOfCommands() async throws {
    try await SessionServer.run(configure: { configuration in
      configuration.commandsPerSecond = 50
      configuration.commandBurst = 10
    }) { server in
      let (user, other) = (try await server.key(.user), try await server.key(.admin))
      let id = try await server.newSession(key: user)
      let sockets = [try await server.open(id, key: user), try await server.open(id, key: user)]
      for socket in sockets { _ = try await socket.next() }
      let start = ContinuousClock.now
      for number in 0..<20 {
        for socket in sockets { try await socket.send(["type": "ping", "id": .string("\(number)")]) }
      }
      for socket in sockets {
        for number in 0..<20 { #expect(try await socket.next() == ["type": "pong", "id": .string("\(number)")]) }
      }
      // 10 of 40 at once, and the others at 50 in a second.
      #expect(ContinuousClock.now - start > .milliseconds(590))

      // A minute's worth of them delays nobody else.
      let ping = RawWebSocket.bytes(1, Array(#"{"type":"ping"}"#.utf8))
      try await sockets[0].raw.send(raw: Array(repeatElement(ping, count: 3000).joined()))
      let theirs = try await server.open(id, key: other)
      _ = try await theirs.next()
      #expect(try await theirs.ask(["type": "ping"]) == ["type": "pong"])
      // And what ends a socket doesn't wait for them.
      _ = try await server.keys.revokeKey(user.id, at: .now())
      let rest = try await sockets[0].messages { _ in false }
      #expect(rest.count < 3000 && rest.last?["closed"] == 4401)
    }
  }

  @Test(arguments: ["revoked", "rotated"])
  func aSocketEndsWithItsKey(_ end: String) async throws {
    try await SessionServer.run { server in
      let (user, admin) = (try await server.key(.user), try await server.key(.admin))
      let id = try await server.newSession(key: user)
      let (ended, lasting) = (try await server.open(id, key: user), try await server.open(id, key: admin))
      #expect(try await ended.next()["type"] == "ready")
      if end == "revoked" {
        _ = try await server.keys.revokeKey(user.id, at: .now())
      } else {
        _ = try await server.keys.replaceKeyDigest(user.id, with: KeySecret(id: user.id).digest)
      }
      #expect(try await ended.end() == 4401)
      #expect(try await lasting.ask(["type": "ping"])["type"] == "pong")
    }
  }

  @Test func aCommandIsRefusedAsSoonAsTheKeyIsRevoked() async throws {
    let runner = ScriptedRunner()
    try await SessionServer.run(runner: runner) { server in
      let user = try await server.key(.user)
      let id = try await server.newSession(key: user)
      // No stream of its own could end this one first.
      for _ in 0..<5 {
        let key = try await server.key(.admin)
        let socket = try await server.open(id, key: key)
        #expect(try await socket.next()["type"] == "ready")
        _ = try await server.keys.revokeKey(key.id, at: .now())
        try await socket.send(["type": "message", "prompt": "Hi"])
        #expect(try await socket.end() == 4401)
      }
      #expect(runner.prompts.isEmpty)
    }
  }

  @Test func withoutKeysOnlyThisMachineAndNoForeignPage() async throws {
    try await SessionServer.run(configure: { $0.allowedOrigins = ["https://tools.example.org"] }) { server in
      let id = try await server.newSession()
      for address in ["10.0.0.1", "::ffff:10.0.0.1", "x"] {
        #expect(try await server.refusal(id, headers: ["Claude-Api-Remote-Addr": address]) == "403 no_keys")
      }
      for origin in ["http://localhost", "https://LOCALHOST", "https://tools.example.org"] {
        let socket = try await server.open(id, headers: ["Origin": origin])
        #expect(try await socket.next()["type"] == "ready", "\(origin)")
      }
      for origin in [
        "http://evil.example", "null", "http://localhost:8001", "http://localhost.evil.example", "localhost",
        "http://tools.example.org", "file://", "https://tools.example.org.evil.example",
      ] {
        #expect(
          try await server.refusal(id, headers: ["Origin": origin]) == "403 origin_not_allowed", "\(origin)")
      }
      let socket = try await server.open(id)
      _ = try await socket.next()
      // The first key closes the server for those who have none.
      _ = try await server.key(.admin)
      #expect(try await socket.end() == 4401)
    }
  }

  @Test func requestsThatAreNoSocketsAreAnsweredAsSuch() async throws {
    try await SessionServer.run { server in
      let id = try await server.newSession()
      let path = "/sessions/\(id)/ws"
      func answer(_ method: String, _ path: String, _ headers: [String: String]) async throws -> RawResponse {
        do {
          var headers = headers
          headers["Claude-Api-Remote-Addr"] = "127.0.0.1"
          _ = try await RawWebSocket.open(
            RawConnection(unixSocket: server.sockets.path), path: path, method: method, headers: headers)
        } catch let refused as RawWebSocket.Refused {
          return refused.response
        }
        throw SystemError(call: "it was opened", code: EINVAL)
      }
      let plain = try await answer("GET", path, ["Upgrade": ""])
      #expect(plain.status == 426 && plain["Upgrade"] == ["websocket"] && plain["Sec-WebSocket-Version"] == ["13"])
      #expect(plain["Content-Type"] == ["application/problem+json"])
      #expect(try JSONValue(parsing: plain.body)["code"] == "upgrade_required")
      #expect(try await answer("GET", path, ["Upgrade": "h2c"]).status == 426)
      #expect(try await answer("GET", path, ["Sec-WebSocket-Version": "8"]).status == 426)
      #expect(try await answer("GET", path, ["Sec-WebSocket-Key": ""]).status == 400)
      #expect(try await answer("GET", path, ["Sec-WebSocket-Key": "x"]).status == 400)
      let post = try await answer("POST", path, [:])
      #expect(post.status == 405 && post["Allow"] == ["GET"])
      #expect(try await answer("GET", "/sessions", [:]).status == 404)
      #expect(try await answer("GET", "/sessions/\(UUID().uuidString)/ws", [:]).status == 404)
      // The same over FastCGI, where no upgrade can come.
      #expect(try await server.send(.get, path)["code"] == "upgrade_required")
      _ = try await server.key(.admin)
      #expect(try await answer("GET", path, ["Upgrade": ""]).status == 401)
    }
  }

  // MARK: Parts

  private func waitUntil(_ condition: () -> Bool) async throws {
    for _ in 0..<6000 {
      if condition() { return }
      try await Task.sleep(for: .milliseconds(10))
    }
    throw SystemError(call: "the condition did not come true", code: ETIMEDOUT)
  }

  private func eventually<Value>(_ body: () async throws -> Value) async throws -> Value {
    for _ in 0..<600 {
      do {
        return try await body()
      } catch is RawWebSocket.Refused {
        try await Task.sleep(for: .milliseconds(10))
      }
    }
    return try await body()
  }
}

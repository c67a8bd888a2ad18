import Foundation
import JSONSupport
import NIOCore
import NIOHTTP1
import Synchronization
import TestSupport
import Testing

/// Two tenants, of which one behaves badly in every way that it has. The other's turns come to their end, and what is
/// refused is refused to the one who asks for too much.
///
/// How long it takes is measured by scripts/bench-tenants.
@Suite struct TenantTests {
  /// A tenant with a key of its own.
  private struct Tenant: Sendable {
    let stack: Stack
    let key: String
    var id: String { String(key.split(separator: "_")[1]) }

    func get(_ path: String) async throws -> Stack.Answer { try await stack.get(path, headers: headers) }

    func post(_ path: String, _ body: JSONValue, asynchronously: Bool = false) async throws -> Stack.Answer {
      var headers = headers
      if asynchronously { headers.add(name: "Prefer", value: "respond-async") }
      return try await stack.post(path, body, headers: headers)
    }

    var headers: HTTPHeaders { ["Authorization": "Bearer \(key)"] }

    func newSession() async throws -> String {
      let answer = try await post("/sessions", [:])
      return try #require(try answer.json["session"]?["id"]?.stringValue, "\(answer.status) \(answer.text)")
    }

    /// Opens a stream of events and doesn't read it.
    func openStream(_ session: String) async throws -> RawConnection {
      let connection = try RawConnection(port: stack.nginx.port)
      try await connection.send(
        "GET /sessions/\(session)/events HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n"
          + "Authorization: Bearer \(key)\r\n\r\n")
      return connection
    }
  }

  private static func makeKey(_ stack: Stack, _ name: String, _ options: [String] = []) async throws -> Tenant {
    let output = stack.directory + "/key-\(name)"
    let exit = try await run(
      [Stack.product("claude-api-server"), "keys", "create", "--name", name, "--state-dir", stack.stateDirectory]
        + options, output: output)
    #expect(exit == .status(0), "\(text(of: output))")
    return Tenant(stack: stack, key: text(of: output).trimmingCharacters(in: .whitespacesAndNewlines))
  }

  private func withTenants(
    cli: Stack.CLI = .fake, settings: [String: String] = [:], nginx: [String] = [],
    _ body: (_ bad: Tenant, _ good: Tenant) async throws -> Void
  ) async throws {
    let defaults = ["claude-max-processes": "4", "limits-streams": "20"]
    try await Stack.run(
      cli: cli, settings: defaults.merging(settings) { $1 },
      nginxOptions: ["--exempt", "none", "--address-rate", "100000"] + nginx
    ) { stack in
      try await body(try await Self.makeKey(stack, "bad"), try await Self.makeKey(stack, "good"))
    }
  }

  /// What the good tenant does all day: a session, turns with an answer, a stream, and nobody else's things.
  private func expectService(_ good: Tenant, fake: Bool = true) async throws {
    let id = try await good.newSession()
    let stream = try await good.openStream(id)
    for number in 1...3 {
      let answer = try await good.post("/sessions/\(id)/messages", ["prompt": .string("good \(number)")])
      #expect(answer.status == 200, "\(answer.text)")
      if fake { #expect(try answer.json["response"]?.stringValue?.hasPrefix("\(number): good 1") == true) }
    }
    let events = try await stream.receive(untilText: "turn.completed")
    #expect(events.contains("200 OK") && events.contains("good 1"))
    let listed = try await good.get("/sessions").json["sessions"]?.arrayValue?.compactMap { $0["id"]?.stringValue }
    #expect(listed?.contains(id) == true)
    let deleted = try await good.stack.request(.DELETE, "/sessions/\(id)", headers: good.headers)
    #expect(deleted.status == 200)
  }

  private final class Answers: Sendable {
    private let stored = Mutex<[Stack.Answer]>([])
    var all: [Stack.Answer] { stored.withLock { $0 } }
    func append(_ answer: Stack.Answer) { stored.withLock { $0.append(answer) } }
  }

  @Test func oneWhoFloodsIsRefusedAlone() async throws {
    // One in a second, and no more than four may wait for that: nobody who asks one after the other has more.
    try await withTenants(nginx: ["--key-rate", "1"]) { bad, good in
      let refusals = Answers()
      let flood = (0..<8).map { _ in
        Task {
          while !Task.isCancelled {
            let answer = try await bad.get("/sessions")
            if answer.status == 429 { refusals.append(answer) }
          }
        }
      }
      try await waitUntil { refusals.all.count > 50 }
      try await expectService(good)
      for task in flood {
        task.cancel()
        _ = await task.result
      }
      let refusal = try #require(refusals.all.first)
      #expect(try refusal.json["code"] == "too_many_requests")
      #expect(refusal.headers.first(name: "retry-after") != nil)
      #expect(refusal.headers.first(name: "content-type") == "application/problem+json")
    }
  }

  @Test func oneWhoseKeyIsRevokedSpendsNoMore() async throws {
    try await withTenants { bad, good in
      let id = try await bad.newSession()
      let running = Task { try await bad.post("/sessions/\(id)/messages", ["prompt": "fake:partial"]) }
      try await bad.stack.until { try await bad.get("/sessions/\(id)/events").text.contains("agent.message") }
      let other = try await bad.newSession()
      for session in [id, other] {
        for number in 1...2 {
          let prompt = session == id ? "fake:count 5 \(number)" : "fake:partial"
          let answer = try await bad.post(
            "/sessions/\(session)/messages", ["prompt": .string(prompt)], asynchronously: true)
          #expect(answer.status == 202)
        }
      }
      try await bad.stack.keys(["revoke", bad.id])
      // Who waits for the answer learns why there is none.
      let refusal = try await running.value
      #expect(refusal.status == 403)
      #expect(try refusal.json["code"] == "key_revoked")
      let admin = try await bad.stack.createKey("admin")
      for session in [id, other] {
        let path = "/sessions/\(session)/turns"
        try await bad.stack.until {
          let turns = try await good.stack.get(path, headers: Stack.credentials(admin)).json["turns"]?.arrayValue ?? []
          return turns.allSatisfy { $0["state"] == "failed" && $0["error"]?["code"] == "key_revoked" }
        }
      }
      try await waitUntil { try bad.stack.processesLeft().isEmpty }
      try await expectService(good)
    }
  }

  @Test func oneWhoOpensAllStreamsAndReadsNone() async throws {
    try await withTenants { bad, good in
      let id = try await bad.newSession()
      var streams: [RawConnection] = []
      for _ in 0..<20 { streams.append(try await bad.openStream(id)) }
      for stream in streams { _ = try await stream.receive(untilText: "retry: 1000") }
      let refused = try await bad.stack.get(
        "/sessions/\(id)/events", headers: ["Authorization": "Bearer \(bad.key)", "Accept": "text/event-stream"])
      #expect(refused.status == 429)
      #expect(try refused.json["code"] == "streams_limit")
      #expect(try refused.json["limit"]?["maximum"] == 20)
      #expect(try await bad.get("/usage").json["limits"]?["streams"]?["left"] == 0)
      // Much is written that nobody reads.
      let turn = try await bad.post("/sessions/\(id)/messages", ["prompt": "fake:count 20000"], asynchronously: true)
      #expect(turn.status == 202)
      try await expectService(good)
      streams = []
      // Their places are free again.
      try await waitUntil { try await bad.get("/usage").json["limits"]?["streams"]?["used"] == 0 }
      #expect(try await bad.stack.request(.DELETE, "/sessions/\(id)", headers: bad.headers).status == 200)
    }
  }

  @Test func oneWhoQueuesAHundredTurns() async throws {
    try await withTenants { bad, good in
      for _ in 0..<10 {
        let id = try await bad.newSession()
        for _ in 0..<10 {
          let sent = try await bad.post(
            "/sessions/\(id)/messages", ["prompt": "fake:delay 2000"], asynchronously: true)
          #expect(sent.status == 202)
        }
      }
      let before = try await bad.get("/usage").json["limits"]
      // Three of four processes are the most that one key gets.
      #expect((before?["running_turns"]?["used"]?.intValue ?? 9) <= 3)
      #expect((before?["queued_turns"]?["used"]?.intValue ?? 0) > 50)
      try await expectService(good)
      let after = try await bad.get("/usage").json["limits"]
      #expect((after?["queued_turns"]?["used"]?.intValue ?? 0) > 20)
    }
  }

  @Test func oneWhoFillsTheWorkspace() async throws {
    // Two of the files below, and not three.
    try await withTenants(settings: ["quota-max-bytes": "20000000"]) { bad, good in
      let id = try await bad.newSession()
      let refusals = Answers()
      let flood = (0..<4).map { number in
        Task {
          let body = ByteBuffer(repeating: 0x78, count: 8 << 20)
          var written = 0
          while !Task.isCancelled {
            let answer = try await bad.stack.request(
              .PUT, "/sessions/\(id)/files/\(number)-\(written % 4)", headers: bad.headers, body: body)
            #expect([200, 201, 204, 429, 507].contains(answer.status), "\(answer.text)")
            if answer.status == 507 { refusals.append(answer) }
            written += 1
          }
        }
      }
      try await waitUntil { refusals.all.count > 8 }
      try await expectService(good)
      for task in flood {
        task.cancel()
        _ = await task.result
      }
      for refusal in refusals.all { #expect(try refusal.json["code"] == "quota_exceeded") }
      let files = try FileManager.default.contentsOfDirectory(atPath: "\(bad.stack.workspaceRoot)/\(id)")
      #expect(files.count { $0.contains("-") } <= 2, "\(files)")
    }
  }

  /// Else it would lie on nginx's disk before anybody has looked at the key.
  @Test func oneWhoMayNotBringABodyIsToldBeforeItIsThere() async throws {
    try await withTenants { bad, good in
      let own = try await bad.newSession()
      let foreign = try await good.newSession()
      try await bad.stack.keys(["limit", bad.id, "disk-bytes=1000000"])
      let reader = try await bad.stack.createKey("read")
      let temporary = bad.stack.nginx.prefix + "/tmp/body"
      let cases: [(key: String?, line: String, status: Int, code: String)] = [
        (nil, "PUT /sessions/\(own)/files/x", 401, "unauthorized"),
        ("cak_0123456789abcdef_" + String(repeating: "0", count: 64), "POST /sessions", 401, "unauthorized"),
        (nil, "POST /sessions/\(own)/messages", 401, "unauthorized"),
        (nil, "GET /healthz", 413, "content_too_large"),
        (reader, "POST /sessions", 403, "read_only_key"),
        (bad.key, "PUT /sessions/\(foreign)/files/x", 404, "session_not_found"),
        (bad.key, "PUT /sessions/\(own)/archive", 405, "method_not_allowed"),
        (bad.key, "PUT /sessions/\(own)/files/x", 507, "disk_bytes_limit"),
        (bad.key, "POST /sessions", 507, "disk_bytes_limit"),
      ]
      for test in cases {
        let connection = try RawConnection(port: bad.stack.nginx.port)
        let shown = test.key.map { "X-Api-Key: \($0)\r\n" } ?? ""
        try await connection.send(
          "\(test.line) HTTP/1.1\r\nHost: localhost\r\n\(shown)Content-Length: 16000000\r\n\r\n"
            + String(repeating: "a", count: 100_000))
        let answer = try await connection.receive(untilText: "\"code\":\"\(test.code)\"")
        #expect(answer.hasPrefix("HTTP/1.1 \(test.status) "), "\(test.line) \(answer)")
        #expect(try FileManager.default.contentsOfDirectory(atPath: temporary) == [], "\(test.line)")
      }
      try await expectService(good)
    }
  }

  @Test func oneWhoFillsItsRoomOnTheDisk() async throws {
    try await withTenants { bad, good in
      // Two of the files below, and not three, in whatever sessions they are.
      try await bad.stack.keys(["limit", bad.id, "disk-bytes=20000000"])
      let sessions = [try await bad.newSession(), try await bad.newSession(), try await bad.newSession()]
      func upload(to session: String) async throws -> Stack.Answer {
        try await bad.stack.request(
          .PUT, "/sessions/\(session)/files/big", headers: bad.headers,
          body: ByteBuffer(repeating: 0x78, count: 8 << 20))
      }
      func expectRefusal(_ answer: Stack.Answer, sourceLocation: SourceLocation = #_sourceLocation) throws {
        #expect(answer.status == 507, "\(answer.text)", sourceLocation: sourceLocation)
        #expect(try answer.json["code"] == "disk_bytes_limit", sourceLocation: sourceLocation)
        #expect(try answer.json["limit"]?["maximum"]?.intValue == 20_000_000, sourceLocation: sourceLocation)
      }
      #expect(try await upload(to: sessions[0]).status == 201)
      #expect(try await upload(to: sessions[1]).status == 201)
      try expectRefusal(try await upload(to: sessions[2]))
      try expectRefusal(try await bad.post("/sessions/\(sessions[0])/fork", [:]))
      var tus = bad.headers
      for (name, value) in [("Tus-Resumable", "1.0.0"), ("Upload-Length", "8000000"), ("Upload-Metadata", "path YQ==")]
      {
        tus.add(name: name, value: value)
      }
      try expectRefusal(try await bad.stack.request(.POST, "/sessions/\(sessions[2])/uploads", headers: tus))
      let used = try await bad.get("/usage").json["limits"]?["disk_bytes"]
      #expect((16_000_000...18_000_000).contains(used?["used"]?.intValue ?? 0), "\(String(describing: used))")
      // It fits into what is left, and less than that is then left for everything else.
      try await bad.stack.keys(["limit", bad.id, "disk-bytes=16000000"])
      for path in ["/sessions", "/sessions/\(sessions[2])/folders", "/sessions/\(sessions[2])/messages"] {
        let body: JSONValue = path.hasSuffix("folders") ? ["path": "f"] : path == "/sessions" ? [:] : ["prompt": "x"]
        let answer = try await bad.post(path, body)
        #expect(answer.status == 507, "\(path) \(answer.text)")
        #expect(try answer.json["code"] == "disk_bytes_limit")
      }
      try await expectService(good)
      // Deleting always works, and frees at once.
      try await bad.stack.keys(["limit", bad.id, "disk-bytes=20000000"])
      let deleted = try await bad.stack.request(.DELETE, "/sessions/\(sessions[0])/files/big", headers: bad.headers)
      #expect(deleted.status == 204)
      #expect(try await upload(to: sessions[2]).status == 201)
      #expect(try await bad.stack.request(.DELETE, "/sessions/\(sessions[1])", headers: bad.headers).status == 200)
      #expect(try await upload(to: sessions[0]).status == 201)
      // The figures are there after the death of the server.
      await bad.stack.killResponder()
      try await bad.stack.startResponder()
      try expectRefusal(try await upload(to: try await bad.newSession()))
      #expect(try await bad.post("/sessions/\(sessions[2])/messages", ["prompt": "x"]).status == 200)
    }
  }

  /// A bounded storm of processes in the real sandbox, since a test must not take the machine down.
  @Test(.enabled(if: Stack.realCLI != nil)) func oneWhoForksInTheSandbox() async throws {
    let settings = ["sandbox-max-processes": "150"]
    try await withTenants(cli: .real(path: try #require(Stack.realCLI)), settings: settings) { bad, good in
      let id = try await bad.newSession()
      // The children only wait. As many more as it may have.
      let storm =
        "my $n = 0; while ($n < 300) { my $p = fork; last if !defined $p; if (!$p) { sleep 300; exit } $n++ } "
        + "print $n; close STDOUT; sleep 300"
      let tool = JSONValue.object(["command": .string("perl -e '\(storm)' >storm")]).description
      let sent = try await bad.post(
        "/sessions/\(id)/messages", ["prompt": .string("[[tool Bash \(tool)]]")], asynchronously: true)
      #expect(sent.status == 202)
      let file = "\(bad.stack.workspaceRoot)/\(id)/storm"
      try await waitUntil { !text(of: file).isEmpty }
      if bad.stack.responderLog.contains("bounds_processes=true") {
        #expect(Int(text(of: file)).map { $0 > 20 && $0 < 150 } == true, "\(text(of: file))")
      } else {
        print("Root's processes are not counted without control groups; only the others were looked at.")
      }
      try await expectService(good, fake: false)
      // It ends with its session.
      #expect(try await bad.stack.request(.DELETE, "/sessions/\(id)", headers: bad.headers).status == 200)
      #expect(try bad.stack.processesLeft().isEmpty)
    }
  }

  // MARK: Limits over a restart

  @Test func whatAKeyHasUsedSurvivesRestartsAndKills() async throws {
    try await Stack.run { stack in
      let key = try await Self.makeKey(stack, "k", ["--limit", "turns-per-hour=100", "--limit", "usd-per-day=100"])
      let id = try await key.newSession()
      // Each turn of the double costs 25 cents.
      for _ in 0..<2 { #expect(try await key.post("/sessions/\(id)/messages", ["prompt": "x"]).status == 200) }
      func spent() async throws -> Double? {
        try await key.get("/usage").json["limits"]?["usd_per_day"]?["used"]?.doubleValue
      }
      #expect(try await spent() == 0.5)
      await stack.stopResponder()
      try await stack.startResponder()
      #expect(try await spent() == 0.5)
      // Killed while a turn runs, nobody knows what it has cost: it counts with what it was allowed to spend.
      _ = try await key.post("/sessions/\(id)/messages", ["prompt": "fake:partial"], asynchronously: true)
      try await waitUntil {
        try await key.get("/usage").json["limits"]?["running_turns"]?["used"] == 1
      }
      let reserved = try #require(
        try await key.get("/usage").json["limits"]?["usd_per_day"]?["reserved"]?.doubleValue)
      #expect(reserved == 49.75)
      await stack.killResponder()
      try await stack.startResponder()
      #expect(try await spent() == 0.5 + reserved)
      #expect(try await stack.request(.DELETE, "/sessions/\(id)", headers: key.headers).status == 200)
      #expect(try await spent() == 0.5 + reserved)

      // The command line changes what a key may use, beside the running server.
      let log = stack.directory + "/limit"
      let keys = [Stack.product("claude-api-server"), "keys"]
      let location = ["--state-dir", stack.stateDirectory]
      #expect(
        try await run(
          keys + ["limit", key.id, "usd-per-day=10.5", "sessions=none", "turns-per-hour=default"] + location,
          output: log) == .status(0))
      #expect(text(of: log).contains("usd-per-day\t10.50\n") && text(of: log).contains("sessions\tnone\n"))
      #expect(text(of: log).contains("turns-per-hour\tdefault\n"))
      let refused = try await key.post("/sessions", ["initial_prompt": "x"])
      #expect(refused.status == 402)
      #expect(try refused.json["code"] == "usd_per_day_limit")
      #expect(try refused.json["limit"]?["maximum"]?.doubleValue == 10.5)
      #expect(refused.headers.first(name: "retry-after").flatMap { Int($0) } ?? 0 > 0)
      let list = stack.directory + "/list"
      #expect(try await run(keys + ["list"] + location, output: list) == .status(0))
      #expect(text(of: list).contains("\tk\tsessions=none usd-per-day=10.50\tdefault\n"))
      for bad in ["usd-per-day=x", "sessions=0", "unknown=1", "sessions"] {
        #expect(try await run(keys + ["limit", key.id, bad] + location, output: log) == .status(64), "\(bad)")
      }
      #expect(try await run(keys + ["limit", "0123456789abcdef", "sessions=1"] + location, output: log) != .status(0))
    }
  }

  @Test func aHundredRequestsAtOnceMakeTenSessions() async throws {
    try await Stack.run { stack in
      let key = try await Self.makeKey(stack, "k", ["--limit", "sessions=10"])
      let statuses = try await withThrowingTaskGroup(of: Int.self) { group in
        for _ in 0..<100 { group.addTask { try await key.post("/sessions", [:]).status } }
        return try await group.reduce(into: [Int: Int]()) { $0[$1, default: 0] += 1 }
      }
      #expect(statuses == [200: 10, 403: 90])
      #expect(try await key.get("/sessions").json["count"] == 10)
      let left = try FileManager.default.contentsOfDirectory(atPath: stack.workspaceRoot)
      #expect(left.filter { UUID(uuidString: $0) != nil }.count == 10)
    }
  }

  private func waitUntil(_ condition: () async throws -> Bool) async throws {
    for _ in 0..<3000 {
      if try await condition() { return }
      try await Task.sleep(for: .milliseconds(10))
    }
    throw Stack.Failure("the condition did not come true")
  }
}

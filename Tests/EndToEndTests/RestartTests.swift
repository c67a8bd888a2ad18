import Foundation
import JSONSupport
import NIOHTTP1
import Synchronization
import TestSupport
import Testing

/// An upgrade as a service manager makes it: the sockets listen all the time, the responder ends and starts again.
@Suite struct RestartTests {
  @Test func nothingIsRefusedAndNoTurnIsLostAcrossRestarts() async throws {
    try await Stack.run(settings: ["drain-timeout": "20s"], holdsSockets: true) { stack in
      let busy = try await stack.createSession()
      let traffic = Traffic(stack)
      try await traffic.start()
      for round in 0..<3 {
        let running = try await turn(stack, busy, "fake:delay 1000")
        let waiting = try await turn(stack, busy, "waits \(round)")
        try await waitUntil { try await state(stack, busy, running) != "queued" }
        let before = traffic.count
        // Requests have to come while it ends as well as while it is away.
        #expect(await stack.stopResponder() == .status(0))
        #expect(traffic.count > before)
        try await stack.startResponder()
        #expect(try await state(stack, busy, running) == "completed")
        try await waitUntil { try await state(stack, busy, waiting) == "completed" }
      }
      let report = try await traffic.stop()
      #expect(report.failures.isEmpty, "\(report.failures)")
      #expect(report.turns > 3)
      #expect(report.sockets > 3)
      let said = try await stack.get("/sessions/\(busy)/turns").json["turns"]?.arrayValue ?? []
      #expect(said.map { $0["state"] } == Array(repeating: "completed", count: 6))
    }
  }

  @Test func whoWaitsForAMessageThatRunsLaterIsToldSo() async throws {
    try await Stack.run(settings: ["drain-timeout": "300s"], holdsSockets: true) { stack in
      let id = try await stack.createSession()
      let other = try await stack.createSession()
      let first = Task { try await message(stack, id, "fake:partial", key: "k1") }
      try await waitUntil { try await turns(stack, id).contains { $0["state"] == "running" } }
      let second = Task { try await message(stack, id, "secundus", key: "k2") }
      try await waitUntil { try await turns(stack, id).count == 2 }
      await stack.responder?.signal(SIGTERM)
      // The one that waits hears it at once, while the running one goes on.
      let told = try await second.value
      #expect(told.status == 503)
      #expect(try told.json["code"] == "shutting_down")
      #expect(told.headers.first(name: "retry-after") == "5")
      let location = try #require(told.headers.first(name: "location"))
      #expect(location.hasSuffix("/turns/" + (try told.json["turn_id"]?.stringValue ?? "none")))
      // Others are told to send nothing more here, as long as there is a choice.
      let ready = try await stack.get("/readyz")
      #expect(ready.status == 503)
      #expect(try ready.json["code"] == "not_ready")
      let checks = try #require(try ready.json["checks"]?.arrayValue)
      #expect(checks.filter { $0["ok"] == false }.map { $0["name"] } == ["draining"], "\(ready.text)")
      #expect(try await stack.get("/healthz").status == 200)
      // New messages and sessions are taken as well.
      let late = try await message(stack, other, "late", key: "k3")
      #expect(late.status == 503)
      #expect(try late.json["code"] == "shutting_down")
      let deferred = try await stack.post(
        "/sessions/\(other)/messages", ["prompt": "later"], headers: ["Prefer": "respond-async"])
      #expect(deferred.status == 202)
      let created = try await stack.post("/sessions", ["initial_prompt": "hello"])
      #expect(created.status == 202)
      #expect(try created.json["turn"]?["state"] == "queued")
      #expect(try created.json["turn"]?["prompt"] == "hello")
      // No prompt is in the log.
      #expect(!stack.responderLog.contains("secundus"))
      // What is as it should be is no error.
      let postponed = stack.responderLog.split(separator: "\n").filter { $0.contains("error=postponed") }
      #expect(!postponed.isEmpty && postponed.allSatisfy { $0.contains("level=info") }, "\(postponed)")
      // The running turn comes to its end, and with it the responder.
      #expect(try await stack.post("/sessions/\(id)/interrupt", [:]).status == 200)
      #expect(try await first.value.status == 409)
      #expect(await stack.stopResponder() == .status(0))
      try await stack.startResponder()
      // A repetition joins what was accepted.
      let again = try await message(stack, id, "secundus", key: "k2")
      #expect(try again.json["response"] == "2: fake:partial | secundus")
      #expect(try await stack.get(location + "?wait=10s").json["state"] == "completed")
      #expect(try await message(stack, other, "late", key: "k3").json["response"] == "1: late")
      try await waitUntil { try await turns(stack, other).map { $0["state"] } == ["completed", "completed"] }
      let new = try #require(try created.json["session"]?["id"]?.stringValue)
      try await waitUntil { try await turns(stack, new).map { $0["state"] } == ["completed"] }
    }
  }

  /// A version that was taken back meets what the newer one has made of the store.
  @Test func aStoreOfANewerVersionIsRefusedAndLosesNothing() async throws {
    try await Stack.run { stack in
      let id = try await stack.createSession()
      #expect(try await stack.say("hello", to: id) == "1: hello")
      await stack.stopResponder()
      let path = stack.stateDirectory + "/claude-api.sqlite"
      /// Executes a statement, and returns all that is in the store then.
      func execute(_ statement: String) async throws -> String {
        let script = """
          import sqlite3, sys
          store = sqlite3.connect(sys.argv[1])
          store.execute(sys.argv[2])
          store.commit()
          print("\\n".join(store.iterdump()))
          """
        let output = "\(stack.directory)/sqlite.\(UUID())"
        let exit = try await TestSupport.run(["python3", "-c", script, path, statement], output: output)
        try #require(exit == .status(0), "\(text(of: output))")
        return text(of: output)
      }
      let store = try await execute("INSERT INTO grdb_migrations VALUES ('999-later')")
      let failure = await #expect(throws: Stack.Failure.self) { try await stack.startResponder() }
      // Another one than that after which a service manager tries again.
      #expect(failure?.description == "the responder ended with status(65)")
      #expect(stack.responderLog.contains("written by a newer version of this program (999-later)"))
      #expect(store.contains("999-later") && store.contains("hello"))
      #expect(try await execute("SELECT 1") == store)
      _ = try await execute("DELETE FROM grdb_migrations WHERE identifier = '999-later'")
      try await stack.startResponder()
      #expect(try await stack.say("again", to: id) == "2: hello | again")
    }
  }

  @Test func aTurnThatTakesTooLongIsInterrupted() async throws {
    try await Stack.run(settings: ["drain-timeout": "300ms"], holdsSockets: true) { stack in
      let id = try await stack.createSession()
      let answer = Task { try await stack.post("/sessions/\(id)/messages", ["prompt": "fake:partial"]) }
      try await waitUntil { try await turns(stack, id).contains { $0["state"] == "running" } }
      #expect(await stack.stopResponder() == .status(0))
      #expect(try await answer.value.status == 409)
      #expect(try await answer.value.json["code"] == "interrupted")
      #expect(try stack.processesLeft().isEmpty)
    }
  }

  @Test func theServiceManagerHearsOfStartLifeAndEnd() async throws {
    try await withTemporaryDirectory { directory in
      let socket = try UnixSocket(receivingAt: directory + "/notify")
      try await Stack.run(
        environment: { _ in ["NOTIFY_SOCKET": directory + "/notify", "WATCHDOG_USEC": "800000"] }
      ) { stack in
        var heard: [String] = []
        func hear(_ wanted: String, times: Int) async throws {
          try await waitUntil {
            while let text = try socket.receive() { heard.append(text) }
            return heard.count { $0.contains(wanted) } >= times
          }
        }
        try await hear("WATCHDOG=1", times: 3)
        #expect(heard.contains("READY=1"))
        #expect(await stack.stopResponder() == .status(0))
        try await hear("STOPPING=1\nEXTEND_TIMEOUT_USEC=120000000", times: 1)
      }
    }
  }

  /// On a network of its own, with an address that isn't of loopback. Prints the status of a request to each.
  private static let changedLine = """
    set -eu
    python3 - <<'PYTHON'
    import fcntl, socket, struct
    any = socket.socket()
    # SIOCSIFFLAGS and SIOCSIFADDR
    fcntl.ioctl(any, 0x8914, struct.pack("16sH14x", b"lo", 0x49))
    fcntl.ioctl(any, 0x8916, struct.pack("16sH2x4s8x", b"lo:1", socket.AF_INET, socket.inet_aton("192.0.2.1")))
    PYTHON
    "$SERVER" serve --state-dir="$TOP/state" --workspace-root="$TOP/w" --socket-path="$TOP/r.sock" \\
      --claude-path="$CLAUDE" --sandbox-mode=off --demo-model-url=http://127.0.0.1:9 >"$TOP/responder.log" 2>&1 &
    nginx -p "$PREFIX" -c nginx.conf -e stderr -g "daemon off;$USER_LINE" >"$TOP/nginx.log" 2>&1 &
    ask() { curl -s --noproxy '*' -m 20 -o /dev/null -w '%{http_code}' "$@" || true; }
    for i in $(seq 600); do
      [ "$(ask "http://127.0.0.1:$PORT/healthz")" != 200 ] || break
      sleep 0.1
    done
    echo "$(ask "http://127.0.0.1:$PORT/sessions") $(ask -H 'Host: localhost' "http://192.0.2.1:$PORT/sessions")" \\
      "$(ask "http://192.0.2.1:$PORT/sessions")"
    """

  /// nginx that listens elsewhere doesn't open a server that has no keys.
  @Test func aChangedLineOpensNothing() async throws {
    try await withTemporaryDirectory { directory in
      let (port, prefix) = (try freePort(), directory + "/nginx")
      try await Nginx.render(prefix: prefix, port: port, socket: directory + "/r.sock")
      for name in ["listen.conf", "listen-default.conf"] {
        let file = "\(prefix)/claude-api/\(name)"
        let changed = text(of: file).replacing("listen 127.0.0.1:", with: "listen 0.0.0.0:")
        #expect(changed.contains("0.0.0.0"))
        try changed.write(toFile: file, atomically: true, encoding: .utf8)
      }
      let isRoot = geteuid() == 0
      let output = directory + "/output"
      let exit = try await run(
        ["unshare", "--net", "--pid", "--fork", "--kill-child"]
          + (isRoot ? [] : ["--user", "--map-current-user", "--keep-caps"]) + ["/bin/sh", "-c", Self.changedLine],
        environment: [
          "TOP": directory, "PREFIX": prefix, "PORT": "\(port)", "SERVER": Stack.product("claude-api-server"),
          "CLAUDE": Stack.product("fake-claude"), "USER_LINE": isRoot ? " user root;" : "",
          "ANTHROPIC_API_KEY": nil, "ANTHROPIC_BASE_URL": nil,
        ], output: output)
      #expect(exit == .status(0))
      #expect(text(of: output) == "200 403 421\n", "\(text(of: directory + "/responder.log"))")
    }
  }

  /// Another proxy in front doesn't open a server that has no keys.
  @Test func aProxyInFrontIsNotThisMachine() async throws {
    try await Stack.run { stack in
      #expect(try await stack.get("/sessions").status == 200)
      let behind = try await stack.get("/sessions", headers: ["X-Forwarded-For": "127.0.0.1"])
      #expect(behind.status == 403)
      #expect(try behind.json["code"] == "no_keys")
    }
  }

  // MARK: Shortcuts

  private func message(_ stack: Stack, _ id: String, _ prompt: String, key: String) async throws -> Stack.Answer {
    try await stack.post(
      "/sessions/\(id)/messages", ["prompt": .string(prompt)], headers: ["Idempotency-Key": key])
  }

  private func turn(_ stack: Stack, _ id: String, _ prompt: String) async throws -> String {
    let answer = try await stack.post(
      "/sessions/\(id)/messages", ["prompt": .string(prompt)], headers: ["Prefer": "respond-async"])
    #expect(answer.status == 202)
    return try #require(try answer.json["id"]?.stringValue)
  }

  private func state(_ stack: Stack, _ id: String, _ turn: String) async throws -> JSONValue? {
    try await stack.get("/sessions/\(id)/turns/\(turn)").json["state"]
  }

  private func turns(_ stack: Stack, _ id: String) async throws -> [JSONValue] {
    try await stack.get("/sessions/\(id)/turns").json["turns"]?.arrayValue ?? []
  }
}

/// Clients that ask all the time: for what is there, with messages in the background, and with such as wait.
private final class Traffic: Sendable {
  struct Report: Sendable {
    var failures: [String] = []
    var requests = 0
    var turns = 0
    var sockets = 0
    var isStopping = false
  }

  private let stack: Stack
  private let report = Mutex(Report())
  private let tasks = Mutex<[Task<Void, any Error>]>([])

  init(_ stack: Stack) { self.stack = stack }

  var count: Int { report.withLock { $0.requests } }
  private var isStopping: Bool { report.withLock { $0.isStopping } }

  func start() async throws {
    let ids = [try await stack.createSession(), try await stack.createSession()]
    let readers = (0..<6).map { _ in repeating { try await self.read(ids[0]) } }
    let writers = [
      repeating { try await self.writeAndLook(ids[0]) }, repeating { try await self.writeAndWait(ids[1]) },
    ]
    let sockets = (0..<2).map { _ in repeating { try await self.openSocket(ids[0]) } }
    tasks.withLock { $0 = readers + writers + sockets }
  }

  func stop() async throws -> Report {
    report.withLock { $0.isStopping = true }
    for task in tasks.withLock({ $0 }) { try await task.value }
    return report.withLock { $0 }
  }

  private func repeating(_ body: @escaping @Sendable () async throws -> Void) -> Task<Void, any Error> {
    Task {
      while !isStopping {
        do {
          try await body()
        } catch {
          report.withLock { $0.failures.append("\(error)") }
        }
      }
    }
  }

  private func check(_ answer: Stack.Answer, _ expected: Int) throws {
    report.withLock { $0.requests += 1 }
    guard answer.status == expected else { throw Stack.Failure("\(answer.status) \(answer.text)") }
  }

  private func read(_ id: String) async throws {
    try check(try await stack.get("/sessions/\(id)"), 200)
  }

  /// Whoever comes while the responder ends may be told to come back, but is never refused.
  private func openSocket(_ id: String) async throws {
    let first = try await stack.socket(id, "?after=latest").next()
    guard first["type"] == "ready" || first == ["closed": 1001] else { throw Stack.Failure("\(first)") }
    if first["type"] == "ready" { report.withLock { $0.sockets += 1 } }
    try await Task.sleep(for: .milliseconds(5))
  }

  private func writeAndLook(_ id: String) async throws {
    let accepted = try await stack.post(
      "/sessions/\(id)/messages", ["prompt": "a"], headers: ["Prefer": "respond-async"])
    try check(accepted, 202)
    let turn = try accepted.json["id"]?.stringValue ?? "none"
    while true {
      let answer = try await stack.get("/sessions/\(id)/turns/\(turn)?wait=10s")
      try check(answer, 200)
      if try answer.json["state"] == "completed" { break }
      guard try answer.json["state"] == "queued" else { throw Stack.Failure(answer.text) }
      try await Task.sleep(for: .milliseconds(20))
    }
    report.withLock { $0.turns += 1 }
  }

  /// As a client should do it: with a key, and again when it is told to.
  private func writeAndWait(_ id: String) async throws {
    let key: HTTPHeaders = ["Idempotency-Key": UUID().uuidString]
    while true {
      let answer = try await stack.post("/sessions/\(id)/messages", ["prompt": "b"], headers: key)
      if answer.status == 503, try answer.json["code"] == "shutting_down" {
        try await Task.sleep(for: .milliseconds(100))
        continue
      }
      try check(answer, 200)
      break
    }
    report.withLock { $0.turns += 1 }
  }
}

private func waitUntil(_ condition: () async throws -> Bool) async throws {
  for _ in 0..<3000 {
    if try await condition() { return }
    try await Task.sleep(for: .milliseconds(10))
  }
  throw Stack.Failure("the condition did not come true")
}

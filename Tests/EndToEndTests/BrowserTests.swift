import Foundation
import JSONSupport
import NIOHTTP1
import TestSupport
import Testing

/// A browser's own clients of events, in a headless Chromium.
@Suite(.enabled(if: chromium != nil, "there is no chromium on PATH"))
struct BrowserTests {
  @Test func anEventSourceOutlivesARestart() async throws {
    try await Stack.run { stack in
      let id = try await stack.createSession()
      let result = try await stack.createSession()
      let page = Self.page(
        reportingTo: result,
        """
        const events = new EventSource("/sessions/\(id)/events");
        for (const type of ["user.message", "agent.ready", "agent.message", "turn.queued", "turn.completed",
                            "turn.interrupted", "session.status_running", "session.status_idle", "session.error"]) {
          events.addEventListener(type, event => {
            if (event.lastEventId) report(Number(event.lastEventId), JSON.parse(event.data));
          });
        }
        """)
      try await Self.follow(id, byPage: page, into: result, path: "/sessions/\(id)/events", stack)
    }
  }

  /// With keys, which a page can't put into the request of a WebSocket.
  @Test func aWebSocketOutlivesARestart() async throws {
    try await Stack.run { stack in
      let key = try await stack.createKey("user")
      let id = try await stack.createSession([:], key: key)
      let result = try await stack.createSession([:], key: key)
      let page = Self.page(
        reportingTo: result, key: key,
        """
        let last = 0;
        function connect() {
          const socket = new WebSocket(`ws://${location.host}/sessions/\(id)/ws?after=${last}`);
          socket.onopen = () => socket.send(JSON.stringify({type: "authenticate", key: "\(key)"}));
          socket.onmessage = message => {
            const event = JSON.parse(message.data);
            if (event.sequence === undefined) return;
            last = event.sequence;
            report(last, event);
          };
          socket.onclose = () => setTimeout(connect, 100);
        }
        connect();
        """)
      try await Self.follow(
        id, byPage: page, into: result, path: "/sessions/\(id)/ws", headers: ["Authorization": "Bearer \(key)"], stack)
    }
  }

  /// Has a browser with the page follow a session while the responder is killed in the middle of a turn, and compares
  /// what it has seen with the log.
  ///
  /// - Parameter path: what the page connects to.
  private static func follow(
    _ id: String, byPage page: String, into result: String, path: String, headers: HTTPHeaders = [:], _ stack: Stack
  ) async throws {
    _ = try await stack.say("fake:count 3", to: id, headers: headers)
    try await addPage(page, to: stack)
    let arguments = [
      try #require(chromium), "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
      "--no-first-run", "--no-proxy-server", "--user-data-dir=\(stack.directory)/browser",
      "http://127.0.0.1:\(stack.nginx.port)/page",
    ]
    try await withChild(
      arguments, environment: ["HOME": stack.directory], output: stack.directory + "/chromium.log"
    ) { _ in
      try await wait(for: try await stack.log(id, headers: headers), in: result, stack)
      // In the middle of a turn, and for so long that an attempt to connect again fails.
      let turn = Task {
        try await stack.post("/sessions/\(id)/messages", ["prompt": "fake:count 1000"], headers: headers)
      }
      try await stack.until { try await stack.log(id, headers: headers).count { $0.type == "agent.message" } > 20 }
      await stack.killResponder()
      // It ends somehow: with nginx's 502, or with its connection.
      _ = await turn.result
      let refused = #""path":"\#(path)","protocol":"HTTP/1.1","status":502"#
      try await stack.until { text(of: stack.nginx.prefix + "/logs/access.log").contains(refused) }
      try await stack.startResponder()
      _ = try await stack.say("fake:count 3", to: id, headers: headers)
      try await wait(for: try await stack.log(id, headers: headers), in: result, stack)
    }
  }

  /// Puts what it is given by `report` into a file of another session whenever there is something new.
  private static func page(reportingTo result: String, key: String? = nil, _ script: String) -> String {
    """
    <!doctype html><title>events</title><script>
    const seen = [];
    const headers = \(key.map { #"{"Authorization": "Bearer \#($0)"}"# } ?? "{}");
    let isNew = false, isSending = false;
    async function send() {
      if (isSending) return;
      isSending = true;
      while (isNew) {
        isNew = false;
        const body = JSON.stringify(seen);
        const sent = await fetch("/sessions/\(result)/files/seen.json", {method: "PUT", headers, body})
          .then(answer => answer.ok, () => false);
        if (!sent) { isNew = true; await new Promise(done => setTimeout(done, 50)); }
      }
      isSending = false;
    }
    function report(cursor, event) {
      seen.push([cursor, event]);
      isNew = true;
      send();
    }
    \(script)
    </script>
    """
  }

  /// Has nginx serve a page from the origin of the API.
  private static func addPage(_ page: String, to stack: Stack) async throws {
    try Data(page.utf8).write(to: URL(filePath: stack.directory + "/page.html"))
    let path = stack.nginx.prefix + "/claude-api/locations.conf"
    let location = "location = /page { default_type text/html; alias \(stack.directory)/page.html; }\n"
    try Data((text(of: path) + location).utf8).write(to: URL(filePath: path))
    try await stack.nginx.reload()
    // The client may still have to notice that a connection was closed.
    try await stack.until { (try? await stack.get("/page").status) == 200 }
  }

  /// Waits until the browser has seen as many events, and compares them.
  private static func wait(for log: [Follower.Entry], in result: String, _ stack: Stack) async throws {
    var seen: [JSONValue] = []
    try await stack.until {
      let text = text(of: "\(stack.workspaceRoot)/\(result)/seen.json")
      seen = text.isEmpty ? [] : try JSONValue(parsing: text.utf8).arrayValue ?? []
      return seen.count >= log.count
    }
    #expect(seen.map { $0.arrayValue?.first } == log.map { .int($0.sequence) })
    #expect(seen.map { $0.arrayValue?.last } == log.map(\.json))
  }
}

private let chromium: String? = (ProcessInfo.processInfo.environment["PATH"] ?? "").split(separator: ":")
  .map { $0 + "/chromium" }.first { FileManager.default.isExecutableFile(atPath: $0) }

import Foundation
import HTTPTypes
import Hummingbird
import JSONSupport
import Logging
import NIOCore
import SQLiteStore
import SessionTestSupport
import Sessions
import TestSupport
import Testing

@testable import ClaudeAPI
@testable import HummingbirdFastCGI

/// Limits of keys as their holders see them, asked without a transport.
@Suite struct LimitTests {
  private struct Answer {
    let status: Int
    let headers: HTTPFields
    let text: String
    /// Kept open until it is let go.
    let response: Response

    var json: JSONValue { get throws { try JSONValue(parsing: text.utf8) } }
  }

  private struct Fixture: Sendable {
    let service: SessionService
    let responder: RouterResponder<API.Context>
    let store: SQLiteSessionStore

    func send(
      _ method: HTTPRequest.Method, _ path: String, _ key: KeySecret?, headers: HTTPFields = [:],
      from address: String = "127.0.0.1", body: JSONValue? = nil
    ) async throws -> Answer {
      var fields = headers
      if let key { fields[.authorization] = "Bearer \(key.text)" }
      if body != nil { fields[.contentType] = "application/json" }
      let request = Request(
        head: HTTPRequest(method: method, scheme: "http", authority: "localhost", path: path, headerFields: fields),
        body: RequestBody(buffer: ByteBuffer(bytes: body?.encoded() ?? [])))
      let source = FastCGIRequestContextSource(
        logger: Logger(label: "test") { _ in SwiftLogNoOpLogHandler() },
        parameters: CGIParameters([("REMOTE_ADDR", address)]))
      let response = try await responder.respond(to: request, context: API.Context(source: source))
      let writer = Text()
      if response.headers[.contentType] != "text/event-stream" { try await response.body.write(writer) }
      return Answer(status: response.status.code, headers: response.headers, text: writer.text, response: response)
    }

    func key(_ limits: [KeyLimit: Int64] = [:], role: APIKey.Role = .user, session: UUID? = nil) async throws
      -> KeySecret
    {
      let secret = KeySecret()
      try await store.addKey(
        APIKey(
          id: secret.id, name: "test", role: role, sessionID: session, digest: secret.digest, createdAt: .now(),
          limits: KeyLimits(limits.mapValues { .maximum($0) })))
      return secret
    }

    func newSession(_ key: KeySecret?) async throws -> String {
      let answer = try await send(.post, "/sessions", key, body: [:])
      return try #require(try answer.json["session"]?["id"]?.stringValue, "\(answer.text)")
    }
  }

  private final class Text: ResponseBodyWriter {
    private(set) var text = ""
    func write(_ buffer: ByteBuffer) async throws { text += String(buffer: buffer) }
    func finish(_: HTTPFields?) async throws {}
  }

  private func withFixture(
    defaults: [KeyLimit: Int64] = [:], runner: ScriptedRunner = ScriptedRunner(),
    _ body: (Fixture) async throws -> Void
  ) async throws {
    try await withTemporaryDirectory { directory in
      let store = try await SQLiteSessionStore.open(SQLiteStoreConfiguration(path: directory + "/s/store.sqlite"))
      let limits = KeyLimitPolicy(
        keys: store, defaults: KeyLimits(defaults.mapValues { .maximum($0) }), withoutKey: KeyLimits())
      try await withService(runner: runner, store: store, limits: limits, configure: { $0.maximumStreams = 5 }) {
        service in
        let api = API(service: service, configuration: APIConfiguration(version: "1", model: .demo), keys: store)
        try await body(Fixture(service: service, responder: api.responder(), store: store))
      }
      await store.close()
    }
  }

  /// One that costs 0.25 dollars and 5 tokens a turn.
  private static func paid() -> ScriptedRunner {
    ScriptedRunner { request, _ in
      TurnResult(
        text: "ok",
        accounts: TurnAccounts(usage: TokenUsage(inputTokens: 3, outputTokens: 2), costUSD: 0.25))
    }
  }

  private func expect(
    _ answer: Answer, _ status: Int, _ code: String, retries: Bool, sourceLocation: SourceLocation = #_sourceLocation
  ) throws {
    #expect(answer.status == status, "\(answer.text)", sourceLocation: sourceLocation)
    #expect(try answer.json["code"]?.stringValue == code, sourceLocation: sourceLocation)
    let retryAfter = answer.headers[.retryAfter].flatMap { Int($0) }
    #expect(
      retries ? (1...3600 * 24 * 31).contains(retryAfter ?? 0) : retryAfter == nil, sourceLocation: sourceLocation)
    #expect(
      try answer.json["limit"]?["name"]?.stringValue.map { $0 + "_limit" } == code, sourceLocation: sourceLocation)
  }

  // MARK: Refusals

  @Test func whatGoesBeyondALimitIsRefusedWithItsOwnCode() async throws {
    try await withFixture(runner: Self.paid()) { fixture in
      let few = try await fixture.key([.sessions: 1])
      let id = try await fixture.newSession(few)
      try expect(try await fixture.send(.post, "/sessions", few, body: [:]), 403, "sessions_limit", retries: false)
      try expect(
        try await fixture.send(.post, "/sessions/\(id)/fork", few, body: [:]), 403, "sessions_limit", retries: false)
      _ = try await fixture.send(.delete, "/sessions/\(id)", few)
      _ = try await fixture.newSession(few)

      for (limit, maximum, status) in [
        (KeyLimit.turnsPerHour, 1, 429), (.tokensPerDay, 5, 429), (.usdPerDay, KeyLimit.dollar / 4, 402),
        (.usdPerMonth, KeyLimit.dollar / 4, 402),
      ] as [(KeyLimit, Int64, Int)] {
        let key = try await fixture.key([limit: maximum])
        let session = try await fixture.newSession(key)
        let path = "/sessions/\(session)/messages"
        #expect(try await fixture.send(.post, path, key, body: ["prompt": "x"]).status == 200)
        let refused = try await fixture.send(.post, path, key, body: ["prompt": "y"])
        try expect(refused, status, limit.identifier + "_limit", retries: true)
        // As text, so that money isn't rounded on its way.
        #expect(refused.text.contains(#""maximum":\#(limit.text(maximum))"#), "\(refused.text)")
        #expect(try refused.json["limit"]?["resets_at"]?.stringValue != nil)
        // Nothing was kept of it, and reading goes on.
        let turns = try await fixture.send(.get, "/sessions/\(session)/turns", key).json["turns"]?.arrayValue
        #expect(turns?.count == 1)
        try expect(
          try await fixture.send(.post, "/sessions", key, body: ["initial_prompt": "z"]), status,
          limit.identifier + "_limit", retries: true)
        // Deleting gives nothing back.
        #expect(try await fixture.send(.delete, "/sessions/\(session)", key).status == 200)
        let next = try await fixture.newSession(key)
        try expect(
          try await fixture.send(.post, "/sessions/\(next)/messages", key, body: ["prompt": "y"]), status,
          limit.identifier + "_limit", retries: true)
        // More is given at once.
        let more = KeyLimits([limit: .maximum(maximum * 2)])
        #expect(try await fixture.store.setKeyLimits(key.id, to: more) != nil)
        #expect(
          try await fixture.send(.post, "/sessions/\(next)/messages", key, body: ["prompt": "y"]).status == 200)
      }
    }
  }

  @Test func waitingTurnsAndStreamsHaveALimit() async throws {
    let gate = Gate()
    let runner = ScriptedRunner { _, _ in
      try await gate.wait()
      return TurnResult(text: "")
    }
    try await withFixture(defaults: [.runningTurns: 1, .queuedTurns: 1, .streams: 2], runner: runner) { fixture in
      let key = try await fixture.key()
      let async: HTTPFields = [.prefer: "respond-async"]
      func send() async throws -> Answer {
        try await fixture.send(.post, "/sessions", key, headers: async, body: ["initial_prompt": "x"])
      }
      #expect(try await send().status == 202)
      while try await fixture.service.standing(of: key.id).usage.runningTurns == 0 { await Task.yield() }
      let waiting = try await send()
      #expect(waiting.status == 202)
      #expect(try waiting.json["turn"]?["state"] == "queued")
      #expect(try waiting.json["turn"]?["position"] == 1)
      let refused = try await send()
      try expect(refused, 429, "queued_turns_limit", retries: true)
      #expect(refused.headers[.rateLimitPolicy] == #""queued-turns";q=1;qu="concurrent-requests""#)

      let session = try #require(try waiting.json["session"]?["id"]?.stringValue)
      let events: HTTPFields = [.accept: "text/event-stream"]
      func open(_ key: KeySecret?, _ session: String) async throws -> Answer {
        try await fixture.send(.get, "/sessions/\(session)/events", key, headers: events)
      }
      // A key of the session counts for its owner too.
      let guest = try await fixture.key(role: .read, session: UUID(uuidString: session))
      var streams = [try await open(key, session), try await open(guest, session)]
      #expect(streams.map(\.status) == [200, 200])
      try expect(try await open(guest, session), 429, "streams_limit", retries: true)
      // A message is not accepted if its stream could not be.
      let message = try await fixture.send(
        .post, "/sessions/\(session)/messages", key, headers: events, body: ["prompt": "not kept"])
      try expect(message, 429, "streams_limit", retries: true)
      #expect(try await fixture.send(.get, "/sessions/\(session)/turns", key).json["turns"]?.arrayValue?.count == 1)
      // Others' streams are others' own, up to the number of all.
      let other = try await fixture.key([.streams: 100])
      let others = try await fixture.newSession(other)
      for _ in 0..<3 { streams.append(try await open(other, others)) }
      let exhausted = try await open(other, others)
      #expect(exhausted.status == 503 && exhausted.text.contains("\"streams_exhausted\""))
      #expect(exhausted.headers[.retryAfter] != nil)
      #expect(try await fixture.service.standing(of: other.id).streams == 3)
      streams = []
      #expect(fixture.service.streams.count == 0)
      #expect(try await open(key, session).status == 200)
      gate.open()
    }
  }

  // MARK: Usage

  @Test func aKeySeesItsOwnUseAndAnAdministratorAll() async throws {
    try await withFixture(defaults: [.turnsPerHour: 10], runner: Self.paid()) { fixture in
      let key = try await fixture.key([.usdPerDay: KeyLimit.dollar])
      let admin = try await fixture.key(role: .admin)
      let id = try await fixture.newSession(key)
      let message = try await fixture.send(.post, "/sessions/\(id)/messages", key, body: ["prompt": "x"])
      #expect(message.headers[.rateLimitPolicy] == #""turns-per-hour";q=10;w=3600"#)
      let parts = message.headers[.rateLimit]?.split(separator: ";").map(String.init) ?? []
      #expect(parts.prefix(2) == [#""turns-per-hour""#, "r=9"] && parts.last?.hasPrefix("t=") == true)

      let own = try await fixture.send(.get, "/usage", key)
      let usage = try own.json
      #expect(usage["key"]?.stringValue == key.id && usage["name"] == "test")
      let dollars = usage["limits"]?["usd_per_day"]
      #expect(dollars?["maximum"]?.doubleValue == 1 && dollars?["used"]?.doubleValue == 0.25)
      #expect(dollars?["left"]?.doubleValue == 0.75 && dollars?["reserved"]?.doubleValue == 0)
      #expect(
        usage["limits"]?["sessions"]?["used"] == 1 && usage["limits"]?["sessions"]?["maximum"] == nil as JSONValue)
      #expect(usage["limits"]?["turns_per_hour"]?["left"] == 9)
      #expect(usage["limits"]?["tokens_per_day"]?["used"] == 5)
      #expect(usage["limits"]?.objectValue?.count == KeyLimit.allCases.count)

      #expect(try await fixture.send(.get, "/usage?key=\(key.id)", key).json["limits"] == usage["limits"])
      #expect(try await fixture.send(.get, "/usage?key=\(key.id)", admin).json["limits"] == usage["limits"])
      let all = try await fixture.send(.get, "/usage?key=all", admin).json["keys"]?.arrayValue
      #expect(all?.compactMap { $0["key"]?.stringValue } == [key.id, admin.id])
      #expect(try await fixture.send(.get, "/usage?key=0123456789abcdef", admin).status == 404)
      // Nobody else learns which keys there are.
      let existing = try await fixture.send(.get, "/usage?key=\(admin.id)", key)
      let missing = try await fixture.send(.get, "/usage?key=0123456789abcdef", key)
      #expect(existing.status == 403 && existing.text == missing.text)
      #expect(try await fixture.send(.get, "/usage?key=all", key).status == 403)
      #expect(try await fixture.send(.get, "/usage?other=1", key).status == 400)
      // Whoever is in a session counts for its owner and for themselves.
      let guest = try await fixture.key([.turnsPerHour: 1], session: UUID(uuidString: id))
      let path = "/sessions/\(id)/messages"
      #expect(try await fixture.send(.post, path, guest, body: ["prompt": "x"]).status == 200)
      try expect(
        try await fixture.send(.post, path, guest, body: ["prompt": "x"]), 429, "turns_per_hour_limit", retries: true)
      #expect(try await fixture.send(.get, "/usage", guest).json["limits"]?["turns_per_hour"]?["used"] == 1)
      #expect(try await fixture.send(.get, "/usage", key).json["limits"]?["turns_per_hour"]?["used"] == 2)
      // A copy that a guest makes is the owner's.
      #expect(try await fixture.send(.post, "/sessions/\(id)/fork", guest, body: [:]).status == 200)
      #expect(try await fixture.send(.get, "/usage", key).json["limits"]?["sessions"]?["used"] == 2)
    }
  }

  @Test func withoutKeysAllUseIsOnes() async throws {
    try await withFixture(defaults: [.turnsPerHour: 1], runner: Self.paid()) { fixture in
      let id = try await fixture.newSession(nil)
      for _ in 0..<2 {
        let answer = try await fixture.send(.post, "/sessions/\(id)/messages", nil, body: ["prompt": "x"])
        #expect(answer.status == 200 && answer.headers[.rateLimit] == nil)
      }
      let usage = try await fixture.send(.get, "/usage", nil).json
      #expect(usage["key"] == nil as JSONValue && usage["limits"]?["usd_per_day"]?["used"]?.doubleValue == 0.5)
    }
  }

  // MARK: Guessing

  @Test func whoTriesKeysIsSlowed() async throws {
    try await withFixture { fixture in
      let (known, fresh) = (try await fixture.key(), try await fixture.key())
      let guesser = "192.0.2.7"
      func status(_ key: KeySecret?, _ address: String) async throws -> Int {
        try await fixture.send(.get, "/sessions", key, from: address).status
      }
      #expect(try await status(known, guesser) == 200)
      var answers: [Int] = []
      for _ in 0..<150 { answers.append(try await status(KeySecret(), guesser)) }
      #expect(answers.prefix(100).allSatisfy { $0 == 401 } && answers.last == 429)
      let refused = try await fixture.send(.get, "/sessions", KeySecret(id: known.id), from: guesser)
      #expect(refused.status == 429 && refused.text.contains("too_many_wrong_keys"))
      #expect(Int(refused.headers[.retryAfter] ?? "") == 1)
      // Not even a right one is told, but those that were used there before go on, and so do other addresses.
      #expect(try await status(fresh, guesser) == 429)
      #expect(try await status(known, guesser) == 200)
      #expect(try await status(fresh, "192.0.2.8") == 200)
      #expect(try await status(nil, guesser) == 401)
      for _ in 0..<150 { #expect(try await status(KeySecret(), "127.0.0.1") == 401) }
    }
  }

  @Test func wrongKeysAreForgottenInTime() {
    let wrong = WrongKeys(WrongKeys.Bounds(burst: 2, perSecond: 0.5))
    let start = ContinuousClock.now
    func refusal(_ address: String?, after seconds: Int) -> Int? {
      wrong.refusal(address, [1], at: start + .seconds(seconds))
    }
    #expect(refusal("10.0.0.1", after: 0) == nil)
    for _ in 0..<2 { wrong.noteWrong("10.0.0.1", at: start) }
    #expect(refusal("10.0.0.1", after: 0) == 2)
    #expect(refusal("10.0.0.1", after: 1) == 1)
    #expect(refusal("10.0.0.1", after: 2) == nil)
    #expect(refusal("10.0.0.2", after: 0) == nil)
    // The address within a network of version 6 can be chosen at will.
    for host in 1...2 { wrong.noteWrong("2001:db8:1:2::\(host)", at: start) }
    #expect(refusal("2001:db8:1:2:ffff::1", after: 0) == 2)
    #expect(refusal("2001:db8:1:3::1", after: 0) == nil)
    for _ in 0..<2 { wrong.noteWrong("::ffff:10.0.0.3", at: start) }
    #expect(refusal("10.0.0.3", after: 0) == 2)
    for address in ["::1", "::ffff:127.0.0.1", "nonsense", nil] {
      for _ in 0..<5 { wrong.noteWrong(address, at: start) }
      #expect(refusal(address, after: 0) == nil)
    }
    // However many addresses try, the memory has a bound, and a new one is still held.
    for number in 0..<20_000 {
      wrong.noteWrong("10.\(1 + number / 60_000).\(number / 250 % 250).\(number % 250)", at: start)
    }
    for _ in 0..<3 { wrong.noteWrong("10.99.0.1", at: start) }
    #expect(refusal("10.99.0.1", after: 0) == 2)
  }
}

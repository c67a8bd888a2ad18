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

/// Keys, roles and tenants, asked without a transport.
@Suite struct AccessTests {
  // MARK: Without keys

  @Test func withoutKeysOnlyClientsThatAreSurelyOnThisMachineAreAnswered() async throws {
    try await withAPI { fixture in
      let local: [(String, [(String, String)])] = [
        ("127.0.0.1", []), ("::1", [("SERVER_ADDR", "::1")]), ("127.0.0.2", [("PEER_ADDR", "127.0.0.2")]),
      ]
      for (address, parameters) in local {
        let answer = try await fixture.send(.get, "/sessions", from: address, parameters: parameters)
        #expect(answer.status == 200, "\(address) \(parameters)")
      }
      let foreign: [(String?, [(String, String)])] = [
        (nil, []), ("192.0.2.7", []), ("2001:db8::1", []), ("", []), ("localhost", []), ("unix:", []),
        // The web server listens elsewhere, or takes the client's address from a header field.
        ("127.0.0.1", [("SERVER_ADDR", "192.0.2.1")]), ("127.0.0.1", [("PEER_ADDR", "192.0.2.7")]),
      ]
      for (address, parameters) in foreign {
        let answer = try await fixture.send(.get, "/sessions", from: address, parameters: parameters)
        #expect(answer.status == 403, "\(address ?? "none") \(parameters)")
        #expect(answer.text.contains("no_keys"))
      }
      // A proxy in front of the web server: all of its clients come from this machine.
      for name in ["Forwarded", "X-Forwarded-For", "x-forwarded-proto", "X-Real-IP", "Via", "CF-Connecting-IP"] {
        let field = try #require(HTTPField.Name(name))
        #expect(try await fixture.send(.get, "/sessions", headers: [field: "127.0.0.1"]).status == 403, "\(name)")
        #expect(try await fixture.send(.get, "/healthz", headers: [field: "127.0.0.1"]).status == 200)
      }
      let user = try await fixture.key(.user)
      #expect(
        try await fixture.send(.get, "/sessions", key: user.text, headers: [.via: "1.1 proxy"], from: "192.0.2.7")
          .status == 200)
    }
  }

  @Test func whereKeysAreRequiredNobodyIsAnsweredWithoutOne() async throws {
    try await withAPI(requiresKeys: true) { fixture in
      let refused = try await fixture.send(.get, "/sessions")
      #expect(refused.status == 403)
      #expect(refused.text.contains("no_keys"))
      let user = try await fixture.key(.user)
      #expect(try await fixture.send(.get, "/sessions", key: user.text).status == 200)
      #expect(try await fixture.send(.get, "/sessions").status == 401)
    }
  }

  @Test(arguments: [
    (nil, true), ("", true), ("localhost", true), ("a.LOCALHOST:8000", true), ("127.0.0.1", true),
    ("127.9.8.7:80", true), ("[::1]", true), ("[::1]:80", true), ("evil.example", false),
    ("127.0.0.1.evil.example", false), ("127.0.0.1:80:90", false),
    ("127.1", false), ("127.0.0.+1", false), ("10.0.0.1", false), ("[::2]", false), ("[::1].evil.example", false),
    ("notlocalhost", false), (":80", false),
  ])
  func onlyNamesOfThisMachineAreTakenForIt(_ host: String?, isOne: Bool) {
    #expect(ClientAddress.isNameOfLoopback(host) == isOne)
  }

  /// What is answered before the router and the middleware is what they would answer as well.
  @Test func aFileIsThereAtOnceOnlyForThoseWhoMayReadIt() async throws {
    try await withAPI { fixture in
      func id(_ owner: KeySecret?) async throws -> UUID {
        let id = try await fixture.newSession(owner)
        let workspace = try await fixture.api.service.session(id).workspace
        try Data("hello".utf8).write(to: URL(filePath: workspace + "/a"))
        return id
      }
      /// Whether it was answered at once, which must not be otherwise than the ordinary way.
      func get(
        _ session: UUID, _ key: String?, _ headers: HTTPFields = [:], from address: String = "127.0.0.1",
        host: String = "localhost", query: String = ""
      ) async throws -> Bool {
        let path = "/sessions/\(session.lowercaseString)/files/a\(query)"
        var fields = headers
        if let key { fields[.authorization] = "Bearer \(key)" }
        let answer = fixture.api.immediateResponder(
          HTTPRequest(method: .get, scheme: "http", authority: host, path: path, headerFields: fields),
          CGIParameters([("REMOTE_ADDR", address)]), { Logger(label: "test") { _ in SwiftLogNoOpLogHandler() } })
        let ordinary = try await fixture.send(.get, path, key: key, headers: headers, from: address)
        if let answer {
          #expect(ordinary.status == 200 && answer.status == .ok)
          #expect(String(buffer: answer.body) == "hello" && ordinary.text == "hello")
          for field in ordinary.headers where field.name != .contentLength {
            #expect(answer.headers[field.name] == field.value)
          }
        }
        return answer != nil
      }
      let everybodys = try await id(nil)
      #expect(try await get(everybodys, nil))
      #expect(try await !get(everybodys, nil, from: "192.0.2.7"))
      #expect(try await !get(everybodys, nil, host: "evil.example"))
      #expect(try await !get(everybodys, nil, [.via: "1.1 proxy"]))
      #expect(try await !get(everybodys, nil, query: "?download"))
      #expect(try await !get(everybodys, nil, [.range: "bytes=0-1"]))
      #expect(try await !get(UUID(), nil))

      let (owner, other) = (try await fixture.key(.user), try await fixture.key(.user))
      let session = try await id(owner)
      // The ordinary way has the keys known again.
      #expect(try await fixture.send(.get, "/sessions", key: owner.text).status == 200)
      #expect(try await get(session, owner.text))
      #expect(try await get(session, owner.text, from: "192.0.2.7", host: "claude.example.org"))
      #expect(try await !get(session, nil))
      #expect(try await !get(session, other.text))
      #expect(try await !get(session, KeySecret(id: owner.id).text))
      #expect(try await !get(session, owner.text, [.xAPIKey: other.text]))
      #expect(try await !get(everybodys, owner.text))
      let bound = try await fixture.key(.read, session: session)
      let elsewhere = try await fixture.key(.read, session: everybodys)
      let admin = try await fixture.key(.admin)
      let expired = try await fixture.key(.admin, expiresAt: Timestamp.now().advanced(by: .seconds(-1)))
      #expect(try await fixture.send(.get, "/sessions", key: admin.text).status == 200)
      #expect(try await get(session, bound.text))
      #expect(try await get(session, admin.text))
      #expect(try await !get(session, elsewhere.text))
      #expect(try await !get(session, expired.text))
      #expect(try await fixture.keys.revokeKey(owner.id, at: .now()))
      #expect(try await !get(session, owner.text))
      #expect(try await fixture.send(.get, "/sessions", key: admin.text).status == 200)
      #expect(try await !get(session, owner.text))
      #expect(try await get(session, admin.text))
    }
  }

  // MARK: Roles

  /// Each route of the table with each kind of key. A new route is in it as soon as it exists.
  @Test func eachRouteIsForThoseWhoMayUseIt() async throws {
    try await withAPI { fixture in
      let user = try await fixture.key(.user)
      let other = try await fixture.key(.user)
      let admin = try await fixture.key(.admin)
      let reader = try await fixture.key(.read)
      let kept = try await fixture.newSession(other)
      #expect(fixture.api.routes.entries.count > 8)
      for entry in fixture.api.routes.entries {
        // One for each, since the route may be that which deletes it.
        let session = try await fixture.newSession(user)
        let bound = try await fixture.key(.user, session: session)
        let boundReader = try await fixture.key(.read, session: session)
        let boundElsewhere = try await fixture.key(.user, session: kept)
        let ofSession = entry.path.contains("{session_id}")
        #expect(ofSession == entry.path.hasPrefix("/sessions/"), "\(entry.path)")
        let path = entry.path.replacing("{session_id}", with: session.lowercaseString)
          .replacing("{path}", with: "x").replacing(#/{[a-z_]+}/#, with: UUID().lowercaseString)
        func outcome(_ key: KeySecret?) async throws -> String {
          let body: JSONValue? = entry.method == .get || entry.method == .delete ? nil : ["prompt": 1]
          let answer = try await fixture.send(entry.method, path, key: key?.text, body: body)
          if answer.status == 401 || answer.status == 403 { return String(answer.status) }
          // An answer to HEAD has no text; a session that is seen is answered otherwise there.
          let isHidden = answer.text.contains("\"session_not_found\"") || entry.method == .head
          return answer.status == 404 && isHidden ? "hidden" : "allowed"
        }
        let isOpen = entry.access == .open
        let changes = entry.access == .change
        let what = "\(entry.method) \(entry.path)"
        /// The answer to nginx's question whether it should take a body in.
        func announced(_ key: KeySecret?) async throws -> Int? {
          let answer = try await fixture.send(
            entry.method, path, key: key?.text, headers: [.contentLength: "100000"],
            parameters: [("BODY_ANNOUNCED", "1")])
          if answer.status == 204 { return 204 }
          #expect(answer.status == 403 && answer.text.isEmpty, "\(what)")
          let status = answer.headers[.refusalStatus].flatMap { Int64($0) }
          #expect(try JSONValue(parsing: (answer.headers[.refusal] ?? "").utf8)["status"]?.intValue == status)
          return status.map { Int($0) }
        }
        func expect(_ key: KeySecret?, _ expected: String) async throws {
          // Who only asks is told the same, and nothing is done: the session is still there for the next line.
          let status = expected == "allowed" ? (changes ? 204 : 413) : expected == "hidden" ? 404 : Int(expected)
          #expect(try await announced(key) == status, "\(what)")
          #expect(try await outcome(key) == expected, "\(what)")
        }
        // On this machine nobody needs a key for what operators look at, but who shows one must be such.
        let isOperation = entry.access == .operation
        let allowed = isOperation ? "403" : "allowed"
        try await expect(nil, isOpen || isOperation ? "allowed" : "401")
        try await expect(KeySecret(), isOpen ? "allowed" : "401")
        try await expect(other, ofSession ? "hidden" : allowed)
        try await expect(reader, ofSession ? "hidden" : changes ? "403" : allowed)
        try await expect(boundReader, isBoundOut(entry) || changes ? "403" : "allowed")
        try await expect(boundElsewhere, ofSession ? "hidden" : isBoundOut(entry) ? "403" : "allowed")
        // Reading first: the last ones may delete the session.
        if !changes || !ofSession {
          try await expect(bound, isBoundOut(entry) ? "403" : "allowed")
          try await expect(user, allowed)
        }
        try await expect(entry.method == .delete ? user : admin, "allowed")
      }
    }
  }

  /// One that is wrongly declared would be expected to be open by the test above.
  @Test func onlyTheseRoutesAreOpen() async throws {
    try await withAPI { fixture in
      let open = fixture.api.routes.entries.filter { $0.access == .open }.map { "\($0.method) \($0.path)" }
      #expect(
        Set(open) == [
          "GET /healthz", "GET /readyz", "GET /openapi.json", "GET /docs", "GET /shared/{token}",
          "GET /shared/{token}/{path}",
        ], "\(open)")
    }
  }

  private func isBoundOut(_ entry: RouteTable.Entry) -> Bool {
    !entry.path.contains("{session_id}") && entry.access != .open && entry.access != .information
  }

  /// Metrics are for this machine and for administrators; who uses how much is for the latter.
  @Test func whoMaySeeMetrics() async throws {
    try await withAPI { fixture in
      func metrics(_ key: KeySecret? = nil, from address: String? = "127.0.0.1") async throws -> String {
        let answer = try await fixture.send(.get, "/metrics", key: key?.text, from: address)
        return answer.status == 200 ? answer.text : "\(answer.status)"
      }
      #expect(try await metrics() == "byKey=false\n")
      #expect(try await metrics(from: "10.0.0.1") == "403")
      let (user, admin) = (try await fixture.key(.user), try await fixture.key(.admin))
      #expect(try await metrics() == "byKey=false\n")
      #expect(try await metrics(from: "10.0.0.1") == "401")
      #expect(try await metrics(user) == "403")
      #expect(try await metrics(KeySecret()) == "401")
      #expect(try await metrics(admin, from: "10.0.0.1") == "byKey=true\n")
      #expect(try await fixture.send(.get, "/readyz", from: "10.0.0.1").status == 200)
    }
  }

  /// The address says nothing about a client that came over somebody else's proxy.
  @Test func aForwardedRequestIsNotOfThisMachine() async throws {
    try await withAPI { fixture in
      for name in ["Forwarded", "X-Forwarded-For", "Via"] {
        let field = try #require(HTTPField.Name(name))
        for path in ["/sessions", "/metrics"] {
          #expect(try await fixture.send(.get, path, headers: [field: "127.0.0.1"]).status == 403, "\(name) \(path)")
        }
      }
    }
  }

  // MARK: Tenants

  @Test func anotherTenantsSessionIsLikeAMissingOne() async throws {
    try await withAPI { fixture in
      let (one, two, admin) = (
        try await fixture.key(.user), try await fixture.key(.user), try await fixture.key(.admin)
      )
      let session = try await fixture.newSession(one)
      let foreign = try await fixture.send(.get, "/sessions/\(session.lowercaseString)", key: two.text)
      let missing = try await fixture.send(.get, "/sessions/\(UUID().lowercaseString)", key: two.text)
      #expect(foreign.status == 404 && foreign == missing)
      func listed(_ key: KeySecret) async throws -> Int64? {
        let answer = try await fixture.send(.get, "/sessions", key: key.text)
        return try JSONValue(parsing: answer.text.utf8)["count"]?.intValue
      }
      #expect(try await listed(one) == 1)
      #expect(try await listed(two) == 0)
      #expect(try await listed(admin) == 1)
    }
  }

  @Test func idempotencyKeysAreATenantsOwn() async throws {
    try await withAPI { fixture in
      let (one, two) = (try await fixture.key(.user), try await fixture.key(.user))
      let header: HTTPFields = [.idempotencyKey: "same"]
      let first = try await fixture.send(.post, "/sessions", key: one.text, headers: header, body: [:])
      let second = try await fixture.send(.post, "/sessions", key: two.text, headers: header, body: [:])
      let again = try await fixture.send(.post, "/sessions", key: one.text, headers: header, body: [:])
      #expect(first.text != second.text && first.text == again.text)
    }
  }

  // MARK: Keys

  @Test func aKeyIsGoodUntilItIsRevokedRotatedOrExpired() async throws {
    try await withAPI { fixture in
      let key = try await fixture.key(.admin)
      func status(_ secret: KeySecret) async throws -> Int {
        try await fixture.send(.get, "/sessions", key: secret.text).status
      }
      #expect(try await status(key) == 200)
      let rotated = KeySecret(id: key.id)
      #expect(try await fixture.keys.replaceKeyDigest(key.id, with: rotated.digest) != nil)
      #expect(try await status(key) == 401)
      #expect(try await status(rotated) == 200)
      #expect(try await fixture.keys.revokeKey(key.id, at: .now()))
      #expect(try await status(rotated) == 401)
      #expect(try await fixture.keys.replaceKeyDigest(key.id, with: key.digest) == nil)
      let late = try await fixture.key(.admin, expiresAt: Timestamp.now().advanced(by: .seconds(-1)))
      #expect(try await status(late) == 401)
      // A revoked key is still a key: the server is not open again.
      #expect(try await fixture.send(.get, "/sessions").status == 401)
      #expect(try await !fixture.keys.revokeKey("0123456789abcdef", at: .now()))
    }
  }

  // MARK: Streams

  private func withRevocation(_ fixture: KeyedAPI, _ body: () async throws -> Void) async throws {
    let revocation = StreamRevocation(
      keys: fixture.store, hub: fixture.api.service.hub, interval: .milliseconds(5),
      logger: Logger(label: "test") { _ in SwiftLogNoOpLogHandler() })
    let watch = Task { await revocation.run() }
    defer { watch.cancel() }
    try await body()
  }

  /// What a change of a key does to a stream that was opened with it, and to one of another key.
  @Test(arguments: ["revoked", "rotated", "expired"])
  func aStreamEndsWithItsKey(_ end: String) async throws {
    try await withAPI { fixture in
      try await withRevocation(fixture) {
        let admin = try await fixture.key(.admin)
        let session = try await fixture.newSession(admin)
        func open(_ lifetime: Duration?) async throws -> (KeySecret, StreamReader, Bool) {
          let key = try await fixture.key(
            .user, session: session, expiresAt: lifetime.map { Timestamp.now().advanced(by: $0) })
          let stream = try await fixture.stream(session, key: key)
          return (key, stream, await stream.entries { $0.retry != nil }.last?.retry != nil)
        }
        var (key, ended, isOpen) = try await open(end == "expired" ? .seconds(1) : nil)
        for seconds in [4, 16, 64] where !isOpen {
          // The machine was too slow for such a short life.
          await ended.close()
          (key, ended, isOpen) = try await open(.seconds(seconds))
        }
        try #require(isOpen)
        let lasting = try await fixture.stream(session, key: admin)
        switch end {
        case "revoked": _ = try await fixture.keys.revokeKey(key.id, at: .now())
        case "rotated": _ = try await fixture.keys.replaceKeyDigest(key.id, with: KeySecret(id: key.id).digest)
        default: break
        }
        let last = await ended.entries().last
        #expect(last?.comment == "the key is not valid any more")
        #expect(fixture.api.service.hub.readerCount == 1)
        await lasting.close()
        await ended.close()
        #expect(fixture.api.service.hub.readerCount == 0)
      }
    }
  }

  @Test func theFirstKeyEndsTheStreamsThatHaveNone() async throws {
    try await withAPI { fixture in
      try await withRevocation(fixture) {
        let session = try await fixture.newSession(nil)
        let stream = try await fixture.stream(session, key: nil)
        _ = await stream.entries { $0.retry != nil }
        _ = try await fixture.key(.admin)
        #expect(await stream.entries().last?.comment == "the key is not valid any more")
        await stream.close()
      }
    }
  }

  @Test func keysAreReadFromEitherHeader() async throws {
    try await withAPI { fixture in
      let key = try await fixture.key(.user)
      let wrong = KeySecret(id: key.id).text
      func status(_ headers: HTTPFields) async throws -> Int {
        try await fixture.send(.get, "/sessions", headers: headers).status
      }
      #expect(try await status([.authorization: "bearer  \(key.text) "]) == 200)
      #expect(try await status([.xAPIKey: key.text]) == 200)
      #expect(try await status([.xAPIKey: key.text, .authorization: "Bearer \(key.text)"]) == 200)
      #expect(try await status([.xAPIKey: key.text, .authorization: "Bearer \(wrong)"]) == 401)
      for text in ["", "x", wrong, key.text.uppercased(), key.text + "0", String(key.text.dropLast()), "cak__"] {
        #expect(try await status([.xAPIKey: text]) == 401, "\(text)")
        #expect(try await status([.authorization: "Bearer \(text)"]) == 401, "\(text)")
      }
      #expect(try await status([.authorization: "Basic \(key.text)"]) == 401)
      let refused = try await fixture.send(.get, "/nowhere")
      #expect(refused.status == 401 && refused.headers[.wwwAuthenticate] == "Bearer")
      #expect(try await fixture.send(.get, "/nowhere", key: key.text).status == 404)
      #expect(try await fixture.send(.head, "/sessions", key: key.text).status == 200)
      #expect(try await fixture.send(.put, "/sessions", key: key.text).status == 405)
    }
  }

  @Test func withoutKeysOnlyThisMachineIsAnswered() async throws {
    try await withAPI { fixture in
      for address in ["127.0.0.1", "127.8.9.1", "::1", "::ffff:127.0.0.1"] {
        #expect(try await fixture.send(.get, "/sessions", from: address).status == 200, "\(address)")
      }
      for address in ["10.0.0.1", "::ffff:10.0.0.1", "fe80::1", "", "1127.0.0.1", nil] {
        #expect(try await fixture.send(.get, "/sessions", from: address).status == 403, "\(address ?? "none")")
        #expect(try await fixture.send(.get, "/healthz", from: address).status == 200)
      }
      let session = try await fixture.newSession(nil)
      let (user, admin) = (try await fixture.key(.user), try await fixture.key(.admin))
      #expect(try await fixture.send(.get, "/sessions").status == 401)
      #expect(try await fixture.send(.get, "/sessions", key: user.text, from: "10.0.0.1").status == 200)
      // What was made before there were keys belongs to nobody but the administrators.
      let path = "/sessions/\(session.lowercaseString)"
      #expect(try await fixture.send(.get, path, key: user.text).status == 404)
      #expect(try await fixture.send(.get, path, key: admin.text).status == 200)
    }
  }

  @Test func aSecretIsNotShown() {
    let key = KeySecret()
    #expect(KeySecret(key.text) == key)
    let hidden = String(key.text.suffix(64))
    #expect(!"\(key)".contains(hidden) && !String(reflecting: key).contains(hidden))
    var text = ""
    dump(key, to: &text)
    #expect(!text.contains(hidden))
  }
}

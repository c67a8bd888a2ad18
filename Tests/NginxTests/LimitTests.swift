import Foundation
import Synchronization
import TestSupport
import Testing

/// What nginx lets a client do, of which there is one here for each address of 127.0.0.0/8.
@Suite struct NginxLimitTests {
  /// Answers at once, and a path that begins with `/wait` only when it is let go.
  private func withResponder(
    options: [String], _ body: (Nginx, FakeResponder, _ letGo: @Sendable () -> Void) async throws -> Void
  ) async throws {
    let isHeld = Mutex(true)
    try await withTemporaryDirectory { directory in
      let responder = try FakeResponder(path: directory + "/r.sock") { request, reply in
        if request.parameters["REQUEST_URI"]?.hasPrefix("/wait") == true {
          while isHeld.withLock({ $0 }) { usleep(2000) }
        }
        reply.write("Status: 200 OK\r\nContent-Type: text/plain\r\n\r\nfine")
      }
      defer {
        isHeld.withLock { $0 = false }
        responder.stop()
      }
      try await Nginx.with(in: directory, socket: responder.path, options: options) { nginx in
        try await body(nginx, responder) { isHeld.withLock { $0 = false } }
        // Keys stay in nginx's memory.
        for log in ["access.log", "error.log"] {
          #expect(!text(of: nginx.prefix + "/logs/" + log).contains("cak_"))
        }
      }
    }
  }

  private static let tight = ["--exempt", "none", "--address-rate", "1", "--key-rate", "1"]

  /// - Parameter headers: by what the key is shown, with `*` in its place.
  private func get(_ nginx: Nginx, key: String? = nil, headers: String = "Authorization: Bearer *\r\n") async throws
    -> RawResponse
  {
    let shown = key.map { headers.replacing("*", with: $0) } ?? ""
    return try await exchange(
      port: nginx.port, Array("GET / HTTP/1.1\r\nHost: localhost\r\n\(shown)Connection: close\r\n\r\n".utf8))
  }

  private static func key(_ number: Int) -> String {
    "cak_\(String(repeating: "0", count: 16))_" + String(format: "%064x", number)
  }

  private func expectRefusal(_ response: RawResponse) throws {
    #expect(response.status == 429)
    #expect(response["content-type"] == ["application/problem+json"])
    #expect(response["retry-after"].compactMap { Int($0) }.contains { $0 > 0 })
    let problem = try JSONDecoder().decode(NginxProblemTests.Problem.self, from: Data(response.body))
    #expect(problem.status == 429 && problem.code == "too_many_requests")
  }

  private func atOnce(
    _ count: Int, _ body: @escaping @Sendable (Int) async throws -> RawResponse
  ) async throws -> [RawResponse] {
    try await withThrowingTaskGroup { group in
      for number in 0..<count { group.addTask { try await body(number) } }
      return try await group.reduce(into: []) { $0.append($1) }
    }
  }

  /// Who asks without a pause, one request after the other, is slowed down and not refused.
  @Test func whoAsksWithoutAPauseIsSlowedDown() async throws {
    try await withResponder(options: ["--exempt", "none", "--key-rate", "10"]) { nginx, responder, _ in
      let start = ContinuousClock.now
      for _ in 0..<40 {
        let response = try await get(nginx, key: Self.key(1))
        #expect(response.status == 200)
      }
      // 21 at once, and the others at ten in a second.
      #expect(ContinuousClock.now - start > .seconds(1))
    }
  }

  @Test func anAddressHasARateThatNewKeysDontGetRound() async throws {
    try await withResponder(options: Self.tight) { nginx, responder, _ in
      let refusals = try await atOnce(20) { try await get(nginx, key: Self.key($0)) }.filter { $0.status != 200 }
      // Three come through at once and two after waiting, and one more each second, of which some may pass here.
      #expect(responder.requests.count >= 5)
      #expect(!refusals.isEmpty && refusals.count + responder.requests.count == 20)
      for refusal in refusals { try expectRefusal(refusal) }
    }
  }

  /// All that the responder takes for the same key counts for it.
  @Test(arguments: [
    ["Authorization: Bearer *\r\n"], ["X-Api-Key: *\r\n"], ["Authorization: Bearer *\r\nX-Api-Key: *\r\n"],
    ["X-Api-Key: *\r\nX-Api-Key: *\r\n"], ["Authorization: bEARER   *\r\n"], ["X-Api-Key:\t*\t\r\n"],
    ["X-Api-Key: *\r\n", "Authorization: bearer *\r\n", "X-Api-Key: *\r\nAuthorization: Bearer *\r\n"],
  ])
  func aKeyHasARateAcrossAddressesAndHeaders(_ ways: [String]) async throws {
    try await withResponder(options: ["--exempt", "none", "--key-rate", "1"]) { nginx, responder, _ in
      let answers = try await atOnce(20) {
        try await get(nginx, key: Self.key(1), headers: ways[$0 % ways.count])
      }
      #expect(answers.contains { $0.status == 429 })
      // Another key of the same address, and no key, are not concerned.
      #expect(try await get(nginx, key: Self.key(2)).status == 200)
      #expect(try await get(nginx).status == 200)
    }
  }

  /// Nobody fills the disk with what is refused, and whatever reaches the responder is written down.
  @Test func refusalsLeaveFewLines() async throws {
    try await withResponder(options: Self.tight) { nginx, responder, _ in
      let requests = [
        "GET / HTTP/1.1\r\nHost: example.org\r\n", "POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999\r\n",
        "GET / HTTP/1.1\r\nHost: localhost\r\n",
      ]
      var refused = 0
      for request in requests + requests {
        let answers = try await atOnce(200) { _ in
          try await exchange(port: nginx.port, Array((request + "Connection: close\r\n\r\n").utf8))
        }
        for answer in answers where answer.status != 200 {
          #expect([413, 421, 429].contains(answer.status))
          refused += 1
        }
      }
      await nginx.process.stop()
      let lines = text(of: nginx.prefix + "/logs/access.log").split(separator: "\n")
      #expect(lines.count { $0.contains(#""status":200"#) } == responder.requests.count)
      #expect(refused > 1000 && lines.count { !$0.contains(#""status":200"#) } < refused / 20, "\(lines.count)")
    }
  }

  @Test func whoIsExemptIsNotLimited() async throws {
    try await withResponder(options: ["--address-rate", "1", "--key-rate", "1", "--max-requests", "1"]) {
      nginx, responder, _ in
      for _ in 0..<20 {
        let response = try await get(nginx, key: Self.key(1))
        #expect(response.status == 200)
      }
    }
  }

  @Test func anAddressHasANumberOfRequestsAtATime() async throws {
    try await withResponder(options: ["--exempt", "none", "--max-requests", "3"]) { nginx, responder, letGo in
      var waiting: [RawConnection] = []
      for number in 0..<3 {
        let connection = try RawConnection(port: nginx.port)
        try await connection.send("GET /wait/\(number) HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        waiting.append(connection)
      }
      while responder.requests.count < 3 { try await Task.sleep(for: .milliseconds(2)) }
      try expectRefusal(try await get(nginx, key: Self.key(1)))
      letGo()
      for connection in waiting {
        let bytes = try await connection.receive { _ in false }
        #expect(try RawResponse(parsing: bytes).status == 200)
      }
      #expect(try await get(nginx).status == 200)
    }
  }

  /// A body may come a byte at a time, as long as the pauses are short. Each such request takes one of the places.
  @Test func bodiesThatDripTakePlacesOfTheirAddressOnly() async throws {
    try await withResponder(options: ["--exempt", "none", "--max-requests", "3"]) { nginx, responder, _ in
      var dripping: [RawConnection] = []
      for number in 0..<3 {
        let connection = try RawConnection(port: nginx.port)
        try await connection.send(
          "POST / HTTP/1.1\r\nHost: localhost\r\nX-Api-Key: \(Self.key(number))\r\nContent-Length: 100\r\n\r\n")
        dripping.append(connection)
      }
      var refused = try await get(nginx, key: Self.key(5))
      for _ in 0..<1000 where refused.status == 200 {
        try await Task.sleep(for: .milliseconds(5))
        refused = try await get(nginx, key: Self.key(5))
      }
      try expectRefusal(refused)
      // It is so as long as they drip.
      for _ in 0..<3 {
        for connection in dripping { try await connection.send("x") }
        try expectRefusal(try await get(nginx, key: Self.key(5)))
      }
      let seen = responder.requests.count
      dripping = []
      var answer = try await get(nginx, key: Self.key(5))
      for _ in 0..<1000 where answer.status != 200 {
        try await Task.sleep(for: .milliseconds(5))
        answer = try await get(nginx, key: Self.key(5))
      }
      #expect(answer.status == 200)
      // The responder has seen nothing of what was not whole.
      #expect(responder.requests.count == seen + 1)
    }
  }

  /// Half a header, half a body, and a byte now and then: none of them keeps its connection.
  @Test func slowClientsAreCutOffWhileOthersAreServed() async throws {
    try await withResponder(options: ["--header-timeout", "1s", "--body-timeout", "1s"]) { nginx, responder, _ in
      var slow: [RawConnection] = []
      for _ in 0..<50 {
        let connection = try RawConnection(port: nginx.port)
        try await connection.send("GET / HTTP/1.1\r\nHost: loc")
        slow.append(connection)
      }
      let body = try RawConnection(port: nginx.port)
      try await body.send("POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\nhalf")
      let dripping = try RawConnection(port: nginx.port)
      let drip = Task {
        // A header may not be stretched by sending a little of it.
        for letter in "GET / HTTP/1.1\r\nHost: localhost\r\nX-Long: " + String(repeating: "a", count: 100) {
          try await dripping.send(String(letter))
          try await Task.sleep(for: .milliseconds(50))
        }
      }
      #expect(try await get(nginx).status == 200)
      for connection in slow {
        let bytes = try await connection.receive { _ in false }
        #expect(bytes.isEmpty || String(decoding: bytes, as: UTF8.self).contains(" 408 "))
      }
      for connection in [body, dripping] {
        // It ends; the responder has seen nothing of it.
        _ = try await connection.receive { _ in false }
      }
      drip.cancel()
      _ = await drip.result
      #expect(responder.requests.count == 1)
    }
  }
}

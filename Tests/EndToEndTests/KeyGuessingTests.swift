import Foundation
import JSONSupport
import NIOHTTP1
import TestSupport
import Testing

/// Keys that are tried, through nginx.
@Suite struct KeyGuessingTests {
  /// Clients of this machine are not slowed, so nginx takes their addresses from a field here, as it does behind a
  /// proxy that its operator trusts.
  private static let proxied = """
    set_real_ip_from 127.0.0.1;
    real_ip_header X-Real-IP;

    """

  @Test func whoTriesKeysIsSlowedAndNobodyElse() async throws {
    try await Stack.run { stack in
      let (good, other) = (try await stack.createKey("user"), try await stack.createKey("user"))
      let rates = stack.nginx.prefix + "/claude-api/rates.conf"
      try (Self.proxied + text(of: rates)).write(toFile: rates, atomically: true, encoding: .utf8)
      await stack.nginx.kill()
      try await stack.nginx.restart()
      func ask(_ key: String, from address: String) async throws -> Stack.Answer {
        var headers = Stack.credentials(key)
        headers.add(name: "X-Real-IP", value: address)
        return try await stack.get("/sessions", headers: headers)
      }
      let (guesser, neighbour) = ("192.0.2.7", "192.0.2.8")
      #expect(try await ask(good, from: guesser).status == 200)
      var statuses: [Int: Int] = [:]
      var refused: Stack.Answer?
      for number in 0..<400 where refused == nil {
        let wrong = String(good.prefix(good.count - 8)) + String(format: "%08x", number)
        guard wrong != good else { continue }
        let answer = try await ask(wrong, from: guesser)
        statuses[answer.status, default: 0] += 1
        if answer.status == 429 { refused = answer }
      }
      let refusal = try #require(refused, "\(statuses)")
      #expect(statuses[401] ?? 0 >= 100 && Set(statuses.keys) == [401, 429], "\(statuses)")
      #expect(try refusal.json["code"] == "too_many_wrong_keys")
      #expect(refusal.headers.first(name: "retry-after").flatMap { Int($0) } ?? 0 >= 1)
      // A right one that was never seen there would be found out; the one that was stays good.
      for _ in 0..<5 { _ = try await ask("wrong", from: guesser) }
      #expect(try await ask(good, from: guesser).status == 200)
      #expect(try await ask(other, from: neighbour).status == 200)
      #expect(try await ask("wrong", from: neighbour).status == 401)
      // All of it is written down.
      let accesses = stack.responderLog.split(separator: "\n").filter { $0.contains("Access") }
      let counts = statuses.keys.map { status in
        accesses.count { $0.split(separator: " ").contains("status=\(status)") }
      }
      #expect(zip(counts, statuses.values).allSatisfy { $0 >= $1 }, "\(counts) of \(statuses)")
      // So is a socket whose client never says who it is.
      do {
        let socket = try await RawWebSocket.open(
          RawConnection(port: stack.nginx.port), path: "/sessions/\(UUID().uuidString)/ws")
        try await socket.send(raw: RawWebSocket.close(1000))
        _ = try await socket.rest()
      }
      let isTold = {
        stack.responderLog.split(separator: "\n").contains { $0.contains("/ws\"") && $0.contains("status=401") }
      }
      for _ in 0..<1000 where !isTold() { try await Task.sleep(for: .milliseconds(10)) }
      #expect(isTold(), "\(stack.responderLog.suffix(500))")
    }
  }
}

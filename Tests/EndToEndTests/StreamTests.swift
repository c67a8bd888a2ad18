import Foundation
import NIOHTTP1
import TestSupport
import Testing

/// Whoever follows a session sees its log, whatever happens to the system meanwhile.
@Suite struct StreamTests {
  @Test func aStreamComesThroughNginxAsItIsWritten() async throws {
    try await Stack.run { stack in
      let id = try await stack.createSession()
      let follower = Follower(stack, id)
      let reading = Task { await follower.follow() }
      // The head is there before the first event.
      try await stack.until { follower.connections == 1 }
      let answer = Task { try await stack.say("fake:count 2000", to: id) }
      // The turn is far from its end when its first words are here.
      try await stack.until { follower.seen.contains { $0.type == "agent.message" } }
      #expect(follower.seen.allSatisfy { !$0.type.hasPrefix("turn.c") })
      #expect(try await answer.value == "counted")
      try await stack.until { follower.seen.last?.type == "turn.completed" }
      #expect(follower.connections == 1)
      // A graceful end doesn't wait for streams.
      #expect(await stack.stopResponder() == .status(0))
      follower.stop()
      await reading.value
    }
  }

  @Test func aReaderThatStopsReadingHoldsNobodyUpAndGoesOnByItsCursor() async throws {
    try await Stack.run { stack in
      let id = try await stack.createSession()
      let connection = try RawConnection(port: stack.nginx.port)
      try await connection.send(
        "GET /sessions/\(id)/events HTTP/1.0\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n")
      _ = try await connection.receive(untilText: "retry: 1000\n\n")
      // Far more than what all buffers on the way hold.
      #expect(try await stack.say("fake:speak 300 100000", to: id) == "spoken")
      let text = String(decoding: try await connection.receive { _ in false }, as: UTF8.self)
      #expect(text.contains("too slow"))
      let got = text.components(separatedBy: "\n\n").dropLast().compactMap { event in
        event.hasPrefix("id: ") ? Int64(event.dropFirst(4).prefix { $0 != "\n" }) : nil
      }
      #expect(!got.isEmpty && got == Array(1...Int64(got.count)))
      let log = try await stack.log(id)
      #expect(got.count < log.count)
      let follower = Follower(stack, id, after: Int64(got.count))
      let reading = Task { await follower.follow() }
      try await stack.until { follower.seen.count >= log.count - got.count }
      #expect(follower.seen == Array(log.dropFirst(got.count)))
      follower.stop()
      _ = try await stack.request(.DELETE, "/sessions/\(id)")
      await reading.value
    }
  }
}

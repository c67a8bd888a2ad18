import Foundation
import HTTPTypes
import Hummingbird
import JSONSupport
import SessionTestSupport
import Sessions
import TestSupport
import Testing

@testable import ClaudeAPI

@Suite struct EventTests {
  @Test func theLogIsReadInPages() async throws {
    try await TestAPI.run { api in
      let id = try await api.newSession(["initial_prompt": "Hi"])
      var after: Int64 = 0
      var types: [String] = []
      while true {
        let page = try await api.send(.get, "/sessions/\(id)/events?limit=3&after=\(after)").json()
        types += (page["events"]?.arrayValue ?? []).compactMap { $0["type"]?.stringValue }
        #expect(page["last"] == 8)
        after = try #require(page["next"]?.intValue)
        if page["has_more"] == false { break }
      }
      #expect(types.count == 8)
      #expect(types.first == "user.message")
      #expect(types.last == "turn.completed")
      #expect(after == 8)
      let chosen = try await api.send(.get, "/sessions/\(id)/events?types=agent.message,user.message").json()
      #expect(chosen["events"]?.arrayValue?.map { $0["type"] } == ["user.message", "agent.message"])
      #expect(chosen["next"] == 8)
      #expect(chosen["events"]?[0]?["id"] == "evt_000000000001")
      #expect(chosen["events"]?[0]?["content"]?[0]?["text"] == "Hi")
    }
  }

  /// Whatever a client asks for: a page of large things ends after a megabyte, and says that there is more.
  @Test func pagesOfLargeThingsAreSmall() async throws {
    try await TestAPI.run { api in
      let id = try await api.newSession()
      let prompt = JSONValue.string(String(repeating: "x", count: 700 << 10))
      for _ in 0..<3 { _ = try await api.send(.post, "/sessions/\(id)/messages", body: ["prompt": prompt]) }
      for (path, name) in [("events?types=user.message&limit=1000", "events"), ("turns?limit=200", "turns")] {
        let page = try await api.send(.get, "/sessions/\(id)/\(path)").json()
        #expect((1...2).contains(page[name]?.arrayValue?.count ?? 0))
        #expect(page["has_more"] == true)
        var (count, last) = (page[name]?.arrayValue?.count ?? 0, page)
        while last["has_more"] == true {
          let next = try #require(last["next"]?.intValue)
          last = try await api.send(.get, "/sessions/\(id)/\(path)&after=\(next)").json()
          count += last[name]?.arrayValue?.count ?? 0
        }
        #expect(count == 3)
      }
    }
  }

  @Test func aStreamBeginsWithTheBacklogAndGoesOn() async throws {
    try await TestAPI.run { api in
      let id = try await api.newSession(["initial_prompt": "Hi"])
      let (response, reader) = try await api.stream(.get, "/sessions/\(id)/events")
      #expect(response.headers[.contentType] == "text/event-stream")
      #expect(response.headers[.accelBuffering] == "no")
      #expect(response.headers[.cacheControl] == "no-store")
      let backlog = await reader.entries { $0.event == "turn.completed" }
      #expect(backlog.first?.retry == "1000")
      #expect(backlog.dropFirst().map(\.id) == (1...8).map { "\($0)" })
      async let answer = api.send(.post, "/sessions/\(id)/messages", body: ["prompt": "Ho"])
      let live = await reader.entries { $0.event == "turn.completed" }
      #expect(live.filter { $0.id != nil }.map(\.id) == (9...16).map { "\($0)" })
      #expect(live.filter { $0.id == nil }.map(\.event) == ["event_start", "event_delta", "event_delta"])
      for entry in live { #expect(try entry.json()["type"]?.stringValue == entry.event) }
      #expect(try await answer.status == 200)
      await reader.close()
      #expect(api.service.hub.readerCount == 0)
    }
  }

  @Test func previewsCanBeSwitchedOff() async throws {
    try await TestAPI.run { api in
      let id = try await api.newSession()
      let (_, reader) = try await api.stream(
        .post, "/sessions/\(id)/messages?deltas=false", body: ["prompt": "Hi"])
      let entries = await reader.entries()
      #expect(entries.dropFirst().map(\.id) == (1...8).map { "\($0)" })
    }
  }

  @Test func theCursorOfTheHeaderWins() async throws {
    try await TestAPI.run { api in
      let id = try await api.newSession(["initial_prompt": "Hi"])
      let (_, reader) = try await api.stream(.get, "/sessions/\(id)/events?after=2", [.lastEventID: "6"])
      let entries = await reader.entries { $0.id == "8" }
      #expect(entries.compactMap(\.id) == ["7", "8"])
      await reader.close()
      let (_, latest) = try await api.stream(.get, "/sessions/\(id)/events?after=latest")
      _ = await latest.entries { $0.retry != nil }
      _ = try await api.send(.post, "/sessions/\(id)/messages", body: ["prompt": "Ho"])
      #expect(await latest.entries { $0.id != nil }.last?.id == "9")
      await latest.close()
    }
  }

  @Test func aMessagesStreamIsThatOfItsTurn() async throws {
    try await TestAPI.run { api in
      let id = try await api.newSession(["initial_prompt": "Hi"])
      let (response, reader) = try await api.stream(.post, "/sessions/\(id)/messages", body: ["prompt": "Ho"])
      let turn = try #require(response.headers[.location]?.split(separator: "/").last)
      let entries = await reader.entries().dropFirst()
      #expect(entries.first?.event == "user.message")
      #expect(entries.last?.event == "turn.completed")
      #expect(try entries.allSatisfy { try $0.json()["turn_id"]?.stringValue == String(turn) })
      #expect(api.service.hub.readerCount == 0)
    }
  }

  @Test func aClientThatDoesntReadIsDisconnectedAndResumesWithoutAGap() async throws {
    var bounds = EventHubConfiguration()
    bounds.maximumBufferedEvents = 20
    bounds.heartbeatInterval = .milliseconds(16)
    let says = 100
    let runner = ScriptedRunner { request, say in
      for number in 0..<says { await say(CLIMessages.assistant([CLIMessages.text("\(number)")])) }
      return TurnResult(text: "done")
    }
    try await TestAPI.run(runner: runner, hub: EventHub(configuration: bounds)) { api in
      let id = try await api.newSession()
      let valve = StreamReader.Valve()
      let slow = StreamReader(
        try await api.respond(.get, "/sessions/\(id)/events", [.accept: "text/event-stream"]).body, valve: valve)
      // A heartbeat shows that it is live.
      _ = await slow.entries { $0.comment == "keep-alive" }
      valve.close()
      // No turn waits for a reader.
      #expect(try await api.send(.post, "/sessions/\(id)/messages", body: ["prompt": "go"]).status == 200)
      valve.open()
      let entries = await slow.entries()
      #expect(entries.last?.comment?.hasPrefix("too slow") == true)
      var seen = entries.compactMap(\.id)
      #expect(seen.count < says)
      #expect(api.service.hub.readerCount == 0)

      let (_, again) = try await api.stream(.get, "/sessions/\(id)/events?after=0", [.lastEventID: seen.last ?? "0"])
      seen += await again.entries { $0.event == "turn.completed" }.compactMap(\.id)
      await again.close()
      #expect(seen == (1...says + 5).map { "\($0)" })
    }
  }

  @Test func aClientThatReadsTheBacklogSlowlyIsNotDisconnected() async throws {
    var bounds = EventHubConfiguration()
    bounds.maximumBufferedEvents = 2
    try await TestAPI.run(hub: EventHub(configuration: bounds)) { api in
      let id = try await api.newSession(["initial_prompt": "Hi"])
      let valve = StreamReader.Valve()
      valve.close()
      let slow = StreamReader(
        try await api.respond(.get, "/sessions/\(id)/events", [.accept: "text/event-stream"]).body, valve: valve)
      _ = await slow.entries { $0.retry != nil }
      _ = try await api.send(.post, "/sessions/\(id)/messages", body: ["prompt": "Ho"])
      valve.open()
      #expect(await slow.entries { $0.id == "16" }.compactMap(\.id) == (1...16).map { "\($0)" })
      await slow.close()
    }
  }

  @Test func whatAStreamBringsIsAsDescribed() async throws {
    try await withAPI { fixture in
      let contract = Contract(fixture.document)
      let id = try await fixture.newSession(nil)
      let stream = try await fixture.stream(id, key: nil)
      var entries = await stream.entries { $0.retry != nil }
      let path = "/sessions/\(id.lowercaseString)"
      // Previews are for who has read what was there before.
      for _ in 0..<100 where !entries.contains(where: { $0.event == "event_delta" }) {
        _ = try await fixture.send(.post, path + "/messages", body: ["prompt": "Hi"])
        entries += await stream.entries { $0.event == "turn.completed" }
      }
      _ = try await fixture.send(.delete, path)
      entries += await stream.entries()
      let messages = try entries.filter { $0.data != nil }.map { try $0.json() }
      let types = messages.compactMap { $0["type"]?.stringValue }
      #expect(Set(["event_delta", "agent.message"]).isSubset(of: types))
      #expect(types.last == "session.status_terminated")
      for message in messages {
        #expect(contract.objections(toMessage: message) == [])
        #expect(contract.objections(to: message, ["$ref": "#/components/schemas/StreamEvent"]) == [])
      }
    }
  }

  @Test func theStreamOfADeletedSessionEnds() async throws {
    try await TestAPI.run { api in
      let id = try await api.newSession()
      let (_, reader) = try await api.stream(.get, "/sessions/\(id)/events")
      _ = await reader.entries { $0.retry != nil }
      _ = try await api.send(.delete, "/sessions/\(id)")
      let entries = await reader.entries()
      #expect(entries.map(\.event) == ["session.status_terminated"])
      #expect(entries.first?.id == nil)
    }
  }

  @Test func theConversationIsReadAsAPersonReadsIt() async throws {
    let runner = ScriptedRunner { request, say in
      await say(CLIMessages.assistant([CLIMessages.text("I'll look.")]))
      await say(CLIMessages.assistant([CLIMessages.toolUse("Bash", id: "t", input: ["command": "ls -la\npwd"])]))
      await say(CLIMessages.toolResult("t", "a file"))
      await say(CLIMessages.assistant([CLIMessages.text("of the subagent")], parent: "t"))
      await say(CLIMessages.assistant([CLIMessages.text("One file.")]))
      return TurnResult(text: "One file.")
    }
    try await TestAPI.run(runner: runner) { api in
      let id = try await api.newSession(["initial_prompt": "What is there?"])
      let json = try await api.send(.get, "/sessions/\(id)/messages").json()
      let messages = try #require(json["messages"]?.arrayValue)
      #expect(messages.map { $0["role"] } == ["user", "assistant", "assistant"])
      #expect(messages.map { $0["text"] } == ["What is there?", "I'll look.", "One file."])
      #expect(messages[1]["tool_calls"] == [["tool_use_id": "t", "name": "Bash", "summary": "ls -la"]])
      #expect(messages[0]["tool_calls"] == [])
      #expect(json["has_more"] == false)
      let page = try await api.send(.get, "/sessions/\(id)/messages?limit=1").json()
      #expect(page["messages"]?.arrayValue?.count == 1)
      #expect(page["has_more"] == true)
      let next = try #require(page["next"]?.intValue)
      let rest = try await api.send(.get, "/sessions/\(id)/messages?after=\(next)").json()
      #expect(rest["messages"]?.arrayValue == Array(messages.dropFirst()))
      // Wherever a page ends, no tool call is parted from what was said before it.
      for limit in 2...5 {
        var (after, all, hasMore) = (Int64(0), [JSONValue](), true)
        while hasMore {
          let page = try await api.send(.get, "/sessions/\(id)/messages?limit=\(limit)&after=\(after)").json()
          all += page["messages"]?.arrayValue ?? []
          after = try #require(page["next"]?.intValue)
          hasMore = page["has_more"] == true
        }
        #expect(all == messages, "\(limit)")
      }
    }
  }

  @Test func sessionsAreListedInPagesForWhoAsksForIt() async throws {
    try await TestAPI.run { api in
      for number in 1...5 { _ = try await api.newSession(["session_name": .string("Number \(number)")]) }
      let plain = try await api.send(.get, "/sessions").json()
      #expect(plain.objectValue?.keys.sorted() == ["count", "sessions"])
      #expect(plain["count"] == 5)
      var names: [JSONValue?] = []
      var path = "/sessions?limit=2"
      while true {
        let page = try await api.send(.get, path).json()
        names += page["sessions"]?.arrayValue?.map { $0["name"] } ?? []
        guard let cursor = page["next_cursor"]?.stringValue else { break }
        path = "/sessions?limit=2&cursor=\(cursor)"
      }
      #expect(names == (1...5).map { "Number \($0)" })
      #expect(try await api.send(.get, "/sessions?name=number%203").json()["count"] == 1)
      #expect(try await api.send(.get, "/sessions?status=running").json()["count"] == 0)
      #expect(try await api.send(.get, "/sessions?status=idle").json()["count"] == 5)
    }
  }

  @Test(arguments: [
    ("/sessions?limit=0", "limit"), ("/sessions?limit=x", "limit"), ("/sessions?size=2", "size"),
    ("/sessions?status=busy", "idle, running"), ("/sessions?name=%ff", "name"), ("/sessions?name=", "name"),
    ("/sessions?limit=1&limit=2", "limit"), ("/sessions?cursor=-1", "cursor"),
    ("{id}/events?after=-1", "after"), ("{id}/events?after=99", "99"), ("{id}/events?types=", "types"),
    ("{id}/events?types=a,,b", "types"), ("{id}/events?deltas=maybe", "deltas"),
    ("{id}/events?limit=5&stream=true", "limit"), ("{id}/turns?after=x", "after"), ("{id}/turns?limit=201", "limit"),
    ("{id}/turns/{turn}?wait=forever", "wait"), ("{id}/turns/{turn}?wait=301s", "wait"),
    ("{id}/turns/{turn}?wait=999999999999m", "wait"), ("{id}/messages?before=2", "before"),
  ])
  func badParametersAreNamed(path: String, name: String) async throws {
    try await TestAPI.run { api in
      let id = try await api.newSession(["initial_prompt": "Hi"])
      let turn = try await api.send(.get, "/sessions/\(id)/turns").json()["turns"]?[0]?["id"]?.stringValue ?? ""
      let answer = try await api.send(
        .get, path.replacing("{id}", with: "/sessions/\(id)").replacing("{turn}", with: turn))
      #expect(answer.status == (name == "99" ? 409 : 400))
      #expect(answer.headers[.contentType] == "application/problem+json")
      #expect(try answer.json()["detail"]?.stringValue?.contains(name) == true)
    }
  }

  @Test func badCursorsOfAHeader() async throws {
    try await TestAPI.run { api in
      let id = try await api.newSession()
      for cursor in ["x", "-1", "1", "99999999999999999999"] {
        let answer = try await api.send(
          .get, "/sessions/\(id)/events", [.lastEventID: cursor, .accept: "text/event-stream"])
        #expect(answer.status == (cursor == "1" ? 409 : 400))
      }
      let none = try await api.send(.get, "/sessions/\(UUID())/events", [.accept: "text/event-stream"])
      #expect(none.status == 404)
    }
  }

  @Test func wrongMethodsAndTheIndexKnowTheRoutes() async throws {
    try await TestAPI.run { api in
      let id = try await api.newSession()
      let answer = try await api.send(.put, "/sessions/\(id)/messages")
      #expect(answer.status == 405)
      #expect(answer.headers[.allow] == "POST, GET, HEAD")
      let index = try await api.send(.get, "/").json()
      #expect(index["endpoints"]?["GET /sessions/{session_id}/events"] != nil)
      #expect(index["endpoints"]?["POST /sessions"] == "Create a new session")
    }
  }
}

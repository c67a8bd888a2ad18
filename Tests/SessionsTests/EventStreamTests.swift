import Foundation
import JSONSupport
import NIOCore
import SQLiteStore
import SessionTestSupport
import Sessions
import Synchronization
import TestSupport
import Testing

@Suite struct EventStreamTests {
  /// A store with a session, a hub, and what writes to both as the service does.
  private struct Fixture: Sendable {
    let store: any SessionStore
    let hub: EventHub
    let session: UUID

    init(_ store: any SessionStore = InMemorySessionStore(), hub: EventHub = EventHub()) async throws {
      self.store = store
      self.hub = hub
      session = UUID()
      _ = try await store.createSession(Session(id: session, name: "s", createdAt: .now(), workspace: "/w"))
    }

    @discardableResult
    func append(_ type: String = "agent.message", count: Int = 1, turn: UUID? = nil) async throws -> [Event] {
      let events = try await write(type, count: count, turn: turn)
      hub.publish(events)
      return events
    }

    func write(_ type: String = "agent.message", count: Int = 1, turn: UUID? = nil) async throws -> [Event] {
      try await store.appendEvents(
        (0..<count).map { _ in NewEvent(type: type, turnID: turn, processedAt: .now()) }, to: session)
    }

    func stream(
      after: Int64 = 0, types: Set<String>? = nil, turn: UUID? = nil, previews: Bool = true
    ) -> EventStream.Iterator {
      EventStream(
        session: session, selection: .init(after: after, types: types, turn: turn, previews: previews),
        log: store, hub: hub
      ).makeIterator()
    }
  }

  private func numbers(_ frames: [EventFrame]?) -> [Int64] {
    (frames ?? []).compactMap { if case .event(let number) = $0.kind { number } else { nil } }
  }

  @Test func theBacklogComesFirstAndThenWhatIsNew() async throws {
    let fixture = try await Fixture()
    try await fixture.append(count: 450)
    var stream = fixture.stream(after: 3)
    defer { stream.close() }
    var seen: [Int64] = []
    while seen.count < 447 { seen += numbers(try await stream.next()) }
    #expect(seen == Array(4...450))
    try await fixture.append()
    #expect(numbers(try await stream.next()) == [451])
  }

  /// Of a large backlog only a little is read at a time, and nothing is left out.
  @Test func aBacklogOfLargeEventsIsReadInSmallPages() async throws {
    let fixture = try await Fixture()
    let payload = #"{"text":"\#(String(repeating: "x", count: 600 << 10))"}"#
    for type in ["agent.message", "other", "agent.message", "agent.message", "other", "agent.message"] {
      let event = NewEvent(type: type, processedAt: .now(), payload: payload)
      _ = try await fixture.store.appendEvents([event], to: fixture.session)
    }
    for (types, expected) in [(nil, [1, 2, 3, 4, 5, 6]), (["agent.message"], [1, 3, 4, 6])]
      as [(Set<String>?, [Int64])]
    {
      var stream = fixture.stream(types: types)
      defer { stream.close() }
      var seen: [Int64] = []
      while seen.count < expected.count {
        let part = numbers(try await stream.next())
        #expect(part.count <= 2)
        seen += part
      }
      #expect(seen == expected)
    }
  }

  @Test func whatIsPublishedWhileTheBacklogIsReadComesOnce() async throws {
    let fixture = try await Fixture()
    try await fixture.append(count: 2)
    var stream = fixture.stream()
    defer { stream.close() }
    // In the store, but not told of yet.
    let late = try await fixture.write()
    #expect(numbers(try await stream.next()) == [1, 2, 3])
    fixture.hub.publish(late)
    try await fixture.append()
    #expect(numbers(try await stream.next()) == [4])
  }

  /// Writes and tells of an event right after the log was read.
  private final class Intruder: EventLogReader {
    private let fixture: Fixture
    private let isFirst = Mutex(true)

    init(_ fixture: Fixture) {
      self.fixture = fixture
    }

    func events(
      of sessionID: UUID, after: Int64, limit: Int, types: Set<String>?
    ) async throws(SessionStoreError) -> StorePage<Event> {
      let events = try await fixture.store.events(of: sessionID, after: after, limit: limit, types: types)
      let mayIntrude = isFirst.withLock { isFirst in
        defer { isFirst = false }
        return isFirst
      }
      if mayIntrude {
        let event = NewEvent(type: "agent.message", processedAt: .now())
        fixture.hub.publish(try await fixture.store.appendEvents([event], to: sessionID))
      }
      return events
    }

    func lastSequence(of sessionID: UUID) async throws(SessionStoreError) -> Int64 {
      try await fixture.store.lastSequence(of: sessionID)
    }
  }

  @Test func theLastEventBeforeAStreamGoesLiveIsNotForgotten() async throws {
    let fixture = try await Fixture()
    try await fixture.append()
    let log = Intruder(fixture)
    var stream = EventStream(session: fixture.session, selection: .init(), log: log, hub: fixture.hub).makeIterator()
    defer { stream.close() }
    #expect(numbers(try await stream.next()) == [1])
    #expect(numbers(try await stream.next()) == [2])
  }

  @Test func eventsThatAreToldOfInTheWrongOrderOrNotAtAllComeInOrder() async throws {
    let fixture = try await Fixture()
    try await fixture.append()
    var stream = fixture.stream()
    defer { stream.close() }
    #expect(numbers(try await stream.next()) == [1])
    let second = try await fixture.write()
    _ = try await fixture.write()
    let fourth = try await fixture.write()
    fixture.hub.publish(fourth)
    fixture.hub.publish(second)
    #expect(numbers(try await stream.next()) == [2, 3, 4])
    try await fixture.append()
    #expect(numbers(try await stream.next()) == [5])
  }

  @Test func aChoiceOfTypesDoesntHoldUpTheNumbers() async throws {
    let fixture = try await Fixture()
    try await fixture.append("a", count: 3)
    try await fixture.append("b")
    try await fixture.append("a")
    var stream = fixture.stream(types: ["b"])
    defer { stream.close() }
    #expect(numbers(try await stream.next()) == [4])
    try await fixture.append("a")
    try await fixture.append("b")
    #expect(numbers(try await stream.next()) == [7])
  }

  @Test func aTurnsStreamEndsWithTheTurn() async throws {
    let fixture = try await Fixture()
    let turn = UUID()
    try await fixture.append("user.message", turn: UUID())
    try await fixture.append("user.message", turn: turn)
    var stream = fixture.stream(turn: turn)
    defer { stream.close() }
    #expect(numbers(try await stream.next()) == [2])
    try await fixture.append("agent.message", turn: UUID())
    try await fixture.append("turn.completed", turn: turn)
    try await fixture.append("agent.message", turn: turn)
    #expect(numbers(try await stream.next()) == [4])
    #expect(try await stream.next() == nil)
  }

  @Test func previewsHaveNoNumberAndComeOnlyToWhoWantsThem() async throws {
    let fixture = try await Fixture()
    var with = fixture.stream()
    var without = fixture.stream(previews: false)
    defer {
      with.close()
      without.close()
    }
    try await fixture.append()
    _ = try await (with.next(), without.next())
    #expect(fixture.hub.wantsPreviews(of: fixture.session))
    fixture.hub.publish(EventPreview(type: "event_delta", turnID: nil, payload: "{\"a\":1}"), of: fixture.session)
    try await fixture.append()
    let frame = try #require(try await with.next()?.first)
    #expect(frame.kind == .preview)
    let text = String(buffer: frame.serverSentEvent)
    #expect(text.hasPrefix("event: event_delta\ndata: {"))
    #expect(!text.contains("id: "))
    #expect(numbers(try await without.next()) == [2])
    with.close()
    #expect(!fixture.hub.wantsPreviews(of: fixture.session))
  }

  @Test func previewsThatComeFastAreHandedOnTogetherAndInOrder() async throws {
    var configuration = EventHubConfiguration()
    configuration.previewInterval = .seconds(3600)
    let fixture = try await Fixture(hub: EventHub(configuration: configuration))
    var stream = fixture.stream()
    defer { stream.close() }
    try await fixture.append()
    _ = try await stream.next()
    func publish(_ numbers: Range<Int>) {
      for number in numbers {
        fixture.hub.publish(
          EventPreview(type: "event_delta", turnID: nil, payload: "{\"number\":\(number)}"), of: fixture.session)
      }
    }
    func previews(_ frames: [EventFrame]?) -> [String] {
      (frames ?? []).filter { $0.kind == .preview }.compactMap {
        String(buffer: $0.json).firstMatch(of: /"number":(\d+)/).map { String($0.1) }
      }
    }
    publish(0..<1)
    #expect(previews(try await stream.next()) == ["0"])
    publish(1..<11)
    try await fixture.append()
    let frames = try await stream.next()
    #expect(previews(frames) == (1..<11).map(String.init))
    #expect(frames?.last?.kind == .event(sequence: 2))
    // So many don't wait for their time.
    publish(0..<64)
    #expect(previews(try await stream.next()) == (0..<64).map(String.init))
  }

  @Test func previewsThatComeFastAreNotKeptForLong() async throws {
    let fixture = try await Fixture()
    var stream = fixture.stream()
    defer { stream.close() }
    try await fixture.append()
    _ = try await stream.next()
    for _ in 0..<10 {
      fixture.hub.publish(EventPreview(type: "event_delta", turnID: nil, payload: "{}"), of: fixture.session)
    }
    var count = 0
    while count < 10 { count += try #require(try await stream.next()).count { $0.kind == .preview } }
    #expect(count == 10)
  }

  @Test func aReaderThatIsTooSlowIsDisconnectedAndMissesNothing() async throws {
    var bounds = EventHubConfiguration()
    bounds.maximumBufferedEvents = 10
    let fixture = try await Fixture(hub: EventHub(configuration: bounds))
    var slow = fixture.stream()
    try await fixture.append()
    var seen = numbers(try await slow.next())
    for _ in 0..<11 { try await fixture.append() }
    while let frames = try await slow.next() { seen += numbers(frames) }
    #expect(slow.ending == .tooSlow)
    slow.close()
    #expect(fixture.hub.readerCount == 0)
    var again = fixture.stream(after: seen.last ?? 0)
    defer { again.close() }
    while seen.count < 12 { seen += numbers(try await again.next()) }
    #expect(seen == Array(1...12))
  }

  @Test func bytesAreBoundedToo() async throws {
    var bounds = EventHubConfiguration()
    bounds.maximumBufferedBytes = 1000
    let fixture = try await Fixture(hub: EventHub(configuration: bounds))
    var stream = fixture.stream()
    defer { stream.close() }
    try await fixture.append()
    _ = try await stream.next()
    let text = String(repeating: "x", count: 5000)
    func large() async throws {
      fixture.hub.publish(
        try await fixture.store.appendEvents(
          [NewEvent(type: "agent.message", processedAt: .now(), payload: "{\"text\":\"\(text)\"}")],
          to: fixture.session))
    }
    try await large()
    #expect(numbers(try await stream.next()) == [2])
    try await large()
    try await large()
    #expect(try await stream.next() == nil)
    #expect(stream.ending == .tooSlow)
  }

  @Test func previewsDontMakeAReaderTooSlow() async throws {
    var bounds = EventHubConfiguration()
    bounds.maximumBufferedEvents = 10
    let fixture = try await Fixture(hub: EventHub(configuration: bounds))
    var stream = fixture.stream()
    defer { stream.close() }
    try await fixture.append()
    _ = try await stream.next()
    for _ in 0..<100 {
      fixture.hub.publish(EventPreview(type: "event_delta", turnID: nil, payload: "{}"), of: fixture.session)
    }
    try await fixture.append()
    let frames = try #require(try await stream.next())
    #expect(frames.count == 6)
    #expect(numbers(frames) == [2])
  }

  @Test func aStreamAtRestShowsThatItIsAlive() async throws {
    var bounds = EventHubConfiguration()
    bounds.heartbeatInterval = .milliseconds(16)
    let fixture = try await Fixture(hub: EventHub(configuration: bounds))
    var stream = fixture.stream()
    defer { stream.close() }
    let frame = try #require(try await stream.next()?.first)
    #expect(frame.kind == .heartbeat)
    #expect(String(buffer: frame.serverSentEvent).hasPrefix(":"))
  }

  @Test func deletionAndShutdownEndStreams() async throws {
    let fixture = try await Fixture()
    try await fixture.append()
    var live = fixture.stream()
    #expect(numbers(try await live.next()) == [1])
    fixture.hub.end(fixture.session)
    #expect(try await live.next()?.map(\.kind) == [.terminated])
    #expect(try await live.next() == nil)
    live.close()

    var other = fixture.stream()
    #expect(numbers(try await other.next()) == [1])
    fixture.hub.endAll()
    #expect(try await other.next() == nil)
    other.close()
    var late = fixture.stream()
    #expect(try await late.next() == nil)
    late.close()
    #expect(fixture.hub.readerCount == 0)
  }

  @Test func cancellationEndsAStreamThatWaits() async throws {
    let fixture = try await Fixture()
    let isReading = Gate()
    let task = Task {
      var stream = fixture.stream()
      defer { stream.close() }
      isReading.open()
      return try await stream.next() == nil
    }
    try await isReading.wait()
    task.cancel()
    #expect(try await task.value)
    #expect(fixture.hub.readerCount == 0)
  }

  @Test(arguments: [true, false])
  func readersWhoComeAndGoSeeEveryEventOnce(onDisk: Bool) async throws {
    let seed = UInt64.random(in: 0...UInt64.max)
    try await withTemporaryDirectory { path in
      let store: any SessionStore =
        onDisk
        ? try await SQLiteSessionStore.open(SQLiteStoreConfiguration(path: path + "/db")) : InMemorySessionStore()
      let fixture = try await Fixture(store)
      let count = 3000
      try await withThrowingTaskGroup(of: Void.self) { group in
        // Two writers, so that what is told of comes in any order.
        for writer in 0..<2 {
          group.addTask {
            var random = SeededGenerator(seed: seed &+ UInt64(writer))
            var left = count / 2
            while left > 0 {
              let size = min(left, Int.random(in: 1...5, using: &random))
              try await fixture.append(count: size)
              left -= size
              if Int.random(in: 0..<4, using: &random) == 0 { await Task.yield() }
            }
          }
        }
        for reader in 0..<8 {
          group.addTask {
            var random = SeededGenerator(seed: seed &+ 100 &+ UInt64(reader))
            var seen: [Int64] = []
            while seen.count < count {
              var stream = fixture.stream(after: seen.last ?? 0)
              for _ in 0..<Int.random(in: 1...20, using: &random) where seen.count < count {
                seen += numbers(try await stream.next())
              }
              stream.close()
            }
            #expect(seen == Array(1...Int64(count)), "seed \(seed)")
          }
        }
        try await group.waitForAll()
      }
      #expect(fixture.hub.readerCount == 0)
      await store.close()
    }
  }

  @Test func framesAreEntriesOfAnEventStream() throws {
    let session = try #require(UUID(uuidString: "0F0E0D0C-0B0A-0908-0706-050403020100"))
    let event = Event(
      sessionID: session, sequence: 42, type: "agent.message", processedAt: Timestamp(microseconds: 0),
      payload: "{\n  \"content\": \"a\\nb\",\r\n  \"n\": 1}")
    let frame = EventFrame(event)
    #expect(
      String(buffer: frame.serverSentEvent) == """
        id: 42
        event: agent.message
        data: \(String(buffer: frame.json))


        """)
    #expect(!frame.json.readableBytesView.contains(0x0a) && !frame.json.readableBytesView.contains(0x0d))
    #expect(
      try JSONValue(parsing: frame.json.readableBytesView) == [
        "id": "evt_000000000042", "sequence": 42, "type": "agent.message",
        "session_id": "0f0e0d0c-0b0a-0908-0706-050403020100", "turn_id": nil,
        "processed_at": "1970-01-01T00:00:00.000000Z", "content": "a\nb", "n": 1,
      ])
  }
}

/// Random numbers that are the same for the same seed.
struct SeededGenerator: RandomNumberGenerator {
  private var state: UInt64

  init(seed: UInt64) {
    state = seed
  }

  mutating func next() -> UInt64 {
    state &+= 0x9e37_79b9_7f4a_7c15
    var value = state
    value = (value ^ (value >> 30)) &* 0xbf58_476d_1ce4_e5b9
    value = (value ^ (value >> 27)) &* 0x94d0_49bb_1331_11eb
    return value ^ (value >> 31)
  }
}

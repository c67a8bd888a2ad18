import Foundation
import Logging
import SQLiteStore
import SessionTestSupport
import TestSupport
import Testing
import Workspaces

@testable import Sessions

/// What keys may take of the disk: files and logs.
@Suite struct RoomTests {
  private static let megabyte: Int64 = 1_000_000

  private static func policy(_ bytes: Int64) -> KeyLimitPolicy {
    KeyLimitPolicy(defaults: KeyLimits([.diskBytes: .maximum(bytes)]))
  }

  private static func write(_ megabytes: Int, _ path: String) throws {
    try Data(repeating: 1, count: megabytes * Int(megabyte)).write(to: URL(filePath: path))
  }

  /// Brings a file into a session, as a client does.
  private func bring(_ megabytes: Int, _ name: String, to session: Session, _ service: SessionService) async throws {
    try await service.changeFiles(of: session.id) { change in
      try await change.take(Int64(megabytes) * Self.megabyte)
      try Self.write(megabytes, session.workspace + "/" + name)
    }
  }

  private func newSession(_ owner: String, _ service: SessionService) async throws -> Session {
    try await service.create(NewSession(owner: owner)).session
  }

  private func expectNoRoom(
    _ sourceLocation: SourceLocation = #_sourceLocation, _ body: () async throws -> Void
  ) async {
    do {
      try await body()
      Issue.record("nothing was refused", sourceLocation: sourceLocation)
    } catch SessionServiceError.limited(let excess) {
      #expect(excess.limit == .diskBytes && excess.used >= excess.maximum, sourceLocation: sourceLocation)
    } catch {
      Issue.record("\(error)", sourceLocation: sourceLocation)
    }
  }

  private func poll(_ condition: () async throws -> Bool) async throws {
    while try await !condition() { try await Task.sleep(for: .milliseconds(2)) }
  }

  @Test(.timeLimit(.minutes(5))) func whatASessionTakesIsMissingInTheOthersOfItsKey() async throws {
    try await withService(limits: Self.policy(5_999_000)) { service in
      let (one, two) = (try await newSession("a", service), try await newSession("a", service))
      let other = try await newSession("b", service)
      try await bring(3, "x", to: one, service)
      await expectNoRoom { try await bring(3, "y", to: two, service) }
      #expect(!FileManager.default.fileExists(atPath: two.workspace + "/y"))
      try await bring(3, "y", to: other, service)
      #expect(try await service.send("hello", to: two.id, owner: "a").state == .running)
      // In the place of another file it takes nothing more, which a measure finds out before anybody is refused.
      for _ in 0..<5 { try await bring(1, "y", to: two, service) }
      await expectNoRoom { try await bring(2, "z", to: two, service) }
      await expectNoRoom { _ = try await service.fork(one.id, owner: "a") }
      // At its bound the key gets nothing new.
      try await bring(0, "small", to: two, service)
      try Self.write(2, two.workspace + "/agent")
      await service.room.measure(two.id)
      await expectNoRoom { _ = try await newSession("a", service) }
      await expectNoRoom { _ = try await service.send("hello", to: one.id, owner: "a") }
      await expectNoRoom { try await bring(0, "empty", to: one, service) }
      // What is deleted is free at once.
      try await service.changeFiles(of: two.id) { _ in #expect(unlink(two.workspace + "/agent") == 0) }
      _ = try await newSession("a", service)
      try await service.delete(two.id)
      try await bring(1, "z", to: one, service)
    }
  }

  /// A look that began before a client's change, and ends after it, doesn't take the change's room away.
  @Test(.timeLimit(.minutes(5))) func aLookThatIsOvertakenMakesNothingLess() async throws {
    try await withService(limits: Self.policy(5 * Self.megabyte)) { service in
      let (one, two) = (try await newSession("a", service), try await newSession("a", service))
      let mark = await service.room.mark()
      try await bring(3, "x", to: one, service)
      await service.room.measured(one.id, 0, since: mark)
      await expectNoRoom { try await bring(3, "y", to: two, service) }
      #expect(try await service.standing(of: "a").usage.diskBytes >= 3 * Self.megabyte)
    }
  }

  @Test(.timeLimit(.minutes(5))) func whatFailedTakesNoRoom() async throws {
    struct Failure: Error {}
    try await withService(limits: Self.policy(5 * Self.megabyte)) { service in
      let session = try await newSession("a", service)
      for _ in 0..<3 {
        await #expect(throws: Failure.self) {
          try await service.changeFiles(of: session.id) { change in
            try await change.take(4 * Self.megabyte)
            throw Failure()
          }
        }
      }
      await #expect(throws: Failure.self) {
        _ = try await service.create(NewSession(owner: "a")) { _, change in
          try await change.take(4 * Self.megabyte)
          throw Failure()
        }
      }
      // Of many at once no more get in than have room.
      let brought = await withTaskGroup(of: Bool.self) { group in
        for number in 0..<8 {
          group.addTask { (try? await self.bring(1, "\(number)", to: session, service)) != nil }
        }
        return await group.reduce(0) { $0 + ($1 ? 1 : 0) }
      }
      #expect((1...5).contains(brought))
      #expect(try FileManager.default.contentsOfDirectory(atPath: session.workspace).count == brought)
    }
  }

  /// Turns that write a file and go on until they are interrupted.
  private static let filling = ScriptedRunner { request, _ in
    guard request.turn.prompt == "fill" else { return TurnResult(text: "done") }
    try write(4, request.session.workspace + "/filled")
    try await Gate().wait()
    return TurnResult(text: "not reached")
  }

  @Test(.timeLimit(.minutes(5))) func aTurnThatFillsTheRoomOfItsKeyIsStopped() async throws {
    try await withService(
      runner: Self.filling, limits: Self.policy(5 * Self.megabyte),
      configure: { $0.watchInterval = .milliseconds(10) }
    ) { service in
      let (one, two) = (try await newSession("a", service), try await newSession("a", service))
      let other = try await newSession("b", service)
      try await bring(3, "x", to: one, service)
      let ended = try await service.outcome(of: try await service.send("fill", to: two.id, owner: "a"))
      #expect(ended.state == .failed && ended.failure?.code == "quota_exceeded")
      #expect(ended.failure?.detail.contains("5000000 bytes") == true)
      await expectNoRoom { _ = try await service.send("talk", to: one.id, owner: "a") }
      let undisturbed = try await service.outcome(of: try await service.send("talk", to: other.id, owner: "b"))
      #expect(undisturbed.state == .completed)
      try await service.changeFiles(of: two.id) { _ in #expect(unlink(two.workspace + "/filled") == 0) }
      let next = try await service.outcome(of: try await service.send("talk", to: two.id, owner: "a"))
      #expect(next.state == .completed)
    }
  }

  @Test(.timeLimit(.minutes(5))) func aTurnsEndKnowsWhatItLeft() async throws {
    let runner = ScriptedRunner { request, _ in
      try Self.write(2, request.session.workspace + "/work")
      try Self.write(1, request.configurationDirectory + "/home")
      return TurnResult(text: "done")
    }
    try await withService(runner: runner, configure: { $0.watchInterval = .seconds(3600) }) { service in
      let session = try await newSession("a", service)
      _ = try await service.outcome(of: try await service.send("x", to: session.id, owner: "a"))
      let bytes = try await service.standing(of: "a").usage.diskBytes
      #expect((3 * Self.megabyte..<4 * Self.megabyte).contains(bytes), "\(bytes)")
    }
  }

  /// The figures of an earlier process may be wrong, after a crash, or not be there, after an upgrade.
  @Test(.timeLimit(.minutes(5))) func afterARestartNobodyIsHeldToWrongFigures() async throws {
    try await withTemporaryDirectory { directory in
      let store = InMemorySessionStore()
      func start() async throws -> SessionService {
        let service = SessionService(
          store: store, workspaces: try Workspaces(root: directory + "/w", configurationRoot: directory + "/c"),
          runner: ScriptedRunner(), limits: Self.policy(5 * Self.megabyte),
          logger: Logger(label: "test") { _ in SwiftLogNoOpLogHandler() })
        try await service.start()
        return service
      }
      var service = try await start()
      let (one, two) = (try await newSession("a", service), try await newSession("a", service))
      try await bring(3, "x", to: one, service)
      await service.shutdown()
      try await store.noteFiles(.measured(100 * Self.megabyte), of: two.id)
      service = try await start()
      try await bring(1, "y", to: two, service)
      await expectNoRoom { try await bring(2, "z", to: two, service) }
      await service.shutdown()
      // Too low, which nobody's request would find out.
      try await store.noteFiles(.measured(0), of: one.id)
      service = try await start()
      try await poll { try await service.standing(of: "a").usage.diskBytes > 4 * Self.megabyte }
      await service.shutdown()
    }
  }

  // MARK: The log

  private func log(of session: Session, _ service: SessionService) async throws -> [Event] {
    var events: [Event] = []
    while true {
      let page = try await service.events(of: session.id, after: events.last?.sequence ?? 0, limit: 1000)
      events += page.items
      if !page.hasMore { return events }
    }
  }

  @Test(.timeLimit(.minutes(5)), arguments: [true, false])
  func aTurnThatSaysTooMuchIsStopped(_ isEndless: Bool) async throws {
    let runner = ScriptedRunner { request, say in
      guard request.turn.prompt == "talk" else { return try await ScriptedRunner.echo(request, say) }
      var count = 0
      while isEndless || count < 30 {
        try Task.checkCancellation()
        count += 1
        await say(CLIMessages.assistant([CLIMessages.text(String(repeating: "x", count: 10_000))], id: "m\(count)"))
      }
      await say(CLIMessages.assistant([CLIMessages.text("last")], id: "last"))
      return TurnResult(text: "last")
    }
    try await withService(
      runner: runner,
      configure: {
        $0.maximumTurnLog = 200_000
        $0.keyInterval = .milliseconds(5)
      }
    ) { service in
      let session = try await newSession("a", service)
      let ended = try await service.outcome(of: try await service.send("talk", to: session.id, owner: "a"))
      #expect(ended.state == .failed && ended.failure?.code == "quota_exceeded")
      #expect(ended.failure?.detail.contains("200000 bytes") == true)
      let events = try await log(of: session, service)
      let said = events.filter { $0.type == "agent.message" }
      #expect((15...20).contains(said.count) && !said.contains { $0.payload.contains("last") })
      #expect(events.map(\.sequence) == Array(1...Int64(events.count)))
      #expect(events.suffix(3).map(\.type) == ["session.error", "session.status_idle", "turn.failed"])
      // It counts for the room of the key.
      let bytes = try await service.standing(of: "a").usage.diskBytes
      #expect((150_000..<250_000).contains(bytes), "\(bytes)")
      let next = try await service.outcome(of: try await service.send("hello", to: session.id, owner: "a"))
      #expect(next.state == .completed)
    }
  }
}

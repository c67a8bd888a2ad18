import Foundation
import GRDB
import SQLiteStore
import SessionStoreContract
import Sessions
import Testing

@Suite struct SQLiteStoreTests {
  @Test(arguments: ContractCase.all)
  func contract(_ contract: ContractCase) async throws {
    try await withStore { store, _ in try await contract.run(store) }
  }

  @Test func everythingIsThereAfterReopening() async throws {
    try await withTemporaryDirectory { directory in
      let path = directory + "/store.sqlite"
      var store = try await reopen(path)
      let session = Session(
        id: UUID(), name: "a\u{0}b", createdAt: .now(), workspace: "/w", owner: "k", metadata: #"{"a":1}"#,
        network: .modelOnly)
      let claim = IdempotencyClaim(key: IdempotencyKey(scope: "s", key: "k"), digest: [1, 2])
      let new = NewTurn(sessionID: session.id, prompt: "remember 7", createdAt: .now())
      let event = NewEvent(type: "user.message", turnID: new.id, processedAt: .now(), payload: #"{"x":"é"}"#)
      let admission = try await store.createSession(
        session, firstTurn: new, events: [event], idempotency: claim)
      guard case .created(_, let turn?, let events) = admission else {
        Issue.record("\(admission)")
        return
      }
      await store.close()

      store = try await reopen(path)
      #expect(try await store.session(session.id) == session)
      #expect(try await store.turn(turn.id) == turn)
      #expect(try await store.events(of: session.id, after: 0, limit: 10, types: nil).items == events)
      let again = try await store.createSession(session, firstTurn: new, events: [event], idempotency: claim)
      #expect(again == .replayed(session, firstTurn: turn))
      let running = try await store.startTurn(turn.id, at: .now()).turn
      await store.close()

      store = try await reopen(path)
      let recovery = try await store.recoverInterrupted(at: .now()) { _ in [] }
      #expect(recovery.interrupted.map(\.sessionID) == [session.id])
      #expect(recovery.interrupted[0].turns[0].startedAt == running.startedAt)
      await store.close()
    }
  }

  /// Opens a store as the version before the books left it.
  @Test func theBooksBeginWithWhatTurnsOfAnEarlierVersionUsed() async throws {
    try await withTemporaryDirectory { directory in
      let path = directory + "/store.sqlite"
      var store = try await reopen(path)
      let key = APIKey(
        id: "k", name: "n", role: .user, digest: [UInt8](repeating: 1, count: 32), createdAt: .now(),
        limits: KeyLimits([.sessions: .maximum(3), .streams: .unlimited]))
      try await store.addKey(key)
      let session = Session(id: UUID(), name: "s", createdAt: .now(), workspace: "/w", owner: "k")
      _ = try await store.createSession(session)
      for _ in 0..<2 {
        let new = NewTurn(sessionID: session.id, prompt: "x", owner: "k", createdAt: .now())
        _ = try await store.enqueueTurn(new)
        _ = try await store.finishTurn(
          new.id,
          TurnOutcome(state: .completed, finishedAt: .now(), usage: TokenUsage(inputTokens: 5), costUSD: 0.125))
      }
      let usage = try await store.usage(of: "k", at: .now())
      #expect(usage.costThisMonth == KeyLimit.dollar / 4)
      await store.close()

      // They are there after a restart.
      store = try await reopen(path)
      #expect(try await store.usage(of: "k", at: .now()).costThisMonth == usage.costThisMonth)
      #expect(try await store.lookUpKey("k").key == key)
      await store.close()

      let queue = try DatabaseQueue(path: path)
      try await queue.write { database in
        try database.execute(
          sql: """
            DROP TABLE usage;
            ALTER TABLE turns DROP COLUMN reserved;
            ALTER TABLE api_keys DROP COLUMN limits;
            DROP TABLE gateway_accounts;
            DROP TABLE gateway_log;
            DELETE FROM grdb_migrations WHERE identifier IN ('003-limits', '006-gateway');
            """)
      }
      try queue.close()
      store = try await reopen(path)
      #expect(try await store.usage(of: "k", at: .now()).costThisMonth == usage.costThisMonth)
      #expect(try await store.lookUpKey("k").key?.limits == KeyLimits())
      let limits = KeyLimits([.usdPerDay: .maximum(1)])
      #expect(try await store.setKeyLimits("k", to: limits)?.limits == limits)
      #expect(try await store.setKeyLimits("other", to: limits) == nil)
      await store.close()
    }
  }

  /// Opens a store as the version before left it.
  @Test func keysAndSessionsOfAnEarlierVersionLeaveTheNetworkToTheServer() async throws {
    try await withTemporaryDirectory { directory in
      let path = directory + "/store.sqlite"
      var store = try await reopen(path)
      let session = makeSession()
      _ = try await store.createSession(session)
      try await store.addKey(
        APIKey(
          id: "k", name: "n", role: .user, digest: [UInt8](repeating: 1, count: 32), createdAt: .now(), network: .open))
      #expect(try await store.keys().map(\.network) == [.open])
      await store.close()
      let queue = try DatabaseQueue(path: path)
      try await queue.write { database in
        try database.execute(
          sql: """
            ALTER TABLE api_keys DROP COLUMN network;
            ALTER TABLE sessions DROP COLUMN network;
            DELETE FROM grdb_migrations WHERE identifier = '005-network';
            """)
      }
      try queue.close()
      store = try await reopen(path)
      #expect(try await store.session(session.id) == session)
      #expect(try await store.lookUpKey("k").key?.network == nil)
      #expect(try await store.setKeyNetwork("k", to: .modelOnly)?.network == .modelOnly)
      #expect(try await store.setKeyNetwork("other", to: .open) == nil)
      // Another secret changes nothing of it.
      #expect(try await store.replaceKeyDigest("k", with: [UInt8](repeating: 2, count: 32))?.network == .modelOnly)
      await store.close()
      store = try await reopen(path)
      #expect(try await store.lookUpKey("k").key?.network == .modelOnly)
      #expect(try await store.setKeyNetwork("k", to: nil)?.network == nil)
      #expect(try await store.revokeKey("k", at: .now()))
      #expect(try await store.setKeyNetwork("k", to: .open) == nil)
      await store.close()
    }
  }

  /// Opens a store as the version before left it.
  @Test func whatSessionsOfAnEarlierVersionTakeIsNotKnown() async throws {
    try await withTemporaryDirectory { directory in
      let path = directory + "/store.sqlite"
      var store = try await reopen(path)
      let session = Session(id: UUID(), name: "n", createdAt: .now(), workspace: "/w", owner: "k")
      _ = try await store.createSession(session)
      try await store.noteFiles(.measured(5), of: session.id)
      await store.close()
      store = try await reopen(path)
      #expect(try await store.usage(of: "k", at: .now()).diskBytes == 5)
      await store.close()
      let queue = try DatabaseQueue(path: path)
      try await queue.write { database in
        try database.execute(
          sql: "DROP TABLE room; DELETE FROM grdb_migrations WHERE identifier = '007-room';")
      }
      try queue.close()
      store = try await reopen(path)
      #expect(try await store.filesOfSessions(of: "k") == [SessionFiles(session: session.id, bytes: nil)])
      #expect(try await store.usage(of: "k", at: .now()).sessions == 1)
      try await store.noteFiles(.more(7), of: session.id)
      #expect(try await store.usage(of: "k", at: .now()).diskBytes == 7)
      try await store.finishDeletion(of: session.id)
      #expect(try await store.filesOfSessions(of: "k").isEmpty)
      await store.close()
    }
  }

  @Test func filesAreForTheOwnerAlone() async throws {
    try await withStore { store, path in
      _ = try await store.createSession(makeSession())
      func mode(_ path: String) throws -> Int? {
        try FileManager.default.attributesOfItem(atPath: path)[.posixPermissions] as? Int
      }
      for suffix in ["", "-wal", "-shm"] { #expect(try mode(path + suffix) == 0o600) }
      #expect(try mode((path as NSString).deletingLastPathComponent) == 0o700)
    }
  }

  @Test func aWideModeIsNarrowed() async throws {
    try await withTemporaryDirectory { directory in
      let path = directory + "/store.sqlite"
      #expect(
        FileManager.default.createFile(atPath: path, contents: nil, attributes: [.posixPermissions: 0o666]))
      let store = try await reopen(path)
      let mode = try FileManager.default.attributesOfItem(atPath: path)[.posixPermissions] as? Int
      #expect(mode == 0o600)
      await store.close()
    }
  }

  @Test func closingLeavesOneFile() async throws {
    try await withTemporaryDirectory { directory in
      let store = try await reopen(directory + "/store.sqlite")
      _ = try await store.createSession(makeSession())
      _ = try await store.sessions()
      await store.close()
      #expect(try FileManager.default.contentsOfDirectory(atPath: directory) == ["store.sqlite"])
    }
  }

  @Test func aDirectoryThatCannotBeMadeIsAnIOError() async throws {
    try await withTemporaryDirectory { directory in
      #expect(FileManager.default.createFile(atPath: directory + "/file", contents: nil))
      let path = directory + "/file/store.sqlite"
      let error = await #expect(throws: SessionStoreError.self) { try await reopen(path) }
      guard case .io(let text)? = error else {
        Issue.record("\(String(describing: error))")
        return
      }
      #expect(text.contains(path))
    }
  }

  // MARK: Threads that may be held up

  /// Tasks append on their own threads, and on the store's when there is something else to write, in any mixture.
  @Test func appendsOfAThreadThatMayBlockKeepTheirOrder() async throws {
    try await withTemporaryDirectory { directory in
      var configuration = SQLiteStoreConfiguration(path: directory + "/store.sqlite")
      configuration.mayBlock = { true }
      let store = try await SQLiteSessionStore.open(configuration)
      let sessions = (0..<3).map { _ in makeSession() }
      for session in sessions { _ = try await store.createSession(session) }
      try await withThrowingTaskGroup { group in
        for writer in 0..<6 {
          group.addTask {
            let session = sessions[writer % 3].id
            for number in 0..<200 {
              let new = NewEvent(type: "w\(writer)", processedAt: .now(), payload: #"{"n":\#(number)}"#)
              let event = try #require(try await store.appendEvents([new], to: session).first)
              // Whoever has been told of it finds it.
              let page = try await store.events(of: session, after: event.sequence - 1, limit: 1, types: nil)
              #expect(page.items == [event])
            }
          }
        }
        group.addTask { for _ in 0..<50 { _ = try await store.createSession(makeSession()) } }
        group.addTask {
          for _ in 0..<50 {
            let missing = UUID()
            await #expect(throws: SessionStoreError.sessionNotFound(missing)) {
              try await store.appendEvents([NewEvent(type: "t", processedAt: .now())], to: missing)
            }
          }
        }
        try await group.waitForAll()
      }
      await store.close()
      await #expect(throws: SessionStoreError.io("the store is closed")) {
        try await store.appendEvents([NewEvent(type: "t", processedAt: .now())], to: sessions[0].id)
      }
      let reopened = try await reopen(configuration.path)
      for (index, session) in sessions.enumerated() {
        let log = try await reopened.log(of: session.id)
        #expect(log.map(\.sequence) == Array(1...400))
        for writer in [index, index + 3] {
          #expect(log.filter { $0.type == "w\(writer)" }.map(\.payload) == (0..<200).map { #"{"n":\#($0)}"# })
        }
      }
      #expect(try await reopened.sessions().count == 53)
      await reopened.close()
    }
  }

  // MARK: The log

  /// Without one who closes the store, and although no commit does it.
  @Test(.timeLimit(.minutes(1))) func theLogIsWrittenBackBeside() async throws {
    try await withStore { store, path in
      let session = makeSession()
      _ = try await store.createSession(session)
      let event = NewEvent(type: "t", processedAt: .now(), payload: "\"\(String(repeating: "x", count: 1_000_000))\"")
      // With the fifth at the latest the log has what it may grow by.
      for _ in 0..<5 { _ = try await store.appendEvents([event], to: session.id) }
      while try size(of: path) < 4_000_000 { await Task.yield() }
    }
  }

  /// However quickly they come, and whoever they come from.
  @Test(arguments: [false, true]) func commitsThatComeQuicklyDoNotHaveTheLogGrow(mayBlock: Bool) async throws {
    try await withTemporaryDirectory { directory in
      var configuration = SQLiteStoreConfiguration(path: directory + "/store.sqlite")
      configuration.mayBlock = { mayBlock }
      let store = try await SQLiteSessionStore.open(configuration)
      let event = NewEvent(type: "t", processedAt: .now(), payload: "\"\(String(repeating: "x", count: 20_000))\"")
      try await withThrowingTaskGroup { group in
        for _ in 0..<4 {
          group.addTask {
            let session = makeSession()
            _ = try await store.createSession(session)
            for _ in 0..<1000 { _ = try await store.appendEvents([event], to: session.id) }
          }
        }
        try await group.waitForAll()
      }
      // 80 MB were written. 16 MiB are the bound from which on commits write the log back.
      #expect(try size(of: configuration.path + "-wal") < 32 << 20)
      await store.close()
      let reopened = try await reopen(configuration.path)
      #expect(try await reopened.statistics().events == 4000)
      await reopened.close()
    }
  }

  private func size(of path: String) throws -> Int {
    try #require(try FileManager.default.attributesOfItem(atPath: path)[.size] as? Int)
  }

  // MARK: Backup

  @Test func aBackupHoldsWhatWasThere() async throws {
    try await withStore { store, path in
      let session = makeSession()
      _ = try await store.createSession(session)
      let copy = (path as NSString).deletingLastPathComponent + "/copy.sqlite"
      let events = (0..<2000).map {
        NewEvent(type: "t", processedAt: .now(), payload: #"{"n":\#($0)}"#)
      }
      // The store goes on while it is copied.
      async let appended = store.appendEvents(events, to: session.id)
      try await store.backup(to: copy)
      _ = try await appended
      await #expect(throws: SessionStoreError.alreadyExists(copy)) { try await store.backup(to: copy) }
      let files = try FileManager.default.contentsOfDirectory(
        atPath: (path as NSString).deletingLastPathComponent)
      #expect(files.filter { $0.hasPrefix("copy") } == ["copy.sqlite"])
      #expect(
        try FileManager.default.attributesOfItem(atPath: copy)[.posixPermissions] as? Int == 0o600)

      let other = try await reopen(copy)
      #expect(try await other.session(session.id) == session)
      let count = try await other.lastSequence(of: session.id)
      #expect(count == 0 || count == 2000)
      await other.close()
    }
  }

  // MARK: Files that are not in order

  @Test func aSchemaOfALaterVersionIsRefused() async throws {
    try await withTemporaryDirectory { directory in
      let path = directory + "/store.sqlite"
      await (try reopen(path)).close()
      let queue = try DatabaseQueue(path: path)
      try await queue.write { try $0.execute(sql: "INSERT INTO grdb_migrations VALUES ('999-later')") }
      try queue.close()
      let error = await #expect(throws: SessionStoreError.self) { try await reopen(path) }
      #expect(error == .schemaTooNew(path: path, migrations: ["999-later"]))
      #expect(error?.description.contains("newer version") == true)
    }
  }

  @Test func whatIsNoDatabaseIsCorrupt() async throws {
    try await withTemporaryDirectory { directory in
      let path = directory + "/store.sqlite"
      try Data(String(repeating: "This is not a database. ", count: 1000).utf8)
        .write(to: URL(fileURLWithPath: path))
      let error = await #expect(throws: SessionStoreError.self) { try await reopen(path) }
      #expect(error == .corrupt(path: path))
    }
  }

  @Test func damagedPagesAreCorrupt() async throws {
    try await withTemporaryDirectory { directory in
      let path = directory + "/store.sqlite"
      let session = try await fill(path)
      // Everything but the first page, which holds the schema.
      let file = try FileHandle(forUpdating: URL(fileURLWithPath: path))
      let size = try file.seekToEnd()
      try file.seek(toOffset: 4096)
      try file.write(contentsOf: Data(repeating: 0xFF, count: Int(size) - 4096))
      try file.close()
      let error = await #expect(throws: SessionStoreError.self) {
        try await withReopened(path) { _ = try await $0.session(session) }
      }
      #expect(error == .corrupt(path: path))
    }
  }

  @Test func aTruncatedFileIsCorrupt() async throws {
    try await withTemporaryDirectory { directory in
      let path = directory + "/store.sqlite"
      let session = try await fill(path)
      let file = try FileHandle(forUpdating: URL(fileURLWithPath: path))
      try file.truncate(atOffset: 3 * 4096)
      try file.close()
      let error = await #expect(throws: SessionStoreError.self) {
        try await withReopened(path) { store in
          _ = try await store.log(of: session)
        }
      }
      #expect(error == .corrupt(path: path))
    }
  }

  /// Whatever bytes are damaged: an error or an answer, never the end of the process.
  @Test func randomDamageIsSurvived() async throws {
    let seed = UInt64.random(in: 0...UInt64.max)
    print("seed of randomDamageIsSurvived: \(seed)")
    var random = SeededGenerator(state: seed)
    try await withTemporaryDirectory { directory in
      let original = directory + "/original.sqlite"
      let session = try await fill(original)
      let bytes = try Data(contentsOf: URL(fileURLWithPath: original))
      for round in 0..<60 {
        let path = directory + "/damaged-\(round).sqlite"
        var damaged = bytes
        for _ in 0..<Int.random(in: 1...40, using: &random) {
          damaged[Int.random(in: 0..<damaged.count, using: &random)] = UInt8.random(
            in: 0...255, using: &random)
        }
        try damaged.write(to: URL(fileURLWithPath: path))
        guard let store = try? await reopen(path) else { continue }
        _ = try? await store.session(session)
        _ = try? await store.events(of: session, after: 0, limit: .max, types: ["t"])
        _ = try? await store.appendEvents([NewEvent(type: "t", processedAt: .now())], to: session)
        _ = try? await store.recoverInterrupted(at: .now()) { _ in [] }
        _ = try? await store.statistics()
        await store.close()
      }
    }
  }

  private func fill(_ path: String) async throws -> UUID {
    let store = try await reopen(path)
    let session = makeSession()
    _ = try await store.createSession(
      session, firstTurn: NewTurn(sessionID: session.id, prompt: "x", createdAt: .now()))
    let payload = #"{"text":"\#(String(repeating: "x", count: 500))"}"#
    let events = (0..<200).map { _ in NewEvent(type: "t", processedAt: .now(), payload: payload) }
    _ = try await store.appendEvents(events, to: session.id)
    await store.close()
    return session.id
  }

  // MARK: A full disk

  @Test func aFullDiskTearsNothing() async throws {
    try await withStore(maximumBytes: 400_000) { store, path in
      let filler = makeSession()
      let session = makeSession()
      _ = try await store.createSession(filler)
      _ = try await store.createSession(session)
      let payload = #"{"text":"\#(String(repeating: "x", count: 2000))"}"#
      let pair = (0..<2).map { _ in NewEvent(type: "t", processedAt: .now(), payload: payload) }
      // Many at once, so that some of a common transaction fit and others don't.
      let appended = await withTaskGroup(of: Int.self) { group in
        for _ in 0..<300 {
          group.addTask {
            do throws(SessionStoreError) {
              return try await store.appendEvents(pair, to: filler.id).count
            } catch {
              #expect(error == .diskFull)
              return 0
            }
          }
        }
        return await group.reduce(0, +)
      }
      #expect(appended > 0 && appended < 600)
      await #expect(throws: SessionStoreError.diskFull) {
        while true {
          _ = try await store.enqueueTurn(
            NewTurn(sessionID: session.id, prompt: payload, createdAt: .now()), events: pair)
        }
      }
      let log = try await store.log(of: filler.id)
      #expect(log.map(\.sequence) == (0..<appended).map { Int64($0 + 1) })
      // Of the message that didn't fit there is no part.
      let turns = try await store.turns(of: session.id)
      #expect(try await store.lastSequence(of: session.id) == Int64(turns.count * 2))

      // Room is made, and everything works again.
      _ = try await store.beginDeletion(of: filler.id, at: .now())
      try await store.finishDeletion(of: filler.id)
      #expect(try await store.appendEvents(pair, to: session.id).count == 2)
      try await store.checkWritable()
      let queue = try DatabaseQueue(path: path)
      let check = try await queue.read { try String.fetchAll($0, sql: "PRAGMA integrity_check") }
      #expect(check == ["ok"])
      try queue.close()
    }
  }

  @Test func anotherProcessThatKeepsTheLockIsBusy() async throws {
    try await withTemporaryDirectory { directory in
      let path = directory + "/store.sqlite"
      let store = try await SQLiteSessionStore.open(
        SQLiteStoreConfiguration(path: path, busyTimeout: .milliseconds(10)))
      let session = makeSession()
      _ = try await store.createSession(session)
      // GRDB insists otherwise that a transaction ends where it began.
      var options = Configuration()
      options.allowsUnsafeTransactions = true
      let queue = try DatabaseQueue(path: path, configuration: options)
      try await queue.writeWithoutTransaction { try $0.beginTransaction(.immediate) }
      await #expect(throws: SessionStoreError.busy) { try await store.createSession(makeSession()) }
      #expect(try await store.sessions() == [session])
      try await queue.writeWithoutTransaction { try $0.rollback() }
      _ = try await store.createSession(makeSession())
      try queue.close()
      await store.close()
    }
  }
}

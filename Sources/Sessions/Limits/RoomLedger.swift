import Logging
import Synchronization
import Workspaces

#if canImport(FoundationEssentials)
  import FoundationEssentials
#else
  import Foundation
#endif

/// Keeps account of what the files of sessions take on the disk, and holds keys to their room (``KeyLimit/diskBytes``).
///
/// The store has a figure for each session: what was measured last, and what clients have brought since then. Where they
/// have replaced or removed something it may be too high, so nobody is refused anything by a figure that isn't exact:
/// the files of such sessions are measured first. A figure can be too low by what an agent writes between two looks at its
/// turn, and after a crash by what was not noted yet; all sessions are measured again after the start, one by one and
/// without haste.
actor RoomLedger {
  private let store: any SessionStore
  private let workspaces: Workspaces
  private let limits: KeyLimitPolicy
  private let logger: Logger
  /// Bytes that requests are about to bring, by the key that owns the session.
  private var held: [String: Int64] = [:]
  /// Sessions whose figure was measured by this process, and where no client has changed anything since.
  private var exact: Set<UUID> = []
  /// When clients have changed something, in the order of ``clock``, for sessions that weren't measured after it.
  private var touched: [UUID: UInt64] = [:]
  private var clock: UInt64 = 0
  private var measuring: [UUID: Task<Void, Never>] = [:]
  /// The latest figure of a session that is being written down.
  private var noting: [UUID: Task<Void, Never>] = [:]
  /// Keys that have no session any more that was never measured.
  private var known: Set<String> = []
  private var round: Task<Void, Never>?

  /// Sessions that one page of the round through all of them has.
  private static let pageLength = 100
  /// The pauses of the round, in durations of what comes before each.
  private static let restFactor = 20

  init(store: any SessionStore, workspaces: Workspaces, limits: KeyLimitPolicy, logger: Logger) {
    self.store = store
    self.workspaces = workspaces
    self.limits = limits
    self.logger = logger
  }

  // MARK: The rule

  /// The excess of a key over its room; nil if there is none.
  ///
  /// - Parameter key: the id of a key; empty for sessions that nobody owns.
  func excess(of key: String) async throws(SessionStoreError) -> LimitExcess? {
    guard let maximum = try await limits.account(key).limits[.diskBytes] else { return nil }
    try await measureUnknown(key)
    if try await use(of: key) <= maximum { return nil }
    try await settle(key)
    let used = try await use(of: key)
    return used > maximum ? LimitExcess(.diskBytes, maximum: maximum, used: used, at: .now()) : nil
  }

  private func use(of key: String) async throws(SessionStoreError) -> Int64 {
    try await store.usage(of: key, at: .now()).diskBytes + (held[key] ?? 0)
  }

  /// Makes the figures of a key exact.
  func settle(_ key: String) async throws(SessionStoreError) {
    for files in try await store.filesOfSessions(of: key) where !exact.contains(files.session) {
      await measure(files.session)
    }
  }

  /// Measures what never was. Until then it would count as nothing.
  func measureUnknown(_ key: String) async throws(SessionStoreError) {
    guard !known.contains(key) else { return }
    for files in try await store.filesOfSessions(of: key) where files.bytes == nil { await measure(files.session) }
    known.insert(key)
  }

  // MARK: Changes by clients

  /// Counts bytes that a request is about to bring, unless there is no room for them.
  ///
  /// - Throws: `limited`; then nothing is held.
  func hold(_ bytes: Int64, for key: String) async throws(SessionServiceError) {
    held[key, default: 0] += bytes
    do throws(SessionStoreError) {
      guard let excess = try await excess(of: key) else { return }
      throw .limited(excess)
    } catch {
      letGo(bytes, of: key)
      throw SessionServiceError(error)
    }
  }

  /// Whether so many bytes would have room that come later.
  ///
  /// - Throws: `limited` if not.
  func check(_ bytes: Int64, for key: String) async throws(SessionServiceError) {
    try await hold(bytes, for: key)
    letGo(bytes, of: key)
  }

  func letGo(_ bytes: Int64, of key: String) {
    let rest = (held[key] ?? 0) - bytes
    held[key] = rest > 0 ? rest : nil
  }

  /// To be called when a request has changed the files of a session, or has tried to.
  ///
  /// - Parameters:
  ///   - held: what was held for it.
  ///   - isDone: whether it has brought that.
  func changed(_ session: UUID, _ held: Int64, of key: String, isDone: Bool) async {
    // First, so that a look which is under way doesn't take its figure for a newer one.
    clock += 1
    touched[session] = clock
    exact.remove(session)
    if isDone, held > 0 { await note(.more(held), of: session) }
    letGo(held, of: key)
  }

  // MARK: Measuring

  /// To be taken before files are looked at, for ``measured(_:_:since:)``.
  func mark() -> UInt64 { clock }

  /// Notes what a look has found. What clients have changed since the mark may be in it or not; then the figure only rises.
  func measured(_ session: UUID, _ bytes: Int64, since mark: UInt64) async {
    guard touched[session] ?? 0 <= mark else { return await note(.atLeast(bytes), of: session) }
    touched[session] = nil
    exact.insert(session)
    await note(.measured(bytes), of: session)
  }

  /// Measures the files of a session.
  func measure(_ session: UUID) async {
    // One that is under way may have begun before the last change.
    if let earlier = measuring[session] {
      await earlier.value
      if exact.contains(session) { return }
    }
    let task = Task { await self.measureNow(session) }
    measuring[session] = task
    await task.value
    if measuring[session] == task { measuring[session] = nil }
  }

  private func measureNow(_ session: UUID) async {
    let mark = mark()
    do {
      let inside = try await workspaces.usage(of: session)
      let outside = try await workspaces.usageOutside(of: session)
      await measured(session, inside.bytes + outside.home.bytes + outside.uploads, since: mark)
    } catch FileError.notFound {
      // It was deleted.
      forget(session)
    } catch {
      logger.warning(
        "The files of a session could not be measured",
        metadata: ["session": "\(session.lowercaseString)", "error": "\(error)"])
    }
  }

  func forget(_ session: UUID) {
    exact.remove(session)
    touched[session] = nil
  }

  /// Writes figures of a session down in the order in which they came.
  private func note(_ size: FilesSize, of session: UUID) async {
    let earlier = noting[session]
    let task = Task {
      await earlier?.value
      await self.write(size, of: session)
    }
    noting[session] = task
    await task.value
    if noting[session] == task { noting[session] = nil }
  }

  private func write(_ size: FilesSize, of session: UUID) async {
    do throws(SessionStoreError) {
      try await store.noteFiles(size, of: session)
    } catch {
      exact.remove(session)
      logger.warning(
        "What the files of a session take could not be stored",
        metadata: ["session": "\(session.lowercaseString)", "error": "\(error)"])
    }
  }

  /// Begins to measure all sessions, one after the other.
  func startRound() {
    round = Task { [weak self] in
      var query = SessionQuery(limit: Self.pageLength)
      repeat {
        guard let self, let page = await self.page(query) else { return }
        for session in page.sessions {
          let begin = ContinuousClock.now
          await self.measureForRound(session.id)
          do { try await Task.sleep(for: (.now - begin) * Self.restFactor) } catch { return }
        }
        query.after = page.next
      } while query.after != nil
    }
  }

  func endRound() { round?.cancel() }

  private func measureForRound(_ session: UUID) async {
    if !exact.contains(session) { await measure(session) }
  }

  private func page(_ query: SessionQuery) async -> SessionPage? {
    do throws(SessionStoreError) {
      return try await store.sessions(query)
    } catch {
      logger.warning("The sessions could not be measured", metadata: ["error": "\(error)"])
      return nil
    }
  }
}

/// A request that changes the files of a session.
public final class FilesChange: Sendable {
  private let ledger: RoomLedger
  private let key: String
  private let held = Atomic<Int64>(0)

  private init(_ ledger: RoomLedger, key: String) {
    self.ledger = ledger
    self.key = key
  }

  /// Makes a change.
  ///
  /// - Parameters:
  ///   - owner: the key that owns the session, which need not be in the store before the end of `body`.
  ///   - body: asks for room before it takes any. What it has asked for counts until the files are measured the next time.
  static func make<Value, Failure: Error>(
    to session: UUID, of owner: String?, _ ledger: RoomLedger, isolation: isolated (any Actor)? = #isolation,
    _ body: (FilesChange) async throws(Failure) -> Value
  ) async throws(Failure) -> Value {
    let change = FilesChange(ledger, key: owner ?? "")
    do throws(Failure) {
      let value = try await body(change)
      await change.end(session, isDone: true)
      return value
    } catch {
      await change.end(session, isDone: false)
      throw error
    }
  }

  private func end(_ session: UUID, isDone: Bool) async {
    await ledger.changed(session, held.load(ordering: .relaxed), of: key, isDone: isDone)
  }

  /// Whether so many bytes would have room that come later.
  ///
  /// - Throws: `limited` if not.
  public func check(_ bytes: Int64) async throws(SessionServiceError) {
    try await ledger.check(bytes, for: key)
  }

  /// To be called before so many bytes are brought into the session.
  ///
  /// - Throws: `limited` if the key that owns it has no room for them.
  public func take(_ bytes: Int64) async throws(SessionServiceError) {
    try await ledger.hold(bytes, for: key)
    held.add(bytes, ordering: .relaxed)
  }
}

internal import Dispatch
internal import GRDB
internal import Sessions
internal import Synchronization

/// One connection to the database, on which jobs run one after the other, off the cooperative pool.
///
/// Jobs that are waiting when the connection gets free run together: one hop to the connection's queue and one
/// transaction for all of them. So a writer under load pays for one commit, and one fsync, per batch and not
/// per job; an idle one starts at once. What waits is bounded by the number of tasks that call, since each
/// waits for its own job.
///
/// A job that doesn't wait for the disk, and comes while nothing else is going on, runs on the thread that it comes
/// from where that may be held up: to wake another one, and to be woken by it, takes longer than the job.
final class Connection: Sendable {
  enum Role {
    case reader
    case writer
  }

  enum Durability {
    /// The commit survives the end of the process.
    case process
    /// The commit, and all commits before it, survive the loss of power: the log is synced.
    case power
  }

  private struct Job: Sendable {
    let durability: Durability
    /// Does the work; what it returns hands over the result.
    let run: @Sendable (Database) throws -> @Sendable () -> Void
    let fail: @Sendable (SessionStoreError) -> Void
  }

  private struct State {
    var waiting: [Job] = []
    var isScheduled = false
    var isClosed = false
    /// What `PRAGMA synchronous` is set to. The connection is opened with NORMAL.
    var durability = Durability.process
  }

  /// Keeps a transaction, and so the time others wait for it, short.
  private static let largestBatch = 256

  private let role: Role
  private let queue: DatabaseQueue
  private let path: String
  private let mayBlock: @Sendable () -> Bool
  private let onCall: (@Sendable (SQLiteStoreConfiguration.Call, Duration) -> Void)?
  /// What a call on a reader is.
  private let reading: SQLiteStoreConfiguration.Call
  /// Works for a writer.
  private let checkpointer: Checkpointer?
  private let state = Mutex(State())

  /// - Parameters:
  ///   - queue: used by nobody else from now on.
  ///   - reading: what a call on a reader is, for who is told how long it took.
  init(
    role: Role, queue: DatabaseQueue, configuration: SQLiteStoreConfiguration,
    reading: SQLiteStoreConfiguration.Call = .read, checkpointer: Checkpointer? = nil
  ) {
    self.role = role
    self.queue = queue
    self.reading = reading
    self.checkpointer = checkpointer
    if let checkpointer { queue.inDatabase { checkpointer.relieve($0) } }
    path = configuration.path
    mayBlock = configuration.mayBlock
    onCall = configuration.onCall
  }

  /// Runs `body` within a transaction and returns what it returns once that is committed.
  ///
  /// - Parameter body: may run more than once, each time on the same data. It throws errors of
  ///   `SessionStoreError` before it changes anything.
  func perform<Value: Sendable>(
    _ durability: Durability = .process, _ body: @escaping @Sendable (Database) throws -> Value
  ) async throws(SessionStoreError) -> Value {
    let start = ContinuousClock.now
    defer { onCall?(role == .reader ? reading : durability == .power ? .write : .append, .now - start) }
    let result: Result<Value, SessionStoreError> = await withCheckedContinuation { continuation in
      submit(
        Job(
          durability: durability,
          run: { database in
            let value = try body(database)
            return { continuation.resume(returning: .success(value)) }
          },
          fail: { continuation.resume(returning: .failure($0)) }))
    }
    return try result.get()
  }

  /// Lets the jobs that wait come to their end and closes the connection.
  func close() async {
    let isFirst = state.withLock { state in
      defer { state.isClosed = true }
      return !state.isClosed
    }
    guard isFirst else { return }
    await withCheckedContinuation { (continuation: CheckedContinuation<Void, Never>) in
      DispatchQueue.global().async { [queue, checkpointer] in
        checkpointer?.close()
        // Waits for the batch that is running. It fails only when a statement is still in use, and none leaves a
        // job; the file is then closed with the last reference to the queue.
        try? queue.close()
        continuation.resume()
      }
    }
  }

  private func submit(_ job: Job) {
    enum Action { case none, schedule, runHere, refuse }
    let mayRunHere = role == .writer && job.durability == .process && mayBlock()
    let action: Action = state.withLock { state in
      if state.isClosed { return .refuse }
      state.waiting.append(job)
      if state.isScheduled { return .none }
      state.isScheduled = true
      return mayRunHere ? .runHere : .schedule
    }
    switch action {
    case .none: break
    case .schedule: schedule()
    case .runHere:
      // Nothing else is on the queue, so that its caller's thread runs this. What comes meanwhile doesn't keep it.
      if queue.inDatabase({ self.runBatch($0) }) { schedule() }
    case .refuse: job.fail(.io("the store is closed"))
    }
  }

  private func schedule() {
    queue.asyncWriteWithoutTransaction { database in while self.runBatch(database) {} }
  }

  /// Runs what waits, up to a bound.
  ///
  /// - Returns: whether more has come meanwhile, for which this must be called again.
  private func runBatch(_ database: Database) -> Bool {
    let jobs = state.withLock { state in
      let jobs = Array(state.waiting.prefix(Self.largestBatch))
      state.waiting.removeFirst(jobs.count)
      return jobs
    }
    switch role {
    case .reader: read(jobs, database)
    case .writer: write(jobs, database)
    }
    return state.withLock { state in
      state.isScheduled = !state.waiting.isEmpty
      return state.isScheduled
    }
  }

  private func read(_ jobs: [Job], _ database: Database) {
    var rest = jobs[...]
    do {
      try database.inTransaction(.deferred) {
        while let job = rest.popFirst() {
          do {
            try job.run(database)()
          } catch {
            job.fail(SessionStoreError(error, path: path))
          }
        }
        return .commit
      }
    } catch {
      // The transaction could not begin, or not end, in which case nobody is left to tell.
      for job in rest { job.fail(SessionStoreError(error, path: path)) }
    }
  }

  private func write(_ jobs: [Job], _ database: Database) {
    do {
      try synchronize(jobs.contains { $0.durability == .power } ? .power : .process, database)
      var deliveries: [@Sendable () -> Void] = []
      deliveries.reserveCapacity(jobs.count)
      try database.transaction {
        for job in jobs {
          let changes = database.totalChangesCount
          do {
            deliveries.append(try job.run(database))
          } catch let error as SessionStoreError where database.totalChangesCount == changes {
            deliveries.append { job.fail(error) }
          }
        }
      }
      for deliver in deliveries { deliver() }
    } catch {
      // Nothing of the batch is kept. One job may be at fault, for example one that is too large for the disk;
      // so each gets its own transaction. Not when another process has the lock: each would wait for it again.
      let error = SessionStoreError(error, path: path)
      if jobs.count == 1 || error == .busy {
        for job in jobs { job.fail(error) }
      } else {
        for job in jobs { write([job], database) }
      }
    }
  }

  private func synchronize(_ durability: Durability, _ database: Database) throws {
    guard state.withLock({ $0.durability != durability }) else { return }
    try database.execute(sql: "PRAGMA synchronous = \(durability == .power ? "FULL" : "NORMAL")")
    state.withLock { $0.durability = durability }
  }
}

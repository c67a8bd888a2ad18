public import JSONSupport
import Workspaces

#if canImport(FoundationEssentials)
  public import FoundationEssentials
#else
  public import Foundation
#endif

/// Runs turns by another runner, and looks after the workspace meanwhile: changes of files are written to the
/// session's log, and a turn whose workspace holds more than it may, or that leaves too little of the disk or of its key's
/// room on it, is stopped.
///
/// The workspace is looked at when a turn begins, now and then while it runs, and when it has ended. Looks and not
/// the kernel's notifications: they tell the same for any number of folders, leave nothing open that could run out,
/// and what was made and removed in between costs nothing. The pauses are twenty times as long as a look, up to a bound.
public struct WatchingRunner: TurnRunner {
  private let base: any TurnRunner
  private let workspaces: Workspaces
  private let log: WorkspaceLog
  private let room: RoomLedger
  private let interval: Duration
  private let resting: RestingSessions

  private static let firstLookTimeout = Duration.milliseconds(500)
  /// How long the end of a turn waits for the last look.
  private static let lastLookTimeout = Duration.seconds(10)
  /// The same where somebody waits for the end of an interrupt.
  private static let interruptedLookTimeout = Duration.seconds(1)

  /// - Parameters:
  ///   - interval: the shortest pause between two looks.
  ///   - resting: looks after sessions whose turns are over.
  init(
    _ base: any TurnRunner, workspaces: Workspaces, log: WorkspaceLog, room: RoomLedger, interval: Duration,
    resting: RestingSessions
  ) {
    self.base = base
    self.workspaces = workspaces
    self.log = log
    self.room = room
    self.interval = interval
    self.resting = resting
  }

  public func run(
    _ request: TurnRequest, onMessage: @escaping @Sendable (JSONValue) async -> Void
  ) async throws(TurnRunFailure) -> TurnResult {
    await resting.turnBegins(request.session.id)
    let watch = WorkspaceWatch(request, workspaces, log, room, interval: interval)
    // The agent begins when the first look is over, so that all that it does is told; but it doesn't wait long for one.
    let (begin, go) = AsyncStream<Void>.makeStream()
    let result = await withTaskGroup(of: Result<TurnResult, TurnRunFailure>?.self) { tasks in
      tasks.addTask {
        for await _ in begin {}
        do throws(TurnRunFailure) {
          return .success(try await base.run(request, onMessage: onMessage))
        } catch {
          return .failure(error)
        }
      }
      tasks.addTask {
        guard await watch.lookUntilExcess(afterFirst: { go.finish() }) else { return nil }
        // More than once, as the turn may not have reached the runner yet.
        while !Task.isCancelled {
          await base.interrupt(request.session.id)
          do { try await Task.sleep(for: .milliseconds(100)) } catch { break }
        }
        return nil
      }
      tasks.addTask {
        // Cancelled when the turn is over.
        do { try await Task.sleep(for: Self.firstLookTimeout) } catch {}
        go.finish()
        return nil
      }
      var result: Result<TurnResult, TurnRunFailure>?
      while result == nil, let next = await tasks.next() { result = next }
      tasks.cancelAll()
      return result
    }
    await watch.finish(within: result.isInterruption ? Self.interruptedLookTimeout : Self.lastLookTimeout)
    guard let excess = await watch.excess else {
      await resting.turnEnded(request.session.id, key: request.session.owner ?? "")
      guard let result else {
        // The first task of the group always has a result.
        throw TurnRunFailure(TurnFailure(code: "internal_error", detail: "The turn ended without a result."))
      }
      return try result.get()
    }
    // An interrupt ends the tools of the turn. What was left running by an earlier one would go on.
    await base.stop(request.session.id)
    var failure = TurnRunFailure(excess)
    switch result {
    case .success(let turn):
      failure.partialText = turn.text
      failure.accounts = turn.accounts
    case .failure(let error):
      failure.partialText = error.partialText
      failure.accounts = error.accounts
    case nil: break
    }
    throw failure
  }

  public func interrupt(_ sessionID: UUID) async { await base.interrupt(sessionID) }

  public func answerPermission(
    _ requestID: String, of sessionID: UUID, _ answer: PermissionAnswer
  ) async -> Bool {
    await base.answerPermission(requestID, of: sessionID, answer)
  }

  public func stop(_ sessionID: UUID) async { await base.stop(sessionID) }

  public func hasProcess(_ sessionID: UUID) async -> Bool { await base.hasProcess(sessionID) }

}

extension TurnFailure {
  fileprivate static let diskLow = TurnFailure(
    code: "disk_full", detail: "The turn was stopped: too little of the server's disk is free.")

  fileprivate init(_ excess: FileError, in place: String) {
    let what =
      if case .quotaExceeded(.entries, let limit) = excess {
        "more than \(limit) files and folders"
      } else if case .quotaExceeded(_, let limit) = excess {
        "more than \(limit) bytes"
      } else {
        "too much"
      }
    self.init(
      code: "quota_exceeded", detail: "The turn was stopped: the \(place) holds \(what). Delete files to go on.")
  }

  fileprivate init(ofRoom excess: LimitExcess) {
    self.init(code: "quota_exceeded", detail: "The turn was stopped. \(excess.detail)")
  }
}

extension Result<TurnResult, TurnRunFailure>? {
  fileprivate var isInterruption: Bool {
    if case .failure(let failure)? = self { failure.isInterruption } else { false }
  }
}

/// The looks at a workspace during one turn.
private actor WorkspaceWatch {
  /// Changes that one look, and all looks of a turn, tell one by one; of the others only their number is told.
  private static let changesOfLook = 100
  private static let changesOfTurn = 2000
  /// The shortest pause when a turn has told as many as it may.
  private static let longPause: Duration = .seconds(10)
  /// The longest one. What makes looks slow must not go unwatched for long.
  private static let longestPause: Duration = .seconds(30)

  /// Set when the workspace, the agent's home directory, the key or the disk was found to hold more than it may.
  private(set) var excess: TurnFailure?
  private let turn: Turn
  /// That which owns the session; empty if there is none.
  private let key: String
  private let workspaces: Workspaces
  private let log: WorkspaceLog
  private let room: RoomLedger
  private let interval: Duration
  private let start = Workspaces.changeTime()
  private var latest: WorkspaceSnapshot?
  private var left = changesOfTurn
  /// The look that is under way. It can't be broken off, and nobody has to wait for its end.
  private var underWay: Task<Void, Never>?
  private var isFinished = false
  /// Whether what the session takes was noted by the latest look.
  private var isMeasured = false

  init(
    _ request: TurnRequest, _ workspaces: Workspaces, _ log: WorkspaceLog, _ room: RoomLedger, interval: Duration
  ) {
    turn = request.turn
    key = request.session.owner ?? ""
    self.room = room
    self.workspaces = workspaces
    self.log = log
    self.interval = interval
    log.beginWatch(of: turn.sessionID)
  }

  /// Looks until there is an excess, and returns true then, or until the task is cancelled.
  func lookUntilExcess(afterFirst: @escaping @Sendable () -> Void) async -> Bool {
    await perform {
      await self.lookFirst()
      afterFirst()
    }
    var next = ContinuousClock.now + interval
    while true {
      do { try await Task.sleep(for: interval) } catch { return false }
      await lookAtDisk()
      if excess == nil, .now >= next {
        let begin = ContinuousClock.now
        await perform { await self.lookAtAll() }
        let pause = max(left > 0 ? interval : Self.longPause, (ContinuousClock.now - begin) * 20)
        next = .now + max(interval, min(pause, Self.longestPause))
      }
      if Task.isCancelled { return false }
      if excess != nil { return true }
    }
  }

  /// Looks for the last time, unless that takes too long.
  func finish(within timeout: Duration) async {
    isMeasured = false
    if latest?.isDetailed == false {
      // Of a very large workspace nothing more would be learned in the time that it takes.
      await log.record(WorkspaceChanges(omitted: 1), of: turn)
    } else {
      let earlier = underWay
      let last = Task {
        await earlier?.value
        _ = await lookAndMeasure()
      }
      if await last.value(within: timeout) == nil, !isFinished {
        isFinished = true
        await log.record(WorkspaceChanges(omitted: 1), of: turn)
      }
    }
    isFinished = true
    log.endWatch(of: turn.sessionID)
    // Where the last look wasn't possible in the time that it had.
    if !isMeasured { Task { [room, turn] in await room.measure(turn.sessionID) } }
  }

  /// Returns when the look is over, or the caller's task is cancelled.
  private func perform(_ look: @escaping @Sendable () async -> Void) async {
    let task = Task { await look() }
    underWay = task
    if await task.value(within: nil) != nil { underWay = nil }
  }

  private func lookFirst() async {
    do {
      // The agent may have begun before this look is over.
      latest = try await workspaces.snapshot(of: turn.sessionID, changedAfter: start)
    } catch {
      log.lookFailed(turn, error)
    }
  }

  private func lookAtAll() async {
    guard let (inside, home) = await lookAndMeasure() else { return }
    if let error = workspaces.excess(of: inside) {
      excess = TurnFailure(error, in: "workspace")
    } else if let error = workspaces.excess(of: home) {
      excess = TurnFailure(error, in: "agent's home directory")
    } else {
      await lookAtRoom()
    }
  }

  /// Looks at the workspace and at what else the agent can write to, and notes what both take. Nil if that isn't possible.
  private func lookAndMeasure() async -> (inside: WorkspaceUsage, home: WorkspaceUsage)? {
    isMeasured = false
    let mark = await room.mark()
    guard let inside = await look() else { return nil }
    do {
      let outside = try await workspaces.usageOutside(of: turn.sessionID)
      await room.measured(turn.sessionID, inside.bytes + outside.home.bytes + outside.uploads, since: mark)
      isMeasured = true
      return (inside, outside.home)
    } catch {
      log.lookFailed(turn, error)
      return nil
    }
  }

  private func lookAtRoom() async {
    do throws(SessionStoreError) {
      excess = try await room.excess(of: key).map { TurnFailure(ofRoom: $0) }
    } catch {
      log.lookFailed(turn, error)
    }
  }

  private func lookAtDisk() async {
    do {
      if try await workspaces.isDiskLow() { excess = .diskLow }
    } catch {
      log.lookFailed(turn, error)
    }
  }

  /// Returns what the workspace holds; nil if it couldn't be looked at.
  private func look() async -> WorkspaceUsage? {
    guard !isFinished else { return nil }
    let mark = log.mark(turn.sessionID)
    do {
      guard let earlier = latest else {
        let snapshot = try await workspaces.snapshot(of: turn.sessionID)
        latest = snapshot
        return snapshot.usage
      }
      let (snapshot, changes) = try await workspaces.snapshot(
        of: turn.sessionID, since: earlier, limit: min(left, Self.changesOfLook))
      // The turn is over for its readers, too.
      guard !isFinished else { return nil }
      if snapshot.isWhole || !earlier.isWhole || !snapshot.isDetailed { latest = snapshot }
      left -= await log.record(changes, of: turn, upTo: mark)
      return snapshot.usage
    } catch {
      log.lookFailed(turn, error)
      return nil
    }
  }
}

extension Task where Failure == Never {
  /// The value, or nil if the caller's task is cancelled before it is there, or after `timeout`. The task itself goes on.
  func value(within timeout: Duration?) async -> Success? {
    let (values, continuation) = AsyncStream.makeStream(of: Success.self, bufferingPolicy: .bufferingOldest(1))
    Task<Void, Never> {
      continuation.yield(await value)
      continuation.finish()
    }
    let timer = timeout.map { timeout in
      Task<Void, Never> {
        do { try await Task<Never, Never>.sleep(for: timeout) } catch { return }
        continuation.finish()
      }
    }
    defer { timer?.cancel() }
    for await value in values { return value }
    return nil
  }
}

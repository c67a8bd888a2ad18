import Logging
import Workspaces

#if canImport(FoundationEssentials)
  import FoundationEssentials
#else
  import Foundation
#endif

/// Looks after sessions between their turns, as long as they have a process: what an agent has left running may write
/// files and use the model, and no turn is there to be stopped.
///
/// The processes of a session that holds more than it may, whose key has used up a budget or isn't good any more, or that
/// leaves too little of the disk, are ended; the conversation goes on with the next message.
actor RestingSessions {
  private let runner: any TurnRunner
  private let workspaces: Workspaces
  private let room: RoomLedger
  private let interval: Duration
  private let reasonToEnd: @Sendable (_ key: String) async -> String?
  private let logger: Logger
  /// The keys that own the sessions.
  private var sessions: [UUID: String] = [:]
  /// A turn doesn't begin while the processes of its session are being ended.
  private var stopping: [UUID: Task<Void, Never>] = [:]
  private var watch: Task<Void, Never>?

  /// - Parameters:
  ///   - interval: the pause between two looks at all of them.
  ///   - reasonToEnd: why agents of a key may not go on; nil if they may.
  init(
    _ runner: any TurnRunner, workspaces: Workspaces, room: RoomLedger, interval: Duration,
    reasonToEnd: @escaping @Sendable (_ key: String) async -> String?, logger: Logger
  ) {
    self.runner = runner
    self.workspaces = workspaces
    self.room = room
    self.interval = interval
    self.reasonToEnd = reasonToEnd
    self.logger = logger
  }

  /// Returns when the turn may begin.
  func turnBegins(_ session: UUID) async {
    sessions[session] = nil
    await stopping[session]?.value
  }

  func turnEnded(_ session: UUID, key: String) {
    sessions[session] = key
    guard watch == nil else { return }
    watch = Task { [weak self, interval] in
      while true {
        do { try await Task.sleep(for: interval) } catch { return }
        guard await self?.lookAtAll() == true else { return }
      }
    }
  }

  /// - Returns: whether there is anything left to look after.
  private func lookAtAll() async -> Bool {
    for (session, key) in sessions {
      guard await runner.hasProcess(session) else {
        sessions[session] = nil
        continue
      }
      guard let reason = await reasonToStop(session, key), sessions[session] != nil else { continue }
      logger.notice(
        "Ended what an agent had left running",
        metadata: ["session": "\(session.lowercaseString)", "key": "\(key.isEmpty ? "-" : key)", "reason": "\(reason)"])
      sessions[session] = nil
      let stop = Task { await runner.stop(session) }
      stopping[session] = stop
      await stop.value
      stopping[session] = nil
    }
    guard sessions.isEmpty else { return true }
    watch = nil
    return false
  }

  private func reasonToStop(_ session: UUID, _ key: String) async -> String? {
    do {
      if try await workspaces.isDiskLow() { return "disk_full" }
      let mark = await room.mark()
      let inside = try await workspaces.usage(of: session)
      let outside = try await workspaces.usageOutside(of: session)
      await room.measured(session, inside.bytes + outside.home.bytes + outside.uploads, since: mark)
      for usage in [inside, outside.home] where workspaces.excess(of: usage) != nil { return "quota_exceeded" }
      if try await room.excess(of: key) != nil { return "quota_exceeded" }
    } catch {
      logger.warning(
        "A session at rest could not be looked at",
        metadata: ["session": "\(session.lowercaseString)", "error": "\(error)"])
    }
    return await reasonToEnd(key)
  }
}

import JSONSupport
import Logging
import Synchronization
public import Workspaces

#if canImport(FoundationEssentials)
  public import FoundationEssentials
#else
  public import Foundation
#endif

/// Writes changes of files to the logs of sessions, as events `workspace.changed`.
///
/// What a client has changed is written when it has done so. A look at the workspace finds it too, and is kept from
/// telling it once more.
public final class WorkspaceLog: Sendable {
  /// What a look may find and that was told already.
  private struct Told {
    var change: FileChange
    /// Whether all that lies below is told with it.
    var isTree: Bool

    func covers(_ found: FileChange) -> Bool {
      if found.hasSameResult(as: change) { return true }
      if isTree, found.path.isWithin(change.path) { return true }
      // Folders that were made for it.
      return change.kind != .deleted && found.kind == .created && found.type == .directory
        && change.path.isWithin(found.path)
    }
  }

  private struct Watch {
    /// The number of the first of what was told and may still be found.
    var first = 0
    var told: [Told] = []
  }

  /// Changes of one request that are told one by one, and that are kept for a look.
  private static let maximum = 100
  private static let maximumTold = 1000

  private let store: any SessionStore
  private let hub: EventHub
  private let patience: Duration
  private let logger: Logger
  private let watches = Mutex<[UUID: Watch]>([:])

  init(store: any SessionStore, hub: EventHub, patience: Duration, logger: Logger) {
    self.store = store
    self.hub = hub
    self.patience = patience
    self.logger = logger
  }

  /// Writes down what a client has changed. The change itself holds also where this is not possible.
  ///
  /// - Parameter isTree: whether the changes are of whole trees.
  public func record(_ changes: [FileChange], by session: UUID, isTree: Bool = false) async {
    watches.withLock { watches in
      guard let count = watches[session]?.told.count else { return }
      for change in changes.prefix(max(Self.maximumTold - count, 0)) {
        watches[session]?.told.append(Told(change: change, isTree: isTree))
      }
    }
    await append(WorkspaceChanges(sorting: changes, limit: Self.maximum), "client", nil, session, .zero)
  }

  // MARK: Looks

  func beginWatch(of session: UUID) { watches.withLock { $0[session] = Watch() } }

  func endWatch(of session: UUID) { watches.withLock { $0[session] = nil } }

  /// To be called before a look: what is told after this may or may not be found by it.
  func mark(_ session: UUID) -> Int {
    watches.withLock { watches in watches[session].map { $0.first + $0.told.count } ?? 0 }
  }

  /// Writes down what a look has found, but for what was told already.
  ///
  /// - Parameter mark: what was told before this will not be found any more.
  /// - Returns: how many changes were told one by one.
  @discardableResult
  func record(_ found: WorkspaceChanges, of turn: Turn, upTo mark: Int = 0) async -> Int {
    let told: [Told] = watches.withLock { watches in
      guard let watch = watches[turn.sessionID] else { return [] }
      let passed = max(mark - watch.first, 0)
      watches[turn.sessionID]?.told.removeFirst(passed)
      watches[turn.sessionID]?.first += passed
      return watch.told
    }
    var changes = found
    if !told.isEmpty {
      changes.changes = found.changes.compactMap { change in
        if told.contains(where: { $0.covers(change) }) { return nil }
        // What a client has made since the last look has been changed by now.
        let isKnown = told.contains { $0.change.path == change.path && $0.change.kind != .deleted }
        return change.kind == .created && isKnown ? change.asModification : change
      }
    }
    await append(changes, "agent", turn.id, turn.sessionID, patience)
    return changes.changes.count
  }

  func lookFailed(_ turn: Turn, _ error: any Error) {
    if error is CancellationError { return }
    logger.warning(
      "A workspace could not be looked at",
      metadata: ["session": "\(turn.sessionID.lowercaseString)", "error": "\(error)"])
  }

  // MARK: Events

  private func append(
    _ changes: WorkspaceChanges, _ source: String, _ turn: UUID?, _ session: UUID, _ patience: Duration
  ) async {
    if changes.isEmpty { return }
    let now = Timestamp.now()
    var events = changes.changes.map { change in
      var payload = Self.path(change.path)
      payload["kind"] = .string(change.kind.rawValue)
      payload["file_type"] = .string(change.type.rawValue)
      if let size = change.size { payload["size"] = .int(size) }
      payload["source"] = .string(source)
      return NewEvent("workspace.changed", turn: turn, at: now, .object(payload))
    }
    if changes.omitted > 0 {
      var payload = Self.path(changes.omittedFolder)
      payload["kind"] = "overflow"
      payload["file_type"] = "directory"
      payload["count"] = .int(Int64(changes.omitted))
      payload["source"] = .string(source)
      events.append(NewEvent("workspace.changed", turn: turn, at: now, .object(payload)))
    }
    do throws(SessionStoreError) {
      let written = try await withPatience(patience) { () throws(SessionStoreError) in
        try await self.store.appendEvents(events, to: session)
      }
      hub.publish(written)
    } catch .sessionNotFound {
      // It is being deleted.
    } catch {
      logger.error(
        "Changes of files could not be stored",
        metadata: ["session": "\(session.lowercaseString)", "events": "\(events.count)", "error": "\(error)"])
    }
  }

  private static func path(_ path: RelativePath) -> [String: JSONValue] {
    var members: [String: JSONValue] = ["path": .string(path.displayText)]
    if String(validating: path.bytes, as: UTF8.self) == nil {
      members["path_base64"] = .string(Data(path.bytes).base64EncodedString())
    }
    return members
  }
}

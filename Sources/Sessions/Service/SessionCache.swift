import Synchronization

#if canImport(FoundationEssentials)
  import FoundationEssentials
#else
  import Foundation
#endif

/// Sessions as they are in the store, for reading without waiting. Bounded: of more sessions than fit, some are
/// read from the store.
///
/// A session is put in only with what the store returned, and by the service only, one change after the other.
final class SessionCache: Sendable {
  private struct Content {
    var sessions: [UUID: Session] = [:]
    /// Counts the removals, so that a value read before one isn't put in after it.
    var generation: UInt64 = 0
  }

  private let capacity: Int
  private let content = Mutex(Content())

  init(capacity: Int = 10_000) {
    self.capacity = capacity
  }

  var generation: UInt64 { content.withLock { $0.generation } }

  subscript(id: UUID) -> Session? { content.withLock { $0.sessions[id] } }

  func insert(_ session: Session) {
    content.withLock { content in
      if content.sessions.count >= capacity, content.sessions[session.id] == nil,
        let victim = content.sessions.first?.key
      {
        content.sessions[victim] = nil
      }
      content.sessions[session.id] = session
    }
  }

  /// Puts in what was read from the store, unless something was changed or removed since `generation`.
  func insert(_ session: Session, readAt generation: UInt64) {
    guard content.withLock({ $0.generation == generation && $0.sessions[session.id] == nil }) else { return }
    insert(session)
  }

  func touch(_ id: UUID, at time: Timestamp) {
    content.withLock { content in
      content.generation &+= 1
      content.sessions[id]?.lastUsed = time
    }
  }

  func remove(_ id: UUID) {
    content.withLock { content in
      content.generation &+= 1
      content.sessions[id] = nil
    }
  }
}

import Synchronization

#if canImport(FoundationEssentials)
  import FoundationEssentials
#else
  import Foundation
#endif

/// Sessions as they are in the store, for reading without waiting. Bounded: of more sessions than fit, some are
/// read from the store.
///
/// A session is put in only with what the store returned, and by the service only. Whoever changes it in the store
/// removes it afterwards: what an update returns may be older than another update that was faster here.
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

  /// Puts in what the store returned, unless something was changed or removed since `generation`.
  func insert(_ session: Session, readAt generation: UInt64) {
    content.withLock { content in
      guard content.generation == generation, content.sessions[session.id] == nil else { return }
      if content.sessions.count >= capacity, let victim = content.sessions.first?.key {
        content.sessions[victim] = nil
      }
      content.sessions[session.id] = session
    }
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

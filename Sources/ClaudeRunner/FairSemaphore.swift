import Synchronization

/// A number of permits; waiting ends early when the task is cancelled.
///
/// Those that wait are served in turns between their owners, of each owner in the order in which they came: many that
/// wait of one owner don't delay the first of another.
final class FairSemaphore: Sendable {
  private struct Waiter {
    let id: UInt64
    let owner: String
    let continuation: CheckedContinuation<Bool, Never>
  }

  private struct State {
    var permits: Int
    var nextID: UInt64 = 0
    var waiters: [Waiter] = []
    /// When each owner was served last, as the number of that service.
    var lastServed: [String: UInt64] = [:]
    var services: UInt64 = 0

    mutating func note(_ owner: String) {
      services += 1
      lastServed[owner] = services
      if lastServed.count > FairSemaphore.rememberedOwners {
        let waiting = Set(waiters.map(\.owner))
        lastServed = lastServed.filter { waiting.contains($0.key) }
      }
    }

    mutating func next() -> Waiter? {
      // Of equal ones the first is the one that came first.
      let index = waiters.indices.min {
        (lastServed[waiters[$0].owner] ?? 0, $0) < (lastServed[waiters[$1].owner] ?? 0, $1)
      }
      guard let index else { return nil }
      let waiter = waiters.remove(at: index)
      note(waiter.owner)
      return waiter
    }
  }

  private static let rememberedOwners = 10_000

  private let state: Mutex<State>

  init(permits: Int) {
    state = Mutex(State(permits: permits))
  }

  var waiterCount: Int { state.withLock { $0.waiters.count } }

  /// - Parameters:
  ///   - owner: for whom the permit is.
  ///   - onWaiting: called if there is no permit at once, when the wait can be seen in ``waiterCount``.
  /// - Returns: whether a permit was got; false if the task was cancelled first.
  func acquire(for owner: String = "", onWaiting: @Sendable () -> Void = {}) async -> Bool {
    let id = state.withLock { state in
      state.nextID += 1
      return state.nextID
    }
    return await withTaskCancellationHandler {
      await withCheckedContinuation { continuation in
        let answer: Bool? = state.withLock { state in
          // A cancellation that comes later finds the waiter in the list.
          if Task.isCancelled { return false }
          if state.permits > 0 && state.waiters.isEmpty {
            state.permits -= 1
            state.note(owner)
            return true
          }
          state.waiters.append(Waiter(id: id, owner: owner, continuation: continuation))
          return nil
        }
        if let answer { continuation.resume(returning: answer) } else { onWaiting() }
      }
    } onCancel: {
      let waiter = state.withLock { state in
        state.waiters.firstIndex { $0.id == id }.map { state.waiters.remove(at: $0) }
      }
      waiter?.continuation.resume(returning: false)
    }
  }

  func release() {
    let waiter = state.withLock { state in
      let waiter = state.next()
      if waiter == nil { state.permits += 1 }
      return waiter
    }
    waiter?.continuation.resume(returning: true)
  }
}

import Synchronization

/// A number of permits, given out in the order they were asked for; waiting ends early when the task is cancelled.
final class FairSemaphore: Sendable {
  private struct State {
    var permits: Int
    var nextID: UInt64 = 0
    var waiters: [(id: UInt64, continuation: CheckedContinuation<Bool, Never>)] = []
  }

  private let state: Mutex<State>

  init(permits: Int) {
    state = Mutex(State(permits: permits))
  }

  var waiterCount: Int { state.withLock { $0.waiters.count } }

  /// - Parameter onWaiting: called if there is no permit at once, when the wait can be seen in ``waiterCount``.
  /// - Returns: whether a permit was got; false if the task was cancelled first.
  func acquire(onWaiting: @Sendable () -> Void = {}) async -> Bool {
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
            return true
          }
          state.waiters.append((id, continuation))
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
      if state.waiters.isEmpty {
        state.permits += 1
        return nil as CheckedContinuation<Bool, Never>?
      }
      return state.waiters.removeFirst().continuation
    }
    waiter?.resume(returning: true)
  }
}

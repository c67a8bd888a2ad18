import Hummingbird
import Synchronization

/// Counts the sockets that are open, and refuses those that are too many.
final class SocketCounter: Sendable {
  private struct State {
    var open = 0
    var pending = 0
  }

  /// A socket that is counted.
  final class Place: Sendable {
    fileprivate let isPending: Atomic<Bool>
    private let counter: SocketCounter
    private let isLeft = Atomic(false)

    fileprivate init(_ counter: SocketCounter, isPending: Bool) {
      self.counter = counter
      self.isPending = Atomic(isPending)
    }

    // A client may vanish between its request and its socket.
    deinit { leave() }

    fileprivate func leave() {
      guard !isLeft.exchange(true, ordering: .relaxed) else { return }
      let wasPending = isPending.exchange(false, ordering: .relaxed)
      counter.state.withLock { state in
        state.open -= 1
        if wasPending { state.pending -= 1 }
      }
    }

    /// The client has said who it is.
    func settle() {
      guard isPending.exchange(false, ordering: .relaxed) else { return }
      counter.state.withLock { $0.pending -= 1 }
    }
  }

  private let state = Mutex(State())

  func enter(isPending: Bool, _ bounds: SessionSocketConfiguration) throws(Problem) -> Place {
    let isFull = state.withLock { state in
      if state.open >= bounds.maximumSockets || (isPending && state.pending >= bounds.maximumUnauthenticated) {
        return true
      }
      state.open += 1
      if isPending { state.pending += 1 }
      return false
    }
    if isFull {
      throw Problem(
        .tooManySockets, "There are too many open sockets; try again later.", retryAfter: 5)
    }
    return Place(self, isPending: isPending)
  }

  func leave(_ place: Place) { place.leave() }
}

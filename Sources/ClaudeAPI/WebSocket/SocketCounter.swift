import Hummingbird
import Synchronization

/// Counts the sockets that are open, and refuses those that are too many.
final class SocketCounter: Sendable {
  private struct State {
    var open = 0
    var pending = 0
    /// Those of each network from which there are any.
    var pendingByNetwork: [[UInt8]: Int] = [:]

    mutating func addPending(_ network: [UInt8]?, _ change: Int) {
      pending += change
      guard let network else { return }
      let count = pendingByNetwork[network, default: 0] + change
      pendingByNetwork[network] = count == 0 ? nil : count
    }

    func isFull(_ network: [UInt8]?, _ bounds: SessionSocketConfiguration) -> Bool {
      pending >= bounds.maximumUnauthenticated
        || network.flatMap { pendingByNetwork[$0] } ?? 0 >= bounds.maximumUnauthenticatedOfNetwork
    }
  }

  /// A socket that is counted.
  final class Place: Sendable {
    private let isPending: Atomic<Bool>
    private let network: [UInt8]?
    private let counter: SocketCounter
    private let isLeft = Atomic(false)

    fileprivate init(_ counter: SocketCounter, isPending: Bool, _ network: [UInt8]?) {
      self.counter = counter
      self.network = network
      self.isPending = Atomic(isPending)
    }

    // A client may vanish between its request and its socket.
    deinit { leave() }

    fileprivate func leave() {
      guard !isLeft.exchange(true, ordering: .relaxed) else { return }
      settle()
      counter.state.withLock { $0.open -= 1 }
    }

    /// The client has said who it is.
    func settle() {
      guard isPending.exchange(false, ordering: .relaxed) else { return }
      counter.state.withLock { $0.addPending(network, -1) }
    }
  }

  private let state = Mutex(State())

  /// - Parameter network: where the client is; see ``ClientAddress``.
  func enter(
    isPending: Bool, from network: [UInt8]?, _ bounds: SessionSocketConfiguration
  ) throws(Problem) -> Place {
    let isFull = state.withLock { state in
      if state.open >= bounds.maximumSockets || (isPending && state.isFull(network, bounds)) { return true }
      state.open += 1
      if isPending { state.addPending(network, 1) }
      return false
    }
    if isFull {
      throw Problem(
        .tooManySockets, "There are too many open sockets; try again later.", retryAfter: 5)
    }
    return Place(self, isPending: isPending, network)
  }

  func leave(_ place: Place) { place.leave() }
}

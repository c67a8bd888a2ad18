import Synchronization

/// Holds those who send commands over sockets to a rate, all of their sockets together. Nothing is refused: what is over
/// the rate waits, and the client behind it.
final class CommandPaces: Sendable {
  private struct Allowance {
    /// Below zero are the commands that wait.
    var left: Double
    var updated: ContinuousClock.Instant

    mutating func refill(_ bounds: SessionSocketConfiguration, _ now: ContinuousClock.Instant) {
      let seconds = max(0, (now - updated) / .seconds(1))
      left = min(Double(bounds.commandBurst), left + seconds * bounds.commandsPerSecond)
      updated = now
    }
  }

  /// Above it those are dropped whose allowance is whole again.
  private static let kept = 1024

  private let bounds: SessionSocketConfiguration
  private let allowances = Mutex<[String: Allowance]>([:])

  init(_ bounds: SessionSocketConfiguration) {
    self.bounds = bounds
  }

  /// Takes the place of one command.
  ///
  /// - Parameter sender: whose it is.
  /// - Returns: how long it has to wait; nil if it needn't.
  func delay(of sender: String, at now: ContinuousClock.Instant = .now) -> Duration? {
    allowances.withLock { allowances in
      if allowances.count >= Self.kept, allowances[sender] == nil {
        allowances = allowances.filter { entry in
          var allowance = entry.value
          allowance.refill(bounds, now)
          return allowance.left < Double(bounds.commandBurst)
        }
      }
      var allowance = allowances[sender] ?? Allowance(left: Double(bounds.commandBurst), updated: now)
      allowance.refill(bounds, now)
      allowance.left -= 1
      allowances[sender] = allowance
      return allowance.left >= 0 ? nil : .seconds(-allowance.left / bounds.commandsPerSecond)
    }
  }
}

import Synchronization

/// Holds each of many senders to a rate. Nothing is refused: what is over the rate waits, and the sender behind it.
final class Paces: Sendable {
  private struct Allowance {
    /// Below zero is what waits, or was more than could be had at once.
    var left: Double
    var updated: ContinuousClock.Instant
  }

  /// Above it those are dropped whose allowance is whole again.
  private static let kept = 1024

  private let rate: Double
  private let burst: Double
  private let allowances = Mutex<[String: Allowance]>([:])

  /// - Parameters:
  ///   - rate: a second.
  ///   - burst: as much as may come at once after a pause. What is larger comes when all of this is there, and is waited
  ///     for by what comes next.
  init(rate: Double, burst: Double) {
    self.rate = rate
    self.burst = burst
  }

  /// Takes an amount.
  ///
  /// - Returns: how long it has to wait; nil if it needn't.
  func delay(of sender: String, for amount: Double = 1, at now: ContinuousClock.Instant = .now) -> Duration? {
    allowances.withLock { allowances in
      if allowances.count >= Self.kept, allowances[sender] == nil {
        allowances = allowances.filter { refilled($0.value, now).left < burst }
      }
      var allowance = refilled(allowances[sender] ?? Allowance(left: burst, updated: now), now)
      let missing = min(amount, burst) - allowance.left
      allowance.left -= amount
      allowances[sender] = allowance
      return missing > 0 ? .seconds(missing / rate) : nil
    }
  }

  /// Gives back what was taken and then not used.
  func giveBack(_ amount: Double, of sender: String) {
    allowances.withLock { $0[sender]?.left += amount }
  }

  private func refilled(_ allowance: Allowance, _ now: ContinuousClock.Instant) -> Allowance {
    let seconds = max(0, (now - allowance.updated) / .seconds(1))
    return Allowance(left: min(burst, allowance.left + seconds * rate), updated: now)
  }
}

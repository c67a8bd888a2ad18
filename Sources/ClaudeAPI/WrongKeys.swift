import Synchronization

/// Slows those down who try keys: after many wrong ones from an address the next are refused unseen, so that even the
/// right one would not be found out.
///
/// Keys that were good at an address before stay good there, so that nobody is shut out by a neighbour who tries.
/// Clients on this machine are not slowed: in front of a proxy all are. What is remembered is bounded and forgotten
/// with the process.
final class WrongKeys: Sendable {
  struct Bounds: Sendable {
    /// Wrong keys of an address that are answered as such, one after the other.
    var burst = 100
    /// How many more each second.
    var perSecond = 1.0
  }

  private struct Record {
    var left: Double
    var updated: ContinuousClock.Instant
    /// Digests of keys that were good here.
    var known: [[UInt8]] = []
  }

  /// Twice as many are remembered at most.
  private static let recentAddresses = 5000
  private static let rememberedKeys = 16

  private let bounds: Bounds
  private let records = Mutex(Records())

  /// Records by address. When there are many, those that were not used since the last time there were are dropped.
  private struct Records {
    private var recent: [[UInt8]: Record] = [:]
    private var older: [[UInt8]: Record] = [:]

    subscript(network: [UInt8]) -> Record? { recent[network] ?? older[network] }

    mutating func set(_ network: [UInt8], _ record: Record) {
      if recent.count >= WrongKeys.recentAddresses, recent[network] == nil {
        older = recent
        recent = [:]
      }
      recent[network] = record
    }
  }

  init(_ bounds: Bounds = Bounds()) {
    self.bounds = bounds
  }

  /// - Parameter digest: of the key that the client shows; nil for what can't be a key.
  /// - Returns: after how many seconds the next key is looked at; nil if this one is.
  func refusal(_ address: String?, _ digest: [UInt8]?, at now: ContinuousClock.Instant = .now) -> Int? {
    guard let network = ClientAddress.network(address) else { return nil }
    return records.withLock { records in
      guard var record = records[network] else { return nil }
      refill(&record, now)
      records.set(network, record)
      if record.left >= 1 || digest.map({ record.known.contains($0) }) ?? false { return nil }
      return max(1, Int(((1 - record.left) / bounds.perSecond).rounded(.up)))
    }
  }

  func note(_ address: String?, good digest: [UInt8], at now: ContinuousClock.Instant = .now) {
    change(address, now) { record in
      guard !record.known.contains(digest) else { return }
      if record.known.count == Self.rememberedKeys { record.known.removeFirst() }
      record.known.append(digest)
    }
  }

  func noteWrong(_ address: String?, at now: ContinuousClock.Instant = .now) {
    change(address, now) { record in
      refill(&record, now)
      record.left = max(0, record.left - 1)
    }
  }

  private func change(_ address: String?, _ now: ContinuousClock.Instant, _ body: (inout Record) -> Void) {
    guard let network = ClientAddress.network(address) else { return }
    records.withLock { records in
      var record = records[network] ?? Record(left: Double(bounds.burst), updated: now)
      body(&record)
      records.set(network, record)
    }
  }

  private func refill(_ record: inout Record, _ now: ContinuousClock.Instant) {
    let seconds = (now - record.updated) / .seconds(1)
    record.left = min(Double(bounds.burst), record.left + max(0, seconds) * bounds.perSecond)
    record.updated = now
  }
}

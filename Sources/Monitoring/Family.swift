import Synchronization

/// One instrument for each value of a dimension, and never more than a fixed number of them.
///
/// What is found in it once can be kept. A look-up takes a lock for some ten nanoseconds.
public final class Family<Key: Hashable & Sendable, Instrument: Sendable>: Sendable {
  private let limit: Int
  private let overflow: Key
  private let make: @Sendable () -> Instrument
  private let instruments = Mutex<[Key: Instrument]>([:])

  /// - Parameters:
  ///   - limit: how many values have an instrument of their own; all further ones share that of `overflow`.
  public init(limit: Int, overflow: Key, make: @escaping @Sendable () -> Instrument) {
    self.limit = limit
    self.overflow = overflow
    self.make = make
  }

  public subscript(key: Key) -> Instrument {
    instruments.withLock { instruments in
      if let known = instruments[key] { return known }
      let key = instruments.count < limit ? key : overflow
      if let known = instruments[key] { return known }
      let new = make()
      instruments[key] = new
      return new
    }
  }

  /// All that there are at the moment, in no order.
  public var all: [(key: Key, value: Instrument)] { instruments.withLock { $0 }.map { ($0.key, $0.value) } }
}

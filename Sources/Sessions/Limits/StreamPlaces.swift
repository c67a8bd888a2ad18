import Synchronization

/// Counts the open streams of events, of all and of each key.
public final class StreamPlaces: Sendable {
  private let maximum: Int
  private let open = Mutex<(all: Int, byKey: [String: Int])>((0, [:]))

  /// - Parameter maximum: streams of all keys together.
  public init(maximum: Int) {
    self.maximum = maximum
  }

  /// How many there are of a key.
  public func count(of key: String) -> Int { open.withLock { $0.byKey[key] ?? 0 } }

  /// How many there are.
  public var count: Int { open.withLock { $0.all } }

  /// Takes a place for a stream, which is free again when the lease is gone.
  ///
  /// - Throws: `limited` or `streamsExhausted`.
  public func lease(_ accounts: [KeyAccount]) throws(SessionServiceError) -> Lease {
    let refusal: SessionServiceError? = open.withLock { open in
      for account in accounts {
        let used = Int64(open.byKey[account.key] ?? 0)
        if let maximum = account.limits[.streams], used >= maximum {
          return .limited(LimitExcess(.streams, maximum: maximum, used: used, at: .now()))
        }
      }
      if open.all >= maximum { return .streamsExhausted(maximum: maximum) }
      open.all += 1
      for account in accounts { open.byKey[account.key, default: 0] += 1 }
      return nil
    }
    if let refusal { throw refusal }
    return Lease(self, accounts.map(\.key))
  }

  fileprivate func release(_ keys: [String]) {
    open.withLock { open in
      open.all -= 1
      for key in keys {
        let left = (open.byKey[key] ?? 1) - 1
        open.byKey[key] = left > 0 ? left : nil
      }
    }
  }

  /// The place of one stream; whoever writes the stream keeps it.
  public final class Lease: Sendable {
    private let places: StreamPlaces
    private let keys: [String]

    fileprivate init(_ places: StreamPlaces, _ keys: [String]) {
      self.places = places
      self.keys = keys
    }

    deinit { places.release(keys) }
  }
}

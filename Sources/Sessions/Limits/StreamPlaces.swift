import Synchronization

/// How a stream of events gets to its client.
public enum StreamTransport: String, CaseIterable, Sendable {
  case serverSentEvents = "sse"
  case webSocket = "websocket"
}

/// Counts the open streams of events, of all, of each key and of each transport.
public final class StreamPlaces: Sendable {
  private struct Open {
    var byTransport: [StreamTransport: Int] = [:]
    var byKey: [String: Int] = [:]

    var all: Int { byTransport.values.reduce(0, +) }
  }

  private let maximum: Int
  private let open = Mutex(Open())

  /// - Parameter maximum: streams of all keys together.
  public init(maximum: Int) {
    self.maximum = maximum
  }

  /// How many there are of a key.
  public func count(of key: String) -> Int { open.withLock { $0.byKey[key] ?? 0 } }

  /// How many there are.
  public var count: Int { open.withLock { $0.all } }

  /// How many there are of a transport.
  public func count(over transport: StreamTransport) -> Int { open.withLock { $0.byTransport[transport] ?? 0 } }

  /// Takes a place for a stream, which is free again when the lease is gone.
  ///
  /// - Throws: `limited` or `streamsExhausted`.
  public func lease(
    _ accounts: [KeyAccount], over transport: StreamTransport
  ) throws(SessionServiceError) -> Lease {
    let refusal: SessionServiceError? = open.withLock { open in
      for account in accounts {
        let used = Int64(open.byKey[account.key] ?? 0)
        if let maximum = account.limits[.streams], used >= maximum {
          return .limited(LimitExcess(.streams, maximum: maximum, used: used, at: .now()))
        }
      }
      if open.all >= maximum { return .streamsExhausted(maximum: maximum) }
      open.byTransport[transport, default: 0] += 1
      for account in accounts { open.byKey[account.key, default: 0] += 1 }
      return nil
    }
    if let refusal { throw refusal }
    return Lease(self, accounts.map(\.key), transport)
  }

  fileprivate func release(_ keys: [String], _ transport: StreamTransport) {
    open.withLock { open in
      open.byTransport[transport, default: 1] -= 1
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
    private let transport: StreamTransport

    fileprivate init(_ places: StreamPlaces, _ keys: [String], _ transport: StreamTransport) {
      self.places = places
      self.keys = keys
      self.transport = transport
    }

    deinit { places.release(keys, transport) }
  }
}

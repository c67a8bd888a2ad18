public import Logging

extension KeyStore {
  /// Whether what was begun with a key may go on: it is neither revoked nor expired, and its secret is the same.
  ///
  /// - Parameter key: as it was at the beginning; nil for what was begun without one, which holds as long as there
  ///   are no keys at all.
  public func upholds(_ key: APIKey?) async throws(SessionStoreError) -> Bool {
    let found = try await lookUpKey(key?.id)
    guard let key else { return !found.hasKeys }
    guard let current = found.key else { return false }
    return current.isValid(at: .now()) && current.digest == key.digest
  }
}

/// Ends the streams of events, over whatever transport, whose keys are no longer good: each is looked at once a
/// second.
public struct StreamRevocation: Sendable {
  private let keys: any KeyStore
  private let hub: EventHub
  private let interval: Duration
  private let logger: Logger

  public init(keys: any KeyStore, hub: EventHub, interval: Duration = .seconds(1), logger: Logger) {
    self.keys = keys
    self.hub = hub
    self.interval = interval
    self.logger = logger
  }

  /// Runs until its task is cancelled.
  public func run() async {
    while true {
      do { try await Task.sleep(for: interval) } catch { return }
      for holder in hub.holders {
        do throws(SessionStoreError) {
          if try await !keys.upholds(holder) {
            hub.end(heldBy: holder)
            logger.info("Ended the streams of a key", metadata: ["key": "\(holder?.id ?? "-")"])
          }
        } catch {
          logger.error("The key of a stream could not be looked up", metadata: ["error": "\(error)"])
        }
      }
    }
  }
}

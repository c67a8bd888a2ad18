import Logging
import Sessions
import Synchronization

/// Gives the service manager's watchdog its signs of life, as long as there is life: in the thread that serves all
/// connections, in the store, and in the pool of threads that this itself runs on.
final class Watchdog: Sendable {
  private let timeout: Duration
  private let manager: ServiceManager
  private let store: any SessionStore
  private let logger: Logger
  private let lastBeat = Mutex(ContinuousClock.now)

  /// - Returns: nil if nobody watches.
  init?(_ manager: ServiceManager, _ store: any SessionStore, _ logger: Logger) {
    guard let timeout = manager.watchdogTimeout else { return nil }
    self.timeout = timeout
    self.manager = manager
    self.store = store
    self.logger = logger
  }

  /// To be called by the thread that is watched, several times in a time-out.
  func beat() { lastBeat.withLock { $0 = .now } }

  var heartbeatInterval: Duration { timeout / 8 }

  /// Runs until it is cancelled.
  func run() async {
    while !Task.isCancelled {
      let silence = ContinuousClock.now - lastBeat.withLock { $0 }
      if silence < timeout / 2 {
        await feed()
      } else {
        logger.error("The thread that serves connections is stuck", metadata: ["for": "\(silence)"])
      }
      do { try await Task.sleep(for: timeout / 4) } catch { return }
    }
  }

  private func feed() async {
    do throws(SessionStoreError) {
      // One that hangs keeps the signs of life away. One that refuses is no better after a restart.
      try await store.checkWritable()
    } catch {
      logger.error("The store can't be written", metadata: ["error": "\(error)"])
    }
    do throws(ServiceManager.Failure) {
      try manager.tell(.alive)
    } catch {
      logger.error("The watchdog can't be reached", metadata: ["error": "\(error)"])
    }
  }
}

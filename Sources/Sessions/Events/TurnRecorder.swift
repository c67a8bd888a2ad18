import JSONSupport
import Logging
import Synchronization

#if canImport(FoundationEssentials)
  import FoundationEssentials
#else
  import Foundation
#endif

/// Writes down what the agent says during one turn, and shows it after that.
final class TurnRecorder: Sendable {
  private let session: UUID
  private let turn: UUID
  private let mapper: Mutex<EventMapper>
  private let store: any SessionStore
  private let hub: EventHub
  private let patience: Duration
  private let logger: Logger

  init(_ turn: Turn, store: any SessionStore, hub: EventHub, patience: Duration, logger: Logger) {
    session = turn.sessionID
    self.turn = turn.id
    mapper = Mutex(EventMapper(turnID: turn.id))
    self.store = store
    self.hub = hub
    self.patience = patience
    self.logger = logger
  }

  /// Returns when the events of the message are in the store. To be called for one message after the other.
  func record(_ message: JSONValue) async {
    let previews = hub.wantsPreviews(of: session)
    let output = mapper.withLock { $0.map(message, previews: previews) }
    if let preview = output.preview { hub.publish(preview, of: session) }
    await append(output.events)
  }

  /// Closes what the agent left open.
  func finish() async {
    await append(mapper.withLock { $0.finish() })
  }

  private func append(_ events: [NewEvent]) async {
    if events.isEmpty { return }
    do throws(SessionStoreError) {
      let written = try await withPatience(patience) { () throws(SessionStoreError) in
        try await self.store.appendEvents(events, to: self.session)
      }
      hub.publish(written)
    } catch .sessionNotFound {
      // It has been deleted, and the turn is on its way to its end.
    } catch {
      logger.error(
        "Events could not be stored",
        metadata: [
          "session": "\(session.lowercaseString)", "turn": "\(turn.lowercaseString)", "events": "\(events.count)",
          "error": "\(error)",
        ])
    }
  }
}

/// Does again for a while what fails because the store can't be written at the moment, as when the disk is full.
///
/// - Parameter mayGoOn: whether another attempt makes sense.
func withPatience<Value: Sendable>(
  _ patience: Duration, isolation: isolated (any Actor)? = #isolation, while mayGoOn: () -> Bool = { true },
  _ body: () async throws(SessionStoreError) -> Value
) async throws(SessionStoreError) -> Value {
  let deadline = ContinuousClock.now + patience
  var pause = Duration.milliseconds(50)
  while true {
    do throws(SessionStoreError) {
      return try await body()
    } catch {
      switch error {
      case .diskFull, .busy, .io: break
      default: throw error
      }
      // A cancelled task can't sleep, and so doesn't try again.
      guard ContinuousClock.now < deadline, !Task.isCancelled, mayGoOn() else { throw error }
    }
    try? await Task.sleep(for: pause)
    pause = min(pause * 2, .seconds(2))
  }
}

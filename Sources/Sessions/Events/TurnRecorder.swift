import JSONSupport
import Logging
import Synchronization

#if canImport(FoundationEssentials)
  import FoundationEssentials
#else
  import Foundation
#endif

/// Writes down what the agent says during one turn, and shows it after that.
///
/// What can't be stored is tried again until it can, and the agent waits: the log of a turn has no hole. Where that is
/// given up, nothing more of the turn is written. Nor is it when the agent has said more than a turn may leave in the log;
/// then the turn has to be ended, and its end says so.
final class TurnRecorder: Sendable {
  private struct State {
    var mapper: EventMapper
    /// Tries again what could not be stored.
    var retry: Task<Void, Never>?
    var hasGivenUp = false
    /// Whether something is missing in the log.
    var isTorn = false
    /// Bytes of what was recorded.
    var bytes = 0
    /// Whether there was more than may be.
    var isFull = false
  }

  private let session: UUID
  private let turn: UUID
  private let maximumBytes: Int
  private let state: Mutex<State>
  private let store: any SessionStore
  private let hub: EventHub
  private let logger: Logger

  /// - Parameter maximumBytes: the bytes of events that the turn may leave in the log, those of its beginning and end not
  ///   counted.
  init(_ turn: Turn, maximumBytes: Int, store: any SessionStore, hub: EventHub, logger: Logger) {
    session = turn.sessionID
    self.turn = turn.id
    self.maximumBytes = maximumBytes
    state = Mutex(State(mapper: EventMapper(turnID: turn.id)))
    self.store = store
    self.hub = hub
    self.logger = logger
  }

  /// Returns when the events of the message are in the store. To be called for one message after the other.
  func record(_ message: JSONValue) async {
    let previews = hub.wantsPreviews(of: session)
    let output = state.withLock { $0.mapper.map(message, previews: previews) }
    if let preview = output.preview { hub.publish(preview, of: session) }
    if mayRecord(output.events) { await append(output.events) }
  }

  /// Returns when an event is in the store that isn't the agent's own. To be called between its messages.
  func record(_ event: NewEvent) async {
    if mayRecord([event]) { await append([event]) }
  }

  /// Whether the agent has said more than the turn may leave in the log. What came after that isn't there.
  var isFull: Bool { state.withLock { $0.isFull } }

  private func mayRecord(_ events: [NewEvent]) -> Bool {
    let bytes = events.reduce(0) { $0 + $1.payload.utf8.count }
    return state.withLock { state in
      // Nothing after the first that doesn't fit, however short it is: what there is has no hole.
      if state.bytes + bytes > maximumBytes { state.isFull = true }
      if !state.isFull { state.bytes += bytes }
      return !state.isFull
    }
  }

  /// Closes what the agent left open. To be called when the turn is over, be it while a message is being recorded.
  func finish() async {
    await state.withLock { $0.retry }?.value
    await append(state.withLock { $0.mapper.finish() })
  }

  /// Tries no more what can't be stored, because the server is about to end or the session to be deleted.
  func giveUp() {
    state.withLock { state in
      state.hasGivenUp = true
      state.retry?.cancel()
    }
  }

  private func append(_ events: [NewEvent]) async {
    if events.isEmpty || state.withLock({ $0.isTorn }) { return }
    do throws(SessionStoreError) {
      hub.publish(try await store.appendEvents(events, to: session))
    } catch {
      guard error.isPassing else { return lose(events, error) }
      // A task of its own: that of the agent's reader may be cancelled when the agent is gone.
      let retry = state.withLock { state in
        if state.hasGivenUp { return nil as Task<Void, Never>? }
        let retry = Task { await self.insist(events) }
        state.retry = retry
        return retry
      }
      guard let retry else { return lose(events, error) }
      logger.error("Events can't be stored yet, which is tried again", metadata: metadata(events, error))
      await retry.value
    }
  }

  private func insist(_ events: [NewEvent]) async {
    do throws(SessionStoreError) {
      let written = try await withPatience(nil) { () throws(SessionStoreError) in
        try await self.store.appendEvents(events, to: self.session)
      }
      hub.publish(written)
    } catch {
      lose(events, error)
    }
  }

  private func lose(_ events: [NewEvent], _ error: SessionStoreError) {
    state.withLock { $0.isTorn = true }
    // It has been deleted, and the turn is on its way to its end.
    if case .sessionNotFound = error { return }
    logger.error("Events are lost that could not be stored", metadata: metadata(events, error))
  }

  private func metadata(_ events: [NewEvent], _ error: SessionStoreError) -> Logger.Metadata {
    [
      "session": "\(session.lowercaseString)", "turn": "\(turn.lowercaseString)", "events": "\(events.count)",
      "error": "\(error)",
    ]
  }
}

/// Does again for a while what fails because the store can't be written at the moment, as when the disk is full.
///
/// - Parameters:
///   - patience: how long; nil for as long as it takes.
///   - mayGoOn: whether another attempt makes sense.
///   - onFailure: told of the first failure that is followed by another attempt.
func withPatience<Value: Sendable>(
  _ patience: Duration?, isolation: isolated (any Actor)? = #isolation, while mayGoOn: () -> Bool = { true },
  onFailure: (SessionStoreError) -> Void = { _ in },
  _ body: () async throws(SessionStoreError) -> Value
) async throws(SessionStoreError) -> Value {
  let deadline = patience.map { ContinuousClock.now + $0 }
  var pause = Duration.milliseconds(50)
  while true {
    do throws(SessionStoreError) {
      return try await body()
    } catch {
      // A cancelled task can't sleep, and so doesn't try again.
      guard error.isPassing, deadline.map({ .now < $0 }) ?? true, !Task.isCancelled, mayGoOn() else { throw error }
      if pause == .milliseconds(50) { onFailure(error) }
    }
    try? await Task.sleep(for: pause)
    pause = min(pause * 2, .seconds(2))
  }
}

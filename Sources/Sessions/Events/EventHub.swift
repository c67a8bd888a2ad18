import NIOCore
import Synchronization

#if canImport(FoundationEssentials)
  public import FoundationEssentials
#else
  public import Foundation
#endif

/// The bounds of an ``EventHub``.
public struct EventHubConfiguration: Sendable {
  /// Events that wait for a slow reader; one more, and its stream ends. Default 1,024.
  public var maximumBufferedEvents = 1024

  /// Bytes that wait for a slow reader; with more its stream ends. A single event may be larger. Default 1 MiB.
  public var maximumBufferedBytes = 1 << 20

  /// The shortest time between two deliveries of previews of one session. Those that come faster are handed on
  /// together, since a delivery of many costs each reader, and nginx, as much as one of a single one. Default 5 ms.
  public var previewInterval = Duration.milliseconds(5)

  /// How often a stream at rest shows that it is alive. Default 15 s.
  public var heartbeatInterval: Duration = .seconds(15)

  public init() {}
}

/// Tells the readers of sessions what has been written to the logs.
///
/// It is told of events after they are in the store, and hands them to every reader's own bounded buffer without
/// ever waiting. An event that it isn't told of, or in the wrong order, is no loss: readers see by the numbers that
/// one is missing and take it from the store. One timer serves the heartbeats of all readers.
public final class EventHub: Sendable {
  private struct Channel {
    var readers: [UInt64: EventReader] = [:]
    var previewReaders = 0
    let previews = PreviewBatch()
  }

  private struct State {
    var channels: [UUID: Channel] = [:]
    /// How many readers there are by the right of each key.
    var holders: [APIKey?: Int] = [:]
    /// All readers, spread over the ticks of a heartbeat's interval.
    var buckets: [[UInt64: EventReader]]
    var nextBucket = 0
    var lastReader: UInt64 = 0
    var timer: Task<Void, Never>?
    var isEnded = false
  }

  private static let bucketCount = 16

  private let configuration: EventHubConfiguration
  private let state: Mutex<State>

  public init(configuration: EventHubConfiguration = EventHubConfiguration()) {
    self.configuration = configuration
    state = Mutex(State(buckets: Array(repeating: [:], count: Self.bucketCount)))
  }

  deinit {
    state.withLock { $0.timer?.cancel() }
  }

  /// How many streams are being read.
  public var readerCount: Int { state.withLock { $0.buckets.reduce(0) { $0 + $1.count } } }

  /// Tells of events of one session that are in its log now, in their order.
  public func publish(_ events: [Event]) {
    guard let session = events.first?.sessionID, let (readers, previews) = audience(of: session) else { return }
    let frames = LazyFrames(events)
    previews.withLock { previews in
      // What was shown before comes before.
      previews.deliver(to: readers)
      for reader in readers { reader.offer(frames) }
    }
  }

  /// Whether anybody wants the previews of a session, so that they are worth making.
  public func wantsPreviews(of session: UUID) -> Bool {
    state.withLock { ($0.channels[session]?.previewReaders ?? 0) > 0 }
  }

  public func publish(_ preview: EventPreview, of session: UUID) {
    guard let (readers, previews) = audience(of: session), readers.contains(where: \.wantsPreviews) else { return }
    let frame = EventFrame(preview, session: session)
    let wait: Duration? = previews.withLock { previews in
      previews.add(frame)
      if previews.isScheduled, !previews.isFull { return nil }
      let elapsed = previews.delivered.map { ContinuousClock.now - $0 } ?? configuration.previewInterval
      guard elapsed < configuration.previewInterval, !previews.isFull else {
        previews.deliver(to: readers)
        return nil
      }
      previews.isScheduled = true
      return configuration.previewInterval - elapsed
    }
    guard let wait else { return }
    Task { [weak self] in
      do { try await Task.sleep(for: wait) } catch { return }
      let readers = self?.audience(of: session)?.readers ?? []
      previews.withLock { previews in
        previews.isScheduled = false
        previews.deliver(to: readers)
      }
    }
  }

  private func audience(of session: UUID) -> (readers: [EventReader], previews: PreviewBatch)? {
    state.withLock { state in
      state.channels[session].map { (Array($0.readers.values), $0.previews) }
    }
  }

  /// Ends the streams of a session that has been deleted, with a last frame that says so.
  public func end(_ session: UUID) {
    let readers = state.withLock { state in state.channels[session].map { Array($0.readers.values) } ?? [] }
    for reader in readers { reader.end(.terminated) }
  }

  /// Ends all streams, now and later, because the server is about to stop. Their clients come back with their
  /// cursors.
  public func endAll() {
    let readers = state.withLock { state in
      state.isEnded = true
      return state.buckets.flatMap(\.values)
    }
    for reader in readers { reader.end(.shuttingDown) }
  }

  /// The keys by whose right streams are read, nil among them if there are streams that need none.
  var holders: [APIKey?] { state.withLock { Array($0.holders.keys) } }

  /// Ends the streams that are read by the right of a key.
  func end(heldBy holder: APIKey?) {
    let readers = state.withLock { state in
      state.buckets.flatMap(\.values).filter { $0.holder == holder }
    }
    for reader in readers { reader.end(.revoked) }
  }

  // MARK: Readers

  /// Adds a reader, which is behind until it says otherwise. It must be removed.
  func add(to session: UUID, wantsPreviews: Bool, holder: APIKey?) -> EventReader {
    state.withLock { state in
      state.lastReader += 1
      let reader = EventReader(
        number: state.lastReader, session: session, wantsPreviews: wantsPreviews, holder: holder,
        bounds: configuration)
      state.holders[holder, default: 0] += 1
      if state.isEnded { reader.end(.shuttingDown) }
      state.channels[session, default: Channel()].readers[reader.number] = reader
      if wantsPreviews { state.channels[session]?.previewReaders += 1 }
      state.buckets[Int(reader.number % UInt64(Self.bucketCount))][reader.number] = reader
      if state.timer == nil {
        let pause = configuration.heartbeatInterval / Self.bucketCount
        state.timer = Task { [weak self] in
          while true {
            do { try await Task.sleep(for: pause) } catch { return }
            guard let self, self.beat() else { return }
          }
        }
      }
      return reader
    }
  }

  func remove(_ reader: EventReader) {
    state.withLock { state in
      guard state.channels[reader.session]?.readers.removeValue(forKey: reader.number) != nil else { return }
      if reader.wantsPreviews { state.channels[reader.session]?.previewReaders -= 1 }
      let remaining = state.holders[reader.holder, default: 1] - 1
      state.holders[reader.holder] = remaining > 0 ? remaining : nil
      if state.channels[reader.session]?.readers.isEmpty == true { state.channels[reader.session] = nil }
      state.buckets[Int(reader.number % UInt64(Self.bucketCount))][reader.number] = nil
    }
  }

  /// Sends the heartbeats that are due; false when nobody is left to send them to.
  private func beat() -> Bool {
    let due: [EventReader]? = state.withLock { state in
      if state.buckets.allSatisfy(\.isEmpty) {
        state.timer = nil
        return nil
      }
      state.nextBucket = (state.nextBucket + 1) % Self.bucketCount
      return Array(state.buckets[state.nextBucket].values)
    }
    guard let due else { return false }
    for reader in due { reader.offerHeartbeat() }
    return true
  }
}

/// Previews of one session that wait to be handed on together. Whoever tells its readers of anything holds the lock, so
/// that all comes in order.
private final class PreviewBatch: Sendable {
  struct State {
    private(set) var delivered: ContinuousClock.Instant?
    var isScheduled = false
    private var frames: [EventFrame] = []
    private var bytes = 0

    var isFull: Bool { frames.count >= 64 || bytes >= 64 << 10 }

    mutating func add(_ frame: EventFrame) {
      frames.append(frame)
      bytes += frame.serverSentEvent.readableBytes
    }

    mutating func deliver(to readers: [EventReader]) {
      if frames.isEmpty { return }
      for reader in readers where reader.wantsPreviews { reader.offer(previews: frames) }
      frames = []
      bytes = 0
      delivered = .now
    }
  }

  private let state = Mutex(State())

  func withLock<T>(_ body: (inout State) -> T) -> T { state.withLock { body(&$0) } }
}

/// Events whose frames are made when the first reader wants them.
final class LazyFrames: Sendable {
  let events: [Event]
  private let made = Mutex<[EventFrame]?>(nil)

  init(_ events: [Event]) {
    self.events = events
  }

  var frames: [EventFrame] {
    made.withLock { made in
      if let made { return made }
      let frames = events.map { EventFrame($0) }
      made = frames
      return frames
    }
  }
}

/// The place of one reader in the hub: what waits for it, within bounds.
final class EventReader: Sendable {
  typealias End = EventStream.Ending

  private struct State {
    /// A reader that isn't live reads the log in the store, and is only told that there is more.
    var isLive = false
    var hasNews = false
    var frames: [EventFrame] = []
    var bytes = 0
    var end: End?
    var waiter: CheckedContinuation<Void, Never>?

    mutating func takeWaiter() -> CheckedContinuation<Void, Never>? {
      defer { waiter = nil }
      return waiter
    }
  }

  let number: UInt64
  let session: UUID
  let wantsPreviews: Bool
  let holder: APIKey?
  private let maximumEvents: Int
  private let maximumBytes: Int
  private let state = Mutex(State())

  init(
    number: UInt64, session: UUID, wantsPreviews: Bool, holder: APIKey?, bounds: EventHubConfiguration
  ) {
    self.number = number
    self.session = session
    self.wantsPreviews = wantsPreviews
    self.holder = holder
    maximumEvents = bounds.maximumBufferedEvents
    maximumBytes = bounds.maximumBufferedBytes
  }

  // MARK: The hub's side

  func offer(_ new: LazyFrames) {
    let waiter: CheckedContinuation<Void, Never>? = state.withLock { state in
      guard state.end == nil else { return nil }
      guard state.isLive else {
        state.hasNews = true
        return nil
      }
      for frame in new.frames { add(frame, &state) }
      return state.takeWaiter()
    }
    waiter?.resume()
  }

  func offer(previews: [EventFrame]) {
    let waiter: CheckedContinuation<Void, Never>? = state.withLock { state in
      guard state.isLive, state.end == nil else { return nil }
      for frame in previews {
        // They are worth nothing to who is late, and must not be the cause of an overrun.
        guard state.frames.count < maximumEvents / 2, state.bytes < maximumBytes / 2 else { break }
        add(frame, &state)
      }
      return state.frames.isEmpty ? nil : state.takeWaiter()
    }
    waiter?.resume()
  }

  func offerHeartbeat() {
    let waiter: CheckedContinuation<Void, Never>? = state.withLock { state in
      guard let waiter = state.takeWaiter() else { return nil }
      add(.heartbeat, &state)
      return waiter
    }
    waiter?.resume()
  }

  private func add(_ frame: EventFrame, _ state: inout State) {
    guard state.end == nil else { return }
    let size = frame.serverSentEvent.readableBytes
    if !state.frames.isEmpty, state.frames.count >= maximumEvents || state.bytes + size > maximumBytes {
      state.frames = []
      state.bytes = 0
      state.end = .tooSlow
      return
    }
    state.frames.append(frame)
    state.bytes += size
  }

  /// Ends the reader after what waits for it. The first reason holds.
  func end(_ end: End) {
    let waiter = state.withLock { state in
      if state.end == nil { state.end = end }
      return state.takeWaiter()
    }
    waiter?.resume()
  }

  // MARK: The reader's side

  /// To be called before the store is read: what is published from here on is news.
  func beginReading() -> End? {
    state.withLock { state in
      state.hasNews = false
      return state.end
    }
  }

  /// Becomes live, unless there is news that the store has to be asked for.
  func goLive() -> Bool {
    state.withLock { state in
      if state.hasNews { return false }
      state.isLive = true
      return true
    }
  }

  func fallBehind() {
    state.withLock { state in
      state.isLive = false
      state.frames = []
      state.bytes = 0
    }
  }

  /// Waits until there is something and takes all of it; with nothing, the end has come.
  func take() async -> (frames: [EventFrame], end: End?) {
    await withTaskCancellationHandler {
      await withCheckedContinuation { (continuation: CheckedContinuation<Void, Never>) in
        let isReady = state.withLock { state in
          if !state.frames.isEmpty || state.end != nil { return true }
          state.waiter = continuation
          return false
        }
        if isReady { continuation.resume() }
      }
    } onCancel: {
      end(.cancelled)
    }
    return state.withLock { state in
      defer {
        // Without its capacity: a reader at rest holds no memory for a burst that is over.
        state.frames = []
        state.bytes = 0
      }
      return (state.frames, state.frames.isEmpty ? state.end : nil)
    }
  }
}

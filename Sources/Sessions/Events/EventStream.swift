#if canImport(FoundationEssentials)
  public import FoundationEssentials
#else
  public import Foundation
#endif

/// The events of a session from a place in its log on, as they come.
///
/// Every event of the log comes exactly once and in order, whatever was written while the stream was set up or
/// fell behind. Making one costs nothing; reading begins with the iterator. A class, since whoever waits for an event
/// would hold several copies of what was selected.
public final class EventStream: Sendable {
  /// Which part of a session's events to read.
  public struct Selection: Hashable, Sendable {
    /// Only events with greater numbers; 0 for all.
    public var after: Int64
    /// Only events of the log of these types; nil for all.
    public var types: Set<String>?
    /// Only events of this turn. The stream ends with it.
    public var turn: UUID?
    public var previews: Bool
    /// The key by whose right the stream is read; nil where no key is needed.
    public var holder: APIKey?

    public init(
      after: Int64 = 0, types: Set<String>? = nil, turn: UUID? = nil, previews: Bool = true, holder: APIKey? = nil
    ) {
      self.after = after
      self.types = types
      self.turn = turn
      self.previews = previews
      self.holder = holder
    }
  }

  /// Why a stream has ended.
  public enum Ending: Sendable {
    /// The session was deleted.
    case terminated
    /// The selected turn has ended.
    case turnEnded
    /// The reader didn't keep up. It can go on after the last event that it has.
    case tooSlow
    /// The right by which it was read is no more.
    case revoked
    /// The server stops.
    case shuttingDown
    /// The reader's task was cancelled.
    case cancelled
  }

  private let session: UUID
  private let selection: Selection
  private let log: any EventLogReader
  private let hub: EventHub
  private let lease: StreamPlaces.Lease?

  /// Events that are read from the store at a time, at most.
  private static let pageSize = 200

  /// - Parameter lease: the stream's place among all streams, which it keeps as long as it is there.
  public init(
    session: UUID, selection: Selection, log: any EventLogReader, hub: EventHub, lease: StreamPlaces.Lease? = nil
  ) {
    self.lease = lease
    self.session = session
    self.selection = selection
    self.log = log
    self.hub = hub
  }

  /// Events of the log after one of them, and how far it was looked through.
  private func page(after: Int64) async -> Result<(StorePage<Event>, Int64), SessionStoreError> {
    do throws(SessionStoreError) {
      // With a choice of types the page doesn't tell how far the log has been looked through; this does.
      let seen = selection.types == nil ? after : try await log.lastSequence(of: session)
      let events = try await log.events(
        of: session, after: after, limit: Self.pageSize, types: selection.types)
      return .success((events, seen))
    } catch {
      return .failure(error)
    }
  }

  /// Begins to read. `close()` must be called at the end.
  public func makeIterator() -> Iterator { Iterator(self) }

  public struct Iterator {
    private let stream: EventStream
    private let reader: EventReader
    private var last: Int64
    private var isBehind = true
    /// Why the stream has ended; nil while it goes on.
    public private(set) var ending: Ending?

    fileprivate init(_ stream: EventStream) {
      self.stream = stream
      last = stream.selection.after
      reader = stream.hub.add(
        to: stream.session, wantsPreviews: stream.selection.previews, holder: stream.selection.holder)
    }

    /// Lets go of the place in the hub. May be called more than once.
    public func close() { stream.hub.remove(reader) }

    /// What has come, at least one frame; nil at the end of the stream, for the reason that `ending` tells.
    ///
    /// - Throws: ``SessionStoreError`` when the log can't be read.
    public mutating func next() async throws(SessionStoreError) -> [EventFrame]? {
      while ending == nil {
        let frames = isBehind ? try await readLog() : await readLive()
        if !frames.isEmpty { return frames }
      }
      return nil
    }

    private mutating func readLog() async throws(SessionStoreError) -> [EventFrame] {
      if let end = reader.beginReading(), end != .terminated {
        ending = end
        return []
      }
      let (stream, after) = (stream, last)
      // In a task of its own: what a read of the store takes, this one would keep for as long as the stream lasts.
      let page = await Task { await stream.page(after: after) }.value
      let (found, seen): (StorePage<Event>, Int64)
      do throws(SessionStoreError) {
        (found, seen) = try page.get()
      } catch {
        guard case .sessionNotFound = error else { throw error }
        ending = .terminated
        return [.terminated(stream.session)]
      }
      last = found.items.last?.sequence ?? last
      if !found.hasMore {
        last = max(last, seen)
        isBehind = !reader.goLive()
      }
      return selected(found.items.lazy.map { EventFrame($0) })
    }

    private mutating func readLive() async -> [EventFrame] {
      let (frames, end) = await reader.take()
      if let end {
        ending = end
        return end == .terminated ? [.terminated(stream.session)] : []
      }
      var next: [EventFrame] = []
      next.reserveCapacity(frames.count)
      for frame in frames {
        guard case .event(let sequence) = frame.kind else {
          next.append(frame)
          continue
        }
        if sequence <= last { continue }
        guard sequence == last + 1 else {
          // The log has what is missing, and what has come after it.
          reader.fallBehind()
          isBehind = true
          break
        }
        last = sequence
        if stream.selection.types?.contains(frame.type) ?? true { next.append(frame) }
      }
      return selected(next)
    }

    /// The frames of the turn, if there is a choice, up to its end.
    private mutating func selected(_ frames: some Sequence<EventFrame>) -> [EventFrame] {
      guard let turn = stream.selection.turn else { return Array(frames) }
      var selected: [EventFrame] = []
      for frame in frames where frame.turnID == turn || frame.kind == .heartbeat {
        selected.append(frame)
        if EventLog.endsTurn(frame.type) {
          ending = .turnEnded
          break
        }
      }
      return selected
    }
  }
}

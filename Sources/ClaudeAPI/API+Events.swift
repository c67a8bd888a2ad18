import HTTPTypes
import Hummingbird
import NIOCore
import Sessions

#if canImport(FoundationEssentials)
  import FoundationEssentials
#else
  import Foundation
#endif

extension API {
  func addEventRoutes(to router: Router<Context>, _ routes: inout RouteTable) {
    routes.add(
      .get, "/sessions/{session_id}/events", "Read the event log, or follow it as text/event-stream", for: .read,
      to: router,
      events)
    routes.add(
      .get, "/sessions/{session_id}/messages", "Read the conversation", for: .read, to: router, conversation)
  }

  private func events(_ request: Request, _ context: Context) async throws -> Response {
    let id = try Self.sessionID(context)
    let query = try QueryFields(request, known: ["after", "deltas", "limit", "stream", "types"])
    let types = try Self.types(query)
    let previews = try Self.previews(query)
    let limit = try query.integer("limit", in: 1...1000)
    let isStream = try query.boolean("stream") ?? AnswerPreference.acceptsEventStream(request.headers)
    let last = try await service.lastSequence(of: id)
    let after = try Self.cursor(request.headers[.lastEventID], query, last: last)
    if isStream {
      if limit != nil { throw QueryFields.invalid("limit", "is for pages; a stream has no limit") }
      return Self.eventStream(
        service.eventStream(
          of: id, .init(after: after, types: types, previews: previews, holder: Principal.current?.key),
          lease: try await leaseStream(of: id, over: .serverSentEvents)))
    }
    let page = try await service.events(of: id, after: after, limit: limit ?? 100, types: types)
    var json = JSONWriter(capacity: 128 + page.items.reduce(0) { $0 + $1.payload.utf8.count + 256 })
    json.object { json in
      json.field("events", array: page.items) { json, event in json.raw { event.writeJSON(to: &$0) } }
      json.field("has_more", page.hasMore)
      // After the last page it isn't the last of the chosen types that counts, but how far the log was read.
      let reached = page.items.last?.sequence ?? after
      json.field("next", page.hasMore ? reached : max(reached, last))
      json.field("last", max(reached, last))
    }
    return Self.json(json.finish())
  }

  private func conversation(_ request: Request, _ context: Context) async throws -> Response {
    let id = try Self.sessionID(context)
    let query = try QueryFields(request, known: ["after", "limit"])
    let limit = try query.integer("limit", in: 1...1000) ?? 100
    let last = try await service.lastSequence(of: id)
    let after = try Self.cursor(nil, query, last: last)
    let page = try await service.events(of: id, after: after, limit: limit, types: ConversationEntry.eventTypes)
    var entries = ConversationEntry.entries(of: page.items)
    var reached = page.items.last?.sequence ?? after
    if page.hasMore, entries.count > 1, let last = entries.last, last.role == "assistant" {
      // More of its tool calls may come: it begins the next page, so that it stays whole.
      entries.removeLast()
      reached = last.sequence - 1
    }
    var json = JSONWriter(capacity: 4096)
    json.object { json in
      json.field("messages", array: entries) { json, entry in json.object { $0.members(entry) } }
      json.field("has_more", page.hasMore)
      json.field("next", page.hasMore ? reached : max(reached, last))
    }
    return Self.json(json.finish())
  }

  // MARK: Parts

  /// Which events the request for a socket asks for; the same as for a stream.
  func eventSelection(_ request: Request, of id: UUID) async throws -> EventStream.Selection {
    let query = try QueryFields(request, known: Self.socketQuery)
    let last = try await service.lastSequence(of: id)
    return EventStream.Selection(
      after: try Self.cursor(request.headers[.lastEventID], query, last: last), types: try Self.types(query),
      previews: try Self.previews(query))
  }

  /// Checks of it what can be checked without a look at the session.
  static func checkEventQuery(_ request: Request) throws(Problem) {
    let query = try QueryFields(request, known: socketQuery)
    _ = try types(query)
    _ = try previews(query)
  }

  private static let socketQuery = ["after", "deltas", "types"]

  private static func previews(_ query: QueryFields) throws(Problem) -> Bool { try query.boolean("deltas") ?? true }

  /// The number of the event after which to go on: what a reconnecting `EventSource` sends wins over the query,
  /// which was written when it connected for the first time.
  private static func cursor(
    _ lastEventID: String?, _ query: QueryFields, last: Int64
  ) throws(Problem) -> Int64 {
    let after: Int64
    if let lastEventID, !lastEventID.isEmpty {
      guard let number = Int64(lastEventID), number >= 0 else {
        throw Problem(
          .invalidCursor, "The header Last-Event-ID must be the number of an event of this session.")
      }
      after = number
    } else if try query.text("after") == "latest" {
      after = last
    } else {
      after = try query.integer("after", in: 0...Int64.max) ?? 0
    }
    guard after <= last else {
      throw Problem(
        .unknownCursor, "There is no event \(after) in this session; its last one is \(last).")
    }
    return after
  }

  private static func types(_ query: QueryFields) throws(Problem) -> Set<String>? {
    guard let text = try query.text("types") else { return nil }
    let types = text.split(separator: ",", omittingEmptySubsequences: false).map(String.init)
    guard types.count <= 64,
      types.allSatisfy({ type in
        (1...64).contains(type.utf8.count)
          && type.utf8.allSatisfy {
            (UInt8(ascii: "a")...UInt8(ascii: "z")).contains($0) || $0 == UInt8(ascii: ".") || $0 == UInt8(ascii: "_")
          }
      })
    else {
      throw QueryFields.invalid("types", "must be names of event types such as agent.message, with commas between")
    }
    return Set(types)
  }

  /// An answer that goes on until the stream of events ends.
  ///
  /// Its head is sent before the first event. Where a client should go on after a lost connection is in the `id`
  /// of the events; when it should try again in `retry`.
  static func eventStream(_ stream: EventStream, _ headers: HTTPFields = [:]) -> Response {
    var headers = headers
    headers[.contentType] = "text/event-stream"
    headers[.cacheControl] = "no-store"
    headers[.accelBuffering] = "no"
    return Response(
      status: .ok, headers: headers,
      body: ResponseBody { writer in
        var events = stream.makeIterator()
        defer { events.close() }
        try await writer.write(Self.streamHead)
        while let frames = try await events.next() {
          for part in Self.parts(of: frames) { try await writer.write(part) }
        }
        switch events.ending {
        case .tooSlow: try await writer.write(Self.tooSlow)
        case .revoked: try await writer.write(Self.revoked)
        default: break
        }
        try await writer.finish(nil)
      })
  }

  private static let streamHead = ByteBuffer(string: "retry: 1000\n\n")
  private static let tooSlow = ByteBuffer(string: ": too slow; connect again with the last id\n\n")
  private static let revoked = ByteBuffer(string: ": the key is not valid any more\n\n")

  /// Frames in as few buffers as is sensible. A single one isn't copied.
  private static func parts(of frames: [EventFrame]) -> [ByteBuffer] {
    if frames.count == 1 { return [frames[0].serverSentEvent] }
    var parts: [ByteBuffer] = []
    var part = ByteBuffer()
    for frame in frames {
      part.writeImmutableBuffer(frame.serverSentEvent)
      if part.readableBytes >= 32 << 10 {
        parts.append(part)
        part = ByteBuffer()
      }
    }
    if part.readableBytes > 0 { parts.append(part) }
    return parts
  }
}

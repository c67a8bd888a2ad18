import JSONSupport
public import NIOCore

#if canImport(FoundationEssentials)
  public import FoundationEssentials
#else
  public import Foundation
#endif

/// What the agent is about to say, shown before it is whole. It isn't kept and has no number.
public struct EventPreview: Hashable, Sendable {
  /// `event_start` or `event_delta`.
  public var type: String
  public var turnID: UUID?
  /// An object.
  public var payload: JSONText

  public init(type: String, turnID: UUID?, payload: JSONText) {
    self.type = type
    self.turnID = turnID
    self.payload = payload
  }
}

/// One entry of a stream of events, encoded once and shared by all who read it.
public final class EventFrame: Sendable {
  public enum Kind: Hashable, Sendable {
    /// An entry of the log.
    case event(sequence: Int64)
    /// Something that can't be had a second time.
    case preview
    /// Nothing, to show that the stream is alive.
    case heartbeat
    /// The session is gone, and the stream ends.
    case terminated
  }

  public let kind: Kind
  public let type: String
  public let turnID: UUID?
  /// The JSON object, on one line; empty for a heartbeat.
  public let json: ByteBuffer
  /// The same as an entry of a `text/event-stream`. Only entries of the log have an `id`, which is their number.
  public let serverSentEvent: ByteBuffer

  public init(_ event: Event) {
    kind = .event(sequence: event.sequence)
    type = event.type
    turnID = event.turnID
    (serverSentEvent, json) = Self.encode(
      id: event.sequence, type: event.type, size: event.payload.utf8.count + 256, event.writeJSON)
  }

  public init(_ preview: EventPreview, session: UUID) {
    kind = .preview
    type = preview.type
    turnID = preview.turnID
    (serverSentEvent, json) = Self.encode(id: nil, type: preview.type, size: preview.payload.utf8.count + 256) {
      Event.writeJSON(
        [
          ("type", preview.type), ("session_id", session.lowercaseString), ("turn_id", preview.turnID?.lowercaseString),
        ],
        preview.payload, to: &$0)
    }
  }

  private init() {
    kind = .heartbeat
    type = ""
    turnID = nil
    json = ByteBuffer()
    serverSentEvent = ByteBuffer(string: ": keep-alive\n\n")
  }

  private init(terminated session: UUID) {
    kind = .terminated
    type = "session.status_terminated"
    turnID = nil
    (serverSentEvent, json) = Self.encode(id: nil, type: type, size: 256) {
      Event.writeJSON(
        [
          ("type", "session.status_terminated"), ("session_id", session.lowercaseString),
          ("processed_at", Timestamp.now().description),
        ], "{}", to: &$0)
    }
  }

  static let heartbeat = EventFrame()
  static func terminated(_ session: UUID) -> EventFrame { EventFrame(terminated: session) }

  private static func encode(
    id: Int64?, type: String, size: Int, _ json: (inout ByteBuffer) -> Void
  ) -> (ByteBuffer, ByteBuffer) {
    var buffer = ByteBuffer()
    buffer.reserveCapacity(size)
    if let id { buffer.writeString("id: \(id)\n") }
    buffer.writeString("event: \(type)\ndata: ")
    let start = buffer.writerIndex
    json(&buffer)
    let length = buffer.writerIndex - start
    buffer.writeStaticString("\n\n")
    return (buffer, buffer.getSlice(at: start, length: length) ?? ByteBuffer())
  }
}

extension Event {
  /// The id that clients see. The order of the ids of a session, as texts, is the order of its events.
  public var id: String {
    let digits = String(sequence)
    return "evt_" + String(repeating: "0", count: max(0, 12 - digits.utf8.count)) + digits
  }

  /// Appends the event as clients see it: a JSON object on one line, with the members of the payload in it.
  public func writeJSON(to buffer: inout ByteBuffer) {
    buffer.writeString("{\"id\":\"\(id)\",\"sequence\":\(sequence),")
    Self.writeMembers(
      [
        ("type", type), ("session_id", sessionID.lowercaseString), ("turn_id", turnID?.lowercaseString),
        ("processed_at", processedAt.description),
      ], payload, to: &buffer)
  }

  fileprivate static func writeJSON(
    _ members: [(String, String?)], _ payload: JSONText, to buffer: inout ByteBuffer
  ) {
    buffer.writeStaticString("{")
    writeMembers(members, payload, to: &buffer)
  }

  /// Names and values are words of this program, which need no escapes.
  private static func writeMembers(
    _ members: [(String, String?)], _ payload: JSONText, to buffer: inout ByteBuffer
  ) {
    for (index, (name, value)) in members.enumerated() {
      buffer.writeString(index == 0 ? "\"" : ",\"")
      buffer.writeString(name)
      if let value {
        buffer.writeStaticString("\":\"")
        buffer.writeString(value)
        buffer.writeStaticString("\"")
      } else {
        buffer.writeStaticString("\":null")
      }
    }
    var payload = payload
    payload.withUTF8 { bytes in
      let isSpace = { (byte: UInt8) in byte == 0x20 || byte == 0x0a || byte == 0x0d || byte == 0x09 }
      guard let open = bytes.firstIndex(where: { !isSpace($0) }), bytes[open] == UInt8(ascii: "{"),
        let first = bytes[(open + 1)...].firstIndex(where: { !isSpace($0) })
      else {
        buffer.writeStaticString("}")
        return
      }
      if bytes[first] != UInt8(ascii: "}") { buffer.writeStaticString(",") }
      let start = buffer.writerIndex
      let rest = bytes[first...]
      buffer.writeBytes(UnsafeRawBufferPointer(UnsafeBufferPointer(rebasing: rest)))
      // A line break of a JSON text stands between its tokens; in an event stream it would cut the data.
      guard rest.contains(where: { $0 == 0x0a || $0 == 0x0d }) else { return }
      for (offset, byte) in rest.enumerated() where byte == 0x0a || byte == 0x0d {
        buffer.setInteger(UInt8(ascii: " "), at: start + offset)
      }
    }
  }
}

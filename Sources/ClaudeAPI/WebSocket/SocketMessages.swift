import Hummingbird
import HTTPTypes
import JSONSupport
import NIOCore
import Sessions

#if canImport(FoundationEssentials)
  import FoundationEssentials
#else
  import Foundation
#endif

/// What a client of a socket wants: an object with a `type`, maybe an `id` that the answer repeats, and the fields
/// of the request that does the same over HTTP.
struct SocketCommand: Sendable {
  enum Kind: String, CaseIterable, Sendable {
    case message
    case interrupt
    case approval
    case ping
    case authenticate

    /// Whether it changes something.
    var isChange: Bool {
      switch self {
      case .message, .interrupt, .approval: true
      case .ping, .authenticate: false
      }
    }
  }

  let type: Kind
  let id: String?
  private let members: [String: JSONValue]
  /// Fields of the socket's own, which the request over HTTP has elsewhere.
  private static let own: [Kind: String] = [.message: "idempotency_key", .approval: "approval_id"]

  /// - Parameter id: is set as soon as it is known, also where the command is no command.
  init(_ text: ByteBuffer, id: inout String?) throws(Problem) {
    let value: JSONValue
    do throws(JSONParsingError) {
      value = try JSONValue(parsing: text.readableBytesView)
    } catch {
      throw Problem(
        .invalidJSON, "The message is no valid JSON: \(error.reason.rawValue) at byte \(error.offset).")
    }
    guard case .object(let members) = value else {
      throw Problem(.invalidBody, "The message must be a JSON object.")
    }
    self.members = members
    switch members["id"] {
    case nil, .null: self.id = nil
    case .string(let text) where text.utf8.count <= 128: self.id = text
    default: throw BodyFields.invalid("id", "must be a string of at most 128 bytes")
    }
    id = self.id
    guard let type = members["type"]?.stringValue.flatMap({ Kind(rawValue: $0) }) else {
      throw BodyFields.invalid("type", "must be one of \(Kind.allCases.map(\.rawValue).joined(separator: ", "))")
    }
    self.type = type
  }

  /// A string among the socket's own fields.
  func text(_ name: String) throws(Problem) -> String? {
    switch members[name] {
    case nil, .null: return nil
    case .string(let text): return text
    case let other?: throw BodyFields.invalid(name, "must be a string, not \(other.kind)")
    }
  }

  /// The fields that the command has in common with the body of the request over HTTP.
  func fields(_ known: [String]) throws(Problem) -> BodyFields {
    let own = Self.own[type]
    return try BodyFields(members.filter { $0.key != "type" && $0.key != "id" && $0.key != own }, known: known)
  }
}

/// What the server says over a socket beside the events.
enum SocketMessage {
  /// The first one: who the client is is settled, and events come from here on.
  static func ready(_ session: UUID, after: Int64, last: Int64, _ id: String?) -> ByteBuffer {
    message("ready", id) { json in
      json.field("session_id", session.lowercaseString)
      json.field("after", after)
      json.field("last", last)
    }
  }

  static func pong(_ id: String?) -> ByteBuffer { message("pong", id) { _ in } }

  /// A command was carried out; `body` is what the request over HTTP is answered with.
  static func reply(
    _ command: SocketCommand, _ status: HTTPResponse.Status, isReplay: Bool? = nil,
    body: (inout JSONWriter) -> Void
  ) -> ByteBuffer {
    message("reply", command.id) { json in
      json.field("to", command.type.rawValue)
      json.field("status", Int64(status.code))
      if let isReplay { json.field("replayed", isReplay) }
      json.field("body", object: body)
    }
  }

  /// A command was not carried out.
  static func error(_ problem: Problem, _ type: String?, _ id: String?) -> ByteBuffer {
    message("error", id) { json in
      json.field("to", type)
      json.field("status", Int64(problem.status.code))
      json.field("problem", object: { $0.members(problem) })
    }
  }

  private static func message(_ type: String, _ id: String?, _ members: (inout JSONWriter) -> Void) -> ByteBuffer {
    var json = JSONWriter()
    json.object { json in
      json.field("type", type)
      if let id { json.field("id", id) }
      members(&json)
    }
    return json.finish()
  }
}

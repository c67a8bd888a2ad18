import JSONSupport
import Sessions

extension API {
  /// The names of the options of a session or message.
  static let optionFields = SessionOption.allCases.map(\.rawValue) + [metadataField]
  private static let metadataField = "metadata"
  private static let maximumMetadata = 16 << 10

  /// The options that a new session is to have, as the store keeps them.
  static func sessionOptions(_ fields: BodyFields) throws -> JSONText {
    var options = SessionOptions()
    // For a session null is the same as nothing.
    for option in SessionOption.allCases {
      if let value = fields[option.rawValue], !value.isNull { try options.set(option, value) }
    }
    return options.stored
  }

  /// The options of a message, as the store keeps them, with the metadata among them.
  static func messageOptions(_ fields: BodyFields) throws -> JSONText {
    var options = SessionOptions()
    for option in SessionOption.allCases {
      if let value = fields[option.rawValue] { try options.set(option, value) }
    }
    guard let metadata = try metadata(fields), !metadata.isEmpty else { return options.stored }
    guard case .object(var members) = try JSONValue(parsing: options.stored.utf8) else { return options.stored }
    members[metadataField] = .object(metadata)
    return JSONValue.object(members).description
  }

  static func metadata(ofTurn turn: Turn) -> JSONText {
    if turn.options == "{}" { return "{}" }
    // The options are this program's own text.
    return (try? JSONValue(parsing: turn.options.utf8))?[metadataField]?.description ?? "{}"
  }

  static func metadata(_ fields: BodyFields) throws(Problem) -> [String: JSONValue]? {
    guard let metadata = try fields.object(metadataField) else { return nil }
    guard JSONValue.object(metadata).encoded().count <= maximumMetadata else {
      throw fields.invalid(metadataField, "must have at most \(maximumMetadata) bytes")
    }
    return metadata
  }

  /// A session's name; nil if there is none or an empty one.
  static func sessionName(_ fields: BodyFields, _ field: String = "session_name") throws(Problem) -> String? {
    guard let name = try fields.string(field), !name.isEmpty else { return nil }
    guard name.unicodeScalars.count <= 1000 else { throw fields.invalid(field, "must have at most 1000 characters") }
    guard !name.unicodeScalars.contains(where: { $0.value < 0x20 || $0.value == 0x7f }) else {
      throw fields.invalid(field, "must not hold control characters")
    }
    return name
  }
}

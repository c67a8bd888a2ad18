import JSONSupport

/// A JSON Schema (draft 2020-12) of a value that the API takes or gives. It keeps the order of an object's fields, in
/// which a person wants to read them.
struct Schema: Sendable {
  struct Field: Sendable {
    let name: String
    let schema: Schema
    let isRequired: Bool

    static func required(_ name: String, _ schema: Schema) -> Field {
      Field(name: name, schema: schema, isRequired: true)
    }

    /// One that may be absent.
    static func optional(_ name: String, _ schema: Schema) -> Field {
      Field(name: name, schema: schema, isRequired: false)
    }
  }

  /// All keywords but those that come of the fields.
  var keywords: [String: JSONValue] = [:]
  var fields: [Field] = []

  var description: String? { keywords["description"]?.stringValue }

  var json: JSONValue {
    var keywords = keywords
    if !fields.isEmpty {
      keywords["properties"] = .object(
        Dictionary(fields.map { ($0.name, $0.schema.json) }, uniquingKeysWith: { _, last in last }))
      let required = fields.filter(\.isRequired).map { JSONValue.string($0.name) }
      if !required.isEmpty { keywords["required"] = .array(required) }
    }
    return .object(keywords)
  }
}

// MARK: Kinds

extension Schema {
  private init(type: String, _ description: String?, _ more: [String: JSONValue?] = [:], fields: [Field] = []) {
    keywords = more.compactMapValues { $0 }
    keywords["type"] = .string(type)
    if let description { keywords["description"] = .string(description) }
    self.fields = fields
  }

  /// - Parameter length: in characters.
  static func string(
    _ description: String? = nil, length: ClosedRange<Int>? = nil, pattern: String? = nil, format: String? = nil
  ) -> Schema {
    Schema(
      type: "string", description,
      [
        "minLength": length.flatMap { $0.lowerBound > 0 ? .int(Int64($0.lowerBound)) : nil },
        "maxLength": length.flatMap { $0.upperBound < Int.max ? .int(Int64($0.upperBound)) : nil },
        "pattern": pattern.map { .string($0) }, "format": format.map { .string($0) },
      ])
  }

  /// One of some words.
  static func choice(_ words: [String], _ description: String? = nil) -> Schema {
    Schema(type: "string", description, ["enum": .array(words.map { .string($0) })])
  }

  static func choice<Value: RawRepresentable & CaseIterable>(
    _: Value.Type, _ description: String? = nil
  ) -> Schema where Value.RawValue == String {
    choice(Value.allCases.map(\.rawValue), description)
  }

  /// One word.
  static func constant(_ word: String, _ description: String? = nil) -> Schema {
    Schema(type: "string", description, ["const": .string(word)])
  }

  static func integer(_ description: String? = nil, in range: ClosedRange<Int64>? = nil) -> Schema {
    Schema(
      type: "integer", description,
      [
        "minimum": range.flatMap { $0.lowerBound > .min ? .int($0.lowerBound) : nil },
        "maximum": range.map { .int($0.upperBound) },
      ])
  }

  static func number(_ description: String? = nil, in range: ClosedRange<Double>? = nil) -> Schema {
    Schema(
      type: "number", description,
      ["minimum": range.map { .double($0.lowerBound) }, "maximum": range.map { .double($0.upperBound) }])
  }

  static func boolean(_ description: String? = nil) -> Schema { Schema(type: "boolean", description) }

  static func array(_ element: Schema, _ description: String? = nil, atMost: Int? = nil) -> Schema {
    Schema(type: "array", description, ["items": element.json, "maxItems": atMost.map { .int(Int64($0)) }])
  }

  /// An object that has these fields. Whether it may have others is said by `others`: nil says nothing of it, false
  /// refuses them.
  static func object(_ description: String? = nil, _ fields: [Field] = [], others: Schema.Others? = nil) -> Schema {
    let additional: JSONValue? =
      switch others {
      case nil: nil
      case .nothing: false
      case .anything: true
      case .of(let schema): schema.json
      }
    return Schema(type: "object", description, ["additionalProperties": additional], fields: fields)
  }

  indirect enum Others: Sendable {
    case nothing
    case anything
    case of(Schema)
  }

  /// Any JSON value.
  static func anything(_ description: String? = nil) -> Schema {
    Schema(keywords: description.map { ["description": .string($0)] } ?? [:])
  }

  /// A schema of ``Schemas`` by its name.
  static func reference(_ name: String, _ description: String? = nil) -> Schema {
    var schema = Schema(keywords: ["$ref": .string("#/components/schemas/\(name)")])
    if let description { schema.keywords["description"] = .string(description) }
    return schema
  }

  static func oneOf(_ schemas: [Schema], _ description: String? = nil) -> Schema {
    var schema = Schema(keywords: ["oneOf": .array(schemas.map(\.json))])
    if let description { schema.keywords["description"] = .string(description) }
    return schema
  }

  static func uuid(_ description: String? = nil) -> Schema {
    string(description, length: 36...36, pattern: uuidPattern, format: "uuid")
  }

  static func timestamp(_ description: String? = nil) -> Schema { string(description, format: "date-time") }

  static let uuidPattern = "^[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}$"

  /// The same, written as JSON in a text.
  var asText: Schema {
    var text = Schema.string(description)
    text.keywords["contentMediaType"] = "application/json"
    text.keywords["contentSchema"] = json
    return text
  }

  /// The same without the null of ``orNull``.
  var notNull: Schema {
    var schema = self
    if case .array(let types)? = keywords["type"], let type = types.first { schema.keywords["type"] = type }
    if case .array(let words)? = keywords["enum"] { schema.keywords["enum"] = .array(words.filter { !$0.isNull }) }
    return schema
  }

  /// The same or null.
  var orNull: Schema {
    var schema = self
    if case .string(let type)? = keywords["type"] {
      schema.keywords["type"] = [.string(type), "null"]
      if case .array(let words)? = keywords["enum"] { schema.keywords["enum"] = .array(words + [.null]) }
    } else {
      var inner = self
      let description = inner.keywords.removeValue(forKey: "description")
      schema = Schema(keywords: ["anyOf": [inner.json, ["type": "null"]]])
      schema.keywords["description"] = description
    }
    return schema
  }
}

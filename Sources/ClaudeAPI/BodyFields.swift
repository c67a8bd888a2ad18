import HTTPTypes
import Hummingbird
import JSONSupport
import NIOCore

/// The members of a request's JSON object, taken one by one; whatever is wrong with them is a ``Problem`` that
/// names the member.
struct BodyFields {
  private let members: [String: JSONValue]
  private let known: [String]
  /// Comes before the names of members in what is said of them.
  private let prefix: String

  /// Reads the body of a request, which must be a JSON object with no members but those in `known`.
  ///
  /// - Parameter isOptional: whether no body at all counts as an empty object.
  init(_ request: Request, limit: Int, known: [String], isOptional: Bool = false) async throws {
    if let type = request.headers[.contentType], !Self.isJSON(type),
      !isOptional || request.headers[.contentLength] != "0"
    {
      throw Problem(
        .unsupportedMediaType,
        "The body must be JSON; send it with Content-Type: application/json.")
    }
    let body: ByteBuffer
    do {
      body = try await request.body.collect(upTo: limit)
    } catch is NIOTooManyBytesError {
      throw Problem(.contentTooLarge, "The body has more than \(limit) bytes.")
    }
    if isOptional, body.readableBytes == 0 {
      try self.init([:], known: known)
      return
    }
    guard body.readableBytes > 0 else {
      throw Problem(.invalidJSON, "The body is empty; send a JSON object.")
    }
    guard String(validating: body.readableBytesView, as: UTF8.self) != nil else {
      throw Problem(.invalidJSON, "The body is not valid UTF-8.")
    }
    let value: JSONValue
    do throws(JSONParsingError) {
      value = try JSONValue(parsing: body.readableBytesView)
    } catch {
      throw Problem(
        .invalidJSON, "The body is no valid JSON: \(error.reason.rawValue) at byte \(error.offset).")
    }
    guard case .object(let members) = value else {
      throw Problem(.invalidBody, "The body must be a JSON object.")
    }
    try self.init(members, known: known)
  }

  /// Fields that came in another form than JSON, or those inside of one.
  init(_ members: [String: JSONValue], known: [String], inside outer: String? = nil) throws(Problem) {
    self.members = members
    self.known = known
    prefix = outer.map { $0 + "." } ?? ""
    if let unknown = members.keys.filter({ !known.contains($0) }).min() {
      throw Problem(
        .unknownField,
        "There is no field \(Self.quoted(prefix + unknown)) here; "
          + (known.isEmpty ? "there are none." : "the fields are \(known.joined(separator: ", ")).")
      )
    }
  }

  private static func isJSON(_ type: String) -> Bool {
    let essence = type.split(separator: ";", maxSplits: 1).first ?? ""
    let name = essence.filter { $0 != " " && $0 != "\t" }.lowercased()
    return name == "application/json" || (name.hasPrefix("application/") && name.hasSuffix("+json"))
  }

  /// The whole object in a form that is the same for equal objects.
  var canonical: [UInt8] { JSONValue.object(members).encoded() }

  /// A string, or nil if the member is absent or null.
  func string(_ name: String) throws(Problem) -> String? {
    switch members[name] {
    case nil, .null: return nil
    case .string(let text): return text
    case let other?: throw invalid(name, "must be a string, not \(other.kind)")
    }
  }

  /// The member as it is, also if it is null; nil if it is absent.
  subscript(name: String) -> JSONValue? { members[name] }

  /// An object, or nil if the member is absent or null.
  func object(_ name: String) throws(Problem) -> [String: JSONValue]? {
    switch members[name] {
    case nil, .null: return nil
    case .object(let object): return object
    case let other?: throw invalid(name, "must be an object, not \(other.kind)")
    }
  }

  /// A whole number, or nil if the member is absent or null.
  func integer(_ name: String) throws(Problem) -> Int64? {
    switch members[name] {
    case nil, .null: return nil
    case .int(let value): return value
    case .double(let value):
      guard let whole = Int64(exactly: value) else { throw invalid(name, "must be a whole number") }
      return whole
    case let other?: throw invalid(name, "must be a number, not \(other.kind)")
    }
  }

  /// A boolean, or nil if the member is absent or null.
  func boolean(_ name: String) throws(Problem) -> Bool? {
    switch members[name] {
    case nil, .null: return nil
    case .bool(let value): return value
    case let other?: throw invalid(name, "must be true or false, not \(other.kind)")
    }
  }

  func invalid(_ name: String, _ what: String) -> Problem { Self.invalid(prefix + name, what) }

  static func invalid(_ name: String, _ what: String) -> Problem {
    Problem(.invalidField, "The field \(quoted(name)) \(what).")
  }

  private static func quoted(_ name: String) -> String {
    // Names come from the client; a long one isn't worth repeating.
    "\"\(name.count <= 64 ? name : "\(name.prefix(64))…")\""
  }
}

extension JSONValue {
  /// What the value is, in words.
  var kind: String {
    switch self {
    case .null: "null"
    case .bool: "a boolean"
    case .int, .double: "a number"
    case .string: "a string"
    case .array: "an array"
    case .object: "an object"
    }
  }
}

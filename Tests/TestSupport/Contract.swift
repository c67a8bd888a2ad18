public import JSONSupport

/// Holds values and answers against an OpenAPI document: the keywords of JSON Schema that the document uses, and no
/// others, so that nothing is passed over in silence.
///
/// An object whose schema has properties may have no others, unless the schema says what else there may be: what the
/// server shows and the document doesn't is found so.
public struct Contract: Sendable {
  public let document: JSONValue

  public init(_ document: JSONValue) { self.document = document }

  // MARK: Answers

  /// What in an answer isn't as the document has it; empty also for a path that the document doesn't have, and for the
  /// 405 of a method.
  public func objections(
    to method: String, _ path: String, status: Int, headers: [(String, String)], body: [UInt8]
  ) -> [String] {
    let place = "\(method) \(path): \(status)"
    guard let item = pathItem(path) else { return [] }
    let described = item[method.lowercased()] ?? (method == "HEAD" ? item["get"] : nil)
    guard let operation = described else { return status == 405 ? [] : ["\(place) for a method that isn't described"] }
    guard let response = operation["responses"]?[String(status)].map(resolved) else {
      return ["\(place) is not described: \(String(decoding: body.prefix(300), as: UTF8.self))"]
    }
    func field(_ name: String) -> String? { headers.first { $0.0.lowercased() == name.lowercased() }?.1 }
    var found: [String] = []
    for (name, header) in response["headers"]?.objectValue ?? [:] {
      let header = resolved(header)
      if let value = field(name) {
        found += objections(to: .string(value), header["schema"] ?? true, at: "\(place) \(name)")
      } else if header["required"] == true {
        found.append("\(place) has no \(name)")
      }
    }
    let known = Set((response["headers"]?.objectValue ?? [:]).keys.map { $0.lowercased() })
    for name in Set(headers.map { $0.0.lowercased() }).subtracting(known).subtracting(Self.ordinaryFields).sorted() {
      found.append("\(place) has \(name), which isn't described")
    }
    if method == "HEAD" || status == 204 || status == 304 { return found }
    let type = field("Content-Type") ?? ""
    let contents = response["content"]?.objectValue ?? [:]
    if contents.isEmpty { return body.isEmpty ? found : found + ["\(place) has a body of type \(type)"] }
    guard let content = contents[type] ?? contents[essence(type)] ?? contents["*/*"] else {
      return found + ["\(place) is of the type \(type), which is not described"]
    }
    // A file may be of any type.
    if contents["*/*"] != nil && field("Content-Disposition") != nil { return found }
    guard essence(type).hasSuffix("json") else { return found }
    do throws(JSONParsingError) {
      return found + objections(to: try JSONValue(parsing: body), content["schema"] ?? true, at: place)
    } catch {
      return found + ["\(place) is no JSON"]
    }
  }

  /// Header fields whose meaning is that of HTTP wherever they stand.
  private static let ordinaryFields: Set<String> = [
    "accept-ranges", "cache-control", "connection", "content-disposition", "content-length", "content-range",
    "content-security-policy", "content-type", "cross-origin-resource-policy", "date", "keep-alive", "last-modified",
    "referrer-policy", "server",
    "strict-transport-security", "transfer-encoding", "vary", "x-content-type-options", "x-frame-options",
  ]

  private func essence(_ type: String) -> String { String(type.prefix { $0 != ";" }) }

  private func pathItem(_ path: String) -> JSONValue? {
    let segments = path.prefix { $0 != "?" }.split(separator: "/")
    let templates = (document["paths"]?.objectValue ?? [:]).filter { template, _ in
      let wanted = template.split(separator: "/")
      guard wanted.last == "{path}" ? segments.count >= wanted.count : segments.count == wanted.count else {
        return false
      }
      return zip(wanted, segments).allSatisfy { $0.hasPrefix("{") || $0 == $1 }
    }
    // A word that is written out is nearer than a parameter.
    return templates.min { $0.key.count { $0 == "{" } < $1.key.count { $0 == "{" } }?.value
  }

  private func resolved(_ value: JSONValue) -> JSONValue {
    guard let reference = value["$ref"]?.stringValue else { return value }
    return reference.split(separator: "/").dropFirst().reduce(document) { $0[String($1)] ?? .null }
  }

  /// What is wrong with something that a stream or a socket brings, whose `type` names its schema.
  public func objections(toMessage message: JSONValue) -> [String] {
    let type = message["type"]?.stringValue ?? ""
    let schemas = document["components"]?["schemas"]
    guard let schema = ["event", "stream", "socket"].lazy.compactMap({ schemas?["\($0).\(type)"] }).first else {
      return ["\(type) is not described: \(message)"]
    }
    return objections(to: message, schema, at: type)
  }

  // MARK: Schemas

  private static let annotations: Set<String> = ["description", "example", "title"]

  /// What is wrong with a value, each with where.
  ///
  /// - Parameter isOpen: whether objects may have members that aren't described.
  public func objections(
    to value: JSONValue, _ schema: JSONValue, at place: String = "", isOpen: Bool = false
  ) -> [String] {
    guard case .object(let keywords) = schema else {
      return schema == true ? [] : ["\(place) must not be there"]
    }
    return keywords.sorted { $0.key < $1.key }.flatMap { name, keyword in
      objections(to: value, name, keyword, keywords, place, isOpen)
    }
  }

  private func objections(
    to value: JSONValue, _ name: String, _ keyword: JSONValue, _ all: [String: JSONValue], _ place: String,
    _ isOpen: Bool
  ) -> [String] {
    func unless(_ isFine: Bool?, _ what: @autoclosure () -> String) -> [String] {
      isFine ?? true ? [] : ["\(place) \(what())"]
    }
    switch name {
    case "$ref":
      let target = resolved(["$ref": keyword])
      return target.isNull
        ? ["\(place): there is no \(keyword)"] : objections(to: value, target, at: place, isOpen: isOpen)
    case "type":
      let types = keyword.arrayValue ?? [keyword]
      return unless(types.contains { Self.isOf($0.stringValue ?? "", value) }, "is no \(keyword) but \(value)")
    case "const": return unless(value == keyword, "is \(value), not \(keyword)")
    case "enum": return unless(keyword.arrayValue?.contains(value), "is \(value), none of \(keyword)")
    case "minimum": return unless(value.doubleValue.map { $0 >= keyword.doubleValue ?? 0 }, "is less than \(keyword)")
    case "maximum": return unless(value.doubleValue.map { $0 <= keyword.doubleValue ?? 0 }, "is more than \(keyword)")
    case "minLength", "maxLength":
      let length = value.stringValue.map { Int64($0.unicodeScalars.count) }
      let limit = keyword.intValue ?? 0
      return unless(length.map { name == "minLength" ? $0 >= limit : $0 <= limit }, "is not of the right length")
    case "pattern":
      guard let text = value.stringValue else { return [] }
      guard let expression = try? Regex(keyword.stringValue ?? "") else { return ["\(place): bad pattern \(keyword)"] }
      return unless(text.firstMatch(of: expression) != nil, "is \(value), which doesn't match \(keyword)")
    case "format":
      guard let text = value.stringValue else { return [] }
      switch keyword {
      case "date-time":
        let moment = #/\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z/#
        return unless(text.wholeMatch(of: moment) != nil, "is no date-time")
      case "uuid", "binary", "base64", "git-url", "git-reference": return []
      default: return ["\(place): unknown format \(keyword)"]
      }
    case "maxItems": return unless(value.arrayValue.map { $0.count <= keyword.intValue ?? 0 }, "has too many elements")
    case "items":
      return (value.arrayValue ?? []).enumerated().flatMap {
        objections(to: $0.element, keyword, at: "\(place)[\($0.offset)]", isOpen: isOpen)
      }
    case "properties":
      guard let members = value.objectValue else { return [] }
      let known = keyword.objectValue ?? [:]
      let unknown = members.keys.filter { known[$0] == nil }.sorted()
      let isClosed = !isOpen && all["additionalProperties"] == nil && !unknown.isEmpty
      return known.sorted { $0.key < $1.key }.flatMap { name, schema in
        members[name].map { objections(to: $0, schema, at: "\(place).\(name)", isOpen: isOpen) } ?? []
      } + (isClosed ? ["\(place) has \(unknown), which isn't described"] : [])
    case "required":
      guard let members = value.objectValue else { return [] }
      return (keyword.arrayValue ?? []).compactMap(\.stringValue).filter { members[$0] == nil }
        .map { "\(place) has no \($0)" }
    case "additionalProperties":
      let known = all["properties"]?.objectValue ?? [:]
      return (value.objectValue ?? [:]).filter { known[$0.key] == nil }.flatMap {
        objections(to: $0.value, keyword, at: "\(place).\($0.key)", isOpen: isOpen)
      }
    case "propertyNames":
      return (value.objectValue ?? [:]).keys.flatMap { objections(to: .string($0), keyword, at: "\(place) name") }
    case "maxProperties":
      return unless(value.objectValue.map { $0.count <= keyword.intValue ?? 0 }, "has too many members")
    case "allOf":
      return (keyword.arrayValue ?? []).flatMap { objections(to: value, $0, at: place, isOpen: isOpen) }
    case "anyOf", "oneOf":
      let found = (keyword.arrayValue ?? []).map { objections(to: value, $0, at: place, isOpen: isOpen) }
      let fitting = found.count { $0.isEmpty }
      if name == "oneOf" ? fitting == 1 : fitting > 0 { return [] }
      return ["\(place) fits \(fitting) of \(name)"] + (found.min { $0.count < $1.count } ?? [])
    case "not": return unless(!objections(to: value, keyword, isOpen: true).isEmpty, "is what it must not be")
    case "if":
      guard objections(to: value, keyword, isOpen: true).isEmpty, let then = all["then"] else { return [] }
      return objections(to: value, then, at: place, isOpen: true)
    case "then": return []
    default: return Self.annotations.contains(name) ? [] : ["\(place): unknown keyword \(name)"]
    }
  }

  private static func isOf(_ type: String, _ value: JSONValue) -> Bool {
    switch (type, value) {
    case ("null", .null), ("boolean", .bool), ("string", .string), ("array", .array), ("object", .object),
      ("number", .int), ("number", .double):
      true
    case ("integer", _): value.intValue != nil
    default: false
    }
  }
}

import HTTPTypes
import Hummingbird
import HummingbirdFastCGI
import JSONSupport
import NIOCore
import Sessions
import Workspaces

#if canImport(FoundationEssentials)
  import FoundationEssentials
#else
  import Foundation
#endif

/// Uploads of forms (multipart/form-data).
extension FilesAPI {
  func addFormRoutes(to router: Router<API.Context>, _ routes: inout RouteTable) {
    for path in ["/sessions/{session_id}/files", "/sessions/{session_id}/files/{path}"] {
      routes.add(.post, path, "Upload files of a form into a folder", for: .change, to: router, postForm)
    }
  }

  private func postForm(_ request: Request, _ context: API.Context) async throws -> Response {
    let id = try await session(context)
    let (folder, endsWithSlash) = try filePath(request, context)
    if isShare(folder, endsWithSlash: endsWithSlash, request) { return try await createShare(in: id, request, context) }
    let body = try body(context)
    guard let boundary = Self.boundary(request) else {
      throw Problem(
        .unsupportedMediaType,
        "Send the files as multipart/form-data, or one file with PUT to its path.")
    }
    try Self.refuseForeignForm(request)
    let parts = try await workspaces.parts(of: body, boundary: boundary, maximum: configuration.maximumParts)
    var files: [(path: RelativePath, range: Range<Int64>)] = []
    for part in parts {
      guard let name = part.fileName else {
        throw Problem(
          .unknownField,
          "The part \"\(String(decoding: part.name.prefix(64), as: UTF8.self))\" has no filename.")
      }
      // A browser sends this for a field in which nobody has chosen a file.
      if name.isEmpty, part.range.isEmpty { continue }
      let path = try folder.appending(try RelativePath(name))
      guard path != folder else { throw RelativePath.Malformation.emptyComponent }
      files.append((path, part.range))
    }
    let results = try await service.changeFiles(of: id) { change in
      try await change.take(files.reduce(0) { $0 + Int64($1.range.count) })
      return try await workspaces.put(files, of: body, in: id)
    }
    await service.workspaceLog.record(
      zip(files, results).map { FileChange($1.isNew ? .created : .modified, $0.path, $1.status) }, by: id)
    var json = JSONWriter()
    json.object { json in
      json.field("files", array: zip(files, results)) { json, pair in
        json.object { json in
          json.field("path", pair.0.path.displayText)
          json.field("href", "/sessions/\(id.lowercaseString)/files/\(pair.0.path.percentEncoded)")
          json.field("size", pair.1.status.size)
          json.field("etag", pair.1.status.entityTag)
          json.field("created", pair.1.isNew)
        }
      }
    }
    return API.json(json.finish(), status: .created)
  }

  /// Whether the body says that it is a form.
  static func isForm(_ request: Request) -> Bool {
    request.headers[.contentType]?.split(separator: ";").first?.trimmed.lowercased() == "multipart/form-data"
  }

  /// The boundary of a form; nil if the body is none.
  static func boundary(_ request: Request) -> [UInt8]? {
    guard isForm(request), let type = request.headers[.contentType] else { return nil }
    for piece in type.split(separator: ";").dropFirst().map(\.trimmed) where piece.lowercased().hasPrefix("boundary=") {
      var value = piece.dropFirst("boundary=".count)
      if value.count >= 2, value.first == "\"", value.last == "\"" { value = value.dropFirst().dropLast() }
      return (1...70).contains(value.utf8.count) ? Array(value.utf8) : nil
    }
    return nil
  }

  /// A page of another site can make a browser send a form here without asking; browsers then say where it is from.
  static func refuseForeignForm(_ request: Request) throws(Problem) {
    guard !PageOrigin.isForeign(request.head) else {
      throw Problem(.foreignOrigin, "A form of another site can't upload files here.")
    }
  }

  // MARK: Sessions from archives

  /// The fields of a form that makes a session, and the archive in it, which is unpacked already.
  func sessionForm(
    _ request: Request, _ context: API.Context, known: [String], limit: Int
  ) async throws -> (fields: BodyFields, archive: StagedTree?)? {
    guard let boundary = Self.boundary(request) else { return nil }
    try Self.refuseForeignForm(request)
    let body = try body(context)
    var members: [String: JSONValue] = [:]
    var archive: StagedTree?
    for part in try await workspaces.parts(of: body, boundary: boundary, maximum: known.count + 1) {
      let name = String(decoding: part.name, as: UTF8.self)
      if name == "archive" {
        archive = try await workspaces.unpack(body, part: part.range)
        continue
      }
      guard let content = try await workspaces.content(of: part, in: body, limit: limit) else {
        throw Problem(.contentTooLarge, "A field has more than \(limit) bytes.")
      }
      guard let text = String(validating: content, as: UTF8.self) else {
        throw Problem(.invalidField, "The field \"\(name)\" must be UTF-8.")
      }
      let isText = API.textFieldsOfForms.contains(name)
      members[name] = isText ? .string(text) : (try? JSONValue(parsing: content)) ?? .string(text)
    }
    return (try BodyFields(members, known: known), archive)
  }
}

extension API {
  /// The fields of a session that stand in a form as they are. The others are written as JSON.
  static let textFieldsOfForms: Set<String> = [
    "append_system_prompt", "initial_prompt", "model", "permission_mode", "session_name",
  ]
}

import Crypto
import HTTPTypes
import Hummingbird
import HummingbirdFastCGI
import JSONSupport
import NIOCore
public import Sessions
public import Workspaces

#if canImport(FoundationEssentials)
  import FoundationEssentials
#else
  import Foundation
#endif

/// The routes for the files of sessions.
///
/// nginx sends and receives the bytes: a download is answered with `X-Accel-Redirect` to nginx's internal location
/// of the workspaces, but for small files, which take less than the redirect; and the body of an upload lies in a file
/// whose path nginx gives as `BODY_FILE`.
public struct FilesAPI: Sendable {
  let service: SessionService
  let workspaces: Workspaces
  let configuration: FilesConfiguration
  let archivePlaces: Places
  let clonePlaces: Places
  let uploadPaces: Paces?

  public init(
    service: SessionService, workspaces: Workspaces, configuration: FilesConfiguration = FilesConfiguration()
  ) {
    self.service = service
    self.workspaces = workspaces
    self.configuration = configuration
    archivePlaces = Places(configuration.maximumArchives)
    clonePlaces = Places(configuration.maximumClones)
    uploadPaces = configuration.maximumUploadRateOfKey.map { Paces(rate: Double($0), burst: Double($0)) }
  }

  func addRoutes(to router: Router<API.Context>, _ routes: inout RouteTable) {
    for path in ["/sessions/{session_id}/files", "/sessions/{session_id}/files/{path}"] {
      routes.add(.get, path, "Download a file, or list a folder", for: .read, to: router, get)
    }
    routes.add(.put, "/sessions/{session_id}/files/{path}", "Upload a file", for: .change, to: router, put)
    routes.add(
      .delete, "/sessions/{session_id}/files/{path}", "Delete a file or folder", for: .change, to: router, delete)
    addFormRoutes(to: router, &routes)
    addArchiveRoutes(to: router, &routes)
    addUploadRoutes(to: router, &routes)
    addShareRoutes(to: router, &routes)
    routes.add(.post, "/sessions/{session_id}/folders", "Make a folder", for: .change, to: router, makeFolder)
    routes.add(.post, "/sessions/{session_id}/move", "Move or rename a file or folder", for: .change, to: router, move)
    routes.add(.get, "/sessions/{session_id}/usage", "Space that the files take", for: .read, to: router, usage)
  }

  // MARK: Requests

  /// The id of the session in the path, which exists.
  func session(_ context: API.Context) async throws -> UUID {
    let id = try API.sessionID(context)
    if service.cachedSession(id) == nil { _ = try await service.session(id) }
    return id
  }

  /// The path of the file that a request is about: what comes after `/sessions/{id}/files`.
  ///
  /// The path is decoded here once and strictly. nginx has decided on its own reading where the request goes, and a
  /// request for which the two readings differ is refused.
  func filePath(
    _ request: Request, _ context: API.Context
  ) throws(Problem) -> (path: RelativePath, endsWithSlash: Bool) {
    let id = request.uri.path.utf8.dropFirst("/sessions/".utf8.count).prefix(36)
    return try path(after: "/sessions/\(Substring(id))/files", request, context)
  }

  /// The path that comes after a prefix, which is written in the request without escapes.
  func path(
    after prefix: String, _ request: Request, _ context: API.Context
  ) throws(Problem) -> (path: RelativePath, endsWithSlash: Bool) {
    try Self.path(after: prefix, in: request.uri.path, documentURI: context.parametersOfServer["DOCUMENT_URI"])
  }

  /// - Parameter documentURI: the path as nginx has read it.
  static func path(
    after prefix: String, in path: String, documentURI: String?
  ) throws(Problem) -> (path: RelativePath, endsWithSlash: Bool) {
    let raw = Array(path.utf8)
    guard raw.starts(with: prefix.utf8) else { throw Problem(.emptyComponent) }
    do throws(RelativePath.Malformation) {
      let whole = try RelativePath.decode(raw)
      // By bytes: as texts, different ones can be equal.
      if let document = documentURI,
        !String(decoding: whole, as: UTF8.self).utf8.elementsEqual(document.utf8)
      {
        throw RelativePath.Malformation.dotComponent
      }
      let rest = raw.dropFirst(prefix.utf8.count)
      guard let first = rest.first else { return (.root, true) }
      guard first == UInt8(ascii: "/") else { throw RelativePath.Malformation.emptyComponent }
      if rest.count == 1 { return (.root, true) }
      return (try RelativePath(percentEncoded: rest.dropFirst()), rest.last == UInt8(ascii: "/"))
    } catch {
      throw Problem(error)
    }
  }

  /// The body of a request, which nginx has put into a file.
  func body(_ context: API.Context) throws(Problem) -> BodyFile {
    guard let path = context.parametersOfServer["BODY_FILE"] else {
      throw Problem(
        .noBodyFile, "The web server in front doesn't hand uploads over as files.")
    }
    return BodyFile(path: path.isEmpty ? nil : path)
  }

  /// The request with its body, if that is in a file because another body of the same path may be an upload.
  static func readingBody(_ request: Request, _ context: API.Context, limit: Int) async throws -> Request {
    guard let path = context.parametersOfServer["BODY_FILE"], !path.isEmpty else { return request }
    guard let bytes = try await Workspaces.bytes(of: BodyFile(path: path), limit: limit) else {
      throw Problem(.contentTooLarge, "The body has more than \(limit) bytes.")
    }
    return Request(head: request.head, body: RequestBody(buffer: ByteBuffer(bytes: bytes)))
  }

  private func conditions(_ request: Request) throws(Problem) -> WriteConditions {
    WriteConditions(
      match: try tags(request.headers[.ifMatch], weak: false),
      noneMatch: try tags(request.headers[.ifNoneMatch], weak: true))
  }

  /// The tags of a condition; empty for `*`. A weak tag never matches where a strong one is wanted.
  private func tags(_ field: String?, weak: Bool) throws(Problem) -> [String]? {
    guard let field else { return nil }
    var tags: [String] = []
    // A comma in quotes belongs to a tag.
    var isQuoted = false
    let parts = field.split { character in
      if character == "\"" { isQuoted.toggle() }
      return character == "," && !isQuoted
    }
    for part in parts {
      let tag = part.trimmed
      if tag == "*" { return [] }
      let isWeak = tag.hasPrefix("W/")
      let text = isWeak ? tag.dropFirst(2) : tag
      guard text.count >= 2, text.first == "\"", text.last == "\"" else {
        throw Problem(.invalidCondition, "If-Match and If-None-Match take * or tags in quotes.")
      }
      tags.append(isWeak && !weak ? "" : String(text))
    }
    return tags
  }

  // MARK: Reading

  /// How a file or folder is to be shown.
  struct ReadQuery {
    var limit: Int
    var cursor: DirectoryListing.Cursor?
    var wantsJSON: Bool?
    var isDownload: Bool

    init(_ request: Request, _ configuration: FilesConfiguration) throws(Problem) {
      let query = try QueryFields(request, known: ["cursor", "download", "format", "limit"])
      limit = try query.integer("limit", in: 1...configuration.maximumPageLength) ?? configuration.pageLength
      if let text = try query.text("cursor") {
        guard let place = DirectoryListing.Cursor(text: text) else {
          throw QueryFields.invalid("cursor", "is not one that a listing gave")
        }
        cursor = place
      }
      wantsJSON = try query.choice("format", Format.self).map { $0 == .json }
      isDownload = try query.boolean("download") ?? false
    }

    private enum Format: String, CaseIterable {
      case json
      case html
    }
  }

  private func get(_ request: Request, _ context: API.Context) async throws -> Response {
    let id = try await session(context)
    let (path, endsWithSlash) = try filePath(request, context)
    return try await read(
      path, of: id, endsWithSlash: endsWithSlash, request, try ReadQuery(request, configuration),
      base: ListingPage.Base(
        path: "/sessions/\(id.lowercaseString)/files", archive: "/sessions/\(id.lowercaseString)/archive",
        title: service.cachedSession(id)?.name ?? "Files"))
  }

  /// Answers with a file or a listing.
  ///
  /// - Parameters:
  ///   - base: where the links of a listing lead.
  ///   - shown: the path below the base, if that isn't the workspace.
  func read(
    _ path: RelativePath, of id: UUID, endsWithSlash: Bool, _ request: Request, _ query: ReadQuery,
    base: @autoclosure () -> ListingPage.Base, shown: RelativePath? = nil
  ) async throws -> Response {
    let directBytes = Self.wantsAll(request.head) ? configuration.maximumDirectBytes : 0
    let status: FileStatus
    var content: [UInt8]?
    if let known = workspaces.lookIfCached(path, of: id, contentUpTo: directBytes) {
      (status, content) = known
    } else {
      status = try await workspaces.status(path, of: id)
    }
    switch status.kind {
    case .symbolicLink: throw FileError.symbolicLink
    case .special: throw FileError.special
    case .file:
      if endsWithSlash { throw FileError.notADirectory }
      let (headers, body) = send(path, of: id, content.map { ($0, status) }, isDownload: query.isDownload)
      return Response(status: .ok, headers: headers, body: body.map { ResponseBody(byteBuffer: $0) } ?? .init())
    case .directory:
      return try await list(path, of: id, request, query, base(), shown ?? path)
    }
  }

  /// - Parameter direct: a small file's content, which isn't worth a redirect.
  func send(
    _ path: RelativePath, of id: UUID, _ direct: (content: [UInt8], status: FileStatus)?, isDownload: Bool
  ) -> (headers: HTTPFields, body: ByteBuffer?) {
    let type = MediaType(forName: path.name)
    let isInline = !isDownload && type.isInline
    var headers = direct == nil ? Self.headersOfFiles : Self.headersOfDirectFiles
    headers.append(HTTPField(name: .contentType, value: type.text))
    headers.append(
      HTTPField(
        name: .contentDisposition,
        value: ContentDisposition.text(isInline ? "inline" : "attachment", name: path.name)))
    guard let (content, status) = direct else {
      headers.append(
        HTTPField(name: .accelRedirect, value: "/_workspaces/\(id.lowercaseString)/\(path.percentEncoded)"))
      return (headers, nil)
    }
    headers.append(HTTPField(name: .lastModified, value: Self.httpDate(status.modified)))
    headers.append(HTTPField(name: .eTag, value: status.entityTag))
    return (headers, ByteBuffer(bytes: content))
  }

  /// Whether it is the whole file that is wanted, whatever the client has of it. Anything else is nginx's business.
  static func wantsAll(_ request: HTTPRequest) -> Bool {
    request.method == .get
      && !conditions.contains { request.headerFields.contains($0) }
  }

  private static let conditions: [HTTPField.Name] = [
    .range, .ifNoneMatch, .ifModifiedSince, .ifMatch, .ifUnmodifiedSince,
  ]

  private static let headersOfFiles: HTTPFields = [.cacheControl: "private, no-cache"]

  /// With what nginx says of the files that it sends, by itself and by its configuration (workspaces.conf).
  private static let headersOfDirectFiles: HTTPFields = [
    .cacheControl: "private, no-cache",
    .acceptRanges: "bytes",
    .contentSecurityPolicy:
      "sandbox; default-src 'none'; img-src 'self' data:; media-src 'self' data:; style-src 'unsafe-inline'; font-src data:; base-uri 'none'; form-action 'none'",
    .xContentTypeOptions: "nosniff",
    .crossOriginResourcePolicy: "same-origin",
    .referrerPolicy: "no-referrer",
  ]

  private func list(
    _ path: RelativePath, of id: UUID, _ request: Request, _ query: ReadQuery, _ base: ListingPage.Base,
    _ shown: RelativePath
  ) async throws -> Response {
    let wantsJSON = query.wantsJSON ?? request.headers[.accept].map { Page.best($0) == .json } ?? false
    let listing = try await workspaces.list(path, of: id, after: query.cursor, limit: query.limit)
    let page = ListingPage(
      base: base, path: shown, listing: listing, isFirst: query.cursor == nil, limit: query.limit)
    // A large one takes some milliseconds, for which the reactor and all others on it shouldn't wait.
    let (body, tag) = await withTaskExecutorPreference(globalConcurrentExecutor) {
      let body = wantsJSON ? page.json : page.html
      // Of all that is shown, so that it changes with anything of it.
      let digest = SHA256.hash(data: body.readableBytesView).prefix(16)
      return (body, "\"\(Data(digest).base64EncodedString())\"")
    }
    let headers: HTTPFields = [.cacheControl: "private, no-cache", .vary: "Accept", .eTag: tag]
    if let known = try tags(request.headers[.ifNoneMatch], weak: true), known.isEmpty || known.contains(tag) {
      return Response(status: .notModified, headers: headers)
    }
    guard wantsJSON else { return Page.response(body, headers, script: FolderScript.policy) }
    var response = API.json(body, headers)
    response.headers[.xContentTypeOptions] = "nosniff"
    response.headers[.referrerPolicy] = "no-referrer"
    return response
  }

  // MARK: Writing

  private func put(_ request: Request, _ context: API.Context) async throws -> Response {
    let id = try await session(context)
    let (path, endsWithSlash) = try filePath(request, context)
    guard !path.isRoot, !endsWithSlash else {
      throw Problem(.invalidPath, "The path names a folder; a file's name doesn't end with a slash.")
    }
    if let coding = request.headers[.contentEncoding], coding.lowercased() != "identity" {
      throw Problem(.contentEncoding, "A file must be sent without a Content-Encoding.")
    }
    guard request.headers[.contentRange] == nil else {
      throw Problem(.contentRange, "A part of a file can't be put; see the route for uploads in parts.")
    }
    let body = try body(context)
    let conditions = try conditions(request)
    let digests = try ContentDigest.parse(request.headers[.contentDigest])
    let (isNew, status) = try await service.changeFiles(of: id) { change in
      try await change.take(try await Workspaces.size(of: body))
      return try await workspaces.put(body, at: path, of: id, conditions: conditions, digests: digests)
    }
    await service.workspaceLog.record([FileChange(isNew ? .created : .modified, path, status)], by: id)
    var headers: HTTPFields = [.eTag: status.entityTag]
    if isNew { headers[.location] = "/sessions/\(id.lowercaseString)/files/\(path.percentEncoded)" }
    return Response(status: isNew ? .created : .noContent, headers: headers)
  }

  private func delete(_ request: Request, _ context: API.Context) async throws -> Response {
    let id = try await session(context)
    let (path, _) = try filePath(request, context)
    let isRecursive = try QueryFields(request, known: ["recursive"]).boolean("recursive") ?? false
    guard !path.isRoot else {
      throw Problem(.filePermissionDenied, "The workspace itself goes when its session is deleted.")
    }
    let conditions = try conditions(request)
    let status = try await service.changeFiles(of: id) { _ in
      try await workspaces.delete(path, of: id, isRecursive: isRecursive, conditions: conditions)
    }
    await service.workspaceLog.record([FileChange(.deleted, path, status)], by: id, isTree: true)
    return Response(status: .noContent)
  }

  private func makeFolder(_ request: Request, _ context: API.Context) async throws -> Response {
    let id = try await session(context)
    let fields = try await BodyFields(request, limit: Self.bodyLimit, known: ["path", "path_base64"])
    let path = try fields.path("path", "path_base64")
    let made = try await service.changeFiles(of: id) { change in
      try await change.take(Int64(path.components.count) * Self.bytesOfFolder)
      return try await workspaces.makeDirectory(path, of: id)
    }
    if let made { await service.workspaceLog.record([FileChange(.created, path, made)], by: id) }
    var json = JSONWriter()
    json.object { json in
      json.field("path", path.displayText)
      json.field("href", "/sessions/\(id.lowercaseString)/files/\(path.percentEncoded)/")
      json.field("type", "directory")
    }
    return Response(
      status: made != nil ? .created : .ok, headers: [.contentType: "application/json"],
      body: ResponseBody(byteBuffer: json.finish()))
  }

  private func move(_ request: Request, _ context: API.Context) async throws -> Response {
    let id = try await session(context)
    let fields = try await BodyFields(
      request, limit: Self.bodyLimit, known: ["from", "from_base64", "to", "to_base64", "overwrite"])
    let from = try fields.path("from", "from_base64")
    let target = try fields.path("to", "to_base64")
    let replaces = try fields.boolean("overwrite") ?? false
    // It may replace a file, and so free its room.
    let status = try await service.changeFiles(of: id) { _ in
      try await workspaces.move(from, to: target, of: id, replaces: replaces)
    }
    if from != target {
      await service.workspaceLog.record(
        [FileChange(.deleted, from, status), FileChange(.created, target, status)], by: id, isTree: true)
    }
    var json = JSONWriter()
    json.object { json in
      json.field("path", target.displayText)
      json.field("href", "/sessions/\(id.lowercaseString)/files/\(target.percentEncoded)")
    }
    return API.json(json.finish())
  }

  private func usage(_ request: Request, _ context: API.Context) async throws -> Response {
    let usage = try await workspaces.usage(of: try await session(context))
    var json = JSONWriter()
    json.object { json in
      json.field("bytes", usage.bytes)
      json.field("entries", usage.entries)
      json.field(
        "limits",
        object: { json in
          json.field("bytes", workspaces.limits.bytes)
          json.field("entries", workspaces.limits.entries)
          json.field("upload_bytes", workspaces.limits.uploadBytes)
        })
    }
    return API.json(json.finish())
  }

  /// Bytes of the disk that an empty folder takes, on most file systems.
  private static let bytesOfFolder: Int64 = 4096

  /// Bytes of the JSON bodies of these routes: paths, which may be escaped.
  static let bodyLimit = 64 << 10
}

extension BodyFields {
  /// A path below the workspace, as a text or, if its bytes are no UTF-8, in Base64.
  func path(_ name: String, _ base64Name: String, mayBeRoot: Bool = false) throws(Problem) -> RelativePath {
    let bytes: [UInt8]
    if let text = try string(name) {
      bytes = Array(text.utf8)
    } else if let text = try string(base64Name) {
      guard let data = Data(base64Encoded: text) else { throw invalid(base64Name, "must be Base64") }
      bytes = Array(data)
    } else {
      throw invalid(name, "is missing")
    }
    let path: RelativePath
    do throws(RelativePath.Malformation) {
      path = try RelativePath(bytes)
    } catch {
      throw Problem(error)
    }
    guard mayBeRoot || !path.isRoot else { throw invalid(name, "must not be empty") }
    return path
  }
}

/// The field Content-Digest (RFC 9530).
enum ContentDigest {
  /// The digests of the algorithms that are known here; others are passed over, as the RFC wants it.
  static func parse(_ field: String?) throws(Problem) -> [ExpectedDigest] {
    guard let field else { return [] }
    var digests: [ExpectedDigest] = []
    for part in field.split(separator: ",") {
      let pair = part.trimmed.split(separator: "=", maxSplits: 1)
      guard pair.count == 2, pair[1].count >= 2, pair[1].first == ":", pair[1].last == ":",
        let data = Data(base64Encoded: String(pair[1].dropFirst().dropLast()))
      else { throw malformed }
      switch (pair[0].lowercased(), data.count) {
      case ("sha-256", 32): digests.append(.sha256(Array(data)))
      case ("sha-512", 64): digests.append(.sha512(Array(data)))
      case ("sha-256", _), ("sha-512", _): throw malformed
      default: break
      }
    }
    return digests
  }

  private static var malformed: Problem {
    Problem(.invalidDigest, "Content-Digest must look like sha-256=:BASE64: .")
  }
}

/// The field Content-Disposition (RFC 6266).
enum ContentDisposition {
  private static let special = Array("\"\\%/".utf8)

  /// A name for old programs, in which everything unusual is replaced, and the exact one.
  static func text(_ kind: String, name: ArraySlice<UInt8>) -> String {
    let plain = String(
      decoding: name.map { (0x20..<0x7f).contains($0) && !special.contains($0) ? $0 : 0x5f }, as: UTF8.self)
    // The extended form is for UTF-8 only.
    guard !plain.utf8.elementsEqual(name), String(validating: name, as: UTF8.self) != nil else {
      return "\(kind); filename=\"\(plain)\""
    }
    return "\(kind); filename=\"\(plain)\"; filename*=UTF-8''\(RelativePath.encode(name))"
  }
}

extension HTTPField.Name {
  // Header names that are valid by their spelling.
  static let accelRedirect = named("X-Accel-Redirect")
  static let contentDigest = named("Content-Digest")
  static let referrerPolicy = named("Referrer-Policy")

  static func named(_ name: String) -> HTTPField.Name {
    guard let name = HTTPField.Name(name) else { preconditionFailure("\(name) is no name of a header field") }
    return name
  }
}

extension StringProtocol {
  /// Without spaces and tabs at both ends.
  var trimmed: SubSequence {
    let start = firstIndex { $0 != " " && $0 != "\t" } ?? endIndex
    let end = lastIndex { $0 != " " && $0 != "\t" }.map(index(after:)) ?? start
    return self[start..<Swift.max(start, end)]
  }
}

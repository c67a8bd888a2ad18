import Glibc
import HTTPTypes
import Hummingbird
import HummingbirdFastCGI
import NIOCore
import Sessions
import Workspaces

#if canImport(FoundationEssentials)
  import FoundationEssentials
#else
  import Foundation
#endif

/// Uploads in parts by the tus protocol 1.0, with its extensions creation, expiration, checksum and termination.
extension FilesAPI {
  func addUploadRoutes(to router: Router<API.Context>, _ routes: inout RouteTable) {
    let all = "/sessions/{session_id}/uploads"
    let one = "/sessions/{session_id}/uploads/{upload_id}"
    routes.add(.options, all, "What the uploads in parts (tus) can do", for: .read, to: router, tusOptions)
    routes.add(.post, all, "Begin an upload in parts (tus)", for: .change, to: router, tusCreate)
    routes.add(.head, one, "How far an upload has come (tus)", for: .read, to: router, tusHead)
    routes.add(.patch, one, "Go on with an upload (tus)", for: .change, to: router, tusPatch)
    routes.add(.delete, one, "Give an upload up (tus)", for: .change, to: router, tusDelete)
  }

  private func tusOptions(_: Request, _ context: API.Context) async throws -> Response {
    _ = try await session(context)
    return Response(
      status: .noContent,
      headers: [
        .tusResumable: "1.0.0", .tusVersion: "1.0.0", .tusMaximumSize: String(workspaces.limits.uploadBytes),
        .tusExtension: "creation,expiration,checksum,termination", .tusChecksumAlgorithm: "sha1,sha256,sha512",
      ])
  }

  /// Answers in the protocol's way; the client must speak its version.
  private func tus(
    _ request: Request, _ context: API.Context, _ body: (UUID) async throws -> (HTTPResponse.Status, HTTPFields)
  ) async throws -> Response {
    let id = try await session(context)
    guard request.headers[.tusResumable] == "1.0.0" else {
      var response = Problem(.tusVersion, "Send Tus-Resumable: 1.0.0.").response
      response.headers[.tusVersion] = "1.0.0"
      return response
    }
    var response: Response
    do {
      let (status, headers) = try await body(id)
      response = Response(status: status, headers: headers)
    } catch let error as UploadError {
      response = Problem(error).response
    } catch FileError.digestMismatch {
      response =
        Problem(.checksumMismatch, "The bytes that arrived don't have the checksum that was sent with them.").response
    }
    response.headers[.tusResumable] = "1.0.0"
    return response
  }

  private func tusCreate(_ request: Request, _ context: API.Context) async throws -> Response {
    try await tus(request, context) { id in
      guard let length = request.headers[.uploadLength].flatMap({ Int64($0) }), length >= 0 else {
        throw Problem(.invalidUpload, "Upload-Length must be the number of the file's bytes.")
      }
      let metadata = request.headers[.uploadMetadata]
      let target = try Self.target(metadata ?? "")
      let (upload, file) = try await service.changeFiles(of: id) { change in
        try await change.check(length)
        return try await workspaces.createUpload(
          length: length, to: target, metadata: metadata, lifetime: configuration.uploadLifetime, of: id)
      }
      if let file { await service.workspaceLog.record([file], by: id) }
      return (
        .created,
        [
          .location: "/sessions/\(id.lowercaseString)/uploads/\(upload.id.lowercaseString)",
          .uploadExpires: Self.httpDate(upload.expires),
        ]
      )
    }
  }

  private func tusHead(_ request: Request, _ context: API.Context) async throws -> Response {
    try await tus(request, context) { id in
      let (upload, offset) = try await workspaces.upload(try Self.uploadID(context), of: id)
      var headers: HTTPFields = [
        .uploadOffset: String(offset), .uploadLength: String(upload.length), .cacheControl: "no-store",
        .uploadExpires: Self.httpDate(upload.expires),
      ]
      if let metadata = upload.metadata { headers[.uploadMetadata] = metadata }
      return (.ok, headers)
    }
  }

  private func tusPatch(_ request: Request, _ context: API.Context) async throws -> Response {
    try await tus(request, context) { id in
      guard request.headers[.contentType] == "application/offset+octet-stream" else {
        throw Problem(
          .unsupportedMediaType, "Send the part as application/offset+octet-stream.")
      }
      guard let offset = request.headers[.uploadOffset].flatMap({ Int64($0) }), offset >= 0 else {
        throw Problem(.invalidUpload, "Upload-Offset must be the number of bytes that are here.")
      }
      let body = try body(context)
      let digests = try Self.checksum(request.headers[.uploadChecksum])
      let uploadID = try Self.uploadID(context)
      let (upload, now, file) = try await service.changeFiles(of: id) { change in
        try await change.take(try await Workspaces.size(of: body))
        return try await workspaces.append(
          body, at: offset, digests: digests, to: uploadID, of: id, lifetime: configuration.uploadLifetime)
      }
      if let file { await service.workspaceLog.record([file], by: id) }
      return (.noContent, [.uploadOffset: String(now), .uploadExpires: Self.httpDate(upload.expires)])
    }
  }

  private func tusDelete(_ request: Request, _ context: API.Context) async throws -> Response {
    try await tus(request, context) { id in
      let uploadID = try Self.uploadID(context)
      try await service.changeFiles(of: id) { _ in try await workspaces.deleteUpload(uploadID, of: id) }
      return (.noContent, [:])
    }
  }

  // MARK: Fields

  private static func uploadID(_ context: API.Context) throws -> UUID {
    guard let id = API.uuid("upload_id", context) else { throw UploadError.notFound }
    return id
  }

  /// Where the file goes: the metadatum `path`, or `filename` in the top folder.
  private static func target(_ metadata: String) throws -> RelativePath {
    var values: [Substring: [UInt8]] = [:]
    for pair in metadata.split(separator: ",") {
      let words = pair.split(separator: " ")
      guard let key = words.first, words.count <= 2 else { throw malformed }
      guard let data = Data(base64Encoded: words.count == 2 ? String(words[1]) : "") else { throw malformed }
      values[key] = Array(data)
    }
    guard let bytes = values["path"] ?? values["filename"] else { throw malformed }
    let path = try RelativePath(bytes)
    guard !path.isRoot else { throw malformed }
    return path
  }

  private static var malformed: Problem {
    Problem(
      .invalidUpload,
      "Upload-Metadata must have a path or a filename in Base64, such as: filename bm90ZXMudHh0")
  }

  private static func checksum(_ field: String?) throws -> [ExpectedDigest] {
    guard let field else { return [] }
    let words = field.split(separator: " ")
    guard words.count == 2, let data = Data(base64Encoded: String(words[1])) else {
      throw Problem(.invalidDigest, "Upload-Checksum must be an algorithm and a checksum in Base64.")
    }
    switch words[0] {
    case "sha1": return [.sha1(Array(data))]
    case "sha256": return [.sha256(Array(data))]
    case "sha512": return [.sha512(Array(data))]
    default:
      throw Problem(.invalidDigest, "The algorithms of Upload-Checksum are sha1, sha256 and sha512.")
    }
  }

  /// The date in the form of HTTP, such as `Tue, 03 Feb 2026 04:05:06 GMT`.
  static func httpDate(_ seconds: Int64) -> String {
    // An agent may give its files any time that a number of 64 bits can be; that of the system's parts has 32.
    var (time, parts) = (time_t(min(max(seconds, -62_167_219_200), 253_402_300_799)), tm())
    gmtime_r(&time, &parts)
    // The program's locale is that of C.
    return String(unsafeUninitializedCapacity: 32) { strftime($0.baseAddress, 32, "%a, %d %b %Y %H:%M:%S GMT", &parts) }
  }
}

extension Problem {
  init(_ error: UploadError) {
    switch error {
    case .notFound: self.init(.uploadNotFound, "There is no such upload; it may be complete.")
    case .expired: self.init(.uploadExpired, "The upload was not gone on with in time.")
    case .wrongOffset(let current):
      self.init(.wrongOffset, "The part must begin at byte \(current).")
    case .tooLong: self.init(.uploadTooLong, "The part goes beyond the Upload-Length.")
    case .busy: self.init(.uploadBusy, "Another part of this upload is being taken.", retryAfter: 1)
    case .tooMany(let limit):
      self.init(.tooManyUploads, "A session may have \(limit) unfinished uploads.", retryAfter: 60)
    }
  }
}

extension HTTPField.Name {
  static let tusResumable = named("Tus-Resumable")
  static let tusVersion = named("Tus-Version")
  static let tusMaximumSize = named("Tus-Max-Size")
  static let tusExtension = named("Tus-Extension")
  static let tusChecksumAlgorithm = named("Tus-Checksum-Algorithm")
  static let uploadLength = named("Upload-Length")
  static let uploadOffset = named("Upload-Offset")
  static let uploadMetadata = named("Upload-Metadata")
  static let uploadChecksum = named("Upload-Checksum")
  static let uploadExpires = named("Upload-Expires")
}

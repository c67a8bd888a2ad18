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

/// Links by which a file or folder can be read without a key.
extension FilesAPI {
  func addShareRoutes(to router: Router<API.Context>, _ routes: inout RouteTable) {
    // By the handler of forms, to whose paths this one belongs.
    routes.describe(
      .post, "/sessions/{session_id}/files/share", "Share a file or folder by a link",
      as: "/sessions/{session_id}/files/{path}")
    routes.add(
      .get, "/sessions/{session_id}/shares", "List the shares of a session", for: .read, to: router, listShares)
    routes.add(
      .delete, "/sessions/{session_id}/shares/{share_id}", "Take a share back", for: .change, to: router, deleteShare)
    for path in ["/shared/{token}", "/shared/{token}/{path}"] {
      routes.add(.get, path, "What was shared", for: .open, to: router, readShared)
    }
  }

  /// Whether a request to upload into a folder is one to share something instead. A folder of that name takes forms
  /// like any other, and is otherwise reached by all other methods.
  func isShare(_ path: RelativePath, endsWithSlash: Bool, _ request: Request) -> Bool {
    !endsWithSlash && path.bytes.elementsEqual("share".utf8) && !Self.isForm(request)
  }

  func createShare(in id: UUID, _ request: Request, _ context: API.Context) async throws -> Response {
    guard configuration.maximumShareLifetime > .zero else {
      throw Problem(.sharingDisabled, "The operator of this server doesn't allow sharing.")
    }
    let fields = try await BodyFields(
      try await Self.readingBody(request, context, limit: Self.bodyLimit), limit: Self.bodyLimit,
      known: ["path", "path_base64", "expires_in"])
    let path = try fields.path("path", "path_base64", mayBeRoot: true)
    let longest = Int64(configuration.maximumShareLifetime.components.seconds)
    let seconds = try fields.integer("expires_in") ?? min(86_400, longest)
    guard (1...longest).contains(seconds) else {
      throw fields.invalid("expires_in", "must be from 1 to \(longest) seconds")
    }
    let share = try await workspaces.share(path, of: id, for: .seconds(seconds))
    let token = try await workspaces.token(of: share)
    var json = JSONWriter()
    try Self.write(share, token, &json)
    return API.json(json.finish(), status: .created, [.cacheControl: "no-store"])
  }

  private func listShares(_ request: Request, _ context: API.Context) async throws -> Response {
    let shares = try await workspaces.shares(of: try await session(context))
    var json = JSONWriter()
    var texts: [String] = []
    for share in shares {
      var one = JSONWriter()
      try Self.write(share, try await workspaces.token(of: share), &one)
      texts.append(String(buffer: one.finish()))
    }
    json.object { $0.field("shares", json: "[\(texts.joined(separator: ","))]") }
    return API.json(json.finish(), [.cacheControl: "no-store"])
  }

  private static func write(_ share: Share, _ token: String, _ json: inout JSONWriter) throws {
    let path = try share.path
    json.object { json in
      json.field("id", share.id.lowercaseString)
      json.field("path", path.displayText)
      json.field("created_at", Timestamp(microseconds: share.created * 1_000_000).description)
      json.field("expires_at", Timestamp(microseconds: share.expires * 1_000_000).description)
      json.field("href", "/shared/\(token)")
    }
  }

  private func deleteShare(_ request: Request, _ context: API.Context) async throws -> Response {
    let id = try await session(context)
    guard let share = API.uuid("share_id", context) else { throw ShareError.notFound }
    try await workspaces.deleteShare(share, of: id)
    return Response(status: .noContent)
  }

  private func readShared(_ request: Request, _ context: API.Context) async throws -> Response {
    let query = try ReadQuery(request, configuration)
    guard configuration.maximumShareLifetime > .zero, let token = context.parameters["token"].map(String.init) else {
      throw ShareError.notFound
    }
    let share = try await workspaces.share(forToken: token)
    // A session that is being deleted shows nothing any more.
    if service.cachedSession(share.session) == nil { _ = try await service.session(share.session) }
    let top = try share.path
    let (rest, endsWithSlash) = try path(after: "/shared/\(token)", request, context)
    var response = try await read(
      top.appending(rest), of: share.session, endsWithSlash: endsWithSlash && !rest.isRoot, request, query,
      base: ListingPage.Base(
        path: "/shared/\(token)", archive: nil,
        title: top.isRoot ? "Shared files" : String(decoding: top.name, as: UTF8.self)),
      shown: rest)
    response.headers[.referrerPolicy] = "no-referrer"
    // nginx logs nothing of a link, which is as good as a key.
    response.headers[.accelRedirect] = response.headers[.accelRedirect]?.replacing(
      "/_workspaces/", with: "/_shared/", maxReplacements: 1)
    return response
  }
}

extension Problem {
  init(_ error: ShareError) {
    switch error {
    case .notFound: self.init(.shareNotFound, "This link leads to nothing; it may be too old.")
    case .tooMany(let limit): self.init(.tooManyShares, "A session may have \(limit) shares.")
    }
  }
}

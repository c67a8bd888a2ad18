import HTTPTypes
import HummingbirdFastCGI
import Logging
import NIOCore
import Sessions
import Workspaces

#if canImport(FoundationEssentials)
  import FoundationEssentials
#else
  import Foundation
#endif

/// Answers requests for small files where all that it takes is at hand: the session and the keys are known, and the
/// kernel has the file in memory. The router and the middleware, which do the same for all others, take longer than that.
///
/// Whatever is unusual, or is to be refused, is left to them.
struct ImmediateFiles {
  let files: FilesAPI
  let authenticator: Authenticator?
  let status: (any ServerStatus)?

  /// The template of the route that it stands for.
  static let route = "/sessions/{session_id}/files/**"
  private static let prefix = "/sessions/"
  private static let part = "/files"

  func answer(_ request: HTTPRequest, _ parameters: CGIParameters, _ logger: () -> Logger) -> ImmediateAnswer? {
    let start = ContinuousClock.now
    guard FilesAPI.wantsAll(request), let target = request.path, let (id, prefix) = Self.session(in: target),
      let session = files.service.cachedSession(id)
    else { return nil }
    var principal: Principal?
    if let authenticator {
      guard
        let reader = authenticator.knownReader(
          of: session, showing: Authenticator.credentials(request.headerFields), from: parameters["REMOTE_ADDR"],
          host: request.authority, isLocal: ClientAddress.isLocal(request.headerFields, parameters))
      else { return nil }
      principal = reader.principal
    }
    let place: (path: RelativePath, endsWithSlash: Bool)
    do throws(Problem) {
      place = try FilesAPI.path(after: prefix, in: target, documentURI: parameters["DOCUMENT_URI"])
    } catch {
      // The router's answer tells of it.
      return nil
    }
    guard !place.endsWithSlash,
      let (found, content) = files.workspaces.lookIfCached(
        place.path, of: id, contentUpTo: files.configuration.maximumDirectBytes),
      let content
    else { return nil }
    let (headers, body) = files.send(place.path, of: id, (content, found), isDownload: false)
    let duration = ContinuousClock.now - start
    status?.answered(.get, Self.route, status: HTTPResponse.Status.ok.code, after: duration)
    // Without keys nginx's log says as much.
    if let principal {
      AuthenticationMiddleware.log(
        .ok, principal, "GET \(Self.route)", session: id.lowercaseString, duration, logger())
    }
    return ImmediateAnswer(status: .ok, headers: headers, body: body ?? ByteBuffer())
  }

  /// The session of a path below its files, and the path until there; nil for any other path, and one with a query.
  private static func session(in path: String) -> (UUID, prefix: String)? {
    let bytes = path.utf8
    guard bytes.starts(with: prefix.utf8), !bytes.contains(UInt8(ascii: "?")) else { return nil }
    let name = bytes.dropFirst(prefix.utf8.count).prefix(36)
    let rest = bytes[name.endIndex...]
    guard rest.starts(with: (part + "/").utf8), let id = UUID(canonical: Substring(name)) else { return nil }
    let end = bytes.index(name.endIndex, offsetBy: part.utf8.count)
    return (id, String(path[..<end]))
  }
}

import HTTPTypes
import Hummingbird
import HummingbirdFastCGI
import NIOCore
import Sessions
import Workspaces

/// nginx's question whether it should take the body of a request in, which it asks before it does so for each body that
/// isn't small: else anybody could fill its disk without a key. The question is the request without its body; see
/// `nginx/asked.conf`. 204 means yes.
///
/// nginx passes neither the status nor the body of a refusal on, so these go into fields of a 403, from which nginx makes
/// the answer.
enum AnnouncedBody {
  static func isAnnounced(_ context: API.Context) -> Bool { context.parametersOfServer["BODY_ANNOUNCED"] != nil }

  /// Whether an answer says that the body is welcome, so that the request itself is still to come.
  static func isWelcome(_ response: Response, _ context: API.Context) -> Bool {
    response.status == .noContent && isAnnounced(context)
  }

  /// Before all other middleware: turns what is refused into what nginx can pass on.
  struct Answers: RouterMiddleware {
    typealias Context = API.Context

    func handle(
      _ request: Request, context: Context, next: (Request, Context) async throws -> Response
    ) async throws -> Response {
      var response = try await next(request, context)
      guard isAnnounced(context), response.status != .noContent else { return response }
      let collector = Collector()
      try await response.body.write(collector)
      response.headers[.contentType] = nil
      response.headers[.contentLength] = nil
      response.headers[.refusalStatus] = String(response.status.code)
      // JSON, in which a line's end is always escaped.
      response.headers[.refusal] = String(buffer: collector.body)
      return Response(status: .forbidden, headers: response.headers)
    }
  }

  /// After all other middleware: answers in place of the route, which would do what is asked for.
  struct Admission: RouterMiddleware {
    typealias Context = API.Context

    let routes: RouteTable
    let files: FilesAPI?

    func handle(
      _ request: Request, context: Context, next: (Request, Context) async throws -> Response
    ) async throws -> Response {
      guard isAnnounced(context), let route = context.endpointPath,
        let access = routes.access(request.method, route)
      else { return try await next(request, context) }
      guard access == .change else { throw Problem(.contentTooLarge, "This takes no body.") }
      if let files { try await files.admitBody(of: request, route, context) }
      return Response(status: .noContent)
    }
  }

  private final class Collector: ResponseBodyWriter {
    private(set) var body = ByteBuffer()

    func write(_ buffer: ByteBuffer) { body.writeImmutableBuffer(buffer) }

    func finish(_: HTTPFields?) {}
  }
}

extension FilesAPI {
  /// Refuses a body that has no room, as far as its length tells. What it is, and what else there is, the route sees to.
  func admitBody(of request: Request, _ route: String, _ context: API.Context) async throws {
    let session = route.contains("{session_id}") ? try await session(context) : nil
    guard route == "/sessions" || Self.ways.contains(where: { route.hasPrefix("/sessions/{session_id}/\($0)") }) else {
      return
    }
    let length = request.headers[.contentLength].flatMap { Int64($0) } ?? 0
    if request.method == .put, length > workspaces.limits.uploadBytes {
      throw FileError.uploadTooLarge(limit: workspaces.limits.uploadBytes)
    }
    if try await workspaces.isDiskLow() { throw FileError.diskFull }
    try await service.checkRoom(for: length, in: session, of: Principal.current?.keyID)
  }

  /// What follows a session in the paths under which files are brought.
  private static let ways = ["files", "uploads", "archive"]
}

extension HTTPField.Name {
  static let refusal = named("Claude-Api-Refusal")
  static let refusalStatus = named("Claude-Api-Refusal-Status")
}

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
      guard isAnnounced(context) else {
        files?.noteBody(of: request, context)
        return try await next(request, context)
      }
      guard let route = context.endpointPath,
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
  /// Refuses a body that has no room, as far as its length tells, and lets it wait while its key brings too much. What it
  /// is, and what else there is, the route sees to.
  func admitBody(of request: Request, _ route: String, _ context: API.Context) async throws {
    let session = route.contains("{session_id}") ? try await session(context) : nil
    let length = request.headers[.contentLength].flatMap { Int64($0) } ?? 0
    if route == "/sessions" || Self.ways.contains(where: { route.hasPrefix("/sessions/{session_id}/\($0)") }) {
      if request.method == .put, length > workspaces.limits.uploadBytes {
        throw FileError.uploadTooLarge(limit: workspaces.limits.uploadBytes)
      }
      if try await workspaces.isDiskLow() { throw FileError.diskFull }
      try await service.checkRoom(for: length, in: session, of: Principal.current?.keyID)
    }
    try await waitForBody(length)
  }

  /// What follows a session in the paths under which files are brought.
  private static let ways = ["files", "uploads", "archive"]

  /// Waits until a body may come, so that no key's bodies take the disk from all others.
  private func waitForBody(_ length: Int64) async throws {
    guard let uploadPaces, let key = Principal.current?.keyID,
      let delay = uploadPaces.delay(of: key, for: Double(length))
    else { return }
    do {
      guard delay <= Self.longestWait else {
        throw Problem(
          .tooManyRequests, "This key's uploads of the last seconds were more than the server takes of one key.",
          retryAfter: Int((delay / .seconds(1)).rounded(.up)))
      }
      try await Task.sleep(for: delay)
    } catch {
      uploadPaces.giveBack(Double(length), of: key)
      throw error
    }
  }

  /// What would wait longer is refused. Less than the server gives what is under way when it is to end.
  private static let longestWait = Duration.seconds(20)

  /// Counts a body whose length nobody had told; the next one waits for it.
  func noteBody(of request: Request, _ context: API.Context) {
    guard let uploadPaces, request.method != .get, let key = Principal.current?.keyID,
      context.parametersOfServer["BODY_LENGTH_TOLD"] == "",
      let length = request.headers[.contentLength].flatMap({ Double($0) })
    else { return }
    _ = uploadPaces.delay(of: key, for: length)
  }
}

extension HTTPField.Name {
  static let refusal = named("Claude-Api-Refusal")
  static let refusalStatus = named("Claude-Api-Refusal-Status")
}

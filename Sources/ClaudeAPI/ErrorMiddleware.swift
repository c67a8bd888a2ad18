import HTTPTypes
import Hummingbird
import Logging
import Sessions
import Workspaces

/// Turns every error into a problem document, and logs those that are the server's.
struct ErrorMiddleware<Context: RequestContext>: RouterMiddleware {
  let routes: RouteTable
  var status: (any ServerStatus)?

  func handle(
    _ request: Request, context: Context, next: (Request, Context) async throws -> Response
  ) async throws -> Response {
    do {
      return try await next(request, context)
    } catch {
      let problem = problem(error, request)
      if problem.status.kind == .serverError {
        context.logger.error(
          "A request failed", metadata: ["code": "\(problem.code)", "error": "\(logged(error))"])
      }
      status?.reported(problem: problem.code)
      guard ProblemPage.isWanted(request, context.endpointPath) else { return problem.response }
      // A folder of the session, if there is such a session.
      let session = problem.code == "session_not_found" ? nil : API.uuid("session_id", context)
      return ProblemPage(problem: problem, folder: session.map { "/sessions/\($0.lowercaseString)/files/" }).response
    }
  }

  private func problem(_ error: any Error, _ request: Request) -> Problem {
    switch error {
    case let problem as Problem: return problem
    case let error as SessionServiceError: return Problem(error)
    case let error as SessionOptionError:
      return BodyFields.invalid(error.option.rawValue, error.requirement)
    case let error as FileError: return Problem(error)
    case let error as RelativePath.Malformation: return Problem(error)
    case let error as UploadError: return Problem(error)
    case let error as ShareError: return Problem(error)
    case let error as GitError: return Problem(error)
    case MultipartError.malformed:
      return Problem(.badRequest, "invalid_form", "The body is not whole multipart/form-data.")
    case MultipartError.tooManyParts:
      return Problem(.contentTooLarge, "too_many_parts", "The form has more parts than are allowed.")
    case let error as HTTPError where error.status == .notFound:
      let methods = routes.methods(for: request.uri.path)
      guard !methods.isEmpty else {
        return Problem(.notFound, "not_found", "There is nothing at this path; GET / lists what there is.")
      }
      let allowed = methods.map(\.rawValue).joined(separator: ", ")
      return Problem(
        .methodNotAllowed, "method_not_allowed",
        "This path has no method \(request.method.rawValue); it has \(allowed).",
        allow: allowed)
    case let error as HTTPError:
      return Problem(error.status, "http_\(error.status.code)", error.body ?? error.status.reasonPhrase)
    case is CancellationError:
      return Problem(.registered(499), "client_gone", "The client went away.")
    default:
      return Problem(.internalServerError, "internal_error", "The server failed in a way that it has no word for.")
    }
  }

  /// An error's text for the log. A turn's failure may repeat what the agent said and is left out.
  private func logged(_ error: any Error) -> String {
    switch error {
    case let problem as Problem: problem.code
    // The turn has the prompt in it.
    case SessionServiceError.postponed: "postponed"
    default: "\(error)"
    }
  }
}

extension Problem {
  init(_ error: SessionServiceError) {
    switch error {
    case .sessionNotFound:
      self.init(.notFound, "session_not_found", "Session not found")
    case .turnNotFound:
      self.init(.notFound, "turn_not_found", "Turn not found")
    case .queueFull(let limit, let retryAfter):
      self.init(
        .tooManyRequests, "queue_full",
        "\(limit) messages wait for their turn in this session already; try again later.", retryAfter: retryAfter)
    case .limited(let excess):
      self.init(.registered(excess.status), excess.code, excess.detail, retryAfter: excess.retryAfter(.now()))
      limit = excess
    case .streamsExhausted(let maximum):
      self.init(
        .serviceUnavailable, "streams_exhausted",
        "The server has \(maximum) streams open and takes no more; try again later.", retryAfter: 5)
    case .sessionDeleted:
      self.init(.gone, "session_deleted", "The session was deleted, and its turns with it.")
    case .turnState(.running):
      self.init(
        .conflict, "turn_running", "The turn is running; POST /sessions/{session_id}/interrupt stops it.")
    case .turnState(let state):
      self.init(.conflict, "turn_state", "The turn is \(state.rawValue).")
    case .nothingRuns:
      self.init(.conflict, "nothing_runs", "No turn of this session is running.")
    case .sessionBusy:
      self.init(
        .conflict, "session_busy", "The session has a turn that runs or waits; try again when it has ended.",
        retryAfter: 5)
    case .approvalNotFound:
      self.init(.notFound, "approval_not_found", "Approval not found")
    case .approvalResolved(let approval):
      self.init(.conflict, "approval_resolved", "The approval is \(approval.state.rawValue) already.")
      self.approval = approval
    case .idempotencyMismatch:
      self.init(
        .unprocessableContent, "idempotency_mismatch", "The Idempotency-Key was used with another request before.")
    case .shuttingDown:
      self.init(
        .serviceUnavailable, "shutting_down",
        "The server is about to stop. A message that was accepted before is kept and runs after the next start.",
        retryAfter: 5)
    case .postponed(let turn):
      self.init(
        .serviceUnavailable, "shutting_down",
        "The server is about to restart. The message is accepted and runs after that: get its turn at the Location, or "
          + "repeat the request with the Idempotency-Key that it had. Without one a repetition is another message.",
        retryAfter: 5)
      self.turn = turn
    case .diskFull:
      self.init(.registered(507), "disk_full", "The disk is full.")
    case .workspace:
      self.init(.internalServerError, "workspace_failed", "The directories of the session could not be used.")
    case .store(.busy):
      self.init(.serviceUnavailable, "store_busy", "The store is busy; try again.", retryAfter: 1)
    case .store:
      self.init(.internalServerError, "store_failed", "The store could not be used.")
    }
  }

  init(_ failure: TurnFailure) {
    self.init(
      .registered(failure.status ?? 502), failure.code, failure.detail, retryAfter: failure.retryAfter)
  }
}

extension HTTPResponse.Status {
  private static let phrases: [Int: String] = [
    400: "Bad Request", 401: "Unauthorized", 402: "Payment Required", 403: "Forbidden", 404: "Not Found",
    408: "Request Timeout", 409: "Conflict", 410: "Gone", 412: "Precondition Failed", 413: "Content Too Large",
    422: "Unprocessable Content", 429: "Too Many Requests", 499: "Client Closed Request",
    500: "Internal Server Error", 502: "Bad Gateway", 503: "Service Unavailable", 504: "Gateway Timeout",
    507: "Insufficient Storage",
  ]

  /// The status with its registered reason phrase.
  static func registered(_ code: Int) -> Self {
    Self(code: code, reasonPhrase: phrases[code] ?? "Error")
  }
}

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
          "A request failed", metadata: ["code": "\(problem.code.rawValue)", "error": "\(logged(error))"])
      }
      status?.reported(problem: problem.code.rawValue)
      guard ProblemPage.isWanted(request, context.endpointPath) else { return problem.response }
      // A folder of the session, if there is such a session.
      let session = problem.code == .sessionNotFound ? nil : API.uuid("session_id", context)
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
      return Problem(.invalidForm, "The body is not whole multipart/form-data.")
    case MultipartError.tooManyParts:
      return Problem(.tooManyParts, "The form has more parts than are allowed.")
    case let error as HTTPError where error.status == .notFound:
      let methods = routes.methods(for: request.uri.path)
      guard !methods.isEmpty else {
        return Problem(.notFound, "There is nothing at this path; GET / lists what there is.")
      }
      let allowed = methods.map(\.rawValue).joined(separator: ", ")
      return Problem(
        .methodNotAllowed,
        "This path has no method \(request.method.rawValue); it has \(allowed).",
        allow: allowed)
    case let error as HTTPError:
      // What the framework itself finds wrong with a request.
      let code: ProblemCode =
        switch error.status.code {
        case 413: .contentTooLarge
        case 400..<500: .badRequest
        default: .internalError
        }
      return Problem(code, error.body ?? error.status.reasonPhrase)
    case is CancellationError:
      return Problem(.clientGone, "The client went away.")
    default:
      return Problem(.internalError, "The server failed in a way that it has no word for.")
    }
  }

  /// An error's text for the log. A turn's failure may repeat what the agent said and is left out.
  private func logged(_ error: any Error) -> String {
    switch error {
    case let problem as Problem: problem.code.rawValue
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
      self.init(.sessionNotFound, "Session not found")
    case .turnNotFound:
      self.init(.turnNotFound, "Turn not found")
    case .queueFull(let limit, let retryAfter):
      self.init(
        .queueFull,
        "\(limit) messages wait for their turn in this session already; try again later.", retryAfter: retryAfter)
    case .limited(let excess):
      self.init(ProblemCode(excess.limit), excess.detail, retryAfter: excess.retryAfter(.now()))
      limit = excess
    case .streamsExhausted(let maximum):
      self.init(
        .streamsExhausted,
        "The server has \(maximum) streams open and takes no more; try again later.", retryAfter: 5)
    case .sessionDeleted:
      self.init(.sessionDeleted, "The session was deleted, and its turns with it.")
    case .turnState(.running):
      self.init(
        .turnRunning, "The turn is running; POST /sessions/{session_id}/interrupt stops it.")
    case .turnState(let state):
      self.init(.turnState, "The turn is \(state.rawValue).")
    case .nothingRuns:
      self.init(.nothingRuns, "No turn of this session is running.")
    case .sessionBusy:
      self.init(
        .sessionBusy, "The session has a turn that runs or waits; try again when it has ended.",
        retryAfter: 5)
    case .approvalNotFound:
      self.init(.approvalNotFound, "Approval not found")
    case .approvalResolved(let approval):
      self.init(.approvalResolved, "The approval is \(approval.state.rawValue) already.")
      self.approval = approval
    case .idempotencyMismatch:
      self.init(
        .idempotencyMismatch, "The Idempotency-Key was used with another request before.")
    case .shuttingDown:
      self.init(
        .shuttingDown,
        "The server is about to stop. A message that was accepted before is kept and runs after the next start.",
        retryAfter: 5)
    case .postponed(let turn):
      self.init(
        .shuttingDown,
        "The server is about to restart. The message is accepted and runs after that: get its turn at the Location, or "
          + "repeat the request with the Idempotency-Key that it had. Without one a repetition is another message.",
        retryAfter: 5)
      self.turn = turn
    case .diskFull:
      self.init(.diskFull, "The disk is full.")
    case .workspace:
      self.init(.workspaceFailed, "The directories of the session could not be used.")
    case .store(.busy):
      self.init(.storeBusy, "The store is busy; try again.", retryAfter: 1)
    case .store:
      self.init(.storeFailed, "The store could not be used.")
    }
  }

  init(_ failure: TurnFailure) {
    // Words of an earlier version may be in the store.
    self.init(ProblemCode(rawValue: failure.code) ?? .turnFailed, failure.detail, retryAfter: failure.retryAfter)
  }
}

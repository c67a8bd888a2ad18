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
      let problem =
        if let error = error as? HTTPError, error.status == .notFound {
          noRoute(for: request)
        } else {
          Problem(describing: error, context.logger)
        }
      status?.reported(problem: problem.code)
      guard ProblemPage.isWanted(request, context.endpointPath) else { return problem.response }
      // A folder of the session, if there is such a session.
      let session = problem.code == .sessionNotFound ? nil : API.uuid("session_id", context)
      return ProblemPage(problem: problem, folder: session.map { "/sessions/\($0.lowercaseString)/files/" }).response
    }
  }

  private func noRoute(for request: Request) -> Problem {
    let methods = routes.methods(for: request.uri.path)
    guard !methods.isEmpty else {
      return Problem(.notFound, "There is nothing at this path; GET / lists what there is.")
    }
    let allowed = methods.map(\.rawValue).joined(separator: ", ")
    return Problem(
      .methodNotAllowed,
      "This path has no method \(request.method.rawValue); it has \(allowed).",
      allow: allowed)
  }
}

extension Problem {
  /// What a client is told of an error. One that is the server's is logged.
  init(describing error: any Error, _ logger: Logger) {
    self.init(describing: error)
    guard status.kind == .serverError else { return }
    let text =
      switch error {
      // A turn's failure may repeat what the agent said and is left out, and a turn has the prompt in it.
      case is Problem: code.rawValue
      case SessionServiceError.postponed: "postponed"
      default: "\(error)"
      }
    // What comes to pass by itself or by design is no error of the server.
    logger.log(
      level: code.isPassing ? .info : .error, "A request failed",
      metadata: ["code": "\(code.rawValue)", "error": "\(text)"])
  }

  private init(describing error: any Error) {
    switch error {
    case let problem as Problem: self = problem
    case let error as SessionServiceError: self.init(error)
    case let error as SessionOptionError: self = BodyFields.invalid(error.option.rawValue, error.requirement)
    case let error as FileError: self.init(error)
    case let error as RelativePath.Malformation: self.init(error)
    case let error as UploadError: self.init(error)
    case let error as ShareError: self.init(error)
    case let error as GitError: self.init(error)
    case MultipartError.malformed:
      self.init(.invalidForm, "The body is not whole multipart/form-data.")
    case MultipartError.tooManyParts:
      self.init(.tooManyParts, "The form has more parts than are allowed.")
    case let error as HTTPError:
      // What the framework itself finds wrong with a request.
      let code: ProblemCode =
        switch error.status.code {
        case 413: .contentTooLarge
        case 400..<500: .badRequest
        default: .internalError
        }
      self.init(code, error.body ?? error.status.reasonPhrase)
    case is CancellationError:
      self.init(.clientGone, "The client went away.")
    default:
      self.init(.internalError, "The server failed in a way that it has no word for.")
    }
  }

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

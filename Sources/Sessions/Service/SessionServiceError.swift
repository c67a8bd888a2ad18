/// Why a request to a ``SessionService`` was not carried out.
public enum SessionServiceError: Error, Hashable, Sendable {
  case sessionNotFound
  case turnNotFound
  /// As many messages as may wait are waiting; another may be tried after some seconds.
  case queueFull(limit: Int, retryAfter: Int)
  /// It would go beyond a limit of a key.
  case limited(LimitExcess)
  /// As many streams are open as the server allows.
  case streamsExhausted(maximum: Int)
  /// The session was deleted while the call waited for one of its turns.
  case sessionDeleted
  /// The turn isn't in a state in which this can be done.
  case turnState(Turn.State)
  /// No turn of the session runs that could be stopped.
  case nothingRuns
  /// The session has unfinished turns, and this needs one at rest.
  case sessionBusy
  case approvalNotFound
  /// Another decision was there first, or none is possible any more; the approval as it is.
  case approvalResolved(Approval)
  /// The key was used with another request.
  case idempotencyMismatch
  /// The server is about to end; what was accepted is kept and goes on after the next start.
  case shuttingDown
  /// The turn is accepted, and begins only after the next start of the server.
  case postponed(Turn)
  /// There is no room for what the request needs.
  case diskFull
  /// The directories of the session can't be made or removed.
  case workspace(String)
  case store(SessionStoreError)

  init(_ error: SessionStoreError) {
    switch error {
    case .sessionNotFound: self = .sessionNotFound
    case .turnNotFound: self = .turnNotFound
    case .approvalNotFound: self = .approvalNotFound
    case .diskFull: self = .diskFull
    case .limited(let excess): self = .limited(excess)
    default: self = .store(error)
    }
  }

  /// Whether the same may succeed later, without a change of the request.
  var isPassing: Bool {
    switch self {
    case .diskFull: true
    case .store(let error): error.isPassing
    default: false
    }
  }
}

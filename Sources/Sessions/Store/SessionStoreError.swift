#if canImport(FoundationEssentials)
  public import FoundationEssentials
#else
  public import Foundation
#endif

/// Why a store didn't do what it was asked to. Nothing of the operation was kept.
public enum SessionStoreError: Error, Hashable, Sendable {
  case sessionNotFound(UUID)
  case turnNotFound(UUID)
  case approvalNotFound(UUID)
  /// The id is in use, or the file to write exists.
  case alreadyExists(String)
  /// The thing is not in a state in which this can be done.
  case conflict(Conflict)
  /// No space is left for the database.
  case diskFull
  /// Another process holds the database longer than the store is willing to wait.
  case busy
  /// The file at this path is not a database, or a damaged one.
  case corrupt(path: String)
  /// The database was written by a newer version of this program; `migrations` are those it doesn't know.
  case schemaTooNew(path: String, migrations: [String])
  /// It would go beyond a limit of a key.
  case limited(LimitExcess)
  case io(String)

  public enum Conflict: Hashable, Sendable {
    /// The turn's state, which doesn't allow the change.
    case turnState(Turn.State)
    /// The session has this turn running; it can't run another one.
    case sessionBusy(runningTurn: UUID)
  }
}

extension SessionStoreError {
  /// Whether the same may succeed later: the store can't be used at the moment.
  var isPassing: Bool {
    switch self {
    case .diskFull, .busy, .io: true
    default: false
    }
  }
}

extension SessionStoreError: CustomStringConvertible {
  /// A sentence for a person. It never holds text of a conversation.
  public var description: String {
    switch self {
    case .sessionNotFound(let id): "There is no session \(id.lowercaseString)."
    case .turnNotFound(let id): "There is no turn \(id.lowercaseString)."
    case .approvalNotFound(let id): "There is no approval \(id.lowercaseString)."
    case .alreadyExists(let what): "\(what) exists already."
    case .conflict(.turnState(let state)): "The turn is \(state.rawValue)."
    case .conflict(.sessionBusy(let turn)): "The session runs turn \(turn.lowercaseString)."
    case .diskFull: "There is no space left for the database."
    case .busy: "The database is in use by another process."
    case .corrupt(let path): "\(path) is not a database or is damaged; restore it from a backup."
    case .schemaTooNew(let path, let migrations):
      "\(path) was written by a newer version of this program (\(migrations.joined(separator: ", "))); "
        + "start that version, or restore a backup made by this one."
    case .limited(let excess): "The limit \(excess.limit.rawValue) of a key is reached."
    case .io(let text): "The database could not be used: \(text)"
    }
  }
}

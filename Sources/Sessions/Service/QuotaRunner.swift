public import JSONSupport
import Synchronization
public import Workspaces

#if canImport(FoundationEssentials)
  public import FoundationEssentials
#else
  public import Foundation
#endif

/// Runs turns by another runner and stops one whose session's workspace, or home directory, holds more than it may.
///
/// Both are counted while a turn runs, with pauses that are at least ten times as long as the counting.
public struct QuotaRunner<Base: TurnRunner>: TurnRunner {
  /// What was found while a turn ran.
  private final class Finding: Sendable {
    let excess = Mutex<(place: String, error: FileError)?>(nil)
  }

  private let base: Base
  private let workspaces: Workspaces
  private let interval: Duration

  /// - Parameter interval: the shortest pause between two counts. Default 2 s.
  public init(_ base: Base, workspaces: Workspaces, interval: Duration = .seconds(2)) {
    self.base = base
    self.workspaces = workspaces
    self.interval = interval
  }

  public func run(
    _ request: TurnRequest, onMessage: @escaping @Sendable (JSONValue) async -> Void
  ) async throws(TurnRunFailure) -> TurnResult {
    let finding = Finding()
    let result = await withTaskGroup(of: Result<TurnResult, TurnRunFailure>?.self) { tasks in
      tasks.addTask {
        do throws(TurnRunFailure) {
          return .success(try await base.run(request, onMessage: onMessage))
        } catch {
          return .failure(error)
        }
      }
      tasks.addTask {
        await watch(request.session.id, finding)
        return nil
      }
      var result: Result<TurnResult, TurnRunFailure>?
      while result == nil, let next = await tasks.next() { result = next }
      tasks.cancelAll()
      return result
    }
    guard let excess = finding.excess.withLock({ $0 }) else {
      guard let result else {
        // The first task of the group always has a result.
        throw TurnRunFailure(TurnFailure(code: "internal_error", detail: "The turn ended without a result."))
      }
      return try result.get()
    }
    var failure = TurnRunFailure(Self.failure(excess.error, in: excess.place))
    switch result {
    case .success(let turn):
      failure.partialText = turn.text
      failure.accounts = turn.accounts
    case .failure(let error):
      failure.partialText = error.partialText
      failure.accounts = error.accounts
    case nil: break
    }
    throw failure
  }

  public func interrupt(_ sessionID: UUID) async { await base.interrupt(sessionID) }

  public func answerPermission(
    _ requestID: String, of sessionID: UUID, _ answer: PermissionAnswer
  ) async -> Bool {
    await base.answerPermission(requestID, of: sessionID, answer)
  }

  public func stop(_ sessionID: UUID) async { await base.stop(sessionID) }

  /// Looks after a workspace until it holds too much or the task is cancelled.
  private func watch(_ id: UUID, _ finding: Finding) async {
    var pause = interval
    while true {
      do {
        try await Task.sleep(for: pause)
        let start = ContinuousClock.now
        let workspace = try await workspaces.usage(of: id)
        let home = try await workspaces.configurationUsage(of: id)
        for (place, usage) in [("workspace", workspace), ("agent's home directory", home)] {
          guard let error = workspaces.excess(of: usage) else { continue }
          finding.excess.withLock { $0 = (place, error) }
          return await base.interrupt(id)
        }
        pause = max(interval, (ContinuousClock.now - start) * 10)
      } catch is CancellationError {
        return
      } catch {
        // Not to be counted now; it is tried again, and an upload tells what is wrong.
        pause = interval * 10
      }
    }
  }

  private static func failure(_ excess: FileError, in place: String) -> TurnFailure {
    let what =
      if case .quotaExceeded(.entries, let limit) = excess {
        "more than \(limit) files and folders"
      } else if case .quotaExceeded(_, let limit) = excess {
        "more than \(limit) bytes"
      } else {
        "too much"
      }
    return TurnFailure(
      code: "quota_exceeded", detail: "The turn was stopped: the \(place) holds \(what). Delete files to go on.",
      status: 507)
  }
}

import ClaudeRunner
import Foundation
import HTTPTypes
import Monitoring
import SQLiteStore
import Sessions

/// Everything that the server counts. Recording takes some tens of nanoseconds and waits for nobody.
final class ServerMetrics: TurnObserver {
  struct Route: Hashable, Sendable {
    let method: String
    let route: String

    static let other = Route(method: "other", route: "other")
  }

  /// The requests of one route.
  struct Requests: Sendable {
    let durations = Histogram(Histogram.requestBounds)
    let statuses = Family<Int, Counter>(limit: 60, overflow: 0) { Counter() }
  }

  /// What the turns of one API key used.
  struct Use: Sendable {
    static let kinds = ["input", "output", "cache_read", "cache_creation"]
    /// One for each of the kinds.
    let tokens = kinds.map { _ in Counter() }
    let dollars = Counter()
  }

  /// Routes and statuses are few by themselves; the bounds are for what nobody has thought of.
  let requests = Family<Route, Requests>(limit: 300, overflow: .other) { Requests() }
  let problems = Family<String, Counter>(limit: 200, overflow: "other") { Counter() }
  let turns = Family<String, Counter>(limit: 20, overflow: "other") { Counter() }
  let turnFailures = Family<String, Counter>(limit: 100, overflow: "other") { Counter() }
  let refusedApprovals = Counter()
  let queueWaits = Histogram(Histogram.turnBounds)
  let firstWords = Histogram(Histogram.turnBounds)
  let turnDurations = Histogram(Histogram.turnBounds)
  /// Keys beyond the first hundred that were used are counted together.
  let uses = Family<String, Use>(limit: 100, overflow: "other") { Use() }
  /// What nginx has counted on the way to the model.
  let gateway: GatewayLedger
  let reactorLag = Histogram(Histogram.requestBounds)
  let storeCalls = Dictionary(
    uniqueKeysWithValues: SQLiteStoreConfiguration.Call.allCases.map { ($0, Histogram(Histogram.requestBounds)) })

  init(_ gateway: GatewayLedger) {
    self.gateway = gateway
  }

  // MARK: Requests

  func answered(_ method: HTTPRequest.Method, _ route: String?, _ status: Int, _ duration: Duration) {
    let requests = requests[Route(method: Self.name(method), route: route ?? "none")]
    requests.statuses[status].add()
    requests.durations.record(duration)
  }

  /// The methods that there are; a client may send any other word.
  private static func name(_ method: HTTPRequest.Method) -> String {
    switch method {
    case .get, .head, .post, .put, .patch, .delete, .options: method.rawValue
    default: "other"
    }
  }

  // MARK: Turns

  func turnStarted(_ turn: Turn, waited: Duration) {
    queueWaits.record(waited)
    Task { await gateway.turnStarted(turn) }
  }

  func turnSpoke(_ turn: Turn, after elapsed: Duration) { firstWords.record(elapsed) }

  func approvalRefused(_ turn: Turn) { refusedApprovals.add() }

  func turnEnded(_ turn: Turn) {
    if turn.startedAt != nil { Task { await gateway.turnEnded(turn) } }
    turns[turn.state.rawValue].add()
    if let failure = turn.failure { turnFailures[failure.code].add() }
    if let startedAt = turn.startedAt, let finishedAt = turn.finishedAt {
      turnDurations.record(finishedAt.duration(since: startedAt))
    }
    guard turn.usage != nil || turn.costUSD != nil else { return }
    let use = uses[turn.owner ?? "none"]
    if let usage = turn.usage {
      let amounts = [usage.inputTokens, usage.outputTokens, usage.cacheReadTokens, usage.cacheCreationTokens]
      for (counter, amount) in zip(use.tokens, amounts) { counter.add(Double(amount)) }
    }
    if let cost = turn.costUSD { use.dollars.add(cost) }
  }

  // MARK: Inner works

  func storeCall(_ call: SQLiteStoreConfiguration.Call, _ duration: Duration) { storeCalls[call]?.record(duration) }

  /// The reactor came to a job after `lag`.
  func pulse(_ lag: Duration) { reactorLag.record(lag) }
}

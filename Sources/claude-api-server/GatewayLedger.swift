import ClaudeRunner
import Logging
import Monitoring
import NIOPosix
import Sessions

#if canImport(FoundationEssentials)
  import FoundationEssentials
#else
  import Foundation
#endif

/// What nginx has counted of the requests to the model, beside what the CLI says.
///
/// Both count the same tokens, one as they pass and the other as it is told. Where they differ, somebody has used the
/// way to the model beside the CLI, or one of the two counts wrong: that is logged and counted. What nginx has counted
/// goes to the store, which charges what the CLI has not told of; with the place in nginx's log, so that each request
/// counts once, also if the server ends at any moment.
actor GatewayLedger {
  /// What has passed on behalf of one API key.
  struct Use: Sendable {
    /// One for each of ``ServerMetrics/Use/kinds``.
    let tokens = ServerMetrics.Use.kinds.map { _ in Counter() }
    let dollars = Counter()
  }

  /// A session's tokens since the last comparison, by kind.
  private struct Account {
    var gateway = Tokens()
    var cli = Tokens()
    /// Whether a turn ended without saying what it used.
    var isIncomplete = false
    /// Counts the turns, so that a comparison knows whether another one has begun since.
    var turns = 0
    var isRunning = false
  }

  private typealias Tokens = [Int64]

  /// A difference is none up to this share, nor up to so many tokens: an answer that breaks off is counted by one side
  /// and not by the other.
  static let tolerance = (share: 0.02, tokens: Int64(200))
  /// Sessions whose tokens are kept for a comparison to come.
  private static let keptAccounts = 20_000

  /// By the key that owns the session; those beyond the first hundred are counted together.
  nonisolated let uses = Family<String, Use>(limit: 100, overflow: "other") { Use() }
  /// Tokens that are in no dollars, by model.
  nonisolated let unpriced = Family<String, Counter>(limit: 50, overflow: "other") { Counter() }
  nonisolated let disagreements = Counter()

  private let log: ModelLogFollower
  private let path: String
  private var isMissed = false
  private let prices: ModelPrices
  private let settling: Duration
  private let logger: Logger
  private var accounts: [String: Account] = [:]
  private var reading: Task<Bool, Never>?
  private var store: (any SessionStore)?
  /// What the store doesn't have yet.
  private var unstored: [Payer: ModelUse] = [:]
  private var storedMark: ModelLogFollower.Mark?
  private var timer: Task<Void, Never>?

  /// Whose use something is.
  private struct Payer: Hashable {
    let session: UUID
    let key: String
  }

  /// How often the log is read if nobody asks.
  private static let interval = Duration.seconds(30)

  /// Blocks for a moment.
  ///
  /// - Parameter settling: from the end of a turn to the comparison. nginx writes a request down when its last byte is
  ///   sent, which may be after the CLI has seen its end.
  init(log path: String, prices: ModelPrices, settling: Duration = .seconds(1), logger: Logger) {
    log = ModelLogFollower(path: path)
    self.path = path
    self.prices = prices
    self.settling = settling
    self.logger = logger
  }

  // MARK: Counting

  /// Begins to charge what the CLI doesn't tell of, with what has been logged since an earlier server stopped.
  ///
  /// - Throws: what stops the store from being read.
  func start(_ store: any SessionStore) async throws(SessionStoreError) {
    let mark = try await store.gatewayMark().flatMap(ModelLogFollower.Mark.init(text:))
    if let mark {
      do {
        try await NIOThreadPool.singleton.runIfActive { [log] in log.resume(mark) }
      } catch {
        // The pool ends with the process.
        return
      }
    }
    self.store = store
    await catchUp()
    timer = Task { [weak self] in
      while true {
        do { try await Task.sleep(for: Self.interval) } catch { return }
        guard let self else { return }
        await self.catchUp()
      }
    }
  }

  /// To be called when no turn runs any more, before the store is closed.
  func stop() async {
    timer?.cancel()
    await catchUp()
    store = nil
  }

  /// Counts what has been logged until now.
  ///
  /// - Returns: whether there is a log.
  @discardableResult
  func catchUp() async -> Bool {
    // One after the other, so that whoever waits for this one knows all that there was when it asked.
    let earlier = reading
    let task = Task {
      _ = await earlier?.value
      return await self.readOn()
    }
    reading = task
    return await task.value
  }

  private func readOn() async -> Bool {
    let read: (requests: [ModelRequest], mark: ModelLogFollower.Mark)?
    do {
      read = try await NIOThreadPool.singleton.runIfActive { [log] in log.read() }
    } catch {
      // The pool ends with the process.
      return false
    }
    guard let read else { return false }
    for request in read.requests { count(request) }
    await keep(upTo: read.mark)
    return true
  }

  private func count(_ request: ModelRequest) {
    let tokens = request.tokens
    let amounts = [tokens.input, tokens.output, tokens.cacheRead, tokens.cacheCreation].map { Int64($0) }
    guard amounts.contains(where: { $0 > 0 }) else { return }
    let use = uses[request.key]
    for (counter, amount) in zip(use.tokens, amounts) { counter.add(Double(amount)) }
    let cost = prices.cost(of: tokens, model: request.model)
    if let cost {
      use.dollars.add(cost)
    } else {
      unpriced[request.model.isEmpty ? "none" : request.model].add(Double(tokens.sum))
    }
    change(request.session) { Self.add(amounts, to: &$0.gateway) }
    guard store != nil, let session = UUID(uuidString: request.session) else { return }
    let key = request.key == ModelGateway.noAccount ? "" : request.key
    unstored[Payer(session: session, key: key), default: ModelUse()] += ModelUse(
      tokens: Int64(tokens.input + tokens.output + tokens.cacheCreation),
      cost: KeyLimit.amount(ofDollars: cost ?? 0))
  }

  /// Writes what was counted into the store. What can't be written is kept for the next time.
  private func keep(upTo mark: ModelLogFollower.Mark) async {
    guard let store, !unstored.isEmpty || storedMark != mark else { return }
    do throws(SessionStoreError) {
      try await store.countGateway(
        unstored.map { GatewayUse(session: $0.session, key: $0.key, use: $1) }, mark: mark.text, at: .now())
      unstored = [:]
      storedMark = mark
    } catch {
      logger.error("What nginx has counted could not be stored", metadata: ["error": "\(error)"])
    }
  }

  private static func add(_ amounts: Tokens, to tokens: inout Tokens) {
    tokens = tokens.isEmpty ? amounts : zip(tokens, amounts).map { $0 + $1 }
  }

  private func change(_ session: String, _ body: (inout Account) -> Void) {
    // Of those that are deleted without another turn something stays here.
    if accounts.count >= Self.keptAccounts, accounts[session] == nil { accounts = accounts.filter { $1.isRunning } }
    body(&accounts[session, default: Account()])
  }

  // MARK: Comparing

  func turnStarted(_ turn: Turn) {
    change(turn.sessionID.lowercaseString) {
      $0.turns += 1
      $0.isRunning = true
    }
  }

  /// Compares what both have counted, unless another turn begins before they have settled: then at its end.
  func turnEnded(_ turn: Turn) async {
    let session = turn.sessionID.lowercaseString
    var turns = 0
    change(session) { account in
      account.isRunning = false
      turns = account.turns
      if turn.state == .completed, let usage = turn.usage {
        Self.add(
          [usage.inputTokens, usage.outputTokens, usage.cacheReadTokens, usage.cacheCreationTokens], to: &account.cli)
      } else {
        account.isIncomplete = true
      }
    }
    do { try await Task.sleep(for: settling) } catch { return }
    let hasLog = await catchUp()
    if !hasLog { miss() }
    guard let account = accounts[session], account.turns == turns, !account.isRunning else { return }
    accounts[session] = nil
    guard hasLog else { return }
    await forgetCredit(of: turn.sessionID)
    guard !account.isIncomplete else { return }
    compare(account, turn)
  }

  /// Says once that there is no log although a turn has ended. nginx makes it when it starts.
  private func miss() {
    guard !isMissed else { return }
    isMissed = true
    logger.warning(
      "There is no log of the model's gateway: what agents take beside the CLI is not charged",
      metadata: ["model.log": "\(path)"])
  }

  private func forgetCredit(of session: UUID) async {
    do throws(SessionStoreError) {
      try await store?.forgetGatewayCredit(of: session)
    } catch {
      logger.error("The account of a session could not be settled", metadata: ["error": "\(error)"])
    }
  }

  private func compare(_ account: Account, _ turn: Turn) {
    let none = ServerMetrics.Use.kinds.map { _ in Int64(0) }
    let (gateway, cli) = (account.gateway.isEmpty ? none : account.gateway, account.cli.isEmpty ? none : account.cli)
    guard zip(gateway, cli).contains(where: { !Self.agree($0, $1) }) else { return }
    disagreements.add()
    var metadata: Logger.Metadata = [
      "session": "\(turn.sessionID.lowercaseString)", "turn": "\(turn.id.lowercaseString)",
      "key": "\(turn.owner ?? "-")",
    ]
    for (index, kind) in ServerMetrics.Use.kinds.enumerated() where !Self.agree(gateway[index], cli[index]) {
      metadata["gateway_\(kind)"] = "\(gateway[index])"
      metadata["cli_\(kind)"] = "\(cli[index])"
    }
    logger.warning("The CLI's tokens are not those that nginx has counted", metadata: metadata)
  }

  private static func agree(_ one: Int64, _ other: Int64) -> Bool {
    let difference = abs(one - other)
    return difference <= tolerance.tokens || Double(difference) <= tolerance.share * Double(max(one, other))
  }
}

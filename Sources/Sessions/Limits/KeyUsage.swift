/// A key and what it may use, for which something counts. The empty key stands for all use without a key.
public struct KeyAccount: Hashable, Sendable {
  public var key: String
  public var limits: KeyLimits

  public init(key: String, limits: KeyLimits = KeyLimits()) {
    self.key = key
    self.limits = limits
  }
}

/// What counts for a key at one moment.
public struct KeyUsage: Hashable, Sendable {
  /// Sessions that it owns, those in deletion not counted.
  public var sessions: Int64 = 0
  public var runningTurns: Int64 = 0
  public var queuedTurns: Int64 = 0
  public var turnsThisHour: Int64 = 0
  public var tokensToday: Int64 = 0
  /// Billionths of a US dollar.
  public var costToday: Int64 = 0
  /// Billionths of a US dollar.
  public var costThisMonth: Int64 = 0
  /// Billionths of a US dollar that running turns may still spend.
  public var reserved: Int64 = 0
  /// What has passed the model's gateway for turns that run, beyond what was charged. They are charged when they end.
  public var pending = ModelUse()
  /// What its sessions take on the disk, those in deletion not counted: their files as they were measured last, and logs.
  public var diskBytes: Int64 = 0
  /// What of these amounts agents took from the model beside the CLI.
  public var besideCLI = BesideCLI()

  public struct BesideCLI: Hashable, Sendable {
    public var tokensToday: Int64 = 0
    /// Billionths of a US dollar.
    public var costToday: Int64 = 0
    /// Billionths of a US dollar.
    public var costThisMonth: Int64 = 0

    public init() {}
  }

  public init() {}

  /// What of a limit is used. Streams are not in the store.
  public func amount(_ limit: KeyLimit) -> Int64? {
    switch limit {
    case .sessions: sessions
    case .runningTurns: runningTurns
    case .queuedTurns: queuedTurns
    case .streams: nil
    case .turnsPerHour: turnsThisHour
    case .tokensPerDay: tokensToday
    case .usdPerDay: costToday
    case .usdPerMonth: costThisMonth
    case .diskBytes: diskBytes
    }
  }

  /// What of a limit agents have used beside the CLI; nil for a limit on something else than the model.
  public func amountBesideCLI(_ limit: KeyLimit) -> Int64? {
    switch limit {
    case .sessions, .runningTurns, .queuedTurns, .streams, .turnsPerHour, .diskBytes: nil
    case .tokensPerDay: besideCLI.tokensToday
    case .usdPerDay: besideCLI.costToday
    case .usdPerMonth: besideCLI.costThisMonth
    }
  }
}

/// A limit that a request or turn would go beyond.
public struct LimitExcess: Error, Hashable, Sendable {
  public let limit: KeyLimit
  public let maximum: Int64
  public let used: Int64
  /// When the count begins anew; nil for what is in use at one time.
  public let resetsAt: Timestamp?

  public init(_ limit: KeyLimit, maximum: Int64, used: Int64, at now: Timestamp) {
    self.limit = limit
    self.maximum = maximum
    self.used = used
    resetsAt = limit.period?.end(now)
  }

  /// Seconds after which another try makes sense; nil if time doesn't help.
  public func retryAfter(_ now: Timestamp) -> Int? {
    switch limit {
    case .sessions, .diskBytes: nil
    case .runningTurns, .queuedTurns, .streams: 5
    case .turnsPerHour, .tokensPerDay, .usdPerDay, .usdPerMonth:
      resetsAt.map { max(1, Int(($0.microseconds - now.microseconds + 999_999) / 1_000_000)) }
    }
  }
}

extension TurnOutcome {
  /// What a turn counts with that ends so. One whose cost nobody knows counts with what it was allowed to spend.
  ///
  /// - Parameter reserved: billionths of a US dollar.
  public func charge(reserved: Int64?) -> ModelUse {
    let tokens = usage.map { $0.inputTokens + $0.outputTokens + $0.cacheCreationTokens } ?? 0
    if let costUSD { return ModelUse(tokens: tokens, cost: KeyLimit.amount(ofDollars: costUSD)) }
    return ModelUse(tokens: tokens, cost: isCostUnknown ? reserved ?? 0 : 0)
  }
}

/// The arithmetic of admission, which both stores do within their transactions.
public enum Admission {
  /// What a turn may spend at least while others of its key run: so much can each of them go beyond the budget.
  /// 5 cents.
  public static let leastAllowance = KeyLimit.dollar / 20

  /// Checks what a new session needs.
  public static func checkSession(
    _ accounts: [KeyAccount], at now: Timestamp, _ usage: (String) throws -> KeyUsage
  ) throws {
    let limits: [KeyLimit] = [.sessions, .diskBytes]
    for account in accounts where limits.contains(where: { account.limits[$0] != nil }) {
      let used = try usage(account.key)
      for limit in limits { try check(limit, account, used, now) }
    }
  }

  /// Checks what a new turn needs.
  public static func checkNewTurn(
    _ accounts: [KeyAccount], at now: Timestamp, _ usage: (String) throws -> KeyUsage
  ) throws {
    let limits: [KeyLimit] = [.usdPerMonth, .usdPerDay, .tokensPerDay, .turnsPerHour, .queuedTurns, .diskBytes]
    for account in accounts where limits.contains(where: { account.limits[$0] != nil }) {
      let used = try usage(account.key)
      for limit in limits { try check(limit, account, used, now) }
    }
  }

  /// Checks what a turn needs to run, and says what it may spend.
  ///
  /// That is half of what its keys have left and no other turn has reserved, so that several at once stay within it,
  /// but at least ``leastAllowance`` or what is left.
  ///
  /// - Returns: billionths of a US dollar; nil for no bound.
  public static func checkStart(
    _ accounts: [KeyAccount], at now: Timestamp, _ usage: (String) throws -> KeyUsage
  ) throws -> Int64? {
    let limits: [KeyLimit] = [.usdPerMonth, .usdPerDay, .tokensPerDay, .diskBytes]
    var allowance: Int64?
    for account in accounts where limits.contains(where: { account.limits[$0] != nil }) {
      let used = try usage(account.key)
      for limit in limits {
        try check(limit, account, used, now)
        guard limit.isMoney, let maximum = account.limits[limit], let spent = used.amount(limit) else { continue }
        let left = maximum - spent
        let own = max((left - used.reserved) / 2, min(leastAllowance, left))
        allowance = min(allowance ?? own, own)
      }
    }
    return allowance
  }

  /// The budget of a key that is used up while its turns run, with what has passed the gateway for them; nil if none is.
  ///
  /// Turns may spend what was reserved for them when they began, although several together go beyond a budget by it.
  public static func excessWhileRunning(_ account: KeyAccount, _ usage: KeyUsage, at now: Timestamp) -> LimitExcess? {
    for limit in KeyLimit.budgets {
      guard let maximum = account.limits[limit], let booked = usage.amount(limit) else { continue }
      let left = maximum - booked
      let (pending, bound) =
        limit.isMoney ? (usage.pending.cost, max(left, usage.reserved)) : (usage.pending.tokens, left)
      if pending >= bound { return LimitExcess(limit, maximum: maximum, used: booked + pending, at: now) }
    }
    return nil
  }

  private static func check(
    _ limit: KeyLimit, _ account: KeyAccount, _ usage: KeyUsage, _ now: Timestamp
  ) throws {
    guard let maximum = account.limits[limit], let used = usage.amount(limit), used >= maximum else { return }
    throw SessionStoreError.limited(LimitExcess(limit, maximum: maximum, used: used, at: now))
  }
}

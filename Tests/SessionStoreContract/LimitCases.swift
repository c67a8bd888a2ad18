internal import Foundation
internal import Sessions
internal import Testing

let limitCases: [ContractCase] = [
  ContractCase("what counts for a key outlives its sessions", whatCountsForAKeyOutlivesItsSessions),
  ContractCase("the books are kept by hours, days and months of UTC", theBooksAreKeptByHoursDaysAndMonths),
  ContractCase("a turn counts for its sender and for the session's owner", aTurnCountsForSenderAndOwner),
  ContractCase("use without a key is kept apart", useWithoutAKeyIsKeptApart),
  ContractCase("each limit refuses what would go beyond it and changes nothing", eachLimitRefuses),
  ContractCase("a repeated request isn't refused", aRepeatedRequestIsntRefused),
  ContractCase("of many at once exactly as many get in as may", ofManyAtOnceExactlyAsManyGetInAsMay),
  ContractCase("turns that run at once reserve parts of the budget", turnsReservePartsOfTheBudget),
  ContractCase("a turn whose cost nobody knows counts with what it reserved", anUnknownCostCountsAsReserved),
  ContractCase("what passed the gateway beside the turns is charged once", whatPassedTheGatewayIsChargedOnce),
  ContractCase("what the gateway tells of late is charged once", whatTheGatewayTellsOfLateIsChargedOnce),
  ContractCase("what turns make up is no credit", whatTurnsMakeUpIsNoCredit),
  ContractCase("what a killed server's turns took is charged", whatAKilledServersTurnsTookIsCharged),
  ContractCase("what passes the gateway for a running turn is known", whatPassesForARunningTurnIsKnown),
  ContractCase("what sessions take on the disk counts for their owner", whatSessionsTakeCountsForTheirOwner),
]

private let cent = KeyLimit.dollar / 100

private func account(_ key: String, _ limits: [KeyLimit: Int64] = [:]) -> KeyAccount {
  KeyAccount(key: key, limits: KeyLimits(limits.mapValues { .maximum($0) }))
}

private func outcome(_ dollars: Double?, tokens: Int64 = 0, at now: Timestamp = time(3)) -> TurnOutcome {
  TurnOutcome(
    state: .completed, finishedAt: now,
    usage: TokenUsage(inputTokens: tokens, outputTokens: tokens, cacheReadTokens: 1 << 40, cacheCreationTokens: tokens),
    costUSD: dollars)
}

extension SessionStore {
  fileprivate func add(
    _ session: Session, from sender: String?, at now: Timestamp = time(1), accounts: [KeyAccount] = []
  ) async throws -> Turn {
    let admission = try await enqueueTurn(
      NewTurn(sessionID: session.id, prompt: "x", owner: sender, createdAt: now), events: [], idempotency: nil,
      queueLimit: nil, accounts: accounts)
    guard case .created(let turn, _) = admission else { throw Unexpected("the turn was not accepted") }
    return turn
  }

  fileprivate func create(_ owner: String?, _ limits: [KeyLimit: Int64], prompt: Bool = false) async throws -> Session {
    let session = makeSession(owner: owner)
    let turn = NewTurn(sessionID: session.id, prompt: "x", owner: owner, createdAt: time(0))
    _ = try await createSession(
      session, firstTurn: prompt ? turn : nil, events: [], idempotency: nil, accounts: [account(owner ?? "", limits)])
    return session
  }
}

/// What the gateway has counted for a session.
private func passed(_ session: Session, tokens: Int64, _ cents: Int64 = 0) -> GatewayUse {
  GatewayUse(session: session.id, key: session.owner ?? "", use: ModelUse(tokens: tokens, cost: cents * cent))
}

extension SessionStore {
  fileprivate func runningTurn(_ session: Session, from sender: String? = "k") async throws -> Turn {
    try await startTurn(try await add(session, from: sender).id, at: time(2)).turn
  }

  /// Today's tokens and cents of a key, and those beside the CLI among them.
  fileprivate func spent(_ key: String) async throws -> [Int64] {
    let usage = try await usage(of: key, at: time(4))
    #expect(usage.besideCLI.costThisMonth == usage.besideCLI.costToday)
    return [
      usage.tokensToday, usage.costToday / cent, usage.besideCLI.tokensToday, usage.besideCLI.costToday / cent,
    ]
  }
}

@Sendable private func whatPassedTheGatewayIsChargedOnce(_ store: any SessionStore) async throws {
  #expect(try await store.gatewayMark() == nil)
  let session = try await store.addSession(owner: "k")
  // Nothing counts as long as there is no gateway.
  _ = try await store.finishTurn(try await store.runningTurn(session).id, outcome(0.25, tokens: 10))
  #expect(try await store.spent("k") == [30, 25, 0, 0])
  try await store.countGateway([], mark: "1", at: time(3))
  #expect(try await store.gatewayMark() == "1")

  // The same on both sides.
  var turn = try await store.runningTurn(session)
  try await store.countGateway([passed(session, tokens: 30, 25)], mark: "2", at: time(3))
  #expect(try await store.spent("k") == [30, 25, 0, 0])
  _ = try await store.finishTurn(turn.id, outcome(0.25, tokens: 10))
  #expect(try await store.spent("k") == [60, 50, 0, 0])

  // More than the turn tells of; it counts for the sender as well.
  turn = try await store.runningTurn(session, from: "guest")
  try await store.countGateway(
    [passed(session, tokens: 30, 25), passed(session, tokens: 7, 4)], mark: "3", at: time(3))
  _ = try await store.finishTurn(turn.id, outcome(0.25, tokens: 10))
  #expect(try await store.spent("k") == [97, 79, 7, 4])
  #expect(try await store.spent("guest") == [37, 29, 7, 4])

  // Between turns, and of a session that is gone.
  try await store.countGateway([passed(session, tokens: 3, 1)], mark: "4", at: time(3))
  #expect(try await store.spent("k") == [100, 80, 10, 5])
  _ = try await store.beginDeletion(of: session.id, at: time(3))
  try await store.finishDeletion(of: session.id)
  try await store.countGateway([passed(session, tokens: 1, 1)], mark: "5", at: time(3))
  #expect(try await store.spent("k") == [101, 81, 11, 6])
  #expect(try await store.gatewayMark() == "5")

  // A turn that says nothing of what it took.
  let other = try await store.addSession(owner: "k")
  turn = try await store.runningTurn(other)
  try await store.countGateway([passed(other, tokens: 9, 2)], mark: "6", at: time(3))
  _ = try await store.finishTurn(turn.id, TurnOutcome(state: .interrupted, finishedAt: time(3)))
  #expect(try await store.spent("k") == [110, 83, 20, 8])
  // A turn that tells of its tokens and not of their price.
  turn = try await store.runningTurn(other)
  try await store.countGateway([passed(other, tokens: 30, 99)], mark: "7", at: time(3))
  _ = try await store.finishTurn(turn.id, outcome(0.25, tokens: 10))
  #expect(try await store.spent("k") == [140, 182, 20, 82])
  // A budget is looked at with all of it.
  await expect(.limited(LimitExcess(.tokensPerDay, maximum: 140, used: 140, at: time(1)))) {
    _ = try await store.add(other, from: "k", accounts: [account("k", [.tokensPerDay: 140])])
  }
}

@Sendable private func whatTheGatewayTellsOfLateIsChargedOnce(_ store: any SessionStore) async throws {
  try await store.countGateway([], mark: "1", at: time(1))
  let session = try await store.addSession(owner: nil)
  for round in 1...3 {
    let turn = try await store.runningTurn(session, from: nil)
    try await store.countGateway([passed(session, tokens: 10, 5)], mark: "2", at: time(3))
    _ = try await store.finishTurn(turn.id, outcome(0.25, tokens: 10))
    // Its last request is told of now, with one that the agent made.
    try await store.countGateway(
      [passed(session, tokens: 20, 20), passed(session, tokens: 5, 1)], mark: "3", at: time(3))
    #expect(try await store.spent("") == [35, 26, 5, 1].map { $0 * Int64(round) })
  }
}

@Sendable private func whatTurnsMakeUpIsNoCredit(_ store: any SessionStore) async throws {
  try await store.countGateway([], mark: "1", at: time(1))
  let session = try await store.addSession(owner: "k")
  var turn = try await store.runningTurn(session)
  try await store.countGateway([passed(session, tokens: 30, 2)], mark: "2", at: time(3))
  // While a turn runs it isn't known yet what it tells of.
  try await store.forgetGatewayCredit(of: session.id)
  _ = try await store.finishTurn(turn.id, outcome(5, tokens: 1000))
  #expect(try await store.spent("k") == [3000, 500, 0, 0])
  try await store.forgetGatewayCredit(of: session.id)
  try await store.countGateway([passed(session, tokens: 7, 3)], mark: "3", at: time(3))
  #expect(try await store.spent("k") == [3007, 503, 7, 3])

  // Tokens beyond measure, and no price.
  turn = try await store.runningTurn(session)
  try await store.countGateway([passed(session, tokens: 30, 40)], mark: "4", at: time(3))
  _ = try await store.finishTurn(turn.id, outcome(0, tokens: 1000))
  #expect(try await store.spent("k") == [6007, 543, 7, 43])

  // The rounding of prices is nobody's use, but not for ever.
  let half = GatewayUse(session: session.id, key: "k", use: ModelUse(tokens: 0, cost: cent * 3 / 5))
  try await store.forgetGatewayCredit(of: session.id)
  try await store.countGateway([half], mark: "5", at: time(3))
  #expect(try await store.spent("k") == [6007, 543, 7, 43])
  try await store.countGateway([half], mark: "6", at: time(3))
  #expect(try await store.usage(of: "k", at: time(4)).costToday == 543 * cent + cent * 6 / 5)
}

@Sendable private func whatAKilledServersTurnsTookIsCharged(_ store: any SessionStore) async throws {
  try await store.countGateway([], mark: "1", at: time(1))
  let session = try await store.addSession(owner: "k")
  let turn = try await store.add(session, from: "k")
  _ = try await store.startTurn(
    turn.id, at: time(2), events: [], accounts: [account("k", [.usdPerDay: KeyLimit.dollar])])
  try await store.countGateway([passed(session, tokens: 50, 70)], mark: "2", at: time(3))
  #expect(try await store.spent("k") == [0, 0, 0, 0])
  _ = try await store.recoverInterrupted(at: time(3)) { _ in [] }
  // It counts with the 50 cents that it had reserved, and what it took beyond that.
  #expect(try await store.spent("k") == [50, 70, 50, 20])
}

@Sendable private func whatCountsForAKeyOutlivesItsSessions(_ store: any SessionStore) async throws {
  let session = try await store.addSession(owner: "k")
  let turns = [try await store.add(session, from: "k"), try await store.add(session, from: "k")]
  _ = try await store.startTurn(turns[0].id, at: time(2))
  var usage = try await store.usage(of: "k", at: time(2))
  #expect(usage.sessions == 1 && usage.runningTurns == 1 && usage.queuedTurns == 1)
  #expect(usage.turnsThisHour == 2 && usage.tokensToday == 0 && usage.costToday == 0)
  _ = try await store.finishTurn(turns[0].id, outcome(0.25, tokens: 10))
  _ = try await store.finishTurn(turns[1].id, TurnOutcome(state: .cancelled, finishedAt: time(3)))
  usage = try await store.usage(of: "k", at: time(4))
  #expect(usage.runningTurns == 0 && usage.queuedTurns == 0)
  // What was read from a cache doesn't count.
  #expect(usage.tokensToday == 30 && usage.costToday == 25 * cent && usage.costThisMonth == 25 * cent)
  let last = try await store.add(session, from: "k")
  _ = try await store.startTurn(last.id, at: time(4))
  _ = try await store.beginDeletion(of: session.id, at: time(5))
  usage = try await store.usage(of: "k", at: time(5))
  #expect(usage.sessions == 0 && usage.runningTurns == 1)
  // A turn that ends while its session is deleted counts as well.
  _ = try await store.finishTurn(last.id, outcome(0.5))
  try await store.finishDeletion(of: session.id)
  usage = try await store.usage(of: "k", at: time(6))
  #expect(usage.sessions == 0 && usage.runningTurns == 0 && usage.turnsThisHour == 3 && usage.costToday == 75 * cent)
  #expect(try await store.usage(of: "unknown", at: time(6)) == KeyUsage())
}

@Sendable private func theBooksAreKeptByHoursDaysAndMonths(_ store: any SessionStore) async throws {
  let session = try await store.addSession(owner: "k")
  func moment(_ text: String) throws -> Timestamp {
    guard let time = Timestamp(text) else { throw Unexpected(text) }
    return time
  }
  for text in [
    "2026-01-31T23:59:59.999999Z", "2026-02-01T00:00:00Z", "2026-02-28T22:59:59Z", "2026-02-28T23:00:00Z",
    "2026-02-28T23:59:59.999999Z", "2026-03-01T00:00:00Z",
  ] {
    let now = try moment(text)
    _ = try await store.finishTurn(
      try await store.add(session, from: "k", at: now).id, outcome(0.01, tokens: 1, at: now))
  }
  func expect(_ text: String, turns: Int64, today: Int64, month: Int64) async throws {
    // What comes later is not there yet when it is asked for: the last moment first would not show it.
    let usage = try await store.usage(of: "k", at: try moment(text))
    #expect(usage.turnsThisHour == turns, "\(text)")
    #expect(usage.costThisMonth == month * cent && usage.costToday == today * cent, "\(text)")
    #expect(usage.tokensToday == 3 * today, "\(text)")
  }
  try await expect("2026-03-01T00:59:59Z", turns: 1, today: 1, month: 1)
  try await expect("2026-03-01T01:00:00Z", turns: 0, today: 1, month: 1)
  try await expect("2026-03-02T00:00:00Z", turns: 0, today: 0, month: 1)
  try await expect("2026-04-01T00:00:00Z", turns: 0, today: 0, month: 0)
}

@Sendable private func aTurnCountsForSenderAndOwner(_ store: any SessionStore) async throws {
  let session = try await store.addSession(owner: "owner")
  let turn = try await store.add(session, from: "guest")
  #expect(try await store.usage(of: "owner", at: time(1)).queuedTurns == 1)
  #expect(try await store.usage(of: "guest", at: time(1)).queuedTurns == 1)
  #expect(try await store.usage(of: "guest", at: time(1)).sessions == 0)
  _ = try await store.finishTurn(turn.id, outcome(1))
  for key in ["owner", "guest"] {
    let usage = try await store.usage(of: key, at: time(4))
    #expect(usage.turnsThisHour == 1 && usage.costToday == KeyLimit.dollar, "\(key)")
  }
}

@Sendable private func useWithoutAKeyIsKeptApart(_ store: any SessionStore) async throws {
  let open = try await store.addSession()
  let owned = try await store.addSession(owner: "k")
  for session in [open, owned] {
    let turn = try await store.add(session, from: session.owner)
    _ = try await store.startTurn(turn.id, at: time(2))
    #expect(try await store.usage(of: session.owner ?? "", at: time(2)).runningTurns == 1)
    _ = try await store.finishTurn(turn.id, outcome(1))
    let usage = try await store.usage(of: session.owner ?? "", at: time(4))
    #expect(usage.sessions == 1 && usage.turnsThisHour == 1 && usage.costToday == KeyLimit.dollar)
  }
  // An administrator's message in what nobody owns is the administrator's.
  _ = try await store.add(open, from: "admin")
  #expect(try await store.usage(of: "admin", at: time(4)).turnsThisHour == 1)
  #expect(try await store.usage(of: "", at: time(4)).turnsThisHour == 1)
}

@Sendable private func eachLimitRefuses(_ store: any SessionStore) async throws {
  let session = try await store.create("k", [.sessions: 1])
  func excess(_ limit: KeyLimit, _ maximum: Int64, _ used: Int64) -> SessionStoreError {
    .limited(LimitExcess(limit, maximum: maximum, used: used, at: time(0)))
  }
  await expect(excess(.sessions, 1, 1)) { try await store.create("k", [.sessions: 1]) }
  _ = try await store.create("other", [.sessions: 1])
  let turn = try await store.add(session, from: "k")
  await expect(excess(.queuedTurns, 1, 1)) {
    try await store.add(session, from: "k", accounts: [account("k", [.queuedTurns: 1])])
  }
  await expect(excess(.queuedTurns, 1, 1)) { try await store.create("k", [.queuedTurns: 1], prompt: true) }
  await expect(excess(.turnsPerHour, 1, 1)) {
    try await store.add(session, from: "k", accounts: [account("x"), account("k", [.turnsPerHour: 1])])
  }
  _ = try await store.finishTurn(turn.id, outcome(0.5, tokens: 100))
  for (limit, amount) in [(KeyLimit.tokensPerDay, 300), (.usdPerDay, 50 * cent), (.usdPerMonth, 50 * cent)] {
    await expect(excess(limit, amount, amount)) {
      try await store.add(session, from: "k", accounts: [account("k", [limit: amount])])
    }
    let waiting = try await store.add(session, from: "k", accounts: [account("k", [limit: amount + 1])])
    await expect(excess(limit, amount, amount)) {
      try await store.startTurn(waiting.id, at: time(4), events: [], accounts: [account("k", [limit: amount])])
    }
    #expect(try await store.turn(waiting.id).state == .queued)
    _ = try await store.finishTurn(waiting.id, TurnOutcome(state: .cancelled, finishedAt: time(4)))
  }
  #expect(try await store.usage(of: "k", at: time(4)).sessions == 1)
  #expect(try await store.turns(of: session.id, after: 0, limit: 10, states: nil).items.count == 4)
  // The next hour, and the next day, begin at nothing.
  let later = time(86_400)
  _ = try await store.add(
    session, from: "k", at: later, accounts: [account("k", [.turnsPerHour: 1, .usdPerDay: 1, .tokensPerDay: 1])])
}

@Sendable private func aRepeatedRequestIsntRefused(_ store: any SessionStore) async throws {
  let claim = IdempotencyClaim(key: IdempotencyKey(owner: "k", scope: "s", key: "1"), digest: [1])
  let limits = [account("k", [.sessions: 1, .turnsPerHour: 1])]
  let session = makeSession(owner: "k")
  for index in 0..<2 {
    let admission = try await store.createSession(
      index == 0 ? session : makeSession(owner: "k"), firstTurn: nil, events: [], idempotency: claim, accounts: limits)
    switch admission {
    case .created: #expect(index == 0)
    case .replayed(let earlier, _): #expect(index == 1 && earlier.id == session.id)
    default: throw Unexpected("\(admission)")
    }
  }
  let message = IdempotencyClaim(key: IdempotencyKey(owner: "k", scope: "m", key: "1"), digest: [1])
  for index in 0..<2 {
    let admission = try await store.enqueueTurn(
      NewTurn(sessionID: session.id, prompt: "x", owner: "k", createdAt: time(1)), events: [], idempotency: message,
      queueLimit: nil, accounts: limits)
    switch admission {
    case .created: #expect(index == 0)
    case .replayed: #expect(index == 1)
    default: throw Unexpected("\(admission)")
    }
  }
}

@Sendable private func ofManyAtOnceExactlyAsManyGetInAsMay(_ store: any SessionStore) async throws {
  let created = await withTaskGroup(of: Bool.self) { group in
    for _ in 0..<100 {
      group.addTask {
        do {
          _ = try await store.create("k", [.sessions: 10])
          return true
        } catch {
          return false
        }
      }
    }
    return await group.reduce(0) { $0 + ($1 ? 1 : 0) }
  }
  #expect(created == 10)
  #expect(try await store.usage(of: "k", at: time(1)).sessions == 10)
  let sessions = try await store.sessions()
  let accepted = await withTaskGroup(of: Bool.self) { group in
    for index in 0..<100 {
      group.addTask {
        do {
          _ = try await store.add(sessions[index % 10], from: "k", accounts: [account("k", [.turnsPerHour: 7])])
          return true
        } catch {
          return false
        }
      }
    }
    return await group.reduce(0) { $0 + ($1 ? 1 : 0) }
  }
  #expect(accepted == 7)
  #expect(try await store.usage(of: "k", at: time(1)).turnsThisHour == 7)
}

@Sendable private func turnsReservePartsOfTheBudget(_ store: any SessionStore) async throws {
  let accounts = [account("k", [.usdPerDay: KeyLimit.dollar, .usdPerMonth: 10 * KeyLimit.dollar])]
  var turns: [Turn] = []
  for _ in 0..<8 { turns.append(try await store.add(try await store.addSession(owner: "k"), from: "k")) }
  var allowances: [Int64] = []
  for turn in turns {
    let change = try await store.startTurn(turn.id, at: time(2), events: [], accounts: accounts)
    allowances.append(try #require(change.allowance))
  }
  // Half of what is left each, and never less than 5 cents: so much is the excess for each that runs.
  #expect(allowances.prefix(4) == [50 * cent, 25 * cent, 125 * cent / 10, 625 * cent / 100])
  #expect(allowances.dropFirst(4).allSatisfy { $0 == Admission.leastAllowance })
  #expect(try await store.usage(of: "k", at: time(2)).reserved == allowances.reduce(0, +))
  // Each spends all that it may.
  for (turn, allowance) in zip(turns, allowances) {
    _ = try await store.finishTurn(turn.id, outcome(Double(allowance) / Double(KeyLimit.dollar)))
  }
  let usage = try await store.usage(of: "k", at: time(4))
  #expect(usage.reserved == 0)
  #expect(usage.costToday <= KeyLimit.dollar + 8 * Admission.leastAllowance)
  await expect(.limited(LimitExcess(.usdPerDay, maximum: KeyLimit.dollar, used: usage.costToday, at: time(4)))) {
    try await store.add(try await store.addSession(owner: "k"), from: "k", accounts: accounts)
  }
  // Without a budget there is no bound, and the last cents go to one that runs alone.
  let free = try await store.add(try await store.addSession(owner: "free"), from: "free")
  #expect(try await store.startTurn(free.id, at: time(4), events: [], accounts: [account("free")]).allowance == nil)
  let poor = try await store.add(try await store.addSession(owner: "poor"), from: "poor")
  let limits = [account("poor", [.usdPerDay: cent])]
  #expect(try await store.startTurn(poor.id, at: time(4), events: [], accounts: limits).allowance == cent)
}

@Sendable private func anUnknownCostCountsAsReserved(_ store: any SessionStore) async throws {
  let accounts = [account("k", [.usdPerDay: KeyLimit.dollar])]
  func start() async throws -> Turn {
    let turn = try await store.add(try await store.addSession(owner: "k"), from: "k")
    return try await store.startTurn(turn.id, at: time(2), events: [], accounts: accounts).turn
  }
  let killed = try await start()
  _ = try await store.finishTurn(
    killed.id, TurnOutcome(state: .failed, finishedAt: time(3), isCostUnknown: true))
  #expect(try await store.usage(of: "k", at: time(3)).costToday == 50 * cent)
  // It never began, or cost nothing.
  let idle = try await start()
  _ = try await store.finishTurn(idle.id, TurnOutcome(state: .failed, finishedAt: time(3)))
  #expect(try await store.usage(of: "k", at: time(3)).costToday == 50 * cent)
  _ = try await start()
  let deleted = try await start()
  _ = try await store.beginDeletion(of: deleted.sessionID, at: time(3))
  _ = try await store.recoverInterrupted(at: time(4)) { _ in [] }
  let usage = try await store.usage(of: "k", at: time(5))
  #expect(usage.costToday == (50 + 25) * cent + 125 * cent / 10 && usage.reserved == 0 && usage.runningTurns == 0)
}

@Sendable private func whatPassesForARunningTurnIsKnown(_ store: any SessionStore) async throws {
  let session = try await store.addSession(owner: "k")
  try await store.countGateway([], mark: "0", at: time(0))
  let turn = try await store.add(session, from: "guest")
  _ = try await store.startTurn(turn.id, at: time(2))
  try await store.countGateway([passed(session, tokens: 70, 3)], mark: "1", at: time(2))
  for key in ["k", "guest", "other"] {
    let usage = try await store.usage(of: key, at: time(2))
    #expect(usage.pending == (key == "other" ? ModelUse() : ModelUse(tokens: 70, cost: 3 * cent)), "\(key)")
    #expect(usage.tokensToday == 0)
  }
  // The turn tells of the same at its end, and it counts once.
  _ = try await store.finishTurn(turn.id, outcome(0.03, tokens: 30))
  let usage = try await store.usage(of: "k", at: time(4))
  #expect(usage.pending.isZero && usage.tokensToday == 90 && usage.costToday == 3 * cent)
  // What it told of beyond that is on its way, and makes room for nothing else.
  let next = try await store.add(session, from: "k", at: time(5))
  _ = try await store.startTurn(next.id, at: time(6))
  #expect(try await store.usage(of: "k", at: time(6)).pending.isZero)
}

@Sendable private func whatSessionsTakeCountsForTheirOwner(_ store: any SessionStore) async throws {
  let (one, two) = (try await store.addSession(owner: "k"), try await store.addSession(owner: "k"))
  let open = try await store.addSession()
  for session in [one, two, open] { try await store.noteFiles(.measured(1000), of: session.id) }
  try await store.noteFiles(.measured(300), of: one.id)
  try await store.noteFiles(.more(40), of: one.id)
  try await store.noteFiles(.atLeast(350), of: one.id)
  try await store.noteFiles(.atLeast(349), of: one.id)
  try await store.noteFiles(.more(50), of: UUID())
  #expect(try await store.usage(of: "k", at: time(1)).diskBytes == 1350)
  #expect(try await store.usage(of: "", at: time(1)).diskBytes == 1000)
  #expect(try await store.usage(of: "other", at: time(1)).diskBytes == 0)
  let known = try await store.filesOfSessions(of: "k")
  #expect(known == [SessionFiles(session: one.id, bytes: 350), SessionFiles(session: two.id, bytes: 1000)])
  #expect(try await store.filesOfSessions(of: "").map(\.session) == [open.id])
  // So does the log, by the bytes of its payloads.
  let event = NewEvent(type: "x", turnID: nil, processedAt: time(1), payload: #"{"a":"ä"}"#)
  _ = try await store.appendEvents([event, event], to: two.id)
  #expect(try await store.usage(of: "k", at: time(1)).diskBytes == 1370)
  let full = [account("k", [.diskBytes: 1370])]
  let excess = SessionStoreError.limited(LimitExcess(.diskBytes, maximum: 1370, used: 1370, at: time(0)))
  await expect(excess) { try await store.create("k", [.diskBytes: 1370]) }
  await expect(excess) { try await store.add(one, from: "k", accounts: full) }
  let waiting = try await store.add(one, from: "k", accounts: [account("k", [.diskBytes: 1371])])
  await expect(excess) { try await store.startTurn(waiting.id, at: time(2), events: [], accounts: full) }
  // A deletion frees at once.
  _ = try await store.beginDeletion(of: two.id, at: time(3))
  #expect(try await store.usage(of: "k", at: time(3)).diskBytes == 350)
  #expect(try await store.filesOfSessions(of: "k").count == 1)
  _ = try await store.startTurn(waiting.id, at: time(4), events: [], accounts: full)
}

import Logging

#if canImport(FoundationEssentials)
  public import FoundationEssentials
#else
  public import Foundation
#endif

/// What a key may use, and what it uses.
public struct KeyStanding: Hashable, Sendable {
  public let account: KeyAccount
  public let usage: KeyUsage
  public let streams: Int
  public let at: Timestamp

  /// What of a limit is used.
  public func used(_ limit: KeyLimit) -> Int64 { usage.amount(limit) ?? Int64(streams) }
}

extension SessionService {
  /// Has the store know all that the model was used until now, for a look at how keys stand.
  public nonisolated func bringUseUpToDate() async { await configuration.bringUseUpToDate() }

  /// How a key stands.
  ///
  /// - Parameter key: the id of a key; empty for use without one.
  public nonisolated func standing(of key: String) async throws(SessionServiceError) -> KeyStanding {
    let now = Timestamp.now()
    do throws(SessionStoreError) {
      return KeyStanding(
        account: try await limits.account(key), usage: try await store.usage(of: key, at: now),
        streams: streams.count(of: key), at: now)
    } catch {
      throw SessionServiceError(error)
    }
  }

  /// Why what the agents of a key's sessions have left running has to end: the key isn't good any more, or nothing is
  /// left of one of its budgets. Nil if it may go on, also where that can't be found out.
  static func reasonToEnd(
    _ key: String, _ limits: KeyLimitPolicy, _ store: any SessionStore, _ configuration: SessionServiceConfiguration,
    _ logger: Logger
  ) async -> String? {
    await configuration.bringUseUpToDate()
    do throws(SessionStoreError) {
      guard try await limits.upholds(sender: key.isEmpty ? nil : key) else { return "key_revoked" }
      let maxima = try await limits.account(key).limits
      let usage = try await store.usage(of: key, at: .now())
      let isUsedUp = KeyLimit.budgets.contains { budget in
        guard let maximum = maxima[budget], let used = usage.amount(budget) else { return false }
        return used >= maximum
      }
      return isUsedUp ? "budget" : nil
    } catch {
      logger.warning("The budget of a key could not be looked at", metadata: ["key": "\(key)", "error": "\(error)"])
      return nil
    }
  }

  /// Has the store know exactly what the sessions of a key take on the disk, as far as that can be found out soon.
  public nonisolated func bringRoomUpToDate(of key: String) async {
    let settling = Task { [room, logger] in
      do throws(SessionStoreError) {
        try await room.settle(key)
      } catch {
        logger.warning("The room of a key could not be looked at", metadata: ["key": "\(key)", "error": "\(error)"])
      }
    }
    _ = await settling.value(within: .seconds(2))
  }

  /// Whether so many bytes would have room among the files of a session, or of a new one.
  ///
  /// - Parameters:
  ///   - id: nil for a new session.
  ///   - key: who would own a new one.
  /// - Throws: `limited` if not.
  public nonisolated func checkRoom(
    for bytes: Int64, in id: UUID?, of key: String?
  ) async throws(SessionServiceError) {
    let owner = if let id { try await session(id).owner } else { key }
    try await room.check(bytes, for: owner ?? "")
  }

  /// Changes the files of a session.
  ///
  /// - Parameter change: is given what it has to ask for the room that it takes.
  /// - Throws: ``SessionServiceError``, or what `change` throws.
  public nonisolated func changeFiles<Value>(
    of id: UUID, _ change: (FilesChange) async throws -> Value
  ) async throws -> Value {
    let owner = if let session = cachedSession(id) { session.owner } else { try await session(id).owner }
    return try await FilesChange.make(to: id, of: owner, room, change)
  }

  /// Does what the store may refuse for want of a key's room on the disk. Nobody is refused that by figures which are not
  /// exact.
  func withRoom<Value>(
    for accounts: [KeyAccount], _ body: () async throws(SessionStoreError) -> Value
  ) async throws(SessionStoreError) -> Value {
    for account in accounts where account.limits[.diskBytes] != nil { try await room.measureUnknown(account.key) }
    do throws(SessionStoreError) {
      return try await body()
    } catch .limited(let excess) where excess.limit == .diskBytes {
      for account in accounts where account.limits[.diskBytes] != nil { try await room.settle(account.key) }
      return try await body()
    }
  }

  /// What a key may use.
  public nonisolated func limits(of key: String) async throws(SessionServiceError) -> KeyLimits {
    do throws(SessionStoreError) {
      return try await limits.account(key).limits
    } catch {
      throw SessionServiceError(error)
    }
  }

  /// Takes a place for a stream of events, which is free again when the lease is gone.
  ///
  /// - Parameter keys: those that it counts for; see ``KeyLimitPolicy/keys(owner:sender:)``.
  /// - Throws: `limited`, `streamsExhausted`.
  public nonisolated func leaseStream(
    for keys: [String], over transport: StreamTransport
  ) async throws(SessionServiceError) -> StreamPlaces.Lease {
    var accounts: [KeyAccount] = []
    do throws(SessionStoreError) {
      for key in keys { accounts.append(try await limits.account(key)) }
    } catch {
      throw SessionServiceError(error)
    }
    return try streams.lease(accounts, over: transport)
  }
}

extension TurnFailure {
  /// The failure of a turn that one of its keys can't pay for.
  init(_ excess: LimitExcess) {
    self.init(
      code: excess.code, detail: excess.detail, retryAfter: excess.retryAfter(.now()))
  }
}

extension LimitExcess {
  /// A stable word for programs, such as `turns_per_hour_limit`.
  public var code: String { limit.identifier + "_limit" }

  /// A sentence for a person.
  public var detail: String {
    let maximum = limit.text(maximum)
    switch limit {
    case .sessions: return "This key may own \(maximum) sessions, and does; delete one first."
    case .runningTurns: return "\(maximum) turns of this key run already."
    case .queuedTurns: return "\(maximum) turns of this key wait already; try again later."
    case .streams: return "This key has \(maximum) streams open already; close one first."
    case .turnsPerHour: return "This key has sent the \(maximum) messages that it may send in an hour."
    case .tokensPerDay: return "This key has used up the \(maximum) tokens that it may use in a day."
    case .usdPerDay: return "This key has spent the \(maximum) US dollars that it may spend in a day."
    case .usdPerMonth: return "This key has spent the \(maximum) US dollars that it may spend in a month."
    case .diskBytes:
      return "The sessions of this key may take \(maximum) bytes on the disk; delete files or sessions to go on."
    }
  }
}

#if canImport(FoundationEssentials)
  import FoundationEssentials
#else
  import Foundation
#endif

/// Gives a number of places to those that wait for one, fairly between accounts: the next place goes to the account
/// that has the fewest, of several to the one that was served longest ago, and within an account by order of arrival.
///
/// So a hundred that wait of one account don't delay the first of another.
struct FairQueue {
  struct Waiter {
    /// Names it; each may wait once.
    let id: UUID
    let account: String
    /// Places that the account may have at one time; nil for no limit.
    let limit: Int64?
    let continuation: CheckedContinuation<Bool, Never>
  }

  private let places: Int
  /// By account.
  private var held: [String: Int] = [:]
  private var waiting: [String: [Waiter]] = [:]
  private var lastServed: [String: UInt64] = [:]
  private var clock: UInt64 = 0

  /// Accounts that are remembered as served although they have no place and none waits.
  private static let rememberedAccounts = 10_000

  init(places: Int) {
    self.places = places
  }

  var heldCount: Int { held.values.reduce(0, +) }
  var waitingCount: Int { waiting.values.reduce(0) { $0 + $1.count } }

  mutating func add(_ waiter: Waiter) {
    waiting[waiter.account, default: []].append(waiter)
  }

  /// Takes one that waits out of the queue.
  mutating func remove(_ id: UUID) -> Waiter? {
    for (account, waiters) in waiting {
      guard let index = waiters.firstIndex(where: { $0.id == id }) else { continue }
      waiting[account]?.remove(at: index)
      if waiting[account]?.isEmpty == true { waiting[account] = nil }
      return waiters[index]
    }
    return nil
  }

  mutating func removeAll() -> [Waiter] {
    defer { waiting = [:] }
    return waiting.values.flatMap { $0 }
  }

  /// How many of the same account are served before it; nil if it doesn't wait.
  func position(of id: UUID) -> Int? {
    for waiters in waiting.values {
      if let index = waiters.firstIndex(where: { $0.id == id }) { return index }
    }
    return nil
  }

  /// Gives a place to the next that waits; it holds it until ``release(_:)``.
  ///
  /// - Parameter hasRoom: asked before a second and further place is given.
  /// - Returns: nil if none waits that may have one, or none is free.
  mutating func next(hasRoom: () -> Bool = { true }) -> Waiter? {
    guard heldCount < places else { return nil }
    let eligible = waiting.filter { account, waiters in
      waiters.first?.limit.map { Int64(held[account] ?? 0) < $0 } ?? true
    }
    guard let account = eligible.keys.min(by: { rank($0) < rank($1) }), heldCount == 0 || hasRoom(),
      let waiter = waiting[account]?.removeFirst()
    else { return nil }
    if waiting[account]?.isEmpty == true { waiting[account] = nil }
    serve(account)
    return waiter
  }

  /// Gives a place to an account that doesn't wait, as ``next(hasRoom:)`` does.
  ///
  /// - Parameter limit: places that the account may have at one time; nil for no limit.
  /// - Returns: false if none is free, or others wait.
  mutating func take(for account: String, limit: Int64?, hasRoom: () -> Bool) -> Bool {
    guard waiting.isEmpty, heldCount < places, limit.map({ Int64(held[account] ?? 0) < $0 }) ?? true,
      heldCount == 0 || hasRoom()
    else { return false }
    serve(account)
    return true
  }

  private mutating func serve(_ account: String) {
    held[account, default: 0] += 1
    clock += 1
    lastServed[account] = clock
    if lastServed.count > Self.rememberedAccounts {
      lastServed = lastServed.filter { held[$0.key] != nil || waiting[$0.key] != nil }
    }
  }

  /// The lowest is served next.
  private func rank(_ account: String) -> (Int, UInt64, String) {
    (held[account] ?? 0, lastServed[account] ?? 0, account)
  }

  mutating func release(_ account: String) {
    let left = (held[account] ?? 1) - 1
    held[account] = left > 0 ? left : nil
  }
}

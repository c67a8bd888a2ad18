import Foundation
import Testing

@testable import Sessions

/// The order in which those that wait get places.
@Suite struct FairQueueTests {
  /// A queue and those who wait in it, by the account that they wait for.
  private actor Hall {
    private var queue: FairQueue
    private var accounts: [UUID: String] = [:]

    init(places: Int) { queue = FairQueue(places: places) }

    func wait(_ id: UUID, _ account: String, limit: Int64?) async -> Bool {
      accounts[id] = account
      return await withCheckedContinuation {
        queue.add(FairQueue.Waiter(id: id, account: account, limit: limit, continuation: $0))
      }
    }

    var waiting: Int { queue.waitingCount }

    /// Whose turn it is, of as many as may go.
    func next(hasRoom: Bool = true) -> [String] {
      var served: [String] = []
      while let waiter = queue.next(hasRoom: { hasRoom }) {
        served.append(waiter.account)
        waiter.continuation.resume(returning: true)
      }
      return served
    }

    func release(_ account: String) { queue.release(account) }
    func position(_ id: UUID) -> Int? { queue.position(of: id) }
    func remove(_ id: UUID) { queue.remove(id)?.continuation.resume(returning: false) }
    func clear() { for waiter in queue.removeAll() { waiter.continuation.resume(returning: false) } }
  }

  private struct Place {
    let id: UUID
    let task: Task<Bool, Never>
  }

  private func wait(
    _ hall: Hall, _ account: String, limit: Int64? = nil
  ) async throws -> Place {
    let id = UUID()
    let before = await hall.waiting
    let task = Task { await hall.wait(id, account, limit: limit) }
    while await hall.waiting == before { try await Task.sleep(for: .milliseconds(1)) }
    return Place(id: id, task: task)
  }

  @Test func theFirstOfOneKeyComesBeforeTheSecondOfAnother() async throws {
    let hall = Hall(places: 1)
    for _ in 0..<100 { _ = try await wait(hall, "a") }
    #expect(await hall.next() == ["a"])
    _ = try await wait(hall, "b")
    _ = try await wait(hall, "c")
    var order: [String] = []
    var last = "a"
    for _ in 0..<6 {
      await hall.release(last)
      let next = await hall.next()
      #expect(next.count == 1)
      last = next.first ?? ""
      order.append(last)
    }
    #expect(order == ["b", "c", "a", "a", "a", "a"])
    // One that comes again and again doesn't push the other away.
    for _ in 0..<3 {
      _ = try await wait(hall, "b")
      await hall.release(last)
      #expect(await hall.next() == ["b"])
      await hall.release("b")
      #expect(await hall.next() == ["a"])
      last = "a"
    }
    await hall.clear()
  }

  @Test func placesAreSharedEvenly() async throws {
    let hall = Hall(places: 4)
    for _ in 0..<10 { _ = try await wait(hall, "a") }
    #expect(await hall.next() == ["a", "a", "a", "a"])
    for _ in 0..<10 { _ = try await wait(hall, "b") }
    for expected in ["b", "b"] {
      await hall.release("a")
      #expect(await hall.next() == [expected])
    }
    // Both have two now.
    await hall.release("a")
    #expect(await hall.next() == ["a"])
    await hall.release("b")
    #expect(await hall.next() == ["b"])
    await hall.clear()
  }

  @Test func aKeyAtItsLimitLetsOthersPass() async throws {
    let hall = Hall(places: 10)
    var places: [Place] = []
    for _ in 0..<3 { places.append(try await wait(hall, "a", limit: 1)) }
    _ = try await wait(hall, "b")
    #expect(await hall.next().sorted() == ["a", "b"])
    #expect(await hall.position(places[0].id) == nil)
    #expect(await hall.position(places[1].id) == 0)
    #expect(await hall.position(places[2].id) == 1)
    await hall.remove(places[1].id)
    #expect(await places[1].task.value == false)
    #expect(await hall.position(places[2].id) == 0)
    await hall.release("a")
    #expect(await hall.next() == ["a"])
    #expect(await places[2].task.value)
  }

  @Test func withoutRoomOneAfterTheOtherRuns() async throws {
    let hall = Hall(places: 10)
    for _ in 0..<3 { _ = try await wait(hall, "a") }
    #expect(await hall.next(hasRoom: false) == ["a"])
    #expect(await hall.next(hasRoom: false) == [])
    await hall.release("a")
    #expect(await hall.next(hasRoom: false) == ["a"])
    #expect(await hall.next(hasRoom: true) == ["a"])
  }
}

@Suite struct KeyLimitTests {
  @Test func amountsAreReadAndWrittenExactly() {
    for (text, amount) in [
      ("1", 1_000_000_000), ("0.01", 10_000_000), ("12.5", 12_500_000_000), ("0.000000001", 1),
      ("999999999.999999999", 999_999_999_999_999_999),
    ] as [(String, Int64)] {
      #expect(KeyLimit.usdPerDay.amount(text) == amount, "\(text)")
      #expect(KeyLimit.usdPerDay.amount(KeyLimit.usdPerDay.text(amount)) == amount)
    }
    #expect(KeyLimit.usdPerDay.text(12_500_000_000) == "12.50")
    #expect(KeyLimit.usdPerDay.text(-1) == "-0.000000001")
    for text in [
      "", "0", "0.0", "-1", "+1", "1.", ".5", "1e3", "1,5", "0.0000000001", "9999999999", "1.2.3", "nan", "٣",
    ] {
      #expect(KeyLimit.usdPerMonth.amount(text) == nil, "\(text)")
    }
    for text in ["", "0", "-1", "1.5", "x", "99999999999999999999"] {
      #expect(KeyLimit.sessions.amount(text) == nil, "\(text)")
    }
    #expect(KeyLimit.sessions.amount("12") == 12 && KeyLimit.sessions.text(12) == "12")
  }

  @Test func limitsLieOverOthers() throws {
    let own = KeyLimits([.sessions: .unlimited, .streams: .maximum(2)])
    let defaults = KeyLimits([.sessions: .maximum(5), .streams: .maximum(9), .usdPerDay: .maximum(7)])
    let limits = own.over(defaults)
    #expect(limits[.sessions] == nil && limits[.streams] == 2 && limits[.usdPerDay] == 7 && limits[.usdPerMonth] == nil)
    #expect(KeyLimits(stored: own.stored) == own)
    for text in ["", "[]", #"{"x":1}"#, #"{"sessions":"1"}"#] { #expect(KeyLimits(stored: text) == nil, "\(text)") }
  }

  @Test func periodsEndWhereTheNextBegin() throws {
    let now = try #require(Timestamp("2024-02-29T23:59:59.999999Z"))
    #expect(UsagePeriod.hour.end(now).description == "2024-03-01T00:00:00.000000Z")
    #expect(UsagePeriod.day.start(now).description == "2024-02-29T00:00:00.000000Z")
    #expect(UsagePeriod.day.end(now).description == "2024-03-01T00:00:00.000000Z")
    #expect(UsagePeriod.month.start(now).description == "2024-02-01T00:00:00.000000Z")
    #expect(UsagePeriod.month.end(now).description == "2024-03-01T00:00:00.000000Z")
    let end = try #require(Timestamp("2025-12-31T12:00:00Z"))
    #expect(UsagePeriod.month.end(end).description == "2026-01-01T00:00:00.000000Z")
    let excess = LimitExcess(.turnsPerHour, maximum: 1, used: 1, at: end)
    #expect(excess.retryAfter(end) == 3600 && excess.retryAfter(end.advanced(by: .milliseconds(3_599_500))) == 1)
    #expect(LimitExcess(.sessions, maximum: 1, used: 1, at: end).retryAfter(end) == nil)
  }
}

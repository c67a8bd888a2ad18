import Synchronization

/// A number that only grows.
///
/// Adding takes some nanoseconds and never waits, from any thread.
public final class Counter: Sendable {
  private let bits = Atomic<UInt64>(0)

  public init() {}

  public var value: Double { Double(bitPattern: bits.load(ordering: .relaxed)) }

  /// - Parameter amount: not negative; what isn't a finite number is left out.
  public func add(_ amount: Double = 1) {
    guard amount > 0, amount.isFinite else { return }
    bits.add(amount)
  }
}

/// A number that goes up and down.
public final class Gauge: Sendable {
  private let count = Atomic<Int>(0)

  public init() {}

  public var value: Int { count.load(ordering: .relaxed) }

  public func add(_ amount: Int) { count.wrappingAdd(amount, ordering: .relaxed) }
}

/// How often values of some sizes occurred.
///
/// Recording takes some nanoseconds and never waits, from any thread. A reader may see a value in its bucket
/// before it sees it in the sum.
public final class Histogram: Sendable {
  /// Of one moment: values up to each bound, cumulated, and all of them.
  public struct Snapshot: Sendable, Equatable {
    public let bounds: [Double]
    public let cumulated: [UInt64]
    public let count: UInt64
    public let sum: Double
  }

  /// For what is over in fractions of a second as a rule: 100 µs to 10 s.
  public static let requestBounds = [0.0001, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 1, 5, 10]
  /// For the work of an agent: 50 ms to an hour.
  public static let turnBounds = [0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600]

  private let bounds: [Double]
  private let counts: Cells
  private let sum = Atomic<UInt64>(0)

  /// - Parameter bounds: ascending.
  public init(_ bounds: [Double]) {
    self.bounds = bounds
    counts = Cells(count: bounds.count + 1)
  }

  /// - Parameter value: what isn't a finite number is left out.
  public func record(_ value: Double) {
    guard value.isFinite else { return }
    var index = 0
    while index < bounds.count, value > bounds[index] { index += 1 }
    counts.increment(index)
    sum.add(value)
  }

  public func record(_ duration: Duration) { record(duration.seconds) }

  public var snapshot: Snapshot {
    var total: UInt64 = 0
    var cumulated: [UInt64] = []
    for index in 0...bounds.count {
      total += counts[index]
      cumulated.append(total)
    }
    cumulated.removeLast()
    return Snapshot(
      bounds: bounds, cumulated: cumulated, count: total,
      sum: Double(bitPattern: sum.load(ordering: .relaxed)))
  }
}

/// Numbers beside each other in memory. The memory lives as long as this, and each cell is atomic.
private final class Cells: @unchecked Sendable {
  private let cells: UnsafeMutableBufferPointer<Atomic<UInt64>>

  init(count: Int) {
    cells = .allocate(capacity: count)
    for index in 0..<count { cells.initializeElement(at: index, to: Atomic(0)) }
  }

  deinit {
    cells.deinitialize()
    cells.deallocate()
  }

  func increment(_ index: Int) { cells[index].wrappingAdd(1, ordering: .relaxed) }

  subscript(index: Int) -> UInt64 { cells[index].load(ordering: .relaxed) }
}

extension Atomic where Value == UInt64 {
  /// Adds to the number whose bits are kept.
  fileprivate borrowing func add(_ amount: Double) {
    var old = load(ordering: .relaxed)
    while true {
      let new = (Double(bitPattern: old) + amount).bitPattern
      let (isExchanged, found) = weakCompareExchange(expected: old, desired: new, ordering: .relaxed)
      if isExchanged { return }
      old = found
    }
  }
}

extension Duration {
  /// The duration as a number of seconds.
  public var seconds: Double {
    Double(components.seconds) + Double(components.attoseconds) * 1e-18
  }
}

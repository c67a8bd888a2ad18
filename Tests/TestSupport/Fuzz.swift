import Foundation

/// Tests with made-up input: the same in each run of the tests, and longer by the environment.
///
/// `CLAUDE_API_TEST_FUZZ_FACTOR` multiplies the number of rounds; `CLAUDE_API_TEST_FUZZ_SEED` begins with another seed,
/// or with that of a round that failed. With `CLAUDE_API_TEST_FUZZ_FILE` the seed of each round is written to that
/// file before it begins, for rounds that end the process.
public enum Fuzz {
  /// The seed to begin with, which the environment may set. It is printed.
  public static func seed(_ ordinary: UInt64) -> UInt64 {
    let seed = ProcessInfo.processInfo.environment["CLAUDE_API_TEST_FUZZ_SEED"].flatMap { UInt64($0) } ?? ordinary
    print("CLAUDE_API_TEST_FUZZ_SEED=\(seed)")
    return seed
  }

  /// Inputs for tests that can't use ``rounds(_:seed:_:)`` because they wait for something, each with its seed.
  public static func inputs<Input>(
    _ count: Int, seed: UInt64 = 1, _ make: (_ random: inout SplitMix64) throws -> Input
  ) rethrows -> [(seed: UInt64, input: Input)] {
    var inputs: [(seed: UInt64, input: Input)] = []
    try rounds(count, seed: seed) { random, seed in inputs.append((seed, try make(&random))) }
    return inputs
  }

  /// Runs `body` for a number of rounds. Each has a seed of its own, which belongs into the text of every expectation.
  public static func rounds(
    _ count: Int, seed: UInt64 = 1, _ body: (_ random: inout SplitMix64, _ seed: UInt64) throws -> Void
  ) rethrows {
    let variables = ProcessInfo.processInfo.environment
    let factor = variables["CLAUDE_API_TEST_FUZZ_FACTOR"].flatMap { Int($0) } ?? 1
    let first = Self.seed(seed)
    for round in 0..<UInt64(count * max(1, factor)) {
      let seed = first &+ round
      if let path = variables["CLAUDE_API_TEST_FUZZ_FILE"] {
        let isWritten = FileManager.default.createFile(atPath: path, contents: Data("\(seed)\n".utf8))
        precondition(isWritten, "\(path) can't be written")
      }
      var random = SplitMix64(seed: seed)
      // The first numbers of neighbouring seeds should have nothing in common.
      _ = random.next()
      try body(&random, seed)
    }
  }
}

/// A generator whose numbers are the same in each run.
public struct SplitMix64: RandomNumberGenerator {
  private var state: UInt64

  public init(seed: UInt64) { state = seed }

  public mutating func next() -> UInt64 {
    state &+= 0x9e37_79b9_7f4a_7c15
    var z = state
    z = (z ^ (z >> 30)) &* 0xbf58_476d_1ce4_e5b9
    z = (z ^ (z >> 27)) &* 0x94d0_49bb_1331_11eb
    return z ^ (z >> 31)
  }

  public mutating func number(_ range: ClosedRange<Int>) -> Int { .random(in: range, using: &self) }

  /// True in one of `count` cases.
  public mutating func one(in count: Int) -> Bool { number(1...count) == 1 }

  public mutating func pick<Element>(_ elements: [Element]) -> Element {
    elements[number(0...(elements.count - 1))]
  }

  public mutating func byte() -> UInt8 { UInt8(truncatingIfNeeded: next()) }

  public mutating func bytes(_ count: ClosedRange<Int>) -> [UInt8] {
    (0..<number(count)).map { _ in byte() }
  }

  /// A few changes to bytes that were good: flipped, replaced, cut out, repeated, or with pieces that have a meaning.
  public mutating func mutated(_ bytes: [UInt8], pieces: [[UInt8]] = [], changes: ClosedRange<Int> = 1...5) -> [UInt8] {
    var bytes = bytes
    for _ in 0..<number(changes) {
      guard !bytes.isEmpty else {
        bytes = self.bytes(1...4)
        continue
      }
      let place = number(0...(bytes.count - 1))
      let end = min(bytes.count, place + number(1...16))
      switch number(0...7) {
      case 0: bytes[place] ^= 1 << UInt8(number(0...7))
      case 1: bytes[place] = pick([0, 1, 0x7f, 0x80, 0xff, byte()])
      case 2: bytes.removeSubrange(place..<end)
      case 3: bytes.removeSubrange(place...)
      case 4: bytes.insert(contentsOf: self.bytes(1...8), at: place)
      case 5: bytes.insert(contentsOf: bytes[place..<end], at: number(0...bytes.count))
      case 6 where !pieces.isEmpty: bytes.insert(contentsOf: pick(pieces), at: place)
      case 7 where !pieces.isEmpty: bytes.replaceSubrange(place..<end, with: pick(pieces))
      default: bytes[place] = byte()
      }
    }
    return bytes
  }

  /// The bytes in pieces of some lengths.
  public mutating func cut(_ bytes: [UInt8]) -> [[UInt8]] {
    var pieces: [[UInt8]] = []
    var rest = bytes[...]
    while !rest.isEmpty {
      let piece = rest.prefix(one(in: 3) ? 1 : number(1...max(1, bytes.count / 2)))
      pieces.append(Array(piece))
      rest = rest.dropFirst(piece.count)
    }
    return pieces
  }
}

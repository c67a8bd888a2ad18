/// Makes paths as they are in URLs, of pieces that have meant something to some server; the same ones for a seed.
public struct PathGenerator: Sendable {
  private var state: UInt64

  private static let pieces = [
    "..", ".", "/", "//", "a", "b", "l", "a/b", "%2e", "%2E%2e", "%2f", "%2F", "%5c", "\\", "%00", "%0a", "%0d%0a",
    "%25",
    "%252e%252e%252f", "%c0%ae", "%c0%af", "%e0%80%af", "%f0%80%80%ae", "%ff", "%fe", "%", "%2", "%zz", "%u002e", "..;",
    ";", ":", "~", "*", "?x", "&", "=", "+", "%20", "%ef%bc%8e", "%e2%80%ae", "%3f", "%23", "decoy", "file", "etc",
    ".incoming", "proc", "self", "root", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
  ]

  public init(seed: UInt64) { state = seed }

  /// SplitMix64.
  public mutating func number(below bound: Int) -> Int {
    state &+= 0x9e37_79b9_7f4a_7c15
    var mixed = state
    mixed = (mixed ^ (mixed >> 30)) &* 0xbf58_476d_1ce4_e5b9
    mixed = (mixed ^ (mixed >> 27)) &* 0x94d0_49bb_1331_11eb
    return Int((mixed ^ (mixed >> 31)) % UInt64(bound))
  }

  public mutating func next() -> String {
    (0...number(below: 8)).map { _ in Self.pieces[number(below: Self.pieces.count)] }.joined()
  }

  /// Any bytes.
  public mutating func bytes() -> [UInt8] {
    (0..<number(below: 40)).map { _ in
      let choice = number(below: 4)
      return choice == 0 ? UInt8(ascii: "/") : choice == 1 ? UInt8(ascii: ".") : UInt8(number(below: 256))
    }
  }
}

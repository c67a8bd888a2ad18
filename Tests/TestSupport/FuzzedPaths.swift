extension SplitMix64 {
  private static let pathPieces = [
    "..", ".", "/", "//", "a", "b", "l", "a/b", "%2e", "%2E%2e", "%2f", "%2F", "%5c", "\\", "%00", "%0a", "%0d%0a",
    "%25",
    "%252e%252e%252f", "%c0%ae", "%c0%af", "%e0%80%af", "%f0%80%80%ae", "%ff", "%fe", "%", "%2", "%zz", "%u002e", "..;",
    ";", ":", "~", "*", "?x", "&", "=", "+", "%20", "%ef%bc%8e", "%e2%80%ae", "%3f", "%23", "decoy", "file", "etc",
    ".incoming", "proc", "self", "root", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
  ]

  /// A path as it is in a URL, of pieces that have meant something to some server.
  public mutating func path() -> String {
    (0...number(0...7)).map { _ in pick(Self.pathPieces) }.joined()
  }

  /// A path of any bytes.
  public mutating func pathBytes() -> [UInt8] {
    (0..<number(0...39)).map { _ in
      let choice = number(0...3)
      return choice == 0 ? UInt8(ascii: "/") : choice == 1 ? UInt8(ascii: ".") : byte()
    }
  }
}

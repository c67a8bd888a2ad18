import Crypto
import Sessions

/// The text of an API key: `cak_<id>_<secret>`, the id of 16 hexadecimal digits, the secret of 64.
///
/// Reflection and printing show the id only.
public struct KeySecret: Sendable, Equatable, CustomStringConvertible, CustomReflectable {
  /// Which key it is; no secret.
  public let id: String
  /// What its holder is given, once.
  public let text: String

  /// A new key.
  public init() {
    self.init(id: Self.digits(8))
  }

  /// A new secret for a key that exists.
  public init(id: String) {
    self.id = id
    text = "cak_\(id)_\(Self.digits(32))"
  }

  /// Reads what a client sent; nil if it can't be a key.
  public init?(_ text: String) {
    let parts = text.split(separator: "_", omittingEmptySubsequences: false)
    guard parts.count == 3, parts[0] == "cak", parts[1].utf8.count == 16, parts[2].utf8.count == 64,
      parts[1...].allSatisfy({ $0.utf8.allSatisfy { (0x30...0x39).contains($0) || (0x61...0x66).contains($0) } })
    else { return nil }
    id = String(parts[1])
    self.text = text
  }

  /// What the store keeps. The secret has 256 bits of chance, so nothing slower than SHA-256 is needed.
  public var digest: [UInt8] { Array(SHA256.hash(data: Array(text.utf8))) }

  /// Whether it is the digest of this key. Takes as long for a wrong one, and for one that doesn't exist.
  static func matches(_ own: [UInt8], _ key: APIKey?) -> Bool {
    let expected = key?.digest ?? [UInt8](repeating: 0, count: SHA256.byteCount)
    guard own.count == expected.count else { return false }
    let difference = zip(own, expected).reduce(UInt8(0)) { $0 | ($1.0 ^ $1.1) }
    return difference == 0 && key != nil
  }

  public var description: String { "cak_\(id)_…" }
  public var customMirror: Mirror { Mirror(self, children: []) }

  private static func digits(_ count: Int) -> String {
    var random = SystemRandomNumberGenerator()
    return (0..<count).map { _ in
      let byte = UInt8.random(in: .min ... .max, using: &random)
      return (byte < 16 ? "0" : "") + String(byte, radix: 16)
    }.joined()
  }
}

import Crypto
import HTTPTypes
import Hummingbird
import Sessions

extension IdempotencyClaim {
  /// The claim that a request makes by its `Idempotency-Key`; nil if it has none.
  ///
  /// - Parameter scope: method and path, within which the key is unique.
  init?(_ request: Request, scope: String, _ fields: BodyFields) throws(Problem) {
    guard let key = try Self.key(of: request) else { return nil }
    try self.init(key, scope: scope, fields)
  }

  /// The `Idempotency-Key` of a request, if it has one.
  static func key(of request: Request) throws(Problem) -> String? {
    let values = request.headers[values: .idempotencyKey]
    guard values.count <= 1 else { throw invalidKey }
    return values.first
  }

  private static let invalidKey = Problem(
    .invalidIdempotencyKey,
    "An Idempotency-Key must be given once, with 1 to 255 visible ASCII characters.")

  init(_ key: String, scope: String, _ fields: BodyFields) throws(Problem) {
    guard (1...255).contains(key.utf8.count), key.utf8.allSatisfy({ (0x21...0x7e).contains($0) }) else {
      throw Self.invalidKey
    }
    var digest = SHA256()
    digest.update(data: Array("\(scope)\n".utf8))
    digest.update(data: fields.canonical)
    self.init(
      key: IdempotencyKey(owner: Principal.current?.keyID, scope: scope, key: key), digest: Array(digest.finalize()))
  }
}

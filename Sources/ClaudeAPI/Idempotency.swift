import Crypto
import HTTPTypes
import Hummingbird
import Sessions

extension IdempotencyClaim {
  /// The claim that a request makes by its `Idempotency-Key`; nil if it has none.
  ///
  /// - Parameter scope: method and path, within which the key is unique.
  init?(_ request: Request, scope: String, _ fields: BodyFields) throws(Problem) {
    let values = request.headers[values: .idempotencyKey]
    guard let key = values.first else { return nil }
    guard values.count == 1, (1...255).contains(key.utf8.count), key.utf8.allSatisfy({ (0x21...0x7e).contains($0) })
    else {
      throw Problem(
        .invalidIdempotencyKey,
        "The header Idempotency-Key must be given once, with 1 to 255 visible ASCII characters.")
    }
    var digest = SHA256()
    digest.update(data: Array("\(scope)\n".utf8))
    digest.update(data: fields.canonical)
    self.init(
      key: IdempotencyKey(owner: Principal.current?.keyID, scope: scope, key: key), digest: Array(digest.finalize()))
  }
}

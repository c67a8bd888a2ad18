#if canImport(FoundationEssentials)
  public import FoundationEssentials
#else
  public import Foundation
#endif

/// An amount of the model's use, as it counts for limits.
public struct ModelUse: Hashable, Sendable {
  /// Input, output, and what was written into caches.
  public var tokens: Int64
  /// Billionths of a US dollar.
  public var cost: Int64

  public init(tokens: Int64 = 0, cost: Int64 = 0) {
    self.tokens = tokens
    self.cost = cost
  }

  public var isZero: Bool { tokens == 0 && cost == 0 }

  public static func += (sum: inout Self, other: Self) {
    sum.tokens += other.tokens
    sum.cost += other.cost
  }

  public static func -= (difference: inout Self, other: Self) {
    difference.tokens -= other.tokens
    difference.cost -= other.cost
  }

  /// Takes this for what has passed the gateway of a session at rest, less what its turns were charged with, and says
  /// what of it is still to be charged. What remains is carried on.
  ///
  /// More tokens than the turns have told of were taken beside the CLI. Fewer are those of requests that the gateway
  /// hasn't told of yet. With as many, a difference of the costs is one of rounding or prices.
  public mutating func settle() -> ModelUse {
    guard tokens >= 0 else { return ModelUse() }
    defer { self = ModelUse() }
    return tokens == 0 ? ModelUse() : ModelUse(tokens: tokens, cost: max(0, cost))
  }
}

/// What has passed the model's gateway on behalf of a session.
public struct GatewayUse: Hashable, Sendable {
  public var session: UUID
  /// The id of the key that owns the session; empty if there is none.
  public var key: String
  public var use: ModelUse

  public init(session: UUID, key: String, use: ModelUse) {
    self.session = session
    self.key = key
    self.use = use
  }
}

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

  /// Billionths of a US dollar that the gateway and the turns of a session may differ by before the difference is
  /// charged: the prices are rounded in different places.
  private static let roundingCost: Int64 = 10_000_000

  /// Takes this for what has passed the gateway of a session at rest, less what its turns were charged with, and says
  /// what of it is still to be charged. What remains is carried on.
  ///
  /// More tokens than the turns have told of were taken beside the CLI, and so were dollars without tokens, unless they
  /// are too few to be more than rounding: what a turn tells of passes through the hands of its agent, who may give its
  /// tokens and no price. Less than they have told of is in requests that the gateway hasn't told of yet; see
  /// ``forgetCredit()``.
  public mutating func settle() -> ModelUse {
    var surplus = ModelUse()
    if tokens > 0 {
      surplus.tokens = tokens
      tokens = 0
    }
    if cost > (surplus.tokens > 0 ? 0 : Self.roundingCost) {
      surplus.cost = cost
      cost = 0
    }
    if tokens == 0, cost < 0 { cost = 0 }
    return surplus
  }

  /// What the gateway has told of that the turns have not, while one of them runs and may tell of it at its end.
  public var surplus: ModelUse {
    ModelUse(tokens: max(0, tokens), cost: tokens > 0 || cost > Self.roundingCost ? max(0, cost) : 0)
  }

  /// To be called when the gateway has told of all that the turns can have told of. What they told of beyond that was
  /// made up, and is no credit for what is taken later.
  public mutating func forgetCredit() {
    tokens = max(0, tokens)
    cost = max(0, cost)
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

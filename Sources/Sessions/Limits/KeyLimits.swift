import JSONSupport

/// What can be limited for a key.
public enum KeyLimit: String, CaseIterable, Hashable, Sendable {
  /// Sessions that it owns at one time.
  case sessions
  /// Turns that run at one time in the sessions that it owns. One more waits.
  case runningTurns = "running-turns"
  /// Turns that wait at one time.
  case queuedTurns = "queued-turns"
  /// Streams of events that are open at one time.
  case streams
  /// Messages in a calendar hour (UTC), first prompts included.
  case turnsPerHour = "turns-per-hour"
  /// Tokens in a calendar day (UTC): input, output and what was written into caches, but not what was read from them.
  case tokensPerDay = "tokens-per-day"
  /// US dollars in a calendar day (UTC).
  case usdPerDay = "usd-per-day"
  /// US dollars in a calendar month (UTC).
  case usdPerMonth = "usd-per-month"
  /// Bytes on the disk that its sessions take together: workspaces, homes, uploads that go on, and logs.
  case diskBytes = "disk-bytes"

  /// Whether its amounts are money: then they are counted in billionths of a US dollar.
  public var isMoney: Bool { self == .usdPerDay || self == .usdPerMonth }

  /// The span after which the count begins anew; nil for what is in use at one time.
  public var period: UsagePeriod? {
    switch self {
    case .sessions, .runningTurns, .queuedTurns, .streams, .diskBytes: nil
    case .turnsPerHour: .hour
    case .tokensPerDay, .usdPerDay: .day
    case .usdPerMonth: .month
    }
  }

  /// Those that are about the use of the model.
  public static let budgets: [KeyLimit] = [.usdPerMonth, .usdPerDay, .tokensPerDay]

  /// The name in JSON and in codes.
  public var identifier: String { rawValue.replacing("-", with: "_") }

  /// Reads an amount as a person writes it: a whole number, or US dollars with up to nine digits after the point.
  ///
  /// - Returns: nil for what is no amount or not positive.
  public func amount(_ text: String) -> Int64? {
    guard isMoney else { return Int64(text).flatMap { $0 > 0 ? $0 : nil } }
    let parts = text.split(separator: ".", maxSplits: 1, omittingEmptySubsequences: false)
    let fraction = parts.count == 2 ? parts[1] : "0"
    guard parts.count <= 2, let dollars = parts.first, (1...9).contains(dollars.utf8.count),
      (1...9).contains(fraction.utf8.count), (dollars + fraction).utf8.allSatisfy({ (0x30...0x39).contains($0) }),
      let whole = Int64(dollars),
      let part = Int64(fraction + String(repeating: "0", count: 9 - fraction.utf8.count))
    else { return nil }
    let amount = whole * Self.dollar + part
    return amount > 0 ? amount : nil
  }

  /// An amount as a person reads it.
  public func text(_ amount: Int64) -> String {
    guard isMoney else { return String(amount) }
    let (whole, part) = abs(amount).quotientAndRemainder(dividingBy: Self.dollar)
    var fraction = String(String(Self.dollar + part).dropFirst())
    while fraction.utf8.count > 2, fraction.hasSuffix("0") { fraction.removeLast() }
    return "\(amount < 0 ? "-" : "")\(whole).\(fraction)"
  }

  /// A US dollar in the unit of amounts that are money.
  public static let dollar: Int64 = 1_000_000_000

  /// A cost in the unit of amounts that are money: from nothing to a million dollars, so that sums of many can't overflow.
  public static func amount(ofDollars dollars: Double) -> Int64 {
    Int64(exactly: (min(max(0, dollars), 1_000_000) * Double(dollar)).rounded()) ?? 0
  }
}

/// The limits of a key. What is in none of two layers has no limit.
public struct KeyLimits: Hashable, Sendable {
  public enum Setting: Hashable, Sendable {
    case unlimited
    /// In the unit of the limit: a number, or billionths of a US dollar.
    case maximum(Int64)
  }

  private var settings: [KeyLimit: Setting] = [:]

  public init(_ settings: [KeyLimit: Setting] = [:]) {
    self.settings = settings
  }

  /// What was set; nil leaves it to the layer below.
  public subscript(setting limit: KeyLimit) -> Setting? {
    get { settings[limit] }
    set { settings[limit] = newValue }
  }

  /// The greatest amount, or nil if there is no limit.
  public subscript(limit: KeyLimit) -> Int64? {
    if case .maximum(let amount)? = settings[limit] { amount } else { nil }
  }

  public var isEmpty: Bool { settings.isEmpty }

  /// Whether anything of them is about the use of the model.
  public var haveBudget: Bool { KeyLimit.budgets.contains { self[$0] != nil } }

  /// These limits, and for what they leave open those of another layer.
  public func over(_ defaults: KeyLimits) -> KeyLimits {
    KeyLimits(defaults.settings.merging(settings) { _, own in own })
  }

  // MARK: As text

  /// - Parameter stored: what ``stored`` gave; nil if it is something else.
  public init?(stored: JSONText) {
    guard let members = (try? JSONValue(parsing: stored.utf8))?.objectValue else { return nil }
    for (name, value) in members {
      guard let limit = KeyLimit(rawValue: name) else { return nil }
      if value.isNull {
        settings[limit] = .unlimited
      } else if let amount = value.intValue {
        settings[limit] = .maximum(amount)
      } else {
        return nil
      }
    }
  }

  /// The text that the store keeps.
  public var stored: JSONText {
    JSONValue.object(
      Dictionary(
        uniqueKeysWithValues: settings.map { limit, setting in
          switch setting {
          case .unlimited: (limit.rawValue, JSONValue.null)
          case .maximum(let amount): (limit.rawValue, .int(amount))
          }
        })
    ).description
  }
}

/// A span of the calendar in UTC.
public enum UsagePeriod: Hashable, Sendable {
  case hour
  case day
  case month

  /// Hours from 1970-01-01T00:00:00Z to the one that holds a moment.
  public static func hour(of time: Timestamp) -> Int64 {
    let (hours, rest) = time.microseconds.quotientAndRemainder(dividingBy: 3_600_000_000)
    return rest < 0 ? hours - 1 : hours
  }

  /// The first moment of the span that holds `time`.
  public func start(_ time: Timestamp) -> Timestamp {
    let text = time.description
    switch self {
    case .hour: return Self.moment(text.prefix(13), ":00:00Z", time)
    case .day: return Self.moment(text.prefix(10), "T00:00:00Z", time)
    case .month: return Self.moment(text.prefix(7), "-01T00:00:00Z", time)
    }
  }

  /// The first moment after the span that holds `time`.
  public func end(_ time: Timestamp) -> Timestamp {
    switch self {
    case .hour: return start(time).advanced(by: .seconds(3600))
    case .day: return start(time).advanced(by: .seconds(86_400))
    // No month has more than 31 days, and none fewer than 4 + 28.
    case .month: return start(start(time).advanced(by: .seconds(32 * 86_400)))
    }
  }

  private static func moment(_ date: Substring, _ time: String, _ fallback: Timestamp) -> Timestamp {
    // The beginning of a timestamp's own text is always one.
    Timestamp(date + time) ?? fallback
  }
}

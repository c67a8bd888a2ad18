import Foundation
import JSONSupport

/// What models cost at list price.
///
/// A turn's cost is what the CLI says. This table is for what nginx counts, so that there is a second opinion.
struct ModelPrices: Sendable {
  /// US dollars for a million tokens, and for one search of the web.
  struct Price: Sendable, Equatable {
    var input: Double
    var output: Double
    /// Into a cache that lasts five minutes, and into one that lasts an hour.
    var cacheWrite: Double
    var cacheWriteHour: Double
    var cacheRead: Double
    var webSearch = 0.01
    /// Above so many tokens of a prompt, caches included, all of the request costs more.
    var long: Long?

    struct Long: Sendable, Equatable {
      var above: Int64
      var input: Double
      var output: Double
      var cacheWrite: Double
      var cacheWriteHour: Double
      var cacheRead: Double
    }

    /// What is not said of caches follows from the input, as it does with nearly all models.
    init(_ input: Double, _ output: Double, cacheRead: Double? = nil, long: Long? = nil) {
      self.input = input
      self.output = output
      cacheWrite = input * 1.25
      cacheWriteHour = input * 2
      self.cacheRead = cacheRead ?? input * 0.1
      self.long = long
    }
  }

  private var prices: [String: Price]

  /// The list of the CLI of the pinned version.
  static let builtIn: [String: Price] = [
    "claude-3-5-haiku": Price(0.8, 4), "claude-haiku-4-5": Price(1, 5),
    "claude-haiku-5-5": Price(
      0.1, 0.5,
      long: Price.Long(
        above: 100_000, input: 0.5, output: 2.5, cacheWrite: 0.625, cacheWriteHour: 1, cacheRead: 0.05)),
    "claude-3-5-sonnet": Price(3, 15), "claude-3-7-sonnet": Price(3, 15), "claude-sonnet-4": Price(3, 15),
    "claude-sonnet-4-0": Price(3, 15), "claude-sonnet-4-5": Price(3, 15), "claude-sonnet-4-6": Price(3, 15),
    "claude-sonnet-5": Price(2, 10), "claude-sonnet-5-5": Price(2, 10, cacheRead: 0.1),
    "claude-opus-4": Price(15, 75), "claude-opus-4-0": Price(15, 75), "claude-opus-4-1": Price(15, 75),
    "claude-opus-4-5": Price(5, 25), "claude-opus-4-6": Price(5, 25), "claude-opus-4-7": Price(5, 25),
    "claude-opus-4-8": Price(5, 25), "claude-opus-5": Price(5, 25),
    "claude-opus-5-5": Price(4, 20, cacheRead: 0.2), "claude-fable-5": Price(10, 50),
    "claude-fable-5-1": Price(10, 50, cacheRead: 0.25), "claude-fable-5-2": Price(8, 40, cacheRead: 0.2),
    "claude-mythos-5": Price(10, 50), "claude-mythos-5-1": Price(10, 50, cacheRead: 0.25),
    "claude-mythos-5-2": Price(8, 40, cacheRead: 0.2),
  ]

  /// - Parameter path: a file with prices that come before those that are built in; nil for none. Blocks.
  /// - Throws: ``SettingsError``, which says what is wrong with the file.
  init(file path: String? = nil) throws {
    prices = Self.builtIn
    guard let path else { return }
    func bad(_ reason: String) -> SettingsError {
      SettingsError(description: "The prices in \(path) can't be used: \(reason)")
    }
    let content: JSONValue
    do {
      content = try JSONValue(parsing: try Data(contentsOf: URL(filePath: path)))
    } catch {
      throw bad("it is no file with JSON (\(error.localizedDescription)).")
    }
    guard let models = content.objectValue else { throw bad("it must hold an object.") }
    for (name, entry) in models {
      guard let members = entry.objectValue else { throw bad("\(name) must be an object.") }
      do {
        prices[name] = try Self.price(members)
      } catch let error as SettingsError {
        throw bad("\(name) \(error.description)")
      }
    }
  }

  private static let names = ["input", "output", "cache_write", "cache_write_1h", "cache_read", "web_search"]

  private static func price(_ members: [String: JSONValue]) throws -> Price {
    if let unknown = members.keys.sorted().first(where: { !names.contains($0) }) {
      throw SettingsError(description: "has \(unknown); there are \(names.joined(separator: ", ")).")
    }
    func amount(_ name: String) throws -> Double? {
      guard let value = members[name] else { return nil }
      guard let number = value.doubleValue, number.isFinite, (0...1_000_000).contains(number) else {
        throw SettingsError(description: "must have a number of US dollars as \(name).")
      }
      return number
    }
    guard let input = try amount("input"), let output = try amount("output") else {
      throw SettingsError(description: "must have input and output, in US dollars for a million tokens.")
    }
    var price = Price(input, output, cacheRead: try amount("cache_read"))
    price.cacheWrite = try amount("cache_write") ?? price.cacheWrite
    price.cacheWriteHour = try amount("cache_write_1h") ?? price.cacheWriteHour
    price.webSearch = try amount("web_search") ?? price.webSearch
    return price
  }

  /// The price of a model by the name that its answers have, which may end with a date.
  subscript(_ model: String) -> Price? {
    prices[model] ?? prices[String(model.replacing(#/[-@]20\d{6}$/#, with: ""))]
  }

  /// What the tokens of a single request cost, in US dollars; nil if nothing is known of the model.
  func cost(of tokens: ModelTokens, model: String) -> Double? {
    guard let price = self[model] else { return nil }
    let prompt = Int64(tokens.input + tokens.cacheRead + tokens.cacheCreation)
    let long = price.long.flatMap { prompt > $0.above ? $0 : nil }
    let hour = min(tokens.cacheCreationHour, tokens.cacheCreation)
    let million =
      Double(tokens.input) * (long?.input ?? price.input)
      + Double(tokens.output) * (long?.output ?? price.output)
      + Double(tokens.cacheRead) * (long?.cacheRead ?? price.cacheRead)
      + Double(tokens.cacheCreation - hour) * (long?.cacheWrite ?? price.cacheWrite)
      + Double(hour) * (long?.cacheWriteHour ?? price.cacheWriteHour)
    return million / 1_000_000 + Double(tokens.webSearches) * price.webSearch
  }
}

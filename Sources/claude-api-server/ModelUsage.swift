import ArgumentParser
import Foundation

/// Sums the log of the model's gateway.
struct ModelUsage: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "Sum the tokens that nginx has counted on the way to the model, and what they cost at list price.",
    discussion: """
      Prints, with tabs between them: the session, key or model, its requests, its input, output, cache-read and \
      cache-creation tokens, and US dollars. Of models without a price the dollars are not known: then there is \
      "unknown" in their place, or "+unknown" behind those of the others, and the models are named. The log of \
      scripts/run is STATE/nginx/logs/model.log.
      """)

  enum Group: String, ExpressibleByArgument, CaseIterable {
    case session, key, model
  }

  @Option(help: "What to sum by: session, key or model.")
  var by: Group = .session

  @Option(help: "A file with prices of models, as the setting model.prices.")
  var prices: String?

  @Argument(help: "The logs, in any order.")
  var logs: [String]

  func run() throws {
    let prices: ModelPrices
    do {
      prices = try ModelPrices(file: self.prices)
    } catch let error as SettingsError {
      throw ValidationError(error.description)
    }
    var totals: [String: Total] = [:]
    var unpriced: [String: Int] = [:]
    for path in logs {
      let skipped = try ModelLog(path: path).forEachRequest { request in
        let cost = prices.cost(of: request.tokens, model: request.model)
        totals[request[by], default: Total()].add(request.tokens, cost)
        if cost == nil, request.tokens.sum > 0 { unpriced[request.model, default: 0] += request.tokens.sum }
      }
      if skipped > 0 { complain("\(path): \(skipped) lines are none of this log and were not counted") }
    }
    for (name, total) in totals.sorted(by: { $0.key < $1.key }) {
      print(([name] + total.tokens.columns.map(String.init) + [total.dollars]).joined(separator: "\t"))
    }
    for (model, count) in unpriced.sorted(by: { $0.key < $1.key }) {
      complain("the model \(model.isEmpty ? "(unnamed)" : model) has no price: its \(count) tokens are in no dollars")
    }
  }

  private struct Total {
    var tokens = ModelTokens()
    var cost: Double?
    var hasUnpriced = false

    mutating func add(_ request: ModelTokens, _ cost: Double?) {
      tokens += request
      if let cost {
        self.cost = (self.cost ?? 0) + cost
      } else if request.sum > 0 {
        hasUnpriced = true
      }
    }

    var dollars: String {
      guard let cost else { return hasUnpriced ? "unknown" : "0.000000" }
      return String(format: "%.6f", cost) + (hasUnpriced ? "+unknown" : "")
    }
  }

  private func complain(_ text: String) {
    FileHandle.standardError.write(Data((text + "\n").utf8))
  }
}

import HTTPTypes
import Hummingbird
import Sessions

#if canImport(FoundationEssentials)
  import FoundationEssentials
#else
  import Foundation
#endif

/// How a client wants to hear of a turn.
struct AnswerPreference: Equatable {
  enum Form: Equatable {
    /// The answer when the turn has ended.
    case whole
    /// The turn at once, or after as many seconds as the client is ready to wait.
    case turn(wait: Int)
    /// The turn's events as they come.
    case stream
  }

  let form: Form

  init(_ headers: HTTPFields) {
    if Self.acceptsEventStream(headers) {
      form = .stream
      return
    }
    var isAsync = false
    var wait = 0
    for preference in headers[values: .prefer].flatMap({ $0.split(separator: ",") }) {
      let parts = (preference.split(separator: ";").first ?? "").split(separator: "=", maxSplits: 1)
      switch parts.first?.trimmed.lowercased() {
      case "respond-async": isAsync = true
      // What isn't understood of it is ignored, as RFC 7240 has it.
      case "wait" where parts.count == 2: wait = Int(parts[1].trimmed).map { min(max($0, 0), 300) } ?? 0
      default: break
      }
    }
    form = isAsync ? .turn(wait: wait) : .whole
  }

  /// Whether `text/event-stream` is asked for by name, and not less than JSON.
  static func acceptsEventStream(_ headers: HTTPFields) -> Bool {
    var weights: [String: Double] = [:]
    for range in headers[values: .accept].flatMap({ $0.split(separator: ",") }) {
      let parts = range.split(separator: ";").map { $0.trimmed.lowercased() }
      guard let type = parts.first else { continue }
      weights[type] = parts.dropFirst().first { $0.hasPrefix("q=") }.flatMap { Double($0.dropFirst(2)) } ?? 1
    }
    guard let stream = weights["text/event-stream"], stream > 0 else { return false }
    return stream >= weights["application/json"] ?? 0
  }
}

extension Substring {
  fileprivate var trimmed: Substring {
    var text = self
    while let first = text.first, first == " " || first == "\t" || first == "\"" { text.removeFirst() }
    while let last = text.last, last == " " || last == "\t" || last == "\"" { text.removeLast() }
    return text
  }
}

extension HTTPField.Name {
  static let prefer = Self("Prefer")!
  static let preferenceApplied = Self("Preference-Applied")!
  static let idempotencyKey = Self("Idempotency-Key")!
  static let idempotencyReplayed = Self("Idempotency-Replayed")!
  static let lastEventID = Self("Last-Event-ID")!
  static let accelBuffering = Self("X-Accel-Buffering")!
}

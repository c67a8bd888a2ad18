import HTTPTypes
import Hummingbird
import Sessions

#if canImport(FoundationEssentials)
  import FoundationEssentials
#else
  import Foundation
#endif

/// The parameters of a request's query, taken one by one; whatever is wrong with them is a ``Problem`` that names
/// the parameter.
struct QueryFields {
  /// As they came, with their escapes.
  private var values: [String: Substring] = [:]

  init(_ request: Request, known: [String]) throws(Problem) {
    for part in (request.uri.query ?? "").split(separator: "&") {
      let pair = part.split(separator: "=", maxSplits: 1, omittingEmptySubsequences: false)
      let name = Self.decode(pair[0]) ?? String(pair[0])
      guard known.contains(name) else {
        throw Problem(
          .unknownParameter,
          "There is no query parameter \(Self.quoted(name)) here; "
            + (known.isEmpty ? "there are none." : "the parameters are \(known.joined(separator: ", ")).")
        )
      }
      guard values.updateValue(pair.count == 2 ? pair[1] : "", forKey: name) == nil else {
        throw Self.invalid(name, "is given twice")
      }
    }
  }

  func has(_ name: String) -> Bool { values[name] != nil }

  /// A text that isn't empty, or nil if the parameter is absent.
  func text(_ name: String) throws(Problem) -> String? {
    guard let value = try value(name) else { return nil }
    if value.isEmpty { throw Self.invalid(name, "must not be empty") }
    return value
  }

  /// The value without its escapes; nil if the parameter is absent.
  private func value(_ name: String) throws(Problem) -> String? {
    guard let escaped = values[name] else { return nil }
    guard let value = Self.decode(escaped) else { throw Self.invalid(name, "is not valid percent-encoded UTF-8") }
    return value
  }

  /// The value as it came, for what isn't text.
  func escaped(_ name: String) -> Substring? { values[name] }

  func integer<Value: FixedWidthInteger>(_ name: String, in range: ClosedRange<Value>) throws(Problem) -> Value? {
    guard let value = try value(name) else { return nil }
    guard let number = Value(value), range.contains(number) else {
      throw Self.invalid(name, "must be a whole number from \(range.lowerBound) to \(range.upperBound)")
    }
    return number
  }

  func boolean(_ name: String) throws(Problem) -> Bool? {
    switch try value(name) {
    case nil: return nil
    case "true", "1": return true
    case "false", "0": return false
    default: throw Self.invalid(name, "must be true or false")
    }
  }

  /// One of some words.
  func choice<Value: RawRepresentable & CaseIterable>(
    _ name: String, _: Value.Type
  ) throws(Problem) -> Value? where Value.RawValue == String {
    guard let value = try value(name) else { return nil }
    guard let choice = Value(rawValue: value) else {
      throw Self.invalid(name, "must be one of \(Value.allCases.map(\.rawValue).joined(separator: ", "))")
    }
    return choice
  }

  /// A time such as `30s`, `500ms` or `2m`; without a unit seconds are meant.
  func duration(_ name: String, upTo limit: Duration) throws(Problem) -> Duration? {
    guard let value = try value(name) else { return nil }
    let digits = value.prefix { $0.isASCII && $0.isNumber }
    let duration: Duration? =
      if digits.count > 9 {
        nil
      } else if let number = Int(digits) {
        switch value.dropFirst(digits.count) {
        case "", "s": .seconds(number)
        case "ms": .milliseconds(number)
        case "m": .seconds(number * 60)
        default: nil
        }
      } else {
        nil
      }
    guard let duration, duration <= limit else {
      throw Self.invalid(name, "must be a time such as 30s, at most \(limit.components.seconds)s")
    }
    return duration
  }

  static func invalid(_ name: String, _ what: String) -> Problem {
    Problem(.invalidParameter, "The query parameter \(quoted(name)) \(what).")
  }

  private static func quoted(_ name: String) -> String {
    "\"\(name.count <= 64 ? name : "\(name.prefix(64))…")\""
  }

  /// The text behind the escapes of a query; nil if there is none.
  private static func decode(_ text: Substring) -> String? {
    var bytes: [UInt8] = []
    var rest = text.utf8[...]
    while let byte = rest.popFirst() {
      switch byte {
      case UInt8(ascii: "+"): bytes.append(UInt8(ascii: " "))
      case UInt8(ascii: "%"):
        guard let high = rest.popFirst().flatMap(hexDigit), let low = rest.popFirst().flatMap(hexDigit) else {
          return nil
        }
        bytes.append(high << 4 | low)
      default: bytes.append(byte)
      }
    }
    return String(validating: bytes, as: UTF8.self)
  }

  private static func hexDigit(_ byte: UInt8) -> UInt8? {
    switch byte {
    case UInt8(ascii: "0")...UInt8(ascii: "9"): byte - UInt8(ascii: "0")
    case UInt8(ascii: "a")...UInt8(ascii: "f"): byte - UInt8(ascii: "a") + 10
    case UInt8(ascii: "A")...UInt8(ascii: "F"): byte - UInt8(ascii: "A") + 10
    default: nil
    }
  }
}

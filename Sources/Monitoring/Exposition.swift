/// Writes metrics in Prometheus' text format, version 0.0.4.
///
/// Each metric is written once, with all of its samples. Names and labels are those of the program and must be ones
/// that Prometheus accepts; values of labels may be anything.
public struct Exposition: Sendable {
  public enum Kind: String, Sendable {
    case counter, gauge
  }

  /// A value and where it belongs.
  public struct Sample<Value: Sendable>: Sendable {
    let value: Value
    let labels: [(name: StaticString, value: String)]

    public init(_ value: Value, _ labels: KeyValuePairs<StaticString, String> = [:]) {
      self.value = value
      self.labels = labels.map { ($0.key, $0.value) }
    }
  }

  public static let contentType = "text/plain; version=0.0.4; charset=utf-8"

  public private(set) var text = ""
  private var names: Set<String> = []

  public init() {
    text.reserveCapacity(32 << 10)
  }

  /// A metric without dimensions.
  public mutating func add(_ kind: Kind, _ name: String, _ help: String, _ value: Double) {
    add(kind, name, help, [Sample(value)])
  }

  public mutating func add(
    _ kind: Kind, _ name: String, _ help: String, _ samples: [Sample<Double>]
  ) {
    precondition(kind != .counter || name.hasSuffix("_total"), "the name of a counter ends with _total: \(name)")
    begin(name, help, kind.rawValue)
    for sample in samples { line(name, sample.labels, sample.value) }
  }

  public mutating func add(histogram name: String, _ help: String, _ samples: [Sample<Histogram.Snapshot>]) {
    begin(name, help, "histogram")
    for sample in samples {
      let (labels, snapshot) = (sample.labels, sample.value)
      for (bound, count) in zip(snapshot.bounds, snapshot.cumulated) {
        line(name + "_bucket", labels + [("le", Self.number(bound))], Double(count))
      }
      line(name + "_bucket", labels + [("le", "+Inf")], Double(snapshot.count))
      line(name + "_sum", labels, snapshot.sum)
      line(name + "_count", labels, Double(snapshot.count))
    }
  }

  public mutating func add(histogram name: String, _ help: String, _ histogram: Histogram) {
    add(histogram: name, help, [Sample(histogram.snapshot)])
  }

  private mutating func begin(_ name: String, _ help: String, _ kind: String) {
    precondition(names.insert(name).inserted, "a metric is written once: \(name)")
    text += "# HELP \(name) \(Self.escaped(help, quotes: false))\n# TYPE \(name) \(kind)\n"
  }

  private mutating func line(_ name: String, _ labels: [(name: StaticString, value: String)], _ value: Double) {
    text += name
    if !labels.isEmpty {
      text += "{"
      for (index, label) in labels.enumerated() {
        if index > 0 { text += "," }
        text += "\(label.name)=\"\(Self.escaped(label.value, quotes: true))\""
      }
      text += "}"
    }
    text += " \(Self.number(value))\n"
  }

  private static func escaped(_ text: String, quotes: Bool) -> String {
    var result = ""
    for scalar in text.unicodeScalars {
      switch scalar {
      case "\\": result += "\\\\"
      case "\n": result += "\\n"
      case "\"" where quotes: result += "\\\""
      default: result.unicodeScalars.append(scalar)
      }
    }
    return result
  }

  private static func number(_ value: Double) -> String {
    if value.isNaN { return "NaN" }
    if value.isInfinite { return value < 0 ? "-Inf" : "+Inf" }
    return value == value.rounded() && abs(value) < 1e15 ? String(Int64(value)) : "\(value)"
  }
}

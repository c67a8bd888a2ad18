/// Metrics in Prometheus' text format, read as strictly as the format can be read.
public struct PrometheusText {
  public struct Sample: Sendable {
    public let name: String
    public let labels: [String: String]
    public let value: Double
  }

  public struct Malformed: Error, CustomStringConvertible {
    public let description: String
  }

  /// By the name of the metric.
  public private(set) var types: [String: String] = [:]
  public private(set) var samples: [Sample] = []

  public init(_ text: String) throws {
    guard text.hasSuffix("\n") else { throw Malformed(description: "no line break at the end") }
    var metric: String?
    var helped: Set<String> = []
    var seen: Set<String> = []
    for line in text.unicodeScalars.dropLast().split(separator: "\n", omittingEmptySubsequences: false).map(
      Substring.init)
    {
      let words = line.split(separator: " ", maxSplits: 3, omittingEmptySubsequences: false).map(String.init)
      if line.hasPrefix("# HELP ") {
        guard words.count == 4, Self.isName(words[2]), !words[3].isEmpty, helped.insert(words[2]).inserted else {
          throw Malformed(description: String(line))
        }
        metric = words[2]
      } else if line.hasPrefix("# TYPE ") {
        guard words.count == 4, words[2] == metric, types[words[2]] == nil,
          ["counter", "gauge", "histogram"].contains(words[3])
        else { throw Malformed(description: "misplaced: \(line)") }
        guard words[3] != "counter" || words[2].hasSuffix("_total") else {
          throw Malformed(description: "a counter without _total: \(line)")
        }
        types[words[2]] = words[3]
      } else {
        let sample = try Self.sample(line)
        guard let metric, let type = types[metric], Self.belongs(sample, to: metric, type) else {
          throw Malformed(description: "a sample of another metric: \(line)")
        }
        let identity = sample.name + sample.labels.sorted { $0.key < $1.key }.map { "|\($0.key)=\($0.value)" }.joined()
        guard seen.insert(identity).inserted else { throw Malformed(description: "twice: \(line)") }
        guard type == "gauge" || sample.value >= 0 else { throw Malformed(description: "below zero: \(line)") }
        samples.append(sample)
      }
    }
    for (name, type) in types where type == "histogram" { try checkHistogram(name) }
  }

  /// The value of the sample with exactly these labels.
  public func value(_ name: String, _ labels: [String: String] = [:]) -> Double? {
    samples.first { $0.name == name && $0.labels == labels }?.value
  }

  /// The sum of all samples that have these labels, whatever others they have.
  public func sum(_ name: String, _ labels: [String: String] = [:]) -> Double {
    samples.filter { sample in sample.name == name && labels.allSatisfy { sample.labels[$0.key] == $0.value } }
      .reduce(0) { $0 + $1.value }
  }

  private static func belongs(_ sample: Sample, to metric: String, _ type: String) -> Bool {
    guard type == "histogram" else { return sample.name == metric && sample.labels["le"] == nil }
    switch sample.name {
    case metric + "_bucket": return sample.labels["le"] != nil
    case metric + "_sum", metric + "_count": return sample.labels["le"] == nil
    default: return false
    }
  }

  private func checkHistogram(_ name: String) throws {
    var series: [[String: String]: [(bound: Double, count: Double)]] = [:]
    for sample in samples where sample.name == name + "_bucket" {
      var labels = sample.labels
      guard let bound = labels.removeValue(forKey: "le").flatMap(Self.number) else {
        throw Malformed(description: "a bucket of \(name) without a bound")
      }
      series[labels, default: []].append((bound, sample.value))
    }
    for (labels, buckets) in series {
      guard zip(buckets, buckets.dropFirst()).allSatisfy({ $0.bound < $1.bound && $0.count <= $1.count }),
        let last = buckets.last, last.bound == .infinity, value(name + "_count", labels) == last.count,
        value(name + "_sum", labels) != nil
      else { throw Malformed(description: "the buckets of \(name) \(labels)") }
    }
    let count = samples.count { $0.name == name + "_count" }
    guard count == series.count else { throw Malformed(description: "a count of \(name) without buckets") }
  }

  private static func sample(_ line: Substring) throws -> Sample {
    let malformed = Malformed(description: "no sample: \(line)")
    let nameEnd = line.firstIndex { $0 == "{" || $0 == " " } ?? line.endIndex
    let name = String(line[..<nameEnd])
    guard isName(name), nameEnd != line.endIndex else { throw malformed }
    var labels: [String: String] = [:]
    // Scalar by scalar: a mark at the beginning of a value must not stick to the quote before it.
    var rest = line[nameEnd...].unicodeScalars
    if rest.first == "{" {
      rest.removeFirst()
      repeat {
        guard let equals = rest.firstIndex(of: "=") else { throw malformed }
        let label = String(rest[..<equals])
        guard isName(label), !label.contains(":"), !label.hasPrefix("__") else { throw malformed }
        rest = rest[rest.index(after: equals)...]
        guard rest.popFirst() == "\"" else { throw malformed }
        var value = String.UnicodeScalarView()
        while let scalar = rest.popFirst(), scalar != "\"" {
          guard scalar == "\\" else {
            value.append(scalar)
            continue
          }
          switch rest.popFirst() {
          case "\\": value.append("\\")
          case "n": value.append("\n")
          case "\"": value.append("\"")
          default: throw malformed
          }
        }
        guard labels.updateValue(String(value), forKey: label) == nil else { throw malformed }
      } while rest.popFirst() == "," && rest.first != "}"
      guard line.unicodeScalars[..<rest.startIndex].last == "}" else { throw malformed }
    }
    guard rest.popFirst() == " ", let value = number(String(rest)) else { throw malformed }
    return Sample(name: name, labels: labels, value: value)
  }

  private static func number(_ text: String) -> Double? {
    switch text {
    case "+Inf": .infinity
    case "-Inf": -.infinity
    case "NaN": .nan
    default: text.utf8.allSatisfy { $0 != 0x20 } ? Double(text) : nil
    }
  }

  private static func isName(_ text: String) -> Bool {
    guard let first = text.utf8.first, !(0x30...0x39).contains(first) else { return false }
    return text.utf8.allSatisfy { byte in
      switch byte {
      case 0x30...0x3a, 0x41...0x5a, 0x61...0x7a, 0x5f: true
      default: false
      }
    }
  }
}

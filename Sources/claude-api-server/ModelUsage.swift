import ArgumentParser
import Foundation
import JSONSupport

/// Sums the log of the model's gateway.
struct ModelUsage: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "Sum the tokens that nginx has counted on the way to the model.",
    discussion: """
      Prints, with tabs between them: the session, key or model, its requests, and its input, output, cache-read and \
      cache-creation tokens. The log of scripts/run is STATE/nginx/logs/model.log.
      """)

  enum Group: String, ExpressibleByArgument, CaseIterable {
    case session, key, model
  }

  @Option(help: "What to sum by: session, key or model.")
  var by: Group = .session

  @Argument(help: "The logs, in any order.")
  var logs: [String]

  func run() throws {
    var totals: [String: ModelTokens] = [:]
    for path in logs {
      let skipped = try ModelLog(path: path).forEachRequest { request in
        totals[request[by], default: ModelTokens()] += request.tokens
      }
      if skipped > 0 {
        FileHandle.standardError.write(
          Data("\(path): \(skipped) lines are none of this log and were not counted\n".utf8))
      }
    }
    for (name, tokens) in totals.sorted(by: { $0.key < $1.key }) {
      print(([name] + tokens.columns.map(String.init)).joined(separator: "\t"))
    }
  }
}

/// What requests to the model took.
struct ModelTokens: Equatable {
  var requests = 0
  var input = 0
  var output = 0
  var cacheRead = 0
  var cacheCreation = 0

  var columns: [Int] { [requests, input, output, cacheRead, cacheCreation] }

  static func += (sum: inout Self, other: Self) {
    sum.requests += other.requests
    sum.input += other.input
    sum.output += other.output
    sum.cacheRead += other.cacheRead
    sum.cacheCreation += other.cacheCreation
  }
}

/// The log that nginx writes of the requests to the model: an object a line.
struct ModelLog {
  let path: String

  struct Request {
    var session: String
    var key: String
    var model: String
    var tokens: ModelTokens

    subscript(_ group: ModelUsage.Group) -> String {
      switch group {
      case .session: session
      case .key: key
      case .model: model
      }
    }

    /// Nil for a line that is none of this log, such as one that was being written when the machine went down.
    init?(line: UnsafeRawBufferPointer) {
      guard let object = try? JSONValue(parsing: line), let session = object["session"]?.stringValue,
        let key = object["key"]?.stringValue, let model = object["model"]?.stringValue
      else { return nil }
      func count(_ name: String) -> Int { object[name]?.intValue.map { Int($0) } ?? 0 }
      self.session = session
      self.key = key
      self.model = model
      tokens = ModelTokens(
        requests: 1, input: count("input_tokens"), output: count("output_tokens"),
        cacheRead: count("cache_read_tokens"), cacheCreation: count("cache_creation_tokens"))
    }
  }

  /// - Returns: how many lines could not be read.
  func forEachRequest(_ body: (Request) -> Void) throws -> Int {
    guard let file = fopen(path, "re") else {
      throw ValidationError("\(path) can't be read: \(String(cString: strerror(errno)))")
    }
    defer { fclose(file) }
    var buffer: UnsafeMutablePointer<CChar>?
    var capacity = 0
    defer { free(buffer) }
    var skipped = 0
    while true {
      let count = getline(&buffer, &capacity, file)
      guard count > 0, let line = buffer else { break }
      if let request = Request(line: UnsafeRawBufferPointer(start: line, count: count)) {
        body(request)
      } else {
        skipped += 1
      }
    }
    guard ferror(file) == 0 else {
      throw ValidationError("\(path) can't be read to its end: \(String(cString: strerror(errno)))")
    }
    return skipped
  }
}

import JSONSupport

/// One `[[…]]` of a prompt: what the demo model is told to do.
enum Directive: Hashable, Sendable {
  /// Call a tool.
  case tool(name: String, input: JSONValue)
  /// Say exactly this instead of the usual report.
  case say(String)
  /// Think before answering, with this text.
  case thinking(String)
  /// Answer in so many pieces with a pause before each one.
  case chunks(count: Int, delay: Duration)
  /// Wait before the first byte of the answer.
  case delay(Duration)
  /// Fail with this HTTP status.
  case error(ErrorDirective)
  /// Read the request and never answer.
  case hang(times: Int?)
  /// Start the answer and fall silent.
  case stall(times: Int?)
  /// Break the connection in the middle of the answer.
  case cut(times: Int?)
  /// Report this usage instead of the estimate.
  case usage(input: Int, output: Int)
  /// Give this as structured output.
  case json(JSONValue)
  /// What follows belongs to the next request of the same turn.
  case then
}

struct ErrorDirective: Hashable, Sendable {
  var status: Int
  /// Seconds for the `Retry-After` header.
  var retryAfter: Int?
  /// How often to fail before answering; nil is always.
  var times: Int?
}

/// Why the text between the brackets is not a directive.
struct DirectiveError: Error, Hashable, Sendable, CustomStringConvertible {
  var directive: String
  var reason: String

  var description: String { "[[\(directive)]]: \(reason)" }
}

extension Directive {
  /// The directives of a prompt, in order.
  ///
  /// An unknown word is not a directive but ordinary text (`[[1,2],[3,4]]` and wiki links occur in prompts);
  /// a known word with arguments that make no sense is an error, so that a test can't silently pass.
  static func parse(_ prompt: String) throws(DirectiveError) -> [Directive] {
    var directives: [Directive] = []
    var rest = prompt[...]
    while let opening = rest.range(of: "[[") {
      rest = rest[opening.upperBound...]
      let word = rest.prefix { $0.isLetter }
      guard Self.words.contains(String(word)) else { continue }
      guard let end = endOfDirective(in: rest) else {
        throw DirectiveError(directive: String(word), reason: "has no closing ]]")
      }
      let arguments = rest[word.endIndex..<end.lowerBound].trimmed
      directives.append(try directive(word: String(word), arguments: arguments))
      rest = rest[end.upperBound...]
    }
    return directives
  }

  private static let words: Set<String> = [
    "tool", "say", "thinking", "chunks", "delay", "error", "hang", "stall", "cut", "usage", "json", "then",
  ]

  /// The `]]` that closes a directive: not one inside of a JSON string, and not brackets of a JSON array.
  private static func endOfDirective(in text: Substring) -> Range<Substring.Index>? {
    var depth = 0
    var isInString = false
    var isEscaped = false
    var index = text.startIndex
    while index < text.endIndex {
      let character = text[index]
      let next = text.index(after: index)
      if isInString {
        if isEscaped {
          isEscaped = false
        } else if character == "\\" {
          isEscaped = true
        } else if character == "\"" {
          isInString = false
        }
      } else if character == "\"" && depth > 0 {
        // Only JSON has strings that count; a quotation mark in plain text is just a character.
        isInString = true
      } else if character == "{" || character == "[" {
        depth += 1
      } else if character == "}" || (character == "]" && depth > 0) {
        depth -= 1
      } else if character == "]", depth <= 0, next < text.endIndex, text[next] == "]" {
        return index..<text.index(after: next)
      }
      index = next
    }
    return nil
  }

  private static func directive(word: String, arguments: String) throws(DirectiveError) -> Directive {
    func failure(_ reason: String) -> DirectiveError {
      DirectiveError(directive: "\(word) \(arguments)", reason: reason)
    }
    switch word {
    case "say": return .say(arguments)
    case "thinking": return .thinking(arguments.isEmpty ? "Let me think about that." : arguments)
    case "then": return .then
    case "json": return .json(try json(arguments, failure))
    case "tool":
      let name = arguments.prefix { !$0.isWhitespace }
      guard !name.isEmpty else { throw failure("needs the name of a tool") }
      let input = arguments.dropFirst(name.count).trimmed
      return .tool(name: String(name), input: input.isEmpty ? [:] : try json(input, failure))
    case "delay":
      guard let delay = duration(arguments[...]) else {
        throw failure("needs a duration such as 500ms or 2s")
      }
      return .delay(delay)
    default: break
    }

    var words = arguments.split(separator: " ")
    func number(_ key: Substring) throws(DirectiveError) -> Int? {
      guard let index = words.firstIndex(of: key) else { return nil }
      guard words.indices.contains(index + 1), let value = Int(words[index + 1]), value >= 0 else {
        throw failure("\(key) needs a number")
      }
      words.removeSubrange(index...index + 1)
      return value
    }
    func finish(_ directive: Directive) throws(DirectiveError) -> Directive {
      guard words.isEmpty else { throw failure("does not know \(words[0])") }
      return directive
    }
    switch word {
    case "hang": return try finish(.hang(times: number("times")))
    case "stall": return try finish(.stall(times: number("times")))
    case "cut": return try finish(.cut(times: number("times")))
    case "usage":
      let input = try number("in")
      let output = try number("out")
      return try finish(.usage(input: input ?? 0, output: output ?? 0))
    case "error":
      let retryAfter = try number("retry-after")
      let times = try number("times")
      guard let status = words.first.flatMap({ Int($0) }), (400...599).contains(status) else {
        throw failure("needs a status from 400 to 599")
      }
      words.removeFirst()
      return try finish(.error(ErrorDirective(status: status, retryAfter: retryAfter, times: times)))
    case "chunks":
      var delay = Duration.zero
      if let index = words.firstIndex(of: "delay") {
        guard words.indices.contains(index + 1), let value = duration(words[index + 1]) else {
          throw failure("delay needs a duration such as 100ms")
        }
        delay = value
        words.removeSubrange(index...index + 1)
      }
      guard let count = words.first.flatMap({ Int($0) }), (1...10_000).contains(count) else {
        throw failure("needs a number of pieces from 1 to 10000")
      }
      words.removeFirst()
      return try finish(.chunks(count: count, delay: delay))
    default:
      throw failure("is not known")
    }
  }

  private static func json(
    _ text: String, _ failure: (String) -> DirectiveError
  ) throws(DirectiveError) -> JSONValue {
    do {
      return try JSONValue(parsing: text)
    } catch {
      throw failure("\(error)")
    }
  }

  private static func duration(_ text: Substring) -> Duration? {
    let digits = text.prefix { $0.isNumber }
    guard let value = Int(digits), value <= 3_600_000 else { return nil }
    switch text[digits.endIndex...] {
    case "ms": return .milliseconds(value)
    case "s": return .seconds(value)
    default: return nil
    }
  }
}

extension StringProtocol {
  /// Without white space at both ends.
  var trimmed: String {
    let start = firstIndex { !$0.isWhitespace } ?? endIndex
    let end = lastIndex { !$0.isWhitespace }.map { index(after: $0) } ?? start
    return String(self[start..<end])
  }

  /// The first occurrence of a text.
  func range(of text: String) -> Range<Index>? {
    firstRange(of: text)
  }
}

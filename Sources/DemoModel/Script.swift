import JSONSupport

/// What one request of a turn gets: the directives between two `[[then]]`, put together.
struct Step: Hashable, Sendable {
  struct ToolCall: Hashable, Sendable {
    var name: String
    var input: JSONValue
  }

  struct Usage: Hashable, Sendable {
    var input: Int
    var output: Int
  }

  /// A way not to answer properly.
  enum Fault: Hashable, Sendable {
    case error(status: Int, retryAfter: Int?)
    case hang
    case stall
    case cut
  }

  var toolCalls: [ToolCall] = []
  var say: String?
  var thinking: String?
  var chunkCount = 1
  var chunkDelay = Duration.zero
  var delay = Duration.zero
  var fault: Fault?
  /// How often the fault strikes before the step is answered; nil is always.
  var faultTimes: Int?
  var usage: Usage?
  var structuredOutput: JSONValue?

  init(_ directives: [Directive] = []) {
    for directive in directives {
      switch directive {
      case .tool(let name, let input): toolCalls.append(ToolCall(name: name, input: input))
      case .say(let text): say = text
      case .thinking(let text): thinking = text
      case .chunks(let count, let delay): (chunkCount, chunkDelay) = (count, delay)
      case .delay(let delay): self.delay = delay
      case .error(let error):
        (fault, faultTimes) = (.error(status: error.status, retryAfter: error.retryAfter), error.times)
      case .hang(let times): (fault, faultTimes) = (.hang, times)
      case .stall(let times): (fault, faultTimes) = (.stall, times)
      case .cut(let times): (fault, faultTimes) = (.cut, times)
      case .usage(let input, let output): usage = Usage(input: input, output: output)
      case .json(let value): structuredOutput = value
      case .then: break
      }
    }
  }
}

/// The steps that a prompt prescribes; a request beyond the last one gets the ordinary answer.
struct Script: Hashable, Sendable {
  var steps: [Step]

  init(prompt: String) throws(DirectiveError) {
    steps = try Directive.parse(prompt).split(separator: .then, omittingEmptySubsequences: false)
      .map { Step(Array($0)) }
  }

  /// The step of the request that follows so many assistant messages within the turn.
  func step(after answers: Int) -> Step {
    steps.indices.contains(answers) ? steps[answers] : Step()
  }
}

import JSONSupport

/// A whole answer, before it is known how it is delivered.
struct Reply: Sendable {
  enum Block: Sendable {
    case thinking(String)
    case text(String)
    case toolUse(id: String, name: String, input: JSONValue)
  }

  var id: String
  var model: String
  var blocks: [Block]
  var inputTokens: Int
  var cacheReadTokens: Int
  var outputTokens: Int

  var stopReason: String {
    blocks.contains { if case .toolUse = $0 { true } else { false } } ? "tool_use" : "end_turn"
  }

  /// - Parameter serial: a number no other reply of this process has.
  init(to request: MessagesRequest, step: Step, serial: Int) {
    id = "msg_demo_\(serial)"
    model = request.model
    blocks = []
    if let thinking = step.thinking { blocks.append(.thinking(thinking)) }
    var calls = step.toolCalls
    if let output = step.structuredOutput, request.toolNames.contains(Self.structuredOutputTool) {
      calls.append(Step.ToolCall(name: Self.structuredOutputTool, input: output))
    }
    if calls.isEmpty || step.say != nil {
      blocks.append(
        .text(step.say ?? step.structuredOutput?.description ?? Self.ordinaryAnswer(to: request)))
    }
    for (index, call) in calls.enumerated() {
      blocks.append(.toolUse(id: "toolu_demo_\(serial)_\(index)", name: call.name, input: call.input))
    }
    let bytes = blocks.reduce(0) { count, block in
      switch block {
      case .thinking(let text), .text(let text): count + text.utf8.count
      case .toolUse(_, let name, let input): count + name.utf8.count + input.encoded().count
      }
    }
    inputTokens = step.usage?.input ?? request.newTokens
    cacheReadTokens = step.usage == nil ? request.cachedTokens : 0
    outputTokens = step.usage?.output ?? max(1, bytes / 4)
  }

  /// A request of the CLI for itself (a title, a summary): it gets an answer, but no part in the script.
  init(toBackground request: MessagesRequest, serial: Int) {
    id = "msg_demo_\(serial)"
    model = request.model
    blocks = [.text("Demo conversation")]
    inputTokens = request.newTokens
    cacheReadTokens = request.cachedTokens
    outputTokens = 4
  }

  /// The tool with which the CLI asks for structured output.
  static let structuredOutputTool = "StructuredOutput"

  private static func ordinaryAnswer(to request: MessagesRequest) -> String {
    guard request.toolResultsInTurn.isEmpty else {
      return "The tool said:\n" + request.toolResultsInTurn.joined(separator: "\n")
    }
    let count = request.prompts.count
    let last = request.prompts.suffix(5).map { "\"\(excerpt($0))\"" }.joined(separator: " | ")
    return """
      I am the demo model. This conversation has \(count) user message\(count == 1 ? "" : "s"). \
      The last ones: \(last)
      """
  }

  private static func excerpt(_ text: String) -> String {
    text.count <= 200 ? text : text.prefix(200) + "…"
  }

  /// The object of a response that is not streamed.
  var message: JSONValue {
    .object([
      "id": .string(id), "type": "message", "role": "assistant", "model": .string(model),
      "content": .array(blocks.map(Self.finished)), "stop_reason": .string(stopReason),
      "stop_sequence": nil, "usage": usage(output: outputTokens),
    ])
  }

  func usage(output: Int) -> JSONValue {
    [
      "input_tokens": .int(Int64(inputTokens)), "cache_creation_input_tokens": 0,
      "cache_read_input_tokens": .int(Int64(cacheReadTokens)), "output_tokens": .int(Int64(output)),
    ]
  }

  private static func finished(_ block: Block) -> JSONValue {
    switch block {
    case .thinking(let text):
      ["type": "thinking", "thinking": .string(text), "signature": .string(signature)]
    case .text(let text): ["type": "text", "text": .string(text)]
    case .toolUse(let id, let name, let input):
      ["type": "tool_use", "id": .string(id), "name": .string(name), "input": input]
    }
  }

  static let signature = "ZGVtbw=="
}

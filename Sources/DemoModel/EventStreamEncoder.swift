import JSONSupport

/// A reply as the server-sent events of the Messages API.
struct EventStreamEncoder: Sendable {
  /// One event, and the pause to make before it is sent.
  struct Event: Sendable {
    var bytes: [UInt8]
    var pause: Duration
  }

  var reply: Reply
  var chunkCount: Int
  var chunkDelay: Duration

  var events: [Event] {
    var events: [Event] = []
    func add(_ name: String, _ data: [String: JSONValue] = [:], pause: Duration = .zero) {
      var data = data
      data["type"] = .string(name)
      var bytes = Array("event: \(name)\ndata: ".utf8)
      JSONValue.object(data).encode(into: &bytes)
      bytes.append(contentsOf: "\n\n".utf8)
      events.append(Event(bytes: bytes, pause: pause))
    }
    func delta(_ index: Int, _ delta: JSONValue, pause: Duration = .zero) {
      add("content_block_delta", ["index": .int(Int64(index)), "delta": delta], pause: pause)
    }

    add(
      "message_start",
      [
        "message": [
          "id": .string(reply.id), "type": "message", "role": "assistant", "model": .string(reply.model),
          "content": [], "stop_reason": nil, "stop_sequence": nil, "usage": reply.usage(output: 1),
        ]
      ])
    for (index, block) in reply.blocks.enumerated() {
      add("content_block_start", ["index": .int(Int64(index)), "content_block": Self.started(block)])
      switch block {
      case .thinking(let text):
        delta(index, ["type": "thinking_delta", "thinking": .string(text)])
        delta(index, ["type": "signature_delta", "signature": .string(Reply.signature)])
      case .text(let text):
        for piece in Self.pieces(of: text, count: chunkCount) {
          delta(index, ["type": "text_delta", "text": .string(piece)], pause: chunkDelay)
        }
      case .toolUse(_, _, let input):
        delta(index, ["type": "input_json_delta", "partial_json": .string(input.description)])
      }
      add("content_block_stop", ["index": .int(Int64(index))])
    }
    add(
      "message_delta",
      [
        "delta": ["stop_reason": .string(reply.stopReason), "stop_sequence": nil],
        "usage": reply.usage(output: reply.outputTokens),
      ])
    add("message_stop")
    return events
  }

  private static func started(_ block: Reply.Block) -> JSONValue {
    switch block {
    case .thinking: ["type": "thinking", "thinking": "", "signature": ""]
    case .text: ["type": "text", "text": ""]
    case .toolUse(let id, let name, _):
      ["type": "tool_use", "id": .string(id), "name": .string(name), "input": [:]]
    }
  }

  /// The text in as many pieces as asked for, as equal as possible; fewer if it has fewer characters.
  static func pieces(of text: String, count: Int) -> [String] {
    let characters = Array(text)
    let count = max(1, min(count, characters.count))
    return (0..<count).map { index in
      let start = characters.count * index / count
      let end = characters.count * (index + 1) / count
      return String(characters[start..<end])
    }
  }
}

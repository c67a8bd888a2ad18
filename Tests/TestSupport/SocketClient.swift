import Foundation
public import JSONSupport

/// A client of a session's WebSocket that speaks JSON.
public struct SocketClient: Sendable {
  public let raw: RawWebSocket
  /// Given every message.
  private let onMessage: @Sendable (JSONValue) -> Void

  public init(_ raw: RawWebSocket, onMessage: @escaping @Sendable (JSONValue) -> Void = { _ in }) {
    self.raw = raw
    self.onMessage = onMessage
  }

  public func send(_ json: JSONValue) async throws { try await raw.send(json.description) }

  /// The next message; what comes at the end of the socket is its code, as `closed`.
  public func next() async throws -> JSONValue {
    while let frame = try await raw.next() {
      switch frame.opcode {
      case 1:
        let message = try JSONValue(parsing: frame.payload)
        onMessage(message)
        return message
      case 8:
        try await raw.send(raw: RawWebSocket.bytes(8, frame.payload.prefix(2)))
        return ["closed": .int(Int64(frame.closeCode ?? 0))]
      case 9: try await raw.send(raw: RawWebSocket.bytes(10, frame.payload))
      default: continue
      }
    }
    return ["closed": nil]
  }

  /// The messages up to the first one that is wanted, or to the end.
  public func messages(until isWanted: (JSONValue) -> Bool) async throws -> [JSONValue] {
    var messages: [JSONValue] = []
    while true {
      let message = try await next()
      messages.append(message)
      if isWanted(message) || message["closed"] != nil { return messages }
    }
  }

  /// Sends a command and returns its answer; events that come before it are dropped.
  public func ask(_ command: JSONValue) async throws -> JSONValue {
    try await send(command)
    return try await messages(until: Self.isAnswer).last ?? nil
  }

  private static func isAnswer(_ message: JSONValue) -> Bool {
    message["type"] == "reply" || message["type"] == "error" || message["type"] == "pong"
  }

  /// Sends a command and waits for its answer and for an event, whichever comes first: a message's turn may have begun,
  /// and even ended, before the message is answered.
  ///
  /// - Returns: the answer, and all that came beside it.
  public func ask(
    _ command: JSONValue, awaiting isWanted: (JSONValue) -> Bool
  ) async throws -> (answer: JSONValue, others: [JSONValue]) {
    try await send(command)
    var isAnswered = false
    var isThere = false
    var messages = try await messages {
      if isWanted($0) { isThere = true }
      if Self.isAnswer($0) { isAnswered = true }
      return isAnswered && isThere
    }
    let answer = messages.firstIndex(where: Self.isAnswer).map { messages.remove(at: $0) }
    return (answer ?? nil, messages)
  }

  /// With which code the server ends it; nil if without one.
  public func end() async throws -> Int64? {
    try await messages { _ in false }.last?["closed"]?.intValue
  }
}

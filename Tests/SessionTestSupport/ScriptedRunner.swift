public import JSONSupport
public import Sessions
import Synchronization

#if canImport(FoundationEssentials)
  public import FoundationEssentials
#else
  public import Foundation
#endif

/// Runs turns by a script in place of the CLI.
public final class ScriptedRunner: TurnRunner {
  public typealias Say = @Sendable (JSONValue) async -> Void
  /// What a turn does. It should end soon when its task is cancelled.
  public typealias Script = @Sendable (_ request: TurnRequest, _ say: Say) async throws -> TurnResult

  private struct State {
    var prompts: [String] = []
    var running: [UUID: Task<Result<TurnResult, TurnRunFailure>, Never>] = [:]
    var processes: Set<UUID> = []
  }

  private let script: Script
  private let answers: PermissionAnswers
  private let keepsProcesses: Bool
  private let state = Mutex(State())

  /// - Parameter keepsProcesses: whether a session has a process after a turn, until it is stopped.
  public init(
    _ script: @escaping Script = ScriptedRunner.echo, answers: PermissionAnswers = PermissionAnswers(),
    keepsProcesses: Bool = false
  ) {
    self.script = script
    self.answers = answers
    self.keepsProcesses = keepsProcesses
  }

  /// Answers with the prompt, as the CLI would with an answer that it streams in two pieces.
  public static let echo: Script = { request, say in
    let text = "Echo: \(request.turn.prompt)"
    for message in CLIMessages.answer(text, id: "msg_\(request.turn.number)") { await say(message) }
    return TurnResult(text: text, accounts: TurnAccounts(usage: TokenUsage(inputTokens: 3, outputTokens: 2)))
  }

  /// The prompts that were run, in order.
  public var prompts: [String] { state.withLock { $0.prompts } }

  public func run(
    _ request: TurnRequest, onMessage: @escaping @Sendable (JSONValue) async -> Void
  ) async throws(TurnRunFailure) -> TurnResult {
    let id = request.session.id
    let task = Task { [script] () -> Result<TurnResult, TurnRunFailure> in
      do {
        return .success(try await script(request, onMessage))
      } catch let failure as TurnRunFailure {
        return .failure(failure)
      } catch {
        return .failure(
          TurnRunFailure(TurnFailure(code: "interrupted", detail: "The turn was stopped."), isInterruption: true))
      }
    }
    state.withLock { state in
      state.prompts.append(request.turn.prompt)
      state.running[id] = task
      if keepsProcesses { state.processes.insert(id) }
    }
    let result = await task.value
    state.withLock { $0.running[id] = nil }
    return try result.get()
  }

  public func interrupt(_ sessionID: UUID) async {
    state.withLock { $0.running[sessionID] }?.cancel()
  }

  public func answerPermission(
    _ requestID: String, of sessionID: UUID, _ answer: PermissionAnswer
  ) async -> Bool {
    answers.give(answer, to: requestID)
  }

  public func stop(_ sessionID: UUID) async {
    let task = state.withLock { $0.running[sessionID] }
    task?.cancel()
    _ = await task?.value
    state.withLock { _ = $0.processes.remove(sessionID) }
  }

  public func hasProcess(_ sessionID: UUID) async -> Bool {
    state.withLock { $0.processes.contains(sessionID) }
  }
}

/// What the agent was told about its questions for permission.
public final class PermissionAnswers: Sendable {
  private let answers = Mutex<[String: PermissionAnswer]>([:])

  public init() {}

  func give(_ answer: PermissionAnswer, to request: String) -> Bool {
    answers.withLock { answers in
      guard answers[request] == nil else { return false }
      answers[request] = answer
      return true
    }
  }

  public subscript(request: String) -> PermissionAnswer? { answers.withLock { $0[request] } }

  /// Waits for the answer to a question.
  ///
  /// - Throws: `CancellationError`.
  public func answer(to request: String) async throws -> PermissionAnswer {
    while true {
      try Task.checkCancellation()
      if let answer = self[request] { return answer }
      try await Task.sleep(for: .milliseconds(2))
    }
  }
}

/// Something that happens once and that others wait for.
public final class Gate: Sendable {
  private let stream: AsyncStream<Void>
  private let continuation: AsyncStream<Void>.Continuation

  public init() {
    (stream, continuation) = AsyncStream.makeStream()
  }

  public func open() { continuation.finish() }

  /// - Throws: `CancellationError`.
  public func wait() async throws {
    for await _ in stream {}
    try Task.checkCancellation()
  }
}

/// Messages as the CLI writes them.
public enum CLIMessages {
  public static func assistant(_ blocks: [JSONValue], id: String = "msg_1", parent: String? = nil) -> JSONValue {
    [
      "type": "assistant", "parent_tool_use_id": parent.map { .string($0) } ?? .null,
      "message": ["id": .string(id), "role": "assistant", "content": .array(blocks)],
    ]
  }

  public static func text(_ text: String) -> JSONValue { ["type": "text", "text": .string(text)] }

  public static func toolUse(_ name: String, id: String, input: JSONValue) -> JSONValue {
    ["type": "tool_use", "id": .string(id), "name": .string(name), "input": input]
  }

  public static func toolResult(_ id: String, _ content: JSONValue, isError: Bool = false) -> JSONValue {
    [
      "type": "user", "parent_tool_use_id": nil,
      "message": [
        "role": "user",
        "content": [
          ["type": "tool_result", "tool_use_id": .string(id), "content": content, "is_error": .bool(isError)]
        ],
      ],
    ]
  }

  /// A question for permission.
  public static func ask(
    _ id: String, tool: String = "Bash", _ input: JSONValue = ["command": "rm x"], suggestions: JSONValue = []
  ) -> JSONValue {
    [
      "type": "control_request", "request_id": .string(id),
      "request": [
        "subtype": "can_use_tool", "tool_name": .string(tool), "input": input, "tool_use_id": .string("tool_\(id)"),
        "permission_suggestions": suggestions,
      ],
    ]
  }

  public static func withdraw(_ id: String) -> JSONValue {
    ["type": "control_cancel_request", "request_id": .string(id)]
  }

  public static func piece(_ event: JSONValue) -> JSONValue {
    ["type": "stream_event", "parent_tool_use_id": nil, "event": event]
  }

  public static func start(_ id: String) -> JSONValue {
    piece([
      "type": "message_start",
      "message": ["id": .string(id), "model": "demo", "usage": ["input_tokens": 3, "output_tokens": 1]],
    ])
  }

  public static func delta(_ text: String, index: Int64 = 0) -> JSONValue {
    piece([
      "type": "content_block_delta", "index": .int(index), "delta": ["type": "text_delta", "text": .string(text)],
    ])
  }

  /// A whole answer: its pieces, and the message where the CLI puts it.
  public static func answer(_ text: String, id: String) -> [JSONValue] {
    let middle = text.index(text.startIndex, offsetBy: text.count / 2)
    return [
      start(id),
      piece(["type": "content_block_start", "index": 0, "content_block": ["type": "text", "text": ""]]),
      delta(String(text[..<middle])), delta(String(text[middle...])),
      assistant([Self.text(text)], id: id),
      piece(["type": "content_block_stop", "index": 0]),
      piece(["type": "message_delta", "delta": ["stop_reason": "end_turn"], "usage": ["output_tokens": 2]]),
      piece(["type": "message_stop"]),
    ]
  }
}

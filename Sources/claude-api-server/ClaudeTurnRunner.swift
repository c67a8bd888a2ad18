import ClaudeRunner
import Foundation
import JSONSupport
import Sessions

/// Runs the turns of sessions by the CLI.
struct ClaudeTurnRunner: TurnRunner {
  let runner: ClaudeRunner
  /// What holds where neither session nor message says anything.
  let defaults: ClaudeOptions
  /// Whether agents reach nothing but the model, whatever their keys say.
  var isNetworkClosed = false

  func run(
    _ request: TurnRequest, onMessage: @escaping @Sendable (JSONValue) async -> Void
  ) async throws(TurnRunFailure) -> TurnResult {
    let session = ClaudeSession(
      id: request.session.id.lowercaseString, workingDirectory: request.session.workspace,
      configDirectory: request.configurationDirectory, account: request.session.owner,
      network: isNetworkClosed ? nil : request.network.map(ClaudeNetwork.init))
    let turn = ClaudeTurn(
      session: session, options: options(request.options), prompt: request.turn.prompt,
      expectsHistory: request.session.hasConversation, id: request.turn.id.lowercaseString,
      owner: request.session.owner ?? "", allowanceUSD: request.allowanceUSD)
    do throws(ClaudeFailure) {
      let result = try await runner.run(turn, onMessage: { await onMessage($0.json) })
      return TurnResult(
        text: result.text, structuredOutput: result.structuredOutput, accounts: TurnAccounts(result))
    } catch {
      throw TurnRunFailure(error)
    }
  }

  private func options(_ chosen: SessionOptions) -> ClaudeOptions {
    var options = defaults
    if let model = chosen.model { options.model = model }
    options.appendSystemPrompt = chosen.appendSystemPrompt
    let mode = chosen.permissionMode ?? .standard
    options.asksForPermission = mode == .ask
    options.permissionMode =
      switch mode {
      case .standard, .ask: .standard
      case .acceptEdits: .acceptEdits
      case .plan: .plan
      case .dontAsk: .dontAsk
      case .bypassPermissions: .bypassPermissions
      }
    options.allowedTools = chosen.allowedTools ?? (mode == .ask ? [] : defaults.allowedTools)
    options.allowedTools += chosen.remembered.allowed.filter { !options.allowedTools.contains($0) }
    options.disallowedTools = chosen.disallowedTools
    options.disallowedTools += chosen.remembered.denied.filter { !options.disallowedTools.contains($0) }
    options.maxTurns = chosen.maxTurns
    options.maxBudgetUSD = chosen.maxBudgetUSD
    if case .object(var schema)? = chosen.outputSchema {
      // The CLI takes every schema for one of draft 7, and a mention of another draft for an error.
      schema["$schema"] = nil
      options.jsonSchema = .object(schema)
    }
    options.mcpServers = chosen.mcpServers
    return options
  }

  func answerPermission(_ requestID: String, of sessionID: UUID, _ answer: PermissionAnswer) async -> Bool {
    let decision: ClaudePermissionDecision =
      switch answer {
      case .allow(let input, let permissions): .allow(updatedInput: input, updatedPermissions: permissions)
      case .deny(let message): .deny(message: message)
      }
    return await runner.answerPermission(
      session: sessionID.lowercaseString, requestID: requestID, decision: decision)
  }

  func interrupt(_ sessionID: UUID) async {
    await runner.interrupt(session: sessionID.lowercaseString)
  }

  func stop(_ sessionID: UUID) async {
    await runner.stop(session: sessionID.lowercaseString)
  }

  func hasProcess(_ sessionID: UUID) async -> Bool {
    await runner.hasProcess(session: sessionID.lowercaseString)
  }
}

extension ClaudeNetwork {
  fileprivate init(_ network: AgentNetwork) {
    switch network {
    case .open: self = .open
    case .modelOnly: self = .modelOnly
    }
  }
}

extension TurnAccounts {
  fileprivate init(_ result: ClaudeTurnResult) {
    // Without a result message the CLI has counted nothing.
    let isReported = result.raw != nil
    self.init(
      usage: isReported
        ? TokenUsage(
          inputTokens: result.usage.inputTokens, outputTokens: result.usage.outputTokens,
          cacheReadTokens: result.usage.cacheReadTokens, cacheCreationTokens: result.usage.cacheCreationTokens)
        : nil,
      costUSD: isReported ? result.costUSD : nil,
      durationMilliseconds: result.duration.components.seconds * 1000
        + result.duration.components.attoseconds / 1_000_000_000_000_000,
      modelTurns: isReported ? result.numTurns : nil,
      isIncomplete: !isReported)
  }
}

extension TurnRunFailure {
  /// The end of the error output that a client is shown.
  private static let shownErrorOutput = 500

  fileprivate init(_ failure: ClaudeFailure) {
    if let refusal = Self.schemaRefusal(failure.errorOutput) {
      self.init(TurnFailure(code: "invalid_output_schema", detail: refusal))
      return
    }
    var detail = failure.message
    let errorOutput = failure.errorOutput.trimmingCharacters(in: .whitespacesAndNewlines)
    if !errorOutput.isEmpty {
      detail += " The end of its error output: \(errorOutput.suffix(Self.shownErrorOutput))"
    }
    let partialText = failure.partial.flatMap { $0.text.isEmpty ? nil : $0.text }
    self.init(
      TurnFailure(
        code: failure.code.rawValue, detail: detail,
        retryAfter: failure.code.httpRetryAfter(failure.retryAfter)),
      isInterruption: failure.code == .interrupted || failure.code == .shuttingDown,
      partialText: partialText, accounts: failure.partial.map(TurnAccounts.init) ?? TurnAccounts())
  }
}

extension TurnRunFailure {
  /// What the CLI has against an output schema, which it says at its start.
  private static func schemaRefusal(_ errorOutput: String) -> String? {
    guard let refusal = errorOutput.firstRange(of: "--json-schema is not a valid JSON Schema") else { return nil }
    let reason = errorOutput[refusal.upperBound...].split(separator: "\n").first ?? ""
    return "The field \"output_schema\" is not a valid JSON Schema\(reason.prefix(500))."
  }
}

extension ClaudeFailure.Code {
  /// Seconds after which another try makes sense; for some failures also if nobody said when.
  func httpRetryAfter(_ known: Duration?) -> Int? {
    if let known { return max(1, Int(known.components.seconds)) }
    switch self {
    case .rateLimited: return 30
    case .overloaded: return 10
    case .shuttingDown: return 5
    default: return nil
    }
  }
}

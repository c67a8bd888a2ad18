import JSONSupport

/// Turns what the CLI says about a turn into a result or a typed failure.
enum Classification {
  /// The failure that a result message reports; nil if the turn succeeded.
  ///
  /// Only `is_error` decides: `subtype` is "success" also when the model's API has failed.
  static func failure(
    of result: JSONValue, partial: ClaudeTurnResult, wasInterrupted: Bool, retryAfter: Duration?
  ) -> ClaudeFailure? {
    guard result["is_error"]?.boolValue ?? true else { return nil }
    let subtype = result["subtype"]?.stringValue ?? ""
    let reason = result["terminal_reason"]?.stringValue ?? ""
    let text = self.text(of: result)
    func failure(_ code: ClaudeFailure.Code, _ message: String, retryAfter: Duration? = nil) -> ClaudeFailure {
      ClaudeFailure(code, message, retryAfter: retryAfter, partial: partial)
    }
    if wasInterrupted { return failure(.interrupted, "The turn was interrupted.") }
    switch subtype {
    case "error_max_turns": return failure(.maxTurns, "\(text).")
    case "error_max_budget_usd": return failure(.budgetExhausted, "\(text).")
    case "error_max_structured_output_retries": return failure(.structuredOutputMissing, text)
    default: break
    }
    let denied = Set(partial.permissionDenials.compactMap { $0["tool_name"]?.stringValue }).sorted()
    let deniedTools = denied.isEmpty ? "a tool" : denied.joined(separator: ", ")
    if result["stopped_by_permission_check"]?.boolValue == true {
      return failure(.permissionDenied, "A permission check ended the turn; it had denied \(deniedTools).")
    }
    if reason.hasPrefix("aborted") { return failure(.interrupted, "The turn was interrupted.") }
    switch result["api_error_status"]?.intValue {
    case 401, 403: return failure(.modelAuthFailed, text)
    case 429: return failure(.rateLimited, text, retryAfter: retryAfter)
    case 529: return failure(.overloaded, text, retryAfter: retryAfter)
    case 408, 504: return failure(.modelTimeout, text)
    case .some: return failure(.modelError, text)
    case nil: break
    }
    switch result["api_error_type"]?.stringValue {
    case "overloaded_error": return failure(.overloaded, text, retryAfter: retryAfter)
    case "rate_limit_error": return failure(.rateLimited, text, retryAfter: retryAfter)
    case "authentication_error": return failure(.modelAuthFailed, text)
    default: break
    }
    if text.hasPrefix("Not logged in") || text.contains("Please run /login") {
      return failure(
        .notLoggedIn,
        "The Claude Code CLI has no credentials. Configure an API key or a token for the server.")
    }
    if text.hasPrefix("Invalid API key") { return failure(.modelAuthFailed, text) }
    if text.hasPrefix("Request timed out") { return failure(.modelTimeout, text) }
    if reason == "api_error" || text.hasPrefix("API Error") { return failure(.modelError, text) }
    if !denied.isEmpty { return failure(.permissionDenied, "\(text) The use of \(deniedTools) had been denied.") }
    return failure(.turnFailed, text)
  }

  /// Whether the CLI says that it doesn't know the conversation it was told to resume.
  static func isUnknownConversation(_ result: JSONValue) -> Bool {
    result["is_error"]?.boolValue == true && result["num_turns"]?.intValue == 0
      && text(of: result).hasPrefix("No conversation found")
  }

  private static func text(of result: JSONValue) -> String {
    let errors = (result["errors"]?.arrayValue ?? []).compactMap(\.stringValue)
    if !errors.isEmpty { return errors.joined(separator: "; ") }
    if let text = result["result"]?.stringValue, !text.isEmpty { return text }
    return "The CLI reported an error without saying which."
  }

  /// Whether a process says at its end that it got no memory, as the runtimes of JavaScript do.
  private static func saysOutOfMemory(_ errorOutput: String) -> Bool {
    let end = errorOutput.suffix(4000).lowercased()
    return ["out of memory", "cannot allocate memory"].contains { end.contains($0) }
  }

  /// What a process that ended on its own died of.
  static func failure(
    ofExit exit: ClaudeExit, errorOutput: String, partial: ClaudeTurnResult?, wasOutOfMemory: Bool
  ) -> ClaudeFailure {
    let tail = errorOutput.split(separator: "\n").last.map { ": \($0.prefix(300))" } ?? "."
    // A sandbox reports the signal that its command died of as a status.
    let wasKilled = exit == .signal(9) || exit == .code(128 + 9)
    if wasKilled && wasOutOfMemory || saysOutOfMemory(errorOutput) {
      return ClaudeFailure(
        .outOfMemory, "The Claude Code CLI ended for want of memory\(tail)", exit: exit,
        errorOutput: errorOutput, partial: partial)
    }
    return ClaudeFailure(
      .crashed, "The Claude Code CLI ended unexpectedly with \(exit)\(tail)", exit: exit,
      errorOutput: errorOutput, partial: partial)
  }
}

import HTTPTypes

/// The rules for the text of a message.
struct PromptRules: Sendable {
  let maximumBytes: Int

  /// The text as it goes to the agent, which is as it came.
  func check(_ text: String, field: String, _ fields: BodyFields) throws(Problem) -> String {
    if text.utf8.contains(0) { throw fields.invalid(field, "must not hold a NUL character") }
    if text.allSatisfy(\.isWhitespace) { throw fields.invalid(field, "must not be empty") }
    if text.utf8.count > maximumBytes {
      throw Problem(
        .promptTooLarge,
        "The field \"\(field)\" has \(text.utf8.count) bytes; at most \(maximumBytes) are allowed.")
    }
    return text
  }
}

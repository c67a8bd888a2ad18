import Foundation

/// Tries the routes of a running server one after the other, the way an ordinary client uses them.
package struct ServerCheck: Sendable {
  package struct Step: Encodable, Sendable {
    package var name: String
    package var ok: Bool
    /// What was seen.
    package var detail: String
    package var seconds: Double
  }

  private struct Unexpected: Error, CustomStringConvertible {
    var description: String
  }

  private let client: Client
  private let report: @Sendable (Step) -> Void

  /// - Parameter report: called after each step.
  package init(client: Client, report: @escaping @Sendable (Step) -> Void) {
    self.client = client
    self.report = report
  }

  /// Runs all steps; the session that it makes is deleted in any case.
  ///
  /// - Returns: whether all of them went well.
  /// - Throws: `ClientError.unreachable` when there is no use in going on.
  package func run() async throws -> Bool {
    let number = Int.random(in: 1000...9999)
    let isDescribed = try await step("GET /") {
      let server = try await client.describe().value
      try expect(server.name == "Claude API", "the name is \(server.name)")
      return "\(server.name) \(server.version)"
    }

    var session: Session?
    let isCreated = try await step("POST /sessions") {
      let created = try await client.createSession(
        name: "claude-api test",
        initialPrompt: "Remember the number \(number). Answer with one short sentence."
      ).value
      session = created.session
      try expect(created.error == nil, "the first prompt failed: \(created.error ?? "")")
      let response = created.initialResponse ?? ""
      try expect(!response.isEmpty, "the initial response is empty")
      return "session \(created.session.id) says: \(Self.shortened(response))"
    }
    guard let session else { return false }

    let isUsable: Bool
    do {
      isUsable = try await useSession(session, number: number)
    } catch {
      _ = try await delete(session)
      throw error
    }
    let isDeleted = try await delete(session)
    return isDescribed && isCreated && isUsable && isDeleted
  }

  private func useSession(_ session: Session, number: Int) async throws -> Bool {
    let isListed = try await step("GET /sessions") {
      let list = try await client.sessions().value
      try expect(
        list.count == list.sessions.count, "the count is \(list.count) for \(list.sessions.count) sessions")
      try expect(list.sessions.contains { $0.id == session.id }, "the new session is not among \(list.count)")
      return "\(list.count) session(s), the new one among them"
    }
    let isFound = try await step("GET /sessions/{id}") {
      let found = try await client.session(session.id).value
      try expect(found.id == session.id && found.name == "claude-api test", "another session: \(found)")
      return "\(found.name), created \(found.createdAt)"
    }
    let isAnswered = try await step("POST /sessions/{id}/messages") {
      let message = try await client.send("Which number did I ask you to remember?", to: session.id).value
      try expect(message.sessionID == session.id, "the answer is of session \(message.sessionID)")
      try expect(
        message.response.contains("\(number)"),
        "the answer does not have the number \(number): \(Self.shortened(message.response))")
      return "answered from context: \(Self.shortened(message.response))"
    }
    let isRefused = try await step("GET /sessions/{unknown}") {
      try await expectNotFound(UUID().uuidString.lowercased())
    }
    return isListed && isFound && isAnswered && isRefused
  }

  // In a task of its own, since what was made has to go also when the check itself was cancelled.
  private func delete(_ session: Session) async throws -> Bool {
    try await Task {
      let isDeleted = try await step("DELETE /sessions/{id}") {
        let deleted = try await client.deleteSession(session.id).value
        try expect(deleted.sessionID == session.id, "the answer is of session \(deleted.sessionID)")
        return deleted.message
      }
      let isGone = try await step("GET /sessions/{deleted}") {
        try await expectNotFound(session.id)
      }
      return isDeleted && isGone
    }.value
  }

  /// Returns whether the step went well; throws where nothing after it could.
  private func step(_ name: String, _ body: () async throws -> String) async throws -> Bool {
    let start = ContinuousClock.now
    func finish(_ ok: Bool, _ detail: String) {
      report(Step(name: name, ok: ok, detail: detail, seconds: (ContinuousClock.now - start) / .seconds(1)))
    }
    do {
      finish(true, try await body())
      return true
    } catch {
      finish(false, "\(error)")
      try Task.checkCancellation()
      if case ClientError.unreachable = error { throw error }
      return false
    }
  }

  private func expectNotFound(_ id: String) async throws -> String {
    do {
      _ = try await client.session(id)
    } catch ClientError.refused(status: 404, _, let detail) {
      try expect(detail == "Session not found", "the detail is: \(detail)")
      return "404 \(detail)"
    }
    throw Unexpected(description: "the server knows a session that must not exist")
  }

  private func expect(_ condition: Bool, _ text: @autoclosure () -> String) throws {
    guard condition else { throw Unexpected(description: text()) }
  }

  private static func shortened(_ text: String) -> String {
    let line = text.split(whereSeparator: \.isWhitespace).joined(separator: " ")
    return line.count > 100 ? "\(line.prefix(100))…" : line
  }
}

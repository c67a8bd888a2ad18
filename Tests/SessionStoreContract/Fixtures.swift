public import Foundation
public import Sessions
internal import Testing

/// Text that a store could spoil: a NUL, characters of four bytes, a combining mark, quotes, nothing.
let hardTexts = ["", "a\u{0}b", "\u{0}", "👩‍👩‍👧 e\u{301} ß", "'; DROP TABLE turns; --", "\"\\\n\r\t"]

func time(_ seconds: Int) -> Timestamp {
  Timestamp(microseconds: 1_750_000_000_123_456 + Int64(seconds) * 1_000_000)
}

func makeSession(_ name: String = "A session", at seconds: Int = 0, owner: String? = nil) -> Session {
  Session(id: UUID(), name: name, createdAt: time(seconds), workspace: "/workspaces/x", owner: owner)
}

func makeEvents(_ types: String..., turn: UUID? = nil) -> [NewEvent] {
  types.map { NewEvent(type: $0, turnID: turn, processedAt: time(1), payload: #"{"type":"\#($0)"}"#) }
}

func makeApproval(_ turn: Turn, at seconds: Int = 5) -> Approval {
  Approval(
    id: UUID(), sessionID: turn.sessionID, turnID: turn.id, toolName: "Bash", toolUseID: "toolu_1",
    input: #"{"command":"ls"}"#, cliRequestID: "r1", createdAt: time(seconds), expiresAt: time(seconds + 60))
}

extension SessionStore {
  func addSession(_ name: String = "A session", at seconds: Int = 0, owner: String? = nil) async throws
    -> Session
  {
    let session = makeSession(name, at: seconds, owner: owner)
    guard case .created(let created, _, _) = try await createSession(session) else {
      throw Unexpected("the session was not created")
    }
    return created
  }

  func addTurn(_ session: Session, _ prompt: String = "hello", at seconds: Int = 1) async throws -> Turn {
    let admission = try await enqueueTurn(
      NewTurn(sessionID: session.id, prompt: prompt, createdAt: time(seconds)))
    guard case .created(let turn, _) = admission else { throw Unexpected("the turn was not accepted") }
    return turn
  }

  func addRunningTurn(_ session: Session) async throws -> Turn {
    try await startTurn(addTurn(session).id, at: time(2)).turn
  }

  func log(_ session: Session) async throws -> [Event] { try await log(of: session.id) }

  /// All events of a session.
  public func log(of session: UUID) async throws -> [Event] {
    try await whole { last in try await self.events(of: session, after: last?.sequence ?? 0, limit: .max, types: nil) }
  }

  /// All turns of a session, or those in some states.
  public func turns(of session: UUID, in states: Set<Turn.State>? = nil) async throws -> [Turn] {
    try await whole { last in try await self.turns(of: session, after: last?.number ?? 0, limit: .max, states: states) }
  }

  private func whole<Element>(_ page: (Element?) async throws -> StorePage<Element>) async throws -> [Element] {
    var found: [Element] = []
    while true {
      let next = try await page(found.last)
      found += next.items
      if !next.hasMore { return found }
    }
  }
}

struct Unexpected: Error {
  let what: String

  init(_ what: String) {
    self.what = what
  }
}

/// Expects exactly this error.
func expect<Value>(
  _ error: SessionStoreError, sourceLocation: SourceLocation = #_sourceLocation,
  _ body: () async throws -> Value
) async {
  await #expect(throws: error, sourceLocation: sourceLocation) { _ = try await body() }
}

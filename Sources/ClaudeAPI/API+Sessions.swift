import HTTPTypes
import Hummingbird
import HummingbirdFastCGI
import JSONSupport
import NIOCore
import Sessions
import Workspaces

#if canImport(FoundationEssentials)
  import FoundationEssentials
#else
  import Foundation
#endif

extension API {
  func addSessionRoutes(to router: Router<Context>, _ routes: inout RouteTable) {
    routes.add(.post, "/sessions", "Create a new session", for: .change, to: router, createSession)
    routes.add(.get, "/sessions", "List all sessions", for: .read, to: router, listSessions)
    routes.add(
      .post, "/sessions/{session_id}/messages", "Send message to session", for: .change, to: router, sendMessage)
    routes.add(.get, "/sessions/{session_id}", "Get session info", for: .read, to: router, showSession)
    routes.add(.delete, "/sessions/{session_id}", "Delete session", for: .change, to: router, deleteSession)
  }

  private func createSession(_ request: Request, _ context: Context) async throws -> Response {
    let (fields, archive) = try await sessionFields(
      request, context, known: ["git", "initial_prompt", "session_name"] + Self.optionFields)
    // An empty text is none, as it always was for these two.
    let name = try Self.sessionName(fields)
    let prompt = try fields.string("initial_prompt").flatMap { $0.isEmpty ? nil : $0 }
      .map { text throws(Problem) in try promptRules.check(text, field: "initial_prompt", fields) }
    let claim = try IdempotencyClaim(request, scope: "POST /sessions", fields)
    guard claim == nil || archive == nil else {
      throw Problem(
        .invalidIdempotencyKey, "A session with an archive can't be made with an Idempotency-Key.")
    }
    let repository = try Self.repository(fields)
    guard repository == nil || archive == nil else {
      throw fields.invalid("git", "can't be given together with an archive")
    }
    let new = NewSession(
      name: name, initialPrompt: prompt, owner: Principal.current?.keyID, options: try Self.sessionOptions(fields),
      metadata: try Self.metadata(fields).map { JSONValue.object($0).description } ?? "{}", idempotency: claim)
    let created: CreatedSession
    if let files, let archive {
      created = try await service.create(new) { id, change in
        try await change.take(archive.usage.bytes)
        try await files.workspaces.install(archive, at: .root, of: id)
      }
    } else if let repository {
      guard let files else { throw Problem(GitError.notAllowed) }
      created = try await service.create(new) { try await files.bringIn(repository, for: $0, $1) }
    } else {
      created = try await service.create(new)
    }
    var headers: HTTPFields = created.isReplay ? [.idempotencyReplayed: "true"] : [:]
    try await addRateLimit(to: &headers)
    var outcome: Turn?
    if let turn = created.turn {
      do {
        outcome = try await self.outcome(of: turn, AnswerPreference(request.headers))
      } catch SessionServiceError.postponed(let turn) {
        // The session is what was asked for; its first turn comes after the restart.
        outcome = try await service.turn(turn.id, of: turn.sessionID)
      }
    }
    // With the time of its last use as it is now.
    let current = outcome == nil ? created.session : try await service.session(created.session.id)
    let isUnderWay = outcome.map { !$0.state.isFinal } ?? false
    if let outcome, isUnderWay {
      headers[.location] = Self.path(of: outcome)
      headers[.preferenceApplied] = "respond-async"
    }
    let position: Int? = if let outcome, isUnderWay { await service.position(of: outcome) } else { nil }
    var json = JSONWriter(capacity: 1024)
    json.object { json in
      json.field(
        "session",
        object: { json in
          json.members(current)
          json.details(current)
        })
      json.field("initial_response", outcome?.state == .completed ? outcome?.result ?? "" : nil)
      if let structured = outcome?.structuredOutput { json.field("structured_output", json: structured) }
      if let outcome, let failure = outcome.failure {
        json.field("error", failure.detail)
        json.field("error_code", failure.code)
      }
      if let outcome, isUnderWay { json.field("turn", object: { $0.members(outcome, position: position) }) }
    }
    return Self.json(json.finish(), status: isUnderWay ? .accepted : .ok, headers)
  }

  /// The fields of a session that is to be made: JSON, or a form that may bring an archive.
  private func sessionFields(
    _ request: Request, _ context: Context, known: [String]
  ) async throws -> (fields: BodyFields, archive: StagedTree?) {
    let limit = configuration.maximumBodyBytes
    if let form = try await files?.sessionForm(request, context, known: known, limit: limit) { return form }
    let request = try await FilesAPI.readingBody(request, context, limit: limit)
    return (try await BodyFields(request, limit: limit, known: known), nil)
  }

  private func listSessions(_ request: Request, _: Context) async throws -> Response {
    let query = try QueryFields(request, known: ["cursor", "limit", "name", "status"])
    let isPaged = query.has("cursor") || query.has("limit")
    let page = try await service.sessions(
      SessionQuery(
        after: try query.integer("cursor", in: 0...Int64.max).map { SessionCursor(rawValue: $0) },
        limit: try query.integer("limit", in: 1...1000) ?? (isPaged ? 100 : nil),
        nameContains: try query.text("name"),
        activity: try query.choice("status", SessionActivity.self),
        owner: Principal.current?.listedOwner))
    let sessions = page.sessions
    var json = JSONWriter(capacity: 64 + sessions.count * 300)
    json.object { json in
      json.field("sessions", array: sessions) { json, session in json.object { $0.members(session) } }
      json.field("count", Int64(sessions.count))
      if isPaged { json.field("next_cursor", page.next?.description) }
    }
    return Self.json(json.finish())
  }

  private func showSession(_: Request, _ context: Context) async throws -> Response {
    let id = try Self.sessionID(context)
    let session: Session
    if let cached = service.cachedSession(id) {
      session = cached
    } else {
      session = try await service.session(id)
    }
    var json = JSONWriter()
    json.object { json in
      json.members(session)
      json.details(session)
    }
    return Self.json(json.finish())
  }

  private func deleteSession(_: Request, _ context: Context) async throws -> Response {
    let id = try Self.sessionID(context)
    try await service.delete(id)
    var json = JSONWriter()
    json.object { json in
      json.field("message", "Session deleted")
      json.field("session_id", id.lowercaseString)
    }
    return Self.json(json.finish())
  }

  private func sendMessage(_ request: Request, _ context: Context) async throws -> Response {
    let id = try Self.sessionID(context)
    let query = try QueryFields(request, known: ["deltas"])
    let previews = try query.boolean("deltas") ?? true
    let fields = try await BodyFields(request, limit: configuration.maximumBodyBytes, known: Self.messageFields)
    let key = try IdempotencyClaim.key(of: request)
    let preference = AnswerPreference(request.headers)
    // A message that was accepted could not be refused any more.
    let lease = preference.form == .stream ? try await leaseStream(of: id, over: .serverSentEvents) : nil
    let accepted = try await accept(fields, for: id, idempotencyKey: key)
    var headers: HTTPFields = accepted.isReplay ? [.idempotencyReplayed: "true"] : [:]
    try await addRateLimit(to: &headers)
    if preference.form == .stream {
      headers[.location] = Self.path(of: accepted.turn)
      return Self.eventStream(
        service.eventStream(
          of: id,
          .init(
            after: accepted.precedingSequence, turn: accepted.turn.id, previews: previews,
            holder: Principal.current?.key), lease: lease),
        headers)
    }
    let turn = try await outcome(of: accepted.turn, preference)
    guard turn.state.isFinal else {
      headers[.location] = Self.path(of: turn)
      headers[.preferenceApplied] = "respond-async"
      return Self.json(await turnBody(turn), status: .accepted, headers)
    }
    if let failure = turn.failure {
      var problem = Problem(failure)
      problem.turn = turn
      problem.fields = headers
      throw problem
    }
    var json = JSONWriter(capacity: 512 + turn.prompt.utf8.count + (turn.result?.utf8.count ?? 0))
    json.object { json in
      json.field("session_id", id.lowercaseString)
      json.field("prompt", turn.prompt)
      json.field("response", turn.result ?? "")
      json.field("timestamp", (turn.finishedAt ?? .now()).description)
      json.field("turn_id", turn.id.lowercaseString)
      if let structured = turn.structuredOutput { json.field("structured_output", json: structured) }
    }
    return Self.json(json.finish(), headers)
  }

  static let messageFields = ["prompt"] + optionFields

  /// Accepts a message, however it came.
  func accept(_ fields: BodyFields, for id: UUID, idempotencyKey: String?) async throws -> AcceptedMessage {
    guard let text = try fields.string("prompt") else { throw fields.invalid("prompt", "is missing") }
    let prompt = try promptRules.check(text, field: "prompt", fields)
    let claim = try idempotencyKey.map { key throws(Problem) in
      try IdempotencyClaim(key, scope: "POST /sessions/\(id.lowercaseString)/messages", fields)
    }
    return try await service.accept(
      prompt, for: id, options: try Self.messageOptions(fields), owner: Principal.current?.keyID, idempotency: claim)
  }

  /// Waits for a turn as long as the client wants to.
  private func outcome(of turn: Turn, _ preference: AnswerPreference) async throws -> Turn {
    switch preference.form {
    case .turn(wait: 0): turn
    case .turn(let seconds): try await service.outcome(of: turn, within: .seconds(seconds))
    case .whole, .stream: try await service.outcome(of: turn)
    }
  }
}

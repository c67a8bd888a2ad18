import HTTPTypes
import Hummingbird
import JSONSupport
import Sessions

#if canImport(FoundationEssentials)
  import FoundationEssentials
#else
  import Foundation
#endif

extension API {
  func addControlRoutes<Context: RequestContext>(to router: Router<Context>, _ routes: inout RouteTable) {
    routes.add(
      .patch, "/sessions/{session_id}", "Rename a session, change its options and metadata", for: .change, to: router,
      patchSession)
    routes.add(
      .post, "/sessions/{session_id}/interrupt", "Stop the running turn", for: .change, to: router, interruptSession)
    routes.add(
      .post, "/sessions/{session_id}/fork", "Copy conversation and workspace into a new session", for: .change,
      to: router,
      forkSession)
  }

  private func patchSession(_ request: Request, _ context: some RequestContext) async throws -> Response {
    let id = try Self.sessionID(context)
    let fields = try await BodyFields(
      request, limit: configuration.maximumBodyBytes,
      known: ["name", "remembered", "session_name"] + Self.optionFields)
    var change = SessionChange()
    for field in ["name", "session_name"] where fields[field] != nil {
      guard let name = try Self.sessionName(fields, field) else {
        throw fields.invalid(field, "must be a string that is not empty")
      }
      guard change.name == nil else { throw fields.invalid("name", "is the same as session_name; give one of them") }
      change.name = name
    }
    if let remembered = fields["remembered"] {
      guard remembered.isNull else { throw fields.invalid("remembered", "can only be forgotten; set it to null") }
      change.forgetsRemembered = true
    }
    for option in SessionOption.allCases {
      if let value = fields[option.rawValue] { change.options[option] = value }
    }
    if fields["metadata"] != nil { change.metadata = try Self.metadata(fields) ?? [:] }
    let session = try await service.update(id, change)
    var json = JSONWriter(capacity: 1024)
    json.object { json in
      json.members(session)
      json.details(session)
    }
    return Self.json(json.finish())
  }

  /// 200 with the turn as it ended, or 202 if it is still about to end.
  private func interruptSession(_ request: Request, _ context: some RequestContext) async throws -> Response {
    let id = try Self.sessionID(context)
    _ = try await BodyFields(request, limit: configuration.maximumBodyBytes, known: [], isOptional: true)
    let turn = try await service.interrupt(id)
    return Self.json(
      await turnBody(turn), status: turn.state.isFinal ? .ok : .accepted, [.location: Self.path(of: turn)])
  }

  private func forkSession(_ request: Request, _ context: some RequestContext) async throws -> Response {
    let id = try Self.sessionID(context)
    let fields = try await BodyFields(
      request, limit: configuration.maximumBodyBytes, known: ["session_name"], isOptional: true)
    let name = try Self.sessionName(fields)
    let claim = try IdempotencyClaim(request, scope: "POST /sessions/\(id.lowercaseString)/fork", fields)
    let created = try await service.fork(
      id, name: name, owner: try await owner(ofForkOf: id), idempotency: claim)
    var json = JSONWriter(capacity: 1024)
    json.object { json in
      json.field(
        "session",
        object: { json in
          json.members(created.session)
          json.details(created.session)
        })
    }
    var headers: HTTPFields = [.location: "/sessions/\(created.session.id.lowercaseString)"]
    if created.isReplay { headers[.idempotencyReplayed] = "true" }
    return Self.json(json.finish(), headers)
  }
}

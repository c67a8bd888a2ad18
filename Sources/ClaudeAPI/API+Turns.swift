import HTTPTypes
import Hummingbird
import NIOCore
import Sessions

#if canImport(FoundationEssentials)
  import FoundationEssentials
#else
  import Foundation
#endif

extension API {
  func addTurnRoutes(to router: Router<Context>, _ routes: inout RouteTable) {
    routes.add(.get, "/sessions/{session_id}/turns", "List the turns of a session", for: .read, to: router, listTurns)
    routes.add(
      .get, "/sessions/{session_id}/turns/{turn_id}", "Get a turn; ?wait=30s waits for its end", for: .read, to: router,
      showTurn)
    routes.add(
      .post, "/sessions/{session_id}/turns/{turn_id}/cancel", "Take a queued turn out of the queue", for: .change,
      to: router,
      cancelTurn)
  }

  private func listTurns(_ request: Request, _ context: Context) async throws -> Response {
    let id = try Self.sessionID(context)
    let query = try QueryFields(request, known: ["after", "limit"])
    let limit = try query.integer("limit", in: 1...200) ?? 50
    let page = try await service.turns(
      of: id, after: try query.integer("after", in: 0...Int(Int32.max)) ?? 0, limit: limit)
    let turns = page.items
    var positions: [UUID: Int] = [:]
    for turn in turns where turn.state == .queued { positions[turn.id] = await service.position(of: turn) }
    var json = JSONWriter(capacity: 64 + turns.count * 1024)
    json.object { json in
      json.field("turns", array: turns) { json, turn in
        json.object { $0.members(turn, position: positions[turn.id]) }
      }
      json.field("has_more", page.hasMore)
      json.field("next", turns.last.map { Int64($0.number) })
    }
    return Self.json(json.finish())
  }

  private func showTurn(_ request: Request, _ context: Context) async throws -> Response {
    let id = try Self.sessionID(context)
    let query = try QueryFields(request, known: ["wait"])
    let wait = try query.duration("wait", upTo: .seconds(300))
    var turn = try await service.turn(try Self.turnID(context), of: id)
    if let wait, !turn.state.isFinal { turn = try await service.outcome(of: turn, within: wait) }
    return Self.json(await turnBody(turn))
  }

  private func cancelTurn(_: Request, _ context: Context) async throws -> Response {
    let id = try Self.sessionID(context)
    return Self.json(await turnBody(try await service.cancel(try Self.turnID(context), of: id)))
  }

  // MARK: Parts

  func turnBody(_ turn: Turn) async -> ByteBuffer {
    let position = turn.state == .queued ? await service.position(of: turn) : nil
    var json = JSONWriter(capacity: 1024 + turn.prompt.utf8.count + (turn.result?.utf8.count ?? 0))
    json.object { $0.members(turn, position: position) }
    return json.finish()
  }

  static func path(of turn: Turn) -> String {
    "/sessions/\(turn.sessionID.lowercaseString)/turns/\(turn.id.lowercaseString)"
  }

  private static func turnID(_ context: Context) throws(Problem) -> UUID {
    guard let id = uuid("turn_id", context) else { throw Problem(SessionServiceError.turnNotFound) }
    return id
  }
}

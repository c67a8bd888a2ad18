import Hummingbird
import JSONSupport
import NIOCore
import Sessions

#if canImport(FoundationEssentials)
  import FoundationEssentials
#else
  import Foundation
#endif

extension API {
  func addApprovalRoutes<Context: RequestContext>(to router: Router<Context>, _ routes: inout RouteTable) {
    routes.add(
      .get, "/sessions/{session_id}/approvals", "List tool calls that wait, or waited, for a decision", for: .read,
      to: router,
      listApprovals)
    routes.add(
      .get, "/sessions/{session_id}/approvals/{approval_id}", "Get an approval", for: .read, to: router, showApproval)
    routes.add(
      .post, "/sessions/{session_id}/approvals/{approval_id}", "Allow or deny a tool call", for: .change, to: router,
      decideApproval)
  }

  private func listApprovals(_ request: Request, _ context: some RequestContext) async throws -> Response {
    let id = try Self.sessionID(context)
    let query = try QueryFields(request, known: ["after", "limit", "state"])
    let state = try query.choice("state", Approval.State.self)
    let after = try query.text("after").map { text throws(Problem) in
      guard let after = UUID(uuidString: text) else {
        throw QueryFields.invalid("after", "must be the id of an approval")
      }
      return after
    }
    let page = try await service.approvals(
      of: id, after: after, limit: try query.integer("limit", in: 1...200) ?? 200, states: state.map { [$0] })
    let approvals = page.items
    var json = JSONWriter(capacity: 64 + approvals.count * 512)
    json.object { json in
      json.field("approvals", array: approvals) { json, approval in json.object { $0.members(approval) } }
      json.field("count", Int64(approvals.count))
      json.field("has_more", page.hasMore)
      json.field("next", approvals.last?.id.lowercaseString)
    }
    return Self.json(json.finish())
  }

  private func showApproval(_: Request, _ context: some RequestContext) async throws -> Response {
    let id = try Self.sessionID(context)
    return Self.json(Self.body(try await service.approval(try Self.approvalID(context), of: id)))
  }

  private func decideApproval(_ request: Request, _ context: some RequestContext) async throws -> Response {
    let id = try Self.sessionID(context)
    let approval = try Self.approvalID(context)
    let fields = try await BodyFields(request, limit: configuration.maximumBodyBytes, known: Self.approvalFields)
    return Self.json(Self.body(try await decide(approval, of: id, fields)))
  }

  static let approvalFields = ["decision", "message", "remember", "updated_input"]

  /// Decides on a tool call, however the decision came.
  func decide(_ approval: UUID, of id: UUID, _ fields: BodyFields) async throws -> Approval {
    let decisions = ApprovalVerdict.Decision.allCases.map(\.rawValue)
    guard let decision = try fields.string("decision").flatMap(ApprovalVerdict.Decision.init(rawValue:)) else {
      throw fields.invalid("decision", "must be one of \(decisions.joined(separator: ", "))")
    }
    let message = try fields.string("message")
    if let message, message.unicodeScalars.count > 10_000 || message.utf8.contains(0) {
      throw fields.invalid("message", "must have at most 10000 characters and no NUL")
    }
    let input = try fields.object("updated_input")
    guard input == nil || decision == .allow else {
      throw fields.invalid("updated_input", "goes only with the decision allow")
    }
    return try await service.decide(
      approval, of: id,
      ApprovalVerdict(
        decision, message: message, updatedInput: input.map { .object($0) },
        remember: try fields.boolean("remember") ?? false))
  }

  // MARK: Parts

  private static func body(_ approval: Approval) -> ByteBuffer {
    var json = JSONWriter(capacity: 1024)
    json.object { $0.members(approval) }
    return json.finish()
  }

  private static func approvalID(_ context: some RequestContext) throws(Problem) -> UUID {
    guard let id = uuid("approval_id", context) else { throw Problem(SessionServiceError.approvalNotFound) }
    return id
  }
}

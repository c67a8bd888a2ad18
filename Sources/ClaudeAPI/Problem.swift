public import HTTPTypes
public import Hummingbird
import NIOCore
public import Sessions

/// An error as the client sees it: a problem document (RFC 9457) with a stable `code`.
public struct Problem: Error, HTTPResponseError, Sendable, Equatable {
  /// A name for programs, which decides the status.
  public var code: ProblemCode
  /// A sentence for people, which names the field or thing that it's about.
  public var detail: String
  /// Seconds after which another try makes sense.
  public var retryAfter: Int?
  /// The methods that the path has, for a 405.
  public var allow: String?
  /// What was decided, for a decision that came too late.
  public var approval: Approval?
  /// The turn that the request made, although it failed.
  public var turn: Turn?
  /// What the answer would have had as header fields all the same.
  public var fields: HTTPFields = [:]
  /// How to authenticate, for a 401.
  public var challenge: String?
  /// The protocol that the path speaks, for a 426.
  public var upgrade: String?
  /// What was looked at, for a server that isn't ready.
  public var checks: [ReadinessCheck] = []
  /// The limit of a key that was reached.
  public var limit: LimitExcess?

  public init(
    _ code: ProblemCode, _ detail: String, retryAfter: Int? = nil, allow: String? = nil, challenge: String? = nil,
    upgrade: String? = nil
  ) {
    self.code = code
    self.detail = detail
    self.retryAfter = retryAfter
    self.allow = allow
    self.challenge = challenge
    self.upgrade = upgrade
  }

  public var status: HTTPResponse.Status { code.status }

  public var response: Response {
    Response(status: status, headers: headers, body: ResponseBody(byteBuffer: document))
  }

  var headers: HTTPFields {
    var headers = fields
    headers[.contentType] = "application/problem+json"
    if let retryAfter { headers[.retryAfter] = String(retryAfter) }
    if let allow { headers[.allow] = allow }
    if let turn { headers[.location] = API.path(of: turn) }
    if let challenge { headers[.wwwAuthenticate] = challenge }
    if let limit { headers.merge(limit, at: .now()) }
    if let upgrade {
      headers[.upgrade] = upgrade
      headers[.secWebSocketVersion] = "13"
    }
    return headers
  }

  var document: ByteBuffer {
    var json = JSONWriter()
    json.object { $0.members(self) }
    return json.finish()
  }

  public func response(from request: Request, context: some RequestContext) -> Response { response }
}

extension JSONWriter {
  mutating func members(_ problem: Problem) {
    field("type", "about:blank")
    field("title", problem.status.reasonPhrase)
    field("status", Int64(problem.status.code))
    field("detail", problem.detail)
    field("code", problem.code.rawValue)
    if let retryAfter = problem.retryAfter { field("retry_after", Int64(retryAfter)) }
    if !problem.checks.isEmpty { field(problem.checks) }
    if let limit = problem.limit { field("limit", object: { $0.members(limit) }) }
    if let turn = problem.turn { field("turn_id", turn.id.lowercaseString) }
    if let approval = problem.approval { field("approval", object: { $0.members(approval) }) }
  }
}

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
  /// How to authenticate, for a 401.
  public var challenge: String?
  /// What was looked at, for a server that isn't ready.
  public var checks: [ReadinessCheck] = []
  /// The limit of a key that was reached.
  public var limit: LimitExcess?

  public init(
    _ code: ProblemCode, _ detail: String, retryAfter: Int? = nil, allow: String? = nil, challenge: String? = nil
  ) {
    self.code = code
    self.detail = detail
    self.retryAfter = retryAfter
    self.allow = allow
    self.challenge = challenge
  }

  public var status: HTTPResponse.Status { code.status }

  public var response: Response {
    var headers: HTTPFields = [.contentType: "application/problem+json"]
    if let retryAfter { headers[.retryAfter] = String(retryAfter) }
    if let allow { headers[.allow] = allow }
    if let turn { headers[.location] = API.path(of: turn) }
    if let challenge { headers[.wwwAuthenticate] = challenge }
    if let limit { headers.merge(limit, at: .now()) }
    var json = JSONWriter()
    json.object { json in
      json.field("type", "about:blank")
      json.field("title", status.reasonPhrase)
      json.field("status", Int64(status.code))
      json.field("detail", detail)
      json.field("code", code.rawValue)
      if let retryAfter { json.field("retry_after", Int64(retryAfter)) }
      if !checks.isEmpty { json.field(checks) }
      if let limit { json.field("limit", object: { $0.members(limit) }) }
      if let turn { json.field("turn_id", turn.id.lowercaseString) }
      if let approval { json.field("approval", object: { $0.members(approval) }) }
    }
    return Response(status: status, headers: headers, body: ResponseBody(byteBuffer: json.finish()))
  }

  public func response(from request: Request, context: some RequestContext) -> Response { response }
}

public import HTTPTypes
public import Logging
public import NIOCore

/// A whole answer that is known without waiting for anything. It is sent with the length of its body.
public struct ImmediateAnswer: Sendable {
  public var status: HTTPResponse.Status
  public var headers: HTTPFields
  public var body: ByteBuffer

  public init(status: HTTPResponse.Status, headers: HTTPFields, body: ByteBuffer) {
    self.status = status
    self.headers = headers
    self.body = body
  }
}

/// Answers requests on the reactor's thread, without a task and without Hummingbird, which take longer than to send a
/// small file. Nil leaves a request to the responder. Is asked for each request without a body, and must not block.
///
/// - Parameters:
///   - parameters: what ``BasicFastCGIRequestContext/parametersOfServer`` would be.
///   - logger: makes the logger that the request's context would have.
public typealias ImmediateResponder =
  @Sendable (
    _ request: HTTPRequest, _ parameters: CGIParameters, _ logger: () -> Logger
  ) -> ImmediateAnswer?

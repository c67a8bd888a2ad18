public import Hummingbird
public import Logging

/// What a request context is made from: the connection's view of one request.
public struct FastCGIRequestContextSource: RequestContextSource, Sendable {
  /// Carries `hb.request.id`.
  public let logger: Logger
  /// The CGI variables of the request that are not header fields, such as `REMOTE_ADDR` or `REQUEST_SCHEME`.
  public let parameters: CGIParameters
}

/// The CGI variables (RFC 3875) and FastCGI params of one request, without its header fields.
public struct CGIParameters: Sendable {
  @usableFromInline
  let entries: [(name: String, value: String)]

  @inlinable
  public init(_ entries: [(name: String, value: String)]) {
    self.entries = entries
  }

  /// The value that the web server gave for `name`; of several, the last.
  @inlinable
  public subscript(name: String) -> String? {
    entries.last { $0.name == name }?.value
  }
}

/// A request context that holds what Hummingbird needs and the CGI variables.
public struct BasicFastCGIRequestContext: RequestContext {
  public typealias Source = FastCGIRequestContextSource

  public var coreContext: CoreRequestContextStorage
  /// What the web server says of the connection and the request.
  public let parametersOfServer: CGIParameters

  public init(source: FastCGIRequestContextSource) {
    coreContext = .init(source: source)
    parametersOfServer = source.parameters
  }
}

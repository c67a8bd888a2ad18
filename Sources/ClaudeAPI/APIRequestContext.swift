public import Hummingbird

/// A request context that knows what the web server says of the request, beside its header fields.
public protocol APIRequestContext: RequestContext {
  /// The value of a CGI variable; nil if the web server gave none.
  func serverParameter(_ name: String) -> String?
}

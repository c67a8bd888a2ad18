import Glibc
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
  /// `NAME=value` and NUL for each, as they came: few are ever looked at.
  private let entries: [UInt8]

  init(entries: [UInt8]) {
    self.entries = entries
  }

  /// Variables for requests that are made in tests.
  public init(_ variables: [(name: String, value: String)]) {
    entries = variables.flatMap { Array("\($0.name)=\($0.value)\0".utf8) }
  }

  /// The value that the web server gave for `name`, with what is no UTF-8 repaired; of several, the last.
  public subscript(name: String) -> String? {
    var name = name
    return entries.withUnsafeBytes { entries in
      name.withUTF8 { name in
        var found: UnsafeRawBufferPointer?
        var rest = entries
        while let start = rest.baseAddress, let end = memchr(start, 0, rest.count) {
          let length = UnsafeRawPointer(end) - start
          if length > name.count, rest[name.count] == UInt8(ascii: "="), let wanted = name.baseAddress,
            memcmp(start, wanted, name.count) == 0
          {
            found = UnsafeRawBufferPointer(rebasing: rest[name.count + 1..<length])
          }
          rest = UnsafeRawBufferPointer(rebasing: rest[(length + 1)...])
        }
        return found.map { String(decoding: $0, as: UTF8.self) }
      }
    }
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

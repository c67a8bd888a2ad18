import HTTPTypes
import Hummingbird

/// The routes of the API as data: what the router, the index, the problem document of a wrong method, and every
/// check that must cover all routes are made from.
struct RouteTable {
  /// Who may use a route. A path with a session is for those only who may see that session.
  enum Access: Sendable {
    /// Everybody, also without a key.
    case open
    /// Every key, and nothing of sessions is told.
    case information
    /// Every key, for its own sessions.
    case read
    /// Keys that may change things, for their own sessions.
    case change
    /// Administrators' keys, and clients on this machine that show none.
    case operation
  }

  struct Entry: Sendable {
    let method: HTTPRequest.Method
    /// The path with its parameters in braces. `{path}` at the end stands for any number of components.
    let path: String
    let summary: String
    let access: Access
  }

  private(set) var entries: [Entry] = []
  private var accesses: [String: [HTTPRequest.Method: Access]] = [:]

  /// The methods that exist for the path of a request, in the order of their routes; empty if there is no such path.
  func methods(for path: String) -> [HTTPRequest.Method] {
    let segments = path.split(separator: "/")
    var methods: [HTTPRequest.Method] = []
    for entry in entries where !methods.contains(entry.method) && Self.matches(entry.path, segments) {
      methods.append(entry.method)
      if entry.method == .get { methods.append(.head) }
    }
    return methods
  }

  /// Who may use the route with this template.
  func access(_ method: HTTPRequest.Method, _ path: String) -> Access? {
    // A HEAD that has no route of its own is made from GET.
    accesses[path]?[method] ?? (method == .head ? accesses[path]?[.get] : nil)
  }

  private static func matches(_ template: String, _ segments: [Substring]) -> Bool {
    var segments = segments
    var wanted = template.split(separator: "/")
    if wanted.last == "{path}" {
      guard segments.count >= wanted.count else { return false }
      wanted.removeLast()
      segments = Array(segments.prefix(wanted.count))
    }
    return wanted.count == segments.count && zip(wanted, segments).allSatisfy { $0.hasPrefix("{") || $0 == $1 }
  }

  /// Describes a route that the handler of another one serves, because the router can't tell them apart.
  ///
  /// - Parameter other: the template of the route that is added to the router, and decides who may use it.
  mutating func describe(_ method: HTTPRequest.Method, _ path: String, _ summary: String, as other: String) {
    guard let entry = entries.first(where: { $0.method == method && $0.path == other }) else {
      preconditionFailure("\(other) is no route yet")
    }
    entries.append(Entry(method: method, path: path, summary: summary, access: entry.access))
  }

  /// Adds a route to the table and to the router. A route whose description has no query parameters gets no request
  /// with one; the others see to it by ``QueryFields``.
  mutating func add<Context: RequestContext>(
    _ method: HTTPRequest.Method, _ path: String, _ summary: String, for access: Access, to router: Router<Context>,
    _ handler: @escaping @Sendable (Request, Context) async throws -> Response
  ) {
    entries.append(Entry(method: method, path: path, summary: summary, access: access))
    let routed = RouterPath(path.replacing("/{path}", with: "/**"))
    accesses[routed.description, default: [:]][method] = access
    router.on(routed, method: method) { request, context in
      if let query = request.uri.query, !query.isEmpty, !Operation.takesQuery(method, path) {
        _ = try QueryFields(request, known: [])
      }
      return try await handler(request, context)
    }
  }
}

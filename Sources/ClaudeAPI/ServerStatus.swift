public import HTTPTypes

/// What operators learn of a running server, and what is counted of its requests.
///
/// The methods that aren't asynchronous are called in the middle of each request and must return at once.
public protocol ServerStatus: Sendable {
  /// Whether the server can do its work, look by look.
  func readiness() async -> [ReadinessCheck]

  /// The metrics in Prometheus' text format.
  ///
  /// - Parameter byKey: whether the figures of each API key are told, or only their sums.
  func metrics(byKey: Bool) async -> String

  /// - Parameters:
  ///   - route: the template of the path; nil if there is no such path.
  ///   - duration: until the answer's head was ready; what is streamed after it doesn't count.
  func answered(_ method: HTTPRequest.Method, _ route: String?, status: Int, after duration: Duration)

  /// A problem document was sent.
  func reported(problem code: String)
}

/// One look at what the server needs for its work.
public struct ReadinessCheck: Sendable, Hashable {
  /// A word such as `store`.
  public var name: String
  /// What is wrong, in a sentence that anybody may read; nil if nothing is.
  public var defect: String?

  public init(_ name: String, defect: String? = nil) {
    self.name = name
    self.defect = defect
  }
}

import HTTPTypes

/// Tells from which page a browser sends a request. A page of any site can make a browser send simple ones here, such
/// as a POST without a body, although it can't read the answer.
enum PageOrigin {
  /// Whether a page of another site sent the request. Programs that are no browsers say nothing of pages.
  static func isForeign(_ head: HTTPRequest) -> Bool {
    // What the browser's user does without a page is `none`.
    if head.headerFields[values: .secFetchSite].contains(where: { $0 != "same-origin" && $0 != "none" }) { return true }
    return head.headerFields[values: .origin].contains { !isOwn($0, head) }
  }

  /// Whether an `Origin` is that of this server. By name and port, not by scheme: a proxy before this server may end
  /// TLS.
  static func isOwn(_ origin: String, _ head: HTTPRequest) -> Bool {
    for scheme in ["http://", "https://"] where origin.hasPrefix(scheme) {
      return origin.dropFirst(scheme.count).lowercased() == head.authority?.lowercased()
    }
    return false
  }
}

extension HTTPField.Name {
  static let secFetchSite = Self("Sec-Fetch-Site")!
}

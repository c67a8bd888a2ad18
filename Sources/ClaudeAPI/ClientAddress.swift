import HTTPTypes
import HummingbirdFastCGI

/// Tells whether a client is on this machine.
enum ClientAddress {
  /// What a proxy in front of the web server adds. Behind one, all clients have its address.
  private static let proxyFields = [
    "Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Forwarded-Port", "X-Forwarded-Server",
    "X-Real-IP", "X-Client-IP", "X-Cluster-Client-IP", "True-Client-IP", "CF-Connecting-IP", "Fly-Client-IP",
    "Fastly-Client-IP", "Via",
  ].compactMap { HTTPField.Name($0) }

  /// Whether it is certain that the client is on this machine. It is not if the request came through another proxy, or
  /// not to an address of loopback, or if the web server takes the client's address from a header field that anybody
  /// can send.
  static func isLocal(_ headers: HTTPFields, _ parameters: CGIParameters) -> Bool {
    guard isLoopback(parameters["REMOTE_ADDR"]) else { return false }
    for name in ["SERVER_ADDR", "PEER_ADDR"] {
      if let address = parameters[name], !isLoopback(address) { return false }
    }
    return !proxyFields.contains { headers.contains($0) }
  }

  /// Whether a host, with its port or without, is the machine itself. Other names may have been pointed at it by
  /// somebody else. A request without a host is no browser's.
  static func isNameOfLoopback(_ authority: String?) -> Bool {
    guard let authority, !authority.isEmpty else { return true }
    if authority.hasPrefix("[") { return authority == "[::1]" || authority.hasPrefix("[::1]:") }
    let parts = authority.utf8.split(separator: UInt8(ascii: ":"), omittingEmptySubsequences: false)
    guard parts.count <= 2 else { return false }
    let numbers = parts[0].split(separator: UInt8(ascii: "."), omittingEmptySubsequences: false)
    if numbers.count == 4, numbers[0].elementsEqual("127".utf8) {
      return numbers.allSatisfy { UInt8(Substring($0)) != nil }
    }
    let name = Substring(parts[0]).lowercased()
    return name == "localhost" || name.hasSuffix(".localhost")
  }

  private static func isLoopback(_ address: String?) -> Bool {
    guard let address else { return false }
    return address.hasPrefix("127.") || address == "::1" || address.hasPrefix("::ffff:127.")
  }
}

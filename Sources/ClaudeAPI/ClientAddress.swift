import Glibc
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
    let end = authority.utf8.firstIndex(of: UInt8(ascii: ":")) ?? authority.endIndex
    guard !authority.utf8[end...].dropFirst().contains(UInt8(ascii: ":")) else { return false }
    var address = in_addr()
    let host = String(authority[..<end])
    if inet_pton(AF_INET, host, &address) == 1 { return UInt32(bigEndian: address.s_addr) >> 24 == 127 }
    let name = host.lowercased()
    return name == "localhost" || name.hasSuffix(".localhost")
  }

  private static func isLoopback(_ address: String?) -> Bool {
    guard let address else { return false }
    return address.hasPrefix("127.") || address == "::1" || address.hasPrefix("::ffff:127.")
  }

  /// What clients are counted by: an address of version 4, or the half of one of version 6 that names the network, in
  /// which each client has as many addresses as it likes. Nil for this machine, and for what is no address.
  static func network(_ text: String?) -> [UInt8]? {
    guard let text else { return nil }
    var four = in_addr()
    if inet_pton(AF_INET, text, &four) == 1 { return ipv4(withUnsafeBytes(of: four) { Array($0) }) }
    var six = in6_addr()
    guard inet_pton(AF_INET6, text, &six) == 1 else { return nil }
    let bytes = withUnsafeBytes(of: six) { Array($0) }
    if bytes.prefix(12) == [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff] { return ipv4(Array(bytes.suffix(4))) }
    if bytes == [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1] { return nil }
    return Array(bytes.prefix(8))
  }

  private static func ipv4(_ bytes: [UInt8]) -> [UInt8]? { bytes.first == 127 ? nil : bytes }
}

/// The address of a git repository, taken apart strictly: what could mean one thing here and another thing to git is
/// none.
///
/// `https`, `http`, `ssh` and `file` are known, all with `://`. There are no passwords, queries, escapes or components
/// `.` and `..`.
public struct GitURL: Sendable, Hashable {
  public enum Scheme: String, Sendable {
    case https
    case http
    case ssh
    case file

    var port: Int? {
      switch self {
      case .https: 443
      case .http: 80
      case .ssh: 22
      case .file: nil
      }
    }
  }

  public let scheme: Scheme
  /// For ssh only.
  let user: String?
  /// In lower case; empty for a file.
  let host: String
  let port: Int?
  let components: [String]

  /// Takes an address with any number of path components.
  public init?(_ text: String) {
    let bytes = text.utf8
    guard bytes.count <= 2048, bytes.allSatisfy({ Self.isAllowed($0) }),
      let mark = text.firstRange(of: "://"), let scheme = Scheme(rawValue: text[..<mark.lowerBound].lowercased())
    else { return nil }
    self.scheme = scheme
    let rest = text[mark.upperBound...]
    let authority = rest.prefix { $0 != "/" }
    var path = rest.dropFirst(authority.count).split(separator: "/", omittingEmptySubsequences: false).dropFirst()
    // One slash at the end is let go.
    if path.last?.isEmpty == true { path.removeLast() }
    guard path.allSatisfy({ !$0.isEmpty && $0 != "." && $0 != ".." && !$0.contains(where: { "@:[]".contains($0) }) })
    else { return nil }
    components = path.map(String.init)

    let parts = authority.split(separator: "@", omittingEmptySubsequences: false)
    guard parts.count <= 2, let place = parts.last else { return nil }
    if parts.count == 2 {
      guard scheme == .ssh, !parts[0].isEmpty, Self.isWord(parts[0]) else { return nil }
      user = String(parts[0])
    } else {
      user = nil
    }
    let name: Substring
    let number: Substring?
    if place.first == "[" {
      guard let end = place.firstIndex(of: "]") else { return nil }
      name = place[...end]
      let tail = place[place.index(after: end)...]
      guard tail.isEmpty || tail.first == ":",
        name.dropFirst().dropLast().allSatisfy({ $0.isHexDigit || $0 == ":" || $0 == "." }), name.count > 2
      else { return nil }
      number = tail.isEmpty ? nil : tail.dropFirst()
    } else {
      let pieces = place.split(separator: ":", omittingEmptySubsequences: false)
      guard pieces.count <= 2, let first = pieces.first, first.isEmpty || Self.isWord(first), first.last != "." else {
        return nil
      }
      name = first
      number = pieces.count == 2 ? pieces[1] : nil
    }
    guard name.isEmpty == (scheme == .file), scheme != .file || number == nil else { return nil }
    if let number {
      guard let value = Int(number), (1...65_535).contains(value), String(value) == number else { return nil }
      port = value
    } else {
      port = scheme.port
    }
    host = name.lowercased()
  }

  /// Letters, digits and marks that mean nothing to a shell or to git where they can stand here.
  private static func isAllowed(_ byte: UInt8) -> Bool {
    switch byte {
    case UInt8(ascii: "a")...UInt8(ascii: "z"), UInt8(ascii: "A")...UInt8(ascii: "Z"),
      UInt8(ascii: "0")...UInt8(ascii: "9"):
      true
    default: Array("-._~+=,:/@[]".utf8).contains(byte)
    }
  }

  private static func isWord(_ text: Substring) -> Bool {
    text.first != "-" && text.allSatisfy { $0.isLetter || $0.isNumber || "-._".contains($0) }
  }

  /// The address as git is given it.
  public var text: String {
    let shownPort = port == scheme.port ? "" : port.map { ":\($0)" } ?? ""
    return "\(scheme.rawValue)://\(user.map { $0 + "@" } ?? "")\(host)\(shownPort)/\(components.joined(separator: "/"))"
  }

  /// The path on this machine, of a file.
  public var localPath: String? { scheme == .file ? "/" + components.joined(separator: "/") : nil }

  /// Whether it is the other address or lies below it. The scheme, user, host and port must be the same.
  public func isWithin(_ other: GitURL) -> Bool {
    scheme == other.scheme && user == other.user && host == other.host && port == other.port
      && components.starts(with: other.components)
  }
}

/// A repository that a workspace is to begin with.
public struct GitSource: Sendable, Equatable {
  public let url: GitURL
  /// A branch or tag; nil for the repository's own choice.
  public let reference: String?
  /// How many commits of the history; nil for all.
  public let depth: Int?

  public init(url: GitURL, reference: String? = nil, depth: Int? = nil) {
    self.url = url
    self.reference = reference
    self.depth = depth
  }

  /// Whether a text can be the name of a branch or tag.
  public static func isReference(_ text: String) -> Bool {
    (1...200).contains(text.utf8.count) && !text.hasPrefix("-") && !text.hasSuffix("/") && !text.hasSuffix(".")
      && text.split(separator: "/", omittingEmptySubsequences: false).allSatisfy {
        !$0.isEmpty && !$0.hasPrefix(".") && !$0.hasSuffix(".lock")
      }
      && !text.contains("..") && text.utf8.allSatisfy { Self.isReferenceByte($0) }
  }

  private static func isReferenceByte(_ byte: UInt8) -> Bool {
    switch byte {
    case UInt8(ascii: "a")...UInt8(ascii: "z"), UInt8(ascii: "A")...UInt8(ascii: "Z"),
      UInt8(ascii: "0")...UInt8(ascii: "9"):
      true
    default: Array("-._/+#@".utf8).contains(byte)
    }
  }
}

/// Why a repository was not brought in. Nothing of it is kept.
public enum GitError: Error, Sendable, Equatable {
  /// No place is allowed, or not this one.
  case notAllowed
  /// git gave up; what it said last.
  case failed(String)
  case timedOut(Duration)
  /// git can't be started.
  case unavailable(String)
}

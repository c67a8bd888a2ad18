import CLinux
import Crypto
import Glibc
import Synchronization

#if canImport(FoundationEssentials)
  public import FoundationEssentials
#else
  public import Foundation
#endif

/// A file or folder that somebody without a key may read until a time.
public struct Share: Sendable, Codable, Equatable {
  public let id: UUID
  public let session: UUID
  /// The bytes of the path.
  let target: [UInt8]
  /// Seconds since 1970.
  public let created: Int64
  public let expires: Int64

  public var path: RelativePath {
    get throws { try RelativePath(target) }
  }
}

public enum ShareError: Error, Sendable, Equatable {
  /// There is no such share, or not any more, or its link is not one that was given out.
  case notFound
  /// The session has as many shares as it may.
  case tooMany(limit: Int)
}

/// Shares lie beside the workspaces as files, one for each, so that taking one back is removing it. Their links are
/// signed: nothing is looked up for a link that was not given out here.
extension Workspaces {
  static let shares = "shares"
  static let shareKey = "share-key"
  /// Shares of a session.
  static let maximumShares = 200

  /// - Throws: ``ShareError`` or ``FileError``, also when there is no such file or folder.
  public func share(_ path: RelativePath, of session: UUID, for lifetime: Duration) async throws -> Share {
    try await run { [self] in
      let workspace = try workspace(session)
      switch try Beneath(directory: workspace.raw).reference(path).status().kind {
      case .file, .directory: break
      case .symbolicLink: throw FileError.symbolicLink
      case .special: throw FileError.special
      }
      let directory = try shareDirectory(session, isMade: true)
      let all = try shares(in: directory.raw)
      guard all.count < Self.maximumShares else { throw ShareError.tooMany(limit: Self.maximumShares) }
      let now = Int64(time(nil))
      let share = Share(
        id: UUID(), session: session, target: path.bytes, created: now, expires: now + lifetime.components.seconds)
      try writeWhole(try JSONEncoder().encode(share), Self.shareName(share.id), in: directory.raw)
      return share
    }
  }

  /// The shares of a session that are still good, the oldest first.
  public func shares(of session: UUID) async throws -> [Share] {
    try await run { [self] in
      do {
        let directory = try shareDirectory(session, isMade: false)
        return try shares(in: directory.raw).sorted { ($0.created, $0.id.uuidString) < ($1.created, $1.id.uuidString) }
      } catch ShareError.notFound {
        return []
      }
    }
  }

  /// Takes a share back: its link leads nowhere from now on.
  public func deleteShare(_ id: UUID, of session: UUID) async throws {
    try await run { [self] in
      let directory = try shareDirectory(session, isMade: false)
      guard unlinkat(directory.raw, Self.shareName(id), 0) == 0 else {
        throw errno == ENOENT ? ShareError.notFound : FileError("unlink")
      }
    }
  }

  // MARK: Links

  /// The text of a share's link: what it is, signed, in 96 characters that need no escapes.
  public func token(of share: Share) async throws -> String {
    let content = Self.content(share.session, share.id, share.expires)
    let code = HMAC<SHA256>.authenticationCode(for: content, using: try await signingKey())
    return (Data(content) + Data(code)).base64EncodedString().replacing("+", with: "-").replacing("/", with: "_")
  }

  /// The share that a link is of.
  ///
  /// - Throws: ``ShareError``
  public func share(forToken token: String) async throws -> Share {
    guard token.utf8.count == 96,
      let bytes = Data(base64Encoded: token.replacing("-", with: "+").replacing("_", with: "/")), bytes.count == 72,
      HMAC<SHA256>.isValidAuthenticationCode(
        bytes.suffix(32), authenticating: bytes.prefix(40), using: try await signingKey())
    else { throw ShareError.notFound }
    let content = Array(bytes)
    return try await run { [self] in
      let session = Self.uuid(content[0..<16])
      let directory = try shareDirectory(session, isMade: false)
      let share = try readShare(Self.shareName(Self.uuid(content[16..<32])), in: directory.raw)
      guard share.session == session, share.expires > Int64(time(nil)) else { throw ShareError.notFound }
      return share
    }
  }

  private static func content(_ session: UUID, _ id: UUID, _ expires: Int64) -> [UInt8] {
    withUnsafeBytes(of: session.uuid) { Array($0) } + withUnsafeBytes(of: id.uuid) { Array($0) }
      + withUnsafeBytes(of: expires.bigEndian) { Array($0) }
  }

  private static func uuid(_ bytes: ArraySlice<UInt8>) -> UUID {
    var value = UUID().uuid
    withUnsafeMutableBytes(of: &value) { $0.copyBytes(from: bytes) }
    return UUID(uuid: value)
  }

  /// The key that links are signed with, made when it is wanted for the first time. Only this server's user reads it.
  private func signingKey() async throws -> SymmetricKey {
    if let key = knownSigningKey.withLock({ $0 }) { return key }
    let bytes = try await run { [self] in
      if let bytes = try readKey() { return bytes }
      let made = SymmetricKey(size: .bits256).withUnsafeBytes { Data($0) }
      let staged = try StagedFile(in: stagingDescriptor)
      try staged.write(made)
      // Somebody else may have been faster.
      _ = clinux_rename(stagingDescriptor, staged.name, stagingDescriptor, Self.shareKey, 0)
      guard let bytes = try readKey() else { throw ShareError.notFound }
      return bytes
    }
    let key = SymmetricKey(data: bytes)
    knownSigningKey.withLock { $0 = key }
    return key
  }

  func readKey() throws -> [UInt8]? {
    let opened = openat(stagingDescriptor, Self.shareKey, O_RDONLY | O_NOFOLLOW | O_CLOEXEC)
    if opened < 0, errno == ENOENT { return nil }
    let file = try Descriptor(opened, "open the key")
    let bytes = try MultipartScanner(descriptor: file.raw, boundary: []).read(at: 0, count: 33)
    guard bytes.count == 32 else { throw FileError("read the key", EINVAL) }
    return bytes
  }

  // MARK: Storage

  private static func shareName(_ id: UUID) -> String { id.uuidString.lowercased() + ".json" }

  private func shareDirectory(_ session: UUID, isMade: Bool) throws -> Descriptor {
    let beneath = Beneath(directory: stagingDescriptor)
    let path = try RelativePath("\(Self.shares)/\(Self.name(session))".utf8)
    if isMade { return try beneath.makingDirectory(path) }
    do throws(FileError) {
      return try beneath.directory(path)
    } catch .notFound {
      throw ShareError.notFound
    }
  }

  private func readShare(_ name: String, in directory: CInt) throws -> Share {
    let opened = openat(directory, name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC)
    guard opened >= 0 || errno != ENOENT else { throw ShareError.notFound }
    let file = try Descriptor(opened, "open a share")
    let bytes = try MultipartScanner(descriptor: file.raw, boundary: []).read(at: 0, count: 64 << 10)
    return try JSONDecoder().decode(Share.self, from: Data(bytes))
  }

  /// The shares that are still good; the others are removed.
  private func shares(in directory: CInt) throws -> [Share] {
    var found: [Share] = []
    for entry in try readNames(of: directory, after: nil, limit: 2 * Self.maximumShares).names {
      let name = String(decoding: entry.name, as: UTF8.self)
      guard name.hasSuffix(".json") else { continue }
      let share = try readShare(name, in: directory)
      if share.expires > Int64(time(nil)) { found.append(share) } else { unlinkat(directory, name, 0) }
    }
    return found
  }

  /// Writes a small file so that it is there whole or not at all.
  func writeWhole(_ content: Data, _ name: String, in directory: CInt) throws {
    let staged = try StagedFile(in: directory)
    try staged.write(content)
    guard clinux_rename(directory, staged.name, directory, name, 1) == 0 else { throw FileError("rename") }
  }
}

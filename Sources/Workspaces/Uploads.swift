import CLinux
import Glibc

#if canImport(FoundationEssentials)
  public import FoundationEssentials
#else
  public import Foundation
#endif

/// An upload that goes on over several requests. Its bytes lie beside the workspaces until it is complete.
public struct Upload: Sendable, Codable, Equatable {
  public let id: UUID
  /// Where the file goes, as the bytes of a path.
  let target: [UInt8]
  /// Bytes of the whole file.
  public let length: Int64
  /// What the client said of the file, as it was said.
  public let metadata: String?
  /// Seconds since 1970.
  public var expires: Int64
}

/// Why a part of an upload was not taken.
public enum UploadError: Error, Sendable, Equatable {
  case notFound
  case expired
  /// The part doesn't begin where the one before has ended.
  case wrongOffset(current: Int64)
  /// The part goes beyond the end of the file.
  case tooLong
  /// Another part of the same upload is being taken.
  case busy
  /// The session has as many unfinished uploads as it may.
  case tooMany(limit: Int)
}

enum Uploads {
  /// Their directory inside the staging directory.
  static let directory = "uploads"
  /// Unfinished uploads of a session.
  static let maximum = 20

  static func fileName(_ id: UUID) -> String { id.uuidString.lowercased() }
  static func infoName(_ id: UUID) -> String { fileName(id) + ".json" }
}

extension Workspaces {
  /// Begins an upload. One without bytes is complete at once.
  ///
  /// - Returns: with the upload also the file, if it has appeared.
  /// - Throws: ``UploadError`` or ``FileError``
  public func createUpload(
    length: Int64, to path: RelativePath, metadata: String?, lifetime: Duration, of session: UUID
  ) async throws -> (upload: Upload, file: FileChange?) {
    guard !path.isRoot else { throw FileError.isADirectory }
    return try await Self.runLong { [self] in
      let workspace = try workspace(session)
      guard length <= limits.uploadBytes else { throw FileError.uploadTooLarge(limit: limits.uploadBytes) }
      if try existing(path, workspace.raw)?.kind == .directory { throw FileError.isADirectory }
      let directory = try uploadDirectory(session, isMade: true)
      // What others have announced is as good as there.
      let announced = try removeExpired(in: directory.raw)
      try checkRoom(bytes: announced + length, entries: 1, of: session, workspace.raw)
      let upload = Upload(
        id: UUID(), target: path.bytes, length: length, metadata: metadata, expires: Self.expiry(lifetime))
      let name = Uploads.fileName(upload.id)
      do {
        let file = try Descriptor(
          openat(directory.raw, name, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0o600), "create")
        try save(upload, in: directory.raw)
        guard length == 0 else { return (upload, nil) }
        return (upload, try complete(upload, file.raw, directory.raw, session, workspace.raw))
      } catch {
        remove(upload.id, in: directory.raw)
        throw error
      }
    }
  }

  /// An upload and how many bytes of it are here.
  ///
  /// - Throws: ``UploadError`` or ``FileError``
  public func upload(_ id: UUID, of session: UUID) async throws -> (upload: Upload, offset: Int64) {
    try await run { [self] in
      let directory = try uploadDirectory(session, isMade: false)
      let upload = try load(id, in: directory.raw)
      return (upload, try FileStatus(of: Array(Uploads.fileName(id).utf8)[...], in: directory.raw).size)
    }
  }

  /// Adds a part at the end. With the last one the file appears in the workspace.
  ///
  /// - Returns: with the upload and its bytes also the file, if it has appeared.
  /// - Throws: ``UploadError`` or ``FileError``; the upload is as it was before then.
  public func append(
    _ body: BodyFile, at offset: Int64, digests: [ExpectedDigest], to id: UUID, of session: UUID, lifetime: Duration
  ) async throws -> (upload: Upload, offset: Int64, file: FileChange?) {
    try await Self.runLong { [self] in
      let directory = try uploadDirectory(session, isMade: false)
      var upload = try load(id, in: directory.raw)
      let file = try Descriptor(
        openat(directory.raw, Uploads.fileName(id), O_RDWR | O_NOFOLLOW | O_CLOEXEC), "open an upload")
      guard flock(file.raw, LOCK_EX | LOCK_NB) == 0 else { throw UploadError.busy }
      let current = try file.status().size
      guard current == offset else { throw UploadError.wrongOffset(current: current) }
      let source = try body.open()
      let size = body.path == nil ? 0 : try source.status().size
      guard size <= upload.length - current else { throw UploadError.tooLong }
      try Digests.verify(digests, source.raw)
      guard lseek(file.raw, off_t(current), SEEK_SET) >= 0 else { throw FileError("lseek") }
      do {
        try copyRange(source.raw, 0..<size, to: file.raw)
        upload.expires = Self.expiry(lifetime)
        guard current + size == upload.length else {
          try save(upload, in: directory.raw)
          return (upload, current + size, nil)
        }
        let workspace = try workspace(session)
        return (upload, upload.length, try complete(upload, file.raw, directory.raw, session, workspace.raw))
      } catch {
        guard ftruncate(file.raw, off_t(current)) == 0 else { throw FileError("truncate") }
        throw error
      }
    }
  }

  /// Gives an upload up.
  ///
  /// - Throws: ``UploadError`` or ``FileError``
  public func deleteUpload(_ id: UUID, of session: UUID) async throws {
    try await run { [self] in
      let directory = try uploadDirectory(session, isMade: false)
      _ = try load(id, in: directory.raw)
      remove(id, in: directory.raw)
    }
  }

  /// Bytes that the unfinished uploads of a session take.
  func usageOfUploads(_ session: UUID) throws -> Int64 {
    do {
      // It would be closed at once without a name of its own.
      let directory = try uploadDirectory(session, isMade: false)
      return try limits.count(directory.raw).bytes
    } catch UploadError.notFound {
      return 0
    }
  }

  /// Removes all uploads and shares of a session.
  func removeAttachments(_ session: UUID) throws {
    for kind in [Uploads.directory, Self.shares] {
      let all = openat(stagingDescriptor, kind, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC)
      if all < 0, errno == ENOENT { continue }
      let directory = try Descriptor(all, "open \(kind)")
      guard clinux_remove_tree(directory.raw, Self.name(session), .max) == 0 else {
        throw WorkspaceError(operation: "remove \(kind)", errno: errno)
      }
    }
  }

  // MARK: Storage

  private static func expiry(_ lifetime: Duration) -> Int64 { Int64(time(nil)) + lifetime.components.seconds }

  private func uploadDirectory(_ session: UUID, isMade: Bool) throws -> Descriptor {
    let beneath = Beneath(directory: stagingDescriptor)
    let path = try RelativePath("\(Uploads.directory)/\(Self.name(session))".utf8)
    if isMade { return try beneath.makingDirectory(path) }
    do throws(FileError) {
      return try beneath.directory(path)
    } catch .notFound {
      throw UploadError.notFound
    }
  }

  /// Moves a whole upload to its place. If that fails, the upload is still there.
  private func complete(
    _ upload: Upload, _ file: CInt, _ directory: CInt, _ session: UUID, _ workspace: CInt
  ) throws -> FileChange {
    let path = try RelativePath(upload.target)
    try checkRoom(bytes: upload.length, entries: 1, of: session, workspace)
    let staged = try StagedFile(in: stagingDescriptor)
    try staged.take(file, size: upload.length, isEmpty: false)
    let (isNew, status) = try install(staged, at: path, of: session, workspace)
    remove(upload.id, in: directory)
    return FileChange(isNew ? .created : .modified, path, status)
  }

  /// Removes the files of an upload; its description last, without which the rest would not be found again.
  private func remove(_ id: UUID, in directory: CInt) {
    unlinkat(directory, Uploads.fileName(id), 0)
    unlinkat(directory, Uploads.infoName(id), 0)
  }

  private func save(_ upload: Upload, in directory: CInt) throws {
    try writeWhole(try JSONEncoder().encode(upload), Uploads.infoName(upload.id), in: directory)
  }

  private func load(_ id: UUID, in directory: CInt) throws -> Upload {
    let opened = openat(directory, Uploads.infoName(id), O_RDONLY | O_NOFOLLOW | O_CLOEXEC)
    guard opened >= 0 || errno != ENOENT else { throw UploadError.notFound }
    let file = try Descriptor(opened, "open an upload")
    let bytes = try MultipartScanner(descriptor: file.raw, boundary: []).read(at: 0, count: 64 << 10)
    let upload = try JSONDecoder().decode(Upload.self, from: Data(bytes))
    guard upload.expires > Int64(time(nil)) else { throw UploadError.expired }
    return upload
  }

  /// Makes room for another upload. Returns the bytes that the unfinished ones will have.
  private func removeExpired(in directory: CInt) throws -> Int64 {
    var count = 0
    var bytes: Int64 = 0
    for entry in try readNames(of: directory, after: nil, limit: 4 * Uploads.maximum).names {
      let name = String(decoding: entry.name, as: UTF8.self)
      guard name.hasSuffix(".json"), let id = UUID(uuidString: String(name.dropLast(5))) else { continue }
      do {
        bytes += try load(id, in: directory).length
        count += 1
      } catch UploadError.expired {
        remove(id, in: directory)
      }
    }
    guard count < Uploads.maximum else { throw UploadError.tooMany(limit: Uploads.maximum) }
    return bytes
  }
}

import CLinux
import Glibc

#if canImport(FoundationEssentials)
  public import FoundationEssentials
#else
  public import Foundation
#endif

/// A part of a body of the type multipart/form-data: where it lies in the body's file.
public struct MultipartPart: Sendable, Equatable {
  public let name: [UInt8]
  /// The name of the file as the client gave it; nil for a plain field.
  public let fileName: [UInt8]?
  public let range: Range<Int64>
}

/// A body that is not multipart/form-data as it should be.
public enum MultipartError: Error, Sendable, Equatable {
  case malformed
  case tooManyParts
}

extension Workspaces {
  /// Finds the parts of a body. The file is read once from the front, with bounded memory.
  ///
  /// - Throws: ``MultipartError`` or ``FileError``
  public func parts(of body: BodyFile, boundary: [UInt8], maximum: Int) async throws -> [MultipartPart] {
    try await Self.runLong {
      let source = try body.open()
      return try MultipartScanner(descriptor: source.raw, boundary: boundary).parts(maximum: maximum)
    }
  }

  /// How many bytes a body has.
  public static func size(of body: BodyFile) async throws -> Int64 {
    guard body.path != nil else { return 0 }
    return try await runLong { try body.open().status().size }
  }

  /// The bytes of a plain field, or nil if there are more than `limit`.
  public func content(of part: MultipartPart, in body: BodyFile, limit: Int) async throws -> [UInt8]? {
    guard part.range.count <= limit else { return nil }
    return try await Self.runLong {
      let source = try body.open()
      return try MultipartScanner(descriptor: source.raw, boundary: []).read(
        at: part.range.lowerBound, count: part.range.count)
    }
  }

  /// The bytes of a body, or nil if there are more than `limit`.
  ///
  /// - Throws: ``FileError``
  public static func bytes(of body: BodyFile, limit: Int) async throws -> [UInt8]? {
    try await runLong {
      let source = try body.open()
      let bytes = try MultipartScanner(descriptor: source.raw, boundary: []).read(at: 0, count: limit + 1)
      return bytes.count > limit ? nil : bytes
    }
  }

  /// Puts parts of a body in the places of files, after all of them were found to be good.
  ///
  /// - Throws: ``FileError``
  public func put(
    _ files: [(path: RelativePath, range: Range<Int64>)], of body: BodyFile, in session: UUID
  ) async throws -> [(isNew: Bool, status: FileStatus)] {
    try await Self.runLong { [self] in
      let workspace = try workspace(session)
      let source = try body.open()
      var total: Int64 = 0
      for file in files {
        guard file.path.parent != nil else { throw FileError.isADirectory }
        guard file.range.count <= limits.uploadBytes else { throw FileError.uploadTooLarge(limit: limits.uploadBytes) }
        total += Int64(file.range.count)
        // Looked at before the work; what is in the way may still come in between.
        if try existing(file.path, workspace.raw)?.kind == .directory { throw FileError.isADirectory }
      }
      try checkRoom(bytes: total, entries: Int64(files.count), of: session, workspace.raw)
      let staged = try StagedFiles(in: stagingDescriptor)
      for file in files { try staged.add(source.raw, file.range) }
      var results: [(isNew: Bool, status: FileStatus)] = []
      for (file, name) in zip(files, staged.names) {
        results.append(
          try install(StagedFile(existing: name, in: stagingDescriptor), at: file.path, of: session, workspace.raw))
      }
      return results
    }
  }
}

/// Several files in the making.
private final class StagedFiles {
  private let directory: CInt
  private(set) var names: [String] = []

  init(in directory: CInt) throws(FileError) { self.directory = directory }

  deinit { for name in names { unlinkat(directory, name, 0) } }

  func add(_ source: CInt, _ range: Range<Int64>) throws(FileError) {
    let name = StagedFile.newName()
    names.append(name)
    let file = try Descriptor(
      openat(directory, name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0o600), "create")
    try copyRange(source, range, to: file.raw)
  }
}

/// Finds the parts of a body in a file.
struct MultipartScanner {
  private static let window = 256 << 10
  /// Bytes of the header fields of a part.
  private static let maximumHeader = 16 << 10

  let descriptor: CInt
  let boundary: [UInt8]

  func parts(maximum: Int) throws -> [MultipartPart] {
    let dashes = Array("--".utf8) + boundary
    let delimiter = Array("\r\n".utf8) + dashes
    var position: Int64
    if try read(at: 0, count: dashes.count) == dashes {
      position = Int64(dashes.count)
    } else {
      guard let first = try find(delimiter, from: 0) else { throw MultipartError.malformed }
      position = first + Int64(delimiter.count)
    }
    var parts: [MultipartPart] = []
    while true {
      let head = try read(at: position, count: Self.maximumHeader)
      if head.starts(with: Array("--".utf8)) { return parts }
      let padding = head.prefix { $0 == 0x20 || $0 == 0x09 }.count
      guard head.dropFirst(padding).starts(with: [13, 10]),
        let end = head.firstRange(of: [13, 10, 13, 10])
      else { throw MultipartError.malformed }
      guard parts.count < maximum else { throw MultipartError.tooManyParts }
      let start = position + Int64(end.upperBound)
      guard let next = try find(delimiter, from: start) else { throw MultipartError.malformed }
      let (name, fileName) = try Self.disposition(head[(padding + 2)..<max(end.lowerBound, padding + 2)])
      parts.append(MultipartPart(name: name, fileName: fileName, range: start..<next))
      position = next + Int64(delimiter.count)
    }
  }

  func read(at offset: Int64, count: Int) throws -> [UInt8] {
    var status = stat()
    guard fstat(descriptor, &status) == 0 else { throw FileError("fstat") }
    let count = min(count, max(Int(status.st_size) - Int(offset), 0))
    var bytes = [UInt8](repeating: 0, count: count)
    var filled = 0
    while filled < count {
      let result = bytes.withUnsafeMutableBytes {
        pread(descriptor, $0.baseAddress?.advanced(by: filled), count - filled, off_t(offset) + off_t(filled))
      }
      if result < 0, errno == EINTR { continue }
      guard result >= 0 else { throw FileError("read the body") }
      if result == 0 { break }
      filled += result
    }
    bytes.removeLast(count - filled)
    return bytes
  }

  private func find(_ needle: [UInt8], from start: Int64) throws -> Int64? {
    var offset = start
    while true {
      let bytes = try read(at: offset, count: Self.window)
      let found = bytes.withUnsafeBytes { bytes in
        needle.withUnsafeBytes { clinux_find_bytes(bytes.baseAddress, bytes.count, $0.baseAddress, $0.count) }
      }
      if found >= 0 { return offset + Int64(found) }
      guard bytes.count == Self.window else { return nil }
      offset += Int64(bytes.count - needle.count + 1)
    }
  }

  private static func disposition(_ header: ArraySlice<UInt8>) throws -> (name: [UInt8], fileName: [UInt8]?) {
    for line in header.split(whereSeparator: { $0 == 13 || $0 == 10 }) {
      guard let colon = line.firstIndex(of: 0x3a),
        String(decoding: line[..<colon], as: UTF8.self).lowercased() == "content-disposition"
      else { continue }
      var name: [UInt8]?
      var fileName: [UInt8]?
      var rest = line[(colon + 1)...]
      guard let type = rest.firstIndex(of: 0x3b) else { break }
      rest = rest[type...]
      while rest.popFirst() == 0x3b {
        rest = rest.drop { $0 == 0x20 || $0 == 0x09 }
        guard let equals = rest.firstIndex(of: 0x3d) else { break }
        let key = String(decoding: rest[..<equals], as: UTF8.self).lowercased()
        rest = rest[(equals + 1)...]
        let value = Self.value(&rest)
        if key == "name" { name = value }
        if key == "filename" { fileName = value }
        rest = rest.drop { $0 != 0x3b }
      }
      if let name { return (name, fileName) }
    }
    throw MultipartError.malformed
  }

  /// A word or a text in quotes. Browsers write a quote in a name as %22 and line breaks alike; curl puts a backslash
  /// before a quote or a backslash.
  private static func value(_ rest: inout ArraySlice<UInt8>) -> [UInt8] {
    guard rest.first == 0x22 else {
      let word = rest.prefix { $0 != 0x3b && $0 != 0x20 }
      rest = rest[word.endIndex...]
      return Array(word)
    }
    rest.removeFirst()
    var value: [UInt8] = []
    while let byte = rest.popFirst(), byte != 0x22 {
      if byte == 0x5c, let next = rest.first, next == 0x22 || next == 0x5c {
        value.append(next)
        rest.removeFirst()
      } else if byte == 0x25,
        let escaped = [("22", 0x22), ("0A", 0x0a), ("0D", 0x0d)]
          .first(where: { rest.starts(with: $0.0.utf8) })
      {
        value.append(UInt8(escaped.1))
        rest.removeFirst(2)
      } else {
        value.append(byte)
      }
    }
    return value
  }
}

import ArgumentParser
import Foundation
import Glibc
import JSONSupport
import Synchronization

/// What requests to the model took.
struct ModelTokens: Sendable, Equatable {
  var requests = 0
  var input = 0
  var output = 0
  var cacheRead = 0
  var cacheCreation = 0
  /// Of those, into caches that last an hour.
  var cacheCreationHour = 0
  var webSearches = 0

  var columns: [Int] { [requests, input, output, cacheRead, cacheCreation] }
  /// All tokens.
  var sum: Int { input + output + cacheRead + cacheCreation }

  static func += (sum: inout Self, other: Self) {
    sum.requests += other.requests
    sum.input += other.input
    sum.output += other.output
    sum.cacheRead += other.cacheRead
    sum.cacheCreation += other.cacheCreation
    sum.cacheCreationHour += other.cacheCreationHour
    sum.webSearches += other.webSearches
  }
}

/// A line of the log that nginx writes of the requests to the model.
struct ModelRequest: Sendable {
  var session: String
  var key: String
  var model: String
  var tokens: ModelTokens

  subscript(_ group: ModelUsage.Group) -> String {
    switch group {
    case .session: session
    case .key: key
    case .model: model
    }
  }

  /// Nil for a line that is none of this log, such as one that was being written when the machine went down.
  init?(line: UnsafeRawBufferPointer) {
    guard let object = try? JSONValue(parsing: line), let session = object["session"]?.stringValue,
      let key = object["key"]?.stringValue, let model = object["model"]?.stringValue
    else { return nil }
    // So small that some millions of them can be added up.
    func count(_ name: String) -> Int { Int(min(max(object[name]?.intValue ?? 0, 0), 1 << 40)) }
    self.session = session
    self.key = key
    self.model = model
    tokens = ModelTokens(
      requests: 1, input: count("input_tokens"), output: count("output_tokens"),
      cacheRead: count("cache_read_tokens"), cacheCreation: count("cache_creation_tokens"),
      cacheCreationHour: count("cache_creation_1h_tokens"), webSearches: count("web_searches"))
  }
}

/// A log of the requests to the model as a whole.
struct ModelLog {
  let path: String

  /// - Returns: how many lines could not be read.
  func forEachRequest(_ body: (ModelRequest) -> Void) throws -> Int {
    guard let file = fopen(path, "re") else {
      throw ValidationError("\(path) can't be read: \(String(cString: strerror(errno)))")
    }
    defer { fclose(file) }
    var buffer: UnsafeMutablePointer<CChar>?
    var capacity = 0
    defer { free(buffer) }
    var skipped = 0
    while true {
      let count = getline(&buffer, &capacity, file)
      guard count > 0, let line = buffer else { break }
      if let request = ModelRequest(line: UnsafeRawBufferPointer(start: line, count: count)) {
        body(request)
      } else {
        skipped += 1
      }
    }
    guard ferror(file) == 0 else {
      throw ValidationError("\(path) can't be read to its end: \(String(cString: strerror(errno)))")
    }
    return skipped
  }
}

/// Reads what is added to such a log, also when another file takes its place.
final class ModelLogFollower: Sendable {
  /// Longer ones are none of nginx's.
  private static let longestLine = 64 << 10
  /// What the log is called that was rotated last.
  private static let rotated = ".1"

  /// A place in a log, by which another process finds it again: what the file begins with, since every line has an id
  /// of its own, and how far it was read.
  struct Mark: Equatable {
    /// Enough to have the id of the first line in it.
    static let headLength = 256

    var head: [UInt8]
    var offset: Int

    var text: String {
      "\(offset) " + head.map { ($0 < 16 ? "0" : "") + String($0, radix: 16) }.joined()
    }

    init(head: [UInt8], offset: Int) {
      self.head = head
      self.offset = offset
    }

    /// Nil for what ``text`` never is.
    init?(text: String) {
      let parts = text.split(separator: " ", omittingEmptySubsequences: false)
      guard parts.count == 2, let offset = Int(parts[0]), offset >= 0, parts[1].utf8.count.isMultiple(of: 2) else {
        return nil
      }
      let digits = Array(parts[1].utf8)
      var head: [UInt8] = []
      for index in stride(from: 0, to: digits.count, by: 2) {
        guard let byte = UInt8(String(decoding: digits[index..<(index + 2)], as: UTF8.self), radix: 16) else {
          return nil
        }
        head.append(byte)
      }
      self.init(head: head, offset: offset)
    }
  }

  /// An open file and what of its last line has come.
  private final class File {
    let descriptor: Int32
    let identity: String
    /// Where the next byte is read.
    private var offset = 0
    private var head: [UInt8] = []
    private var line: [UInt8] = []
    private var isSkipping = false

    /// Nil if there is none, or another one has just taken its name: then the next time.
    init?(path: String) {
      guard let identity = File.identity(path) else { return nil }
      self.identity = identity
      descriptor = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK)
      if descriptor < 0 || File.identity(path) != identity { return nil }
    }

    deinit { if descriptor >= 0 { close(descriptor) } }

    /// What tells the file of this name from others; nil if there is none.
    static func identity(_ path: String) -> String? {
      guard let attributes = try? FileManager.default.attributesOfItem(atPath: path) else { return nil }
      return "\(attributes[.systemNumber] ?? "-") \(attributes[.systemFileNumber] ?? "-")"
    }

    private var size: Int { Int(lseek(descriptor, 0, SEEK_END)) }

    /// What has been read whole. A line of which only a part has come is not.
    var mark: Mark {
      if head.count < Mark.headLength {
        var bytes = [UInt8](repeating: 0, count: min(Mark.headLength, offset - line.count))
        let count = pread(descriptor, &bytes, bytes.count, 0)
        head = Array(bytes.prefix(max(0, count)))
      }
      return Mark(head: head, offset: offset - line.count)
    }

    func skipAll() { offset = size }

    /// Goes on after a mark, if it is one of this file.
    func resume(_ mark: Mark) -> Bool {
      var bytes = [UInt8](repeating: 0, count: mark.head.count)
      guard size >= mark.offset, pread(descriptor, &bytes, bytes.count, 0) == bytes.count, bytes == mark.head else {
        return false
      }
      offset = mark.offset
      return true
    }

    func read() -> [ModelRequest] {
      var requests: [ModelRequest] = []
      if size < offset {
        // Emptied in its place.
        offset = 0
        head = []
        line = []
        isSkipping = false
      }
      var buffer = [UInt8](repeating: 0, count: 64 << 10)
      while true {
        let count = pread(descriptor, &buffer, buffer.count, off_t(offset))
        guard count > 0 else { return requests }
        offset += count
        var rest = buffer[..<count]
        while let end = rest.firstIndex(of: UInt8(ascii: "\n")) {
          keep(rest[..<end])
          if !isSkipping, let request = line.withUnsafeBytes({ ModelRequest(line: $0) }) { requests.append(request) }
          line.removeAll(keepingCapacity: true)
          isSkipping = false
          rest = rest[rest.index(after: end)...]
        }
        keep(rest)
      }
    }

    private func keep(_ piece: ArraySlice<UInt8>) {
      guard !isSkipping else { return }
      line += piece
      guard line.count > ModelLogFollower.longestLine else { return }
      line.removeAll()
      isSkipping = true
    }
  }

  private struct Files: ~Copyable {
    var current: File?
    /// nginx goes on with it for a moment after another one has taken its name.
    var previous: File?
  }

  private let path: String
  private let files = Mutex(Files())

  /// Begins at the end of the log, or at its beginning if there is none yet. Blocks.
  init(path: String) {
    self.path = path
    files.withLock { files in
      files.current = File(path: path)
      files.current?.skipAll()
    }
  }

  /// Goes on after a mark of an earlier process, also if the log was rotated once since. If it can't be found, all of the
  /// log is new. To be called before anything is read. Blocks.
  func resume(_ mark: Mark) {
    files.withLock { files in
      files.current = File(path: path)
      if files.current?.resume(mark) ?? false { return }
      guard let rotated = File(path: path + Self.rotated), rotated.resume(mark) else { return }
      files.previous = rotated
    }
  }

  /// What has been added since the last time, and how far that is; nil if there is no log. Blocks.
  func read() -> (requests: [ModelRequest], mark: Mark)? {
    files.withLock { files in
      var requests = (files.previous?.read() ?? []) + (files.current?.read() ?? [])
      if let named = File.identity(path), named != files.current?.identity, let next = File(path: path) {
        requests += next.read()
        files.previous = files.current
        files.current = next
      }
      return files.current.map { (requests, $0.mark) }
    }
  }
}

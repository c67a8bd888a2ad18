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

/// Reads what is added to such a log from now on, also when another file takes its place.
final class ModelLogFollower: Sendable {
  /// Longer ones are none of nginx's.
  private static let longestLine = 64 << 10

  /// An open file and what of its last line has come.
  private final class File {
    let descriptor: Int32
    let identity: String
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

    func read() -> [ModelRequest] {
      var requests: [ModelRequest] = []
      // Emptied in its place.
      let place = lseek(descriptor, 0, SEEK_CUR)
      lseek(descriptor, lseek(descriptor, 0, SEEK_END) < place ? 0 : place, SEEK_SET)
      var buffer = [UInt8](repeating: 0, count: 64 << 10)
      while true {
        let count = Glibc.read(descriptor, &buffer, buffer.count)
        guard count > 0 else { return requests }
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
      if let file = files.current { lseek(file.descriptor, 0, SEEK_END) }
    }
  }

  /// What has been added since the last time; nil if there is no log. Blocks.
  func read() -> [ModelRequest]? {
    files.withLock { files in
      var requests = (files.previous?.read() ?? []) + (files.current?.read() ?? [])
      if let named = File.identity(path), named != files.current?.identity, let next = File(path: path) {
        requests += next.read()
        files.previous = files.current
        files.current = next
      }
      return files.current == nil ? nil : requests
    }
  }
}

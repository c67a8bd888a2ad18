import Foundation

/// Runs `body` with a new, empty directory, and removes it with all that is in it afterwards.
///
/// The path is short enough for a unix socket inside, and is the directory's real path.
public func withTemporaryDirectory<Result>(
  in parent: String = "/tmp", isolation: isolated (any Actor)? = #isolation,
  _ body: (_ path: String) async throws -> Result
) async throws -> Result {
  var template = Array("\(parent)/claude-api-test.XXXXXX".utf8CString)
  guard mkdtemp(&template) != nil else { throw SystemError(call: "mkdtemp") }
  let path = String(decoding: template.dropLast().map(UInt8.init(bitPattern:)), as: UTF8.self)
  defer {
    do {
      try FileManager.default.removeItem(atPath: path)
    } catch {
      print("could not remove \(path): \(error)")
    }
  }
  return try await body(path)
}

/// The top of the repository.
public let repositoryRoot: String = {
  var url = URL(fileURLWithPath: #filePath)
  for _ in 1...3 { url.deleteLastPathComponent() }
  return url.path
}()

/// A system call that failed.
public struct SystemError: Error, CustomStringConvertible {
  public let call: String
  public let code: Int32

  /// Takes the code from `errno` unless it is given.
  public init(call: String, code: Int32? = nil) {
    self.code = code ?? errno
    self.call = call
  }

  public var description: String { "\(call): \(String(cString: strerror(code)))" }
}

/// Runs blocking code on a thread of its own, so that no thread of the cooperative pool waits.
public func onThread<Result: Sendable>(_ body: @escaping @Sendable () throws -> Result) async throws -> Result {
  try await withCheckedThrowingContinuation { continuation in
    Thread.detachNewThread {
      continuation.resume(with: Swift.Result { try body() })
    }
  }
}

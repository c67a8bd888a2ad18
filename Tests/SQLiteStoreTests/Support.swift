import Foundation
import Glibc
import SQLiteStore
import Sessions
import TestSupport
import Testing

/// Gives a new directory that is gone afterwards.
func withTemporaryDirectory<Value>(_ body: (String) async throws -> Value) async throws -> Value {
  let path = FileManager.default.temporaryDirectory.path + "/sqlite-store-" + UUID().lowercaseString
  try FileManager.default.createDirectory(atPath: path, withIntermediateDirectories: false)
  defer {
    do {
      try FileManager.default.removeItem(atPath: path)
    } catch {
      Issue.record("could not remove \(path): \(error)")
    }
  }
  return try await body(path)
}

/// Gives a new store that is closed and removed afterwards.
func withStore<Value>(
  maximumBytes: Int64? = nil, _ body: (SQLiteSessionStore, String) async throws -> Value
) async throws -> Value {
  try await withTemporaryDirectory { directory in
    let path = directory + "/state/store.sqlite"
    return try await withReopened(path, maximumBytes: maximumBytes) { try await body($0, path) }
  }
}

/// Gives the store at `path`, which is closed afterwards.
func withReopened<Value>(
  _ path: String, maximumBytes: Int64? = nil, _ body: (SQLiteSessionStore) async throws -> Value
) async throws -> Value {
  let store = try await SQLiteSessionStore.open(
    SQLiteStoreConfiguration(path: path, maximumBytes: maximumBytes))
  do {
    let value = try await body(store)
    await store.close()
    return value
  } catch {
    await store.close()
    throw error
  }
}

func reopen(_ path: String) async throws -> SQLiteSessionStore {
  try await SQLiteSessionStore.open(SQLiteStoreConfiguration(path: path))
}

func makeSession() -> Session {
  Session(id: UUID(), name: "s", createdAt: .now(), workspace: "/w")
}

/// The helper program, killed when this goes.
final class Writer {
  private let process: ChildProcess
  private let chunks: AsyncStream<[UInt8]>
  private var rest: [UInt8] = []

  init(path: String, seed: UInt64, tasks: Int, rounds: Int) throws {
    // Test programs lie beside the program that the tests run in.
    let program = URL(fileURLWithPath: "/proc/self/exe").resolvingSymlinksInPath()
      .deletingLastPathComponent().appendingPathComponent("store-writer").path
    // A named pipe, which is read on a thread of its own.
    let pipe = "\(path).\(UUID()).out"
    guard mkfifo(pipe, 0o600) == 0 else { throw SystemError(call: "mkfifo") }
    defer { unlink(pipe) }
    let reader = open(pipe, O_RDONLY | O_NONBLOCK | O_CLOEXEC)
    guard reader >= 0 else { throw SystemError(call: "open \(pipe)") }
    process = try ChildProcess([program, path, "\(seed)", "\(tasks)", "\(rounds)"], output: pipe)
    _ = fcntl(reader, F_SETFL, 0)
    let (chunks, sink) = AsyncStream.makeStream(of: [UInt8].self)
    self.chunks = chunks
    Thread.detachNewThread {
      var buffer = [UInt8](repeating: 0, count: 64 << 10)
      while true {
        let count = read(reader, &buffer, buffer.count)
        if count < 0, errno == EINTR { continue }
        guard count > 0 else { break }
        sink.yield(Array(buffer[..<count]))
      }
      close(reader)
      sink.finish()
    }
  }

  deinit {
    kill()
  }

  /// Waits for the next line; nil at the end of the output.
  func nextLine() async -> String? {
    while true {
      if let end = rest.firstIndex(of: UInt8(ascii: "\n")) {
        let line = String(decoding: rest[..<end], as: UTF8.self)
        rest.removeSubrange(...end)
        return line
      }
      var iterator = chunks.makeAsyncIterator()
      guard let bytes = await iterator.next() else { return nil }
      rest += bytes
    }
  }

  func kill() {
    process.signal(SIGKILL)
  }

  /// Waits for the end and gives the exit status, or the signal as a negative number.
  func exitStatus() async -> Int32 {
    switch await process.waitForExit() {
    case .status(let status): status
    case .signal(let signal): -signal
    }
  }
}

/// A generator that gives the same numbers for the same seed.
struct SeededGenerator: RandomNumberGenerator {
  var state: UInt64

  mutating func next() -> UInt64 {
    state &+= 0x9E37_79B9_7F4A_7C15
    var mixed = state
    mixed = (mixed ^ (mixed >> 30)) &* 0xBF58_476D_1CE4_E5B9
    mixed = (mixed ^ (mixed >> 27)) &* 0x94D0_49BB_1331_11EB
    return mixed ^ (mixed >> 31)
  }
}

import Foundation
import Glibc
import SQLiteStore
import Sessions
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
  private let process = Process()
  private let output = Pipe()
  private let chunks: AsyncStream<Data>
  private let exits: AsyncStream<Int32>
  private var rest: [UInt8] = []

  init(path: String, seed: UInt64, tasks: Int, rounds: Int) throws {
    let (chunks, chunkSink) = AsyncStream.makeStream(of: Data.self)
    let (exits, exitSink) = AsyncStream.makeStream(of: Int32.self)
    self.chunks = chunks
    self.exits = exits
    // Test programs lie beside the program that the tests run in.
    let directory = URL(fileURLWithPath: "/proc/self/exe").resolvingSymlinksInPath()
      .deletingLastPathComponent()
    process.executableURL = directory.appendingPathComponent("store-writer")
    process.arguments = [path, "\(seed)", "\(tasks)", "\(rounds)"]
    process.standardOutput = output
    process.terminationHandler = { process in
      exitSink.yield(
        process.terminationReason == .exit ? process.terminationStatus : -process.terminationStatus)
      exitSink.finish()
    }
    output.fileHandleForReading.readabilityHandler = { handle in
      let data = handle.availableData
      if data.isEmpty {
        handle.readabilityHandler = nil
        chunkSink.finish()
      } else {
        chunkSink.yield(data)
      }
    }
    try process.run()
  }

  deinit {
    if process.isRunning { kill() }
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
      guard let data = await iterator.next() else { return nil }
      rest += data
    }
  }

  func kill() {
    Glibc.kill(process.processIdentifier, SIGKILL)
  }

  /// Waits for the end and gives the exit status, or the signal as a negative number.
  func exitStatus() async -> Int32? {
    await exits.first { _ in true }
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

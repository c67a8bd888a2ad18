import Foundation
import TestSupport
import Testing

@testable import claude_api_server

/// Prices of models, and the log that is read while it is written.
@Suite struct ModelUsageTests {
  private func tokens(
    _ input: Int = 0, _ output: Int = 0, read: Int = 0, written: Int = 0, hour: Int = 0, searches: Int = 0
  ) -> ModelTokens {
    ModelTokens(
      requests: 1, input: input, output: output, cacheRead: read, cacheCreation: written, cacheCreationHour: hour,
      webSearches: searches)
  }

  private func near(_ cost: Double?, _ expected: Double) -> Bool { cost.map { abs($0 - expected) < 1e-9 } ?? false }

  @Test func eachKindOfTokenHasItsPrice() throws {
    let prices = try ModelPrices()
    let million = 1_000_000
    for name in ["claude-sonnet-4-5", "claude-sonnet-4-5-20250929", "claude-sonnet-4@20250514", "claude-sonnet-4"] {
      #expect(near(prices.cost(of: tokens(million), model: name), 3), "\(name)")
      #expect(near(prices.cost(of: tokens(0, million), model: name), 15), "\(name)")
      #expect(near(prices.cost(of: tokens(read: million), model: name), 0.3), "\(name)")
      #expect(near(prices.cost(of: tokens(written: million), model: name), 3.75), "\(name)")
      #expect(near(prices.cost(of: tokens(written: million, hour: million / 2), model: name), 4.875), "\(name)")
      #expect(near(prices.cost(of: tokens(searches: 3), model: name), 0.03), "\(name)")
    }
    // All of a long request costs more.
    #expect(near(prices.cost(of: tokens(100_000, 1000), model: "claude-haiku-5-5"), 0.0105))
    #expect(near(prices.cost(of: tokens(60_000, 1000, read: 40_001), model: "claude-haiku-5-5"), 0.03450005))
    for name in ["", "claude", "claude-sonnet-4-5-1", "gpt", "claude-sonnet-4-5-2025092"] {
      #expect(prices.cost(of: tokens(1), model: name) == nil, "\(name)")
    }
  }

  @Test func anOperatorsPricesComeFirst() async throws {
    try await withTemporaryDirectory { directory in
      let path = directory + "/prices.json"
      func prices(_ text: String) throws -> ModelPrices {
        try text.write(toFile: path, atomically: true, encoding: .utf8)
        return try ModelPrices(file: path)
      }
      let own = try prices(
        #"{"x": {"input": 1, "output": 2}, "claude-opus-5": {"input": 0, "output": 7, "web_search": 1, "cache_read": 4}}"#
      )
      #expect(near(own.cost(of: tokens(1_000_000, 1_000_000), model: "x"), 3))
      #expect(near(own.cost(of: tokens(read: 1_000_000, written: 1_000_000), model: "x"), 1.35))
      #expect(near(own.cost(of: tokens(5, 1_000_000, read: 1_000_000, searches: 1), model: "claude-opus-5"), 12))
      #expect(near(own.cost(of: tokens(1_000_000), model: "claude-sonnet-5"), 2))
      for (text, reason) in [
        ("[]", "an object"), ("{", "JSON"), (#"{"x": 1}"#, "x must be an object"),
        (#"{"x": {"input": 1}}"#, "input and output"), (#"{"x": {"input": -1, "output": 1}}"#, "number of US dollars"),
        (#"{"x": {"input": "1", "output": 1}}"#, "number of US dollars"),
        (#"{"x": {"input": 1, "output": 1, "cached": 1}}"#, "has cached"),
      ] {
        let error = #expect(throws: SettingsError.self, "\(text)") { try prices(text) }
        #expect(error?.description.contains(reason) == true && error?.description.contains(path) == true, "\(text)")
      }
      #expect(throws: SettingsError.self) { try ModelPrices(file: directory + "/none") }
    }
  }

  private static func line(_ output: Int) -> String {
    #"{"session":"s","key":"k","model":"m","input_tokens":1,"output_tokens":\#(output),"cache_creation_1h_tokens":2}"#
  }

  private func append(_ text: String, to path: String) throws {
    let handle = try #require(FileHandle(forWritingAtPath: path))
    try handle.seekToEnd()
    try handle.write(contentsOf: Data(text.utf8))
    try handle.close()
  }

  @Test func theLogIsFollowedAcrossRotationsAndHalfLines() async throws {
    try await withTemporaryDirectory { directory in
      let path = directory + "/model.log"
      func read(_ log: ModelLogFollower) -> [Int]? { log.read()?.requests.map(\.tokens.output) }
      let early = ModelLogFollower(path: path)
      #expect(read(early) == nil)
      try Data((Self.line(1) + "\n").utf8).write(to: URL(filePath: path))
      // One that was not there is read from its beginning, one that was from its end.
      let log = ModelLogFollower(path: path)
      #expect(read(early) == [1])
      #expect(read(log) == [])
      try append(Self.line(2) + "\nno line\n" + Self.line(3).prefix(20), to: path)
      #expect(read(log) == [2])
      try append(String(Self.line(3).dropFirst(20)) + "\n", to: path)
      #expect(read(log) == [3])
      try append(String(repeating: "x", count: 200_000) + "\n" + Self.line(4) + "\n", to: path)
      #expect(read(log) == [4])
      // nginx writes to the old one for a moment after it has another name.
      try FileManager.default.moveItem(atPath: path, toPath: path + ".1")
      #expect(read(log) == [])
      try Data((Self.line(6) + "\n").utf8).write(to: URL(filePath: path))
      try append(Self.line(5) + "\n", to: path + ".1")
      #expect(read(log) == [5, 6])
      try append(Self.line(7) + "\n", to: path + ".1")
      try append(Self.line(8) + "\n", to: path)
      #expect(read(log) == [7, 8])
      // Emptied in its place.
      #expect(truncate(path, 0) == 0)
      try append(Self.line(9) + "\n", to: path)
      #expect(read(log) == [9])
      #expect(read(log) == [])
    }
  }

  /// What another server has read is not read again, and what came since is, also if the log was rotated meanwhile.
  @Test func aServerGoesOnWhereAnotherOneStopped() async throws {
    try await withTemporaryDirectory { directory in
      let path = directory + "/model.log"
      try Data((Self.line(1) + "\n").utf8).write(to: URL(filePath: path))
      let first = ModelLogFollower(path: path)
      _ = first.read()
      try append(Self.line(2) + "\n" + Self.line(3).prefix(20), to: path)
      let read = try #require(first.read())
      #expect(read.requests.map(\.tokens.output) == [2])
      let mark = try #require(ModelLogFollower.Mark(text: read.mark.text))
      #expect(mark == read.mark)

      try append(Self.line(3).dropFirst(20) + "\n" + Self.line(4) + "\n", to: path)
      func goesOn() throws -> [Int] {
        let log = ModelLogFollower(path: path)
        log.resume(mark)
        return try #require(log.read()).requests.map(\.tokens.output)
      }
      // The half line counts once it is whole.
      #expect(try goesOn() == [3, 4])
      try FileManager.default.moveItem(atPath: path, toPath: path + ".1")
      try Data((Self.line(5) + "\n").utf8).write(to: URL(filePath: path))
      #expect(try goesOn() == [3, 4, 5])
      // The file that was read is gone; what there is has come since.
      try FileManager.default.removeItem(atPath: path + ".1")
      #expect(try goesOn() == [5])
    }
  }

  @Test(arguments: ["", "x", "1", "1 0", "1 zz", "-1 00", " ", "1 00 00"])
  func whatIsNoMarkIsNone(_ text: String) {
    #expect(ModelLogFollower.Mark(text: text) == nil)
  }
}

import Foundation
import TestSupport
import Testing

@testable import Workspaces

/// Made-up forms, from those that browsers send to those of nobody.
@Suite struct MultipartFuzzTests {
  private struct Part: Equatable {
    var name: [UInt8]
    var fileName: [UInt8]?
    var content: [UInt8]
  }

  private static let maximumParts = 6
  private static let boundary = Array("--X7ma4".utf8)

  /// The bytes in a file, whose descriptor is good during `body`.
  private func withFile<Value>(_ bytes: [UInt8], _ body: (CInt) throws -> Value) throws -> Value {
    let file = try #require(tmpfile())
    defer { fclose(file) }
    guard fwrite(bytes, 1, bytes.count, file) == bytes.count, fflush(file) == 0 else {
      throw SystemError(call: "write")
    }
    return try body(fileno(file))
  }

  private func parts(_ bytes: [UInt8]) throws -> [Part] {
    try withFile(bytes) { descriptor in
      let scanner = MultipartScanner(descriptor: descriptor, boundary: Self.boundary)
      return try scanner.parts(maximum: Self.maximumParts).map { part in
        #expect(part.range.lowerBound >= 0 && part.range.upperBound <= bytes.count)
        return Part(
          name: part.name, fileName: part.fileName,
          content: try scanner.read(at: part.range.lowerBound, count: part.range.count))
      }
    }
  }

  /// A name as browsers write it.
  private func quoted(_ name: [UInt8]) -> [UInt8] {
    [0x22]
      + name.flatMap { byte -> [UInt8] in
        switch byte {
        case 0x22: Array("%22".utf8)
        case 0x0a: Array("%0A".utf8)
        case 0x0d: Array("%0D".utf8)
        case 0x5c: [0x5c, 0x5c]
        default: [byte]
        }
      } + [0x22]
  }

  private func form(_ parts: [Part], _ random: inout SplitMix64) -> [UInt8] {
    var bytes: [UInt8] = random.one(in: 4) ? Array("what stands before\r\n".utf8) : []
    for part in parts {
      bytes += Array("--".utf8) + Self.boundary + (random.one(in: 5) ? [0x20, 0x09] : []) + [13, 10]
      if random.one(in: 3) { bytes += Array("Content-Type: text/plain; name=\"no\"\r\n".utf8) }
      bytes +=
        Array(random.pick(["Content-Disposition", "content-disposition"]).utf8) + Array(": form-data; name=".utf8)
      bytes += quoted(part.name)
      if let fileName = part.fileName { bytes += Array("; filename=".utf8) + quoted(fileName) }
      bytes += [13, 10, 13, 10] + part.content + [13, 10]
    }
    return bytes + Array("--".utf8) + Self.boundary + Array("--\r\n".utf8)
  }

  private func name(_ random: inout SplitMix64) -> [UInt8] {
    // "%22" in a name can't be told from a quote that a browser has escaped.
    random.bytes(0...12).map { $0 == 0x25 ? 0x41 : $0 }
  }

  private func randomParts(_ random: inout SplitMix64) -> [Part] {
    (0..<random.number(1...4)).map { _ in
      var content = random.bytes(0...40)
      // Beginnings of a delimiter are content like any other.
      if random.one(in: 2) { content += [13, 10, 0x2d, 0x2d] + Self.boundary.prefix(random.number(0...6)) }
      return Part(name: name(&random), fileName: random.one(in: 2) ? name(&random) : nil, content: content)
    }
  }

  @Test func whatIsInAFormIsFound() throws {
    try Fuzz.rounds(2000) { random, seed in
      let sent = randomParts(&random)
      let found = try parts(form(sent, &random))
      #expect(found == sent, "seed \(seed)")
    }
  }

  /// The file is read in windows; where one ends makes no difference.
  @Test func delimitersMayLieAnywhere() throws {
    var random = SplitMix64(seed: 5)
    for length in (262_144 - 60)...(262_144 + 4) where length % 3 == 0 {
      let sent = [
        Part(name: [0x61], fileName: nil, content: [UInt8](repeating: 13, count: length)),
        Part(name: [0x62], fileName: [0x63], content: [UInt8](repeating: 0x2d, count: 262_144)),
      ]
      let found = try parts(form(sent, &random))
      #expect(found == sent, "\(length)")
    }
  }

  /// Whatever comes is a form or none, and no part reaches beyond it.
  @Test func rubbishIsRefusedOrRead() throws {
    let pieces =
      ["\r\n", "\r\n\r\n", "\"", "\\", ";", "name=", "filename*=", "Content-Disposition:", ":", "--", "\r\n----X7ma4"]
      .map { Array($0.utf8) }
    try Fuzz.rounds(8000) { random, seed in
      let bytes = random.mutated(form(randomParts(&random), &random), pieces: pieces)
      do {
        let found = try parts(bytes)
        #expect(found.count <= Self.maximumParts, "seed \(seed)")
        for part in found {
          #expect(part.content.firstRange(of: [13, 10, 0x2d, 0x2d] + Self.boundary) == nil, "seed \(seed)")
        }
      } catch is MultipartError {}
    }
  }
}

import Foundation
import HTTPTypes
import Hummingbird
import JSONSupport
import NIOCore
import TestSupport
import Testing

@testable import ClaudeAPI

/// Made-up queries and bodies.
@Suite struct FieldFuzzTests {
  private static let known = ["after", "limit", "name", "wait", "ä b&="]

  private func request(query: String) -> Request {
    Request(
      head: HTTPRequest(method: .get, scheme: "http", authority: "localhost", path: "/x?" + query),
      body: RequestBody(buffer: ByteBuffer()))
  }

  private func escaped(_ text: String, _ random: inout SplitMix64) -> String {
    text.utf8.map { byte in
      let isPlain = (0x61...0x7a).contains(byte) || (0x30...0x39).contains(byte)
      if isPlain, !random.one(in: 5) { return String(Unicode.Scalar(byte)) }
      if byte == 0x20, random.one(in: 2) { return "+" }
      let digits = String(byte, radix: 16, uppercase: random.one(in: 2))
      return "%" + (digits.utf8.count == 1 ? "0" : "") + digits
    }.joined()
  }

  @Test func parametersAreReadAsTheyWereWritten() throws {
    try Fuzz.rounds(3000) { random, seed in
      let names = Self.known.shuffled(using: &random).prefix(random.number(0...4))
      let written = names.map { ($0, String(decoding: random.bytes(1...12), as: UTF8.self)) }
      let query = written.map { "\(escaped($0, &random))=\(escaped($1, &random))" }.joined(separator: "&")
      let fields = try QueryFields(request(query: query), known: Self.known)
      for (name, value) in written {
        let read = try fields.text(name)
        #expect(read == value, "seed \(seed)")
      }
      for name in Self.known where !names.contains(name) { #expect(!fields.has(name), "seed \(seed)") }
    }
  }

  /// A bad query is a problem of the client's that names what is wrong, in a few words.
  @Test func aBadQueryIsAProblem() {
    let pieces = ["%", "%0", "%zz", "%ff", "&", "=", "+", "?", "limit=1", "&limit=2", "wait=9999999999s", "%00"]
      .map { Array($0.utf8) }
    Fuzz.rounds(6000) { random, seed in
      let good = "after=\(random.number(0...99))&limit=\(random.number(1...9))&name=x%20y&wait=30s"
      let query = String(decoding: random.mutated(Array(good.utf8), pieces: pieces), as: UTF8.self)
      do throws(Problem) {
        let fields = try QueryFields(request(query: query), known: Self.known)
        let limit = try fields.integer("limit", in: 1...100)
        #expect(limit.map { (1...100).contains($0) } ?? true, "seed \(seed)")
        let wait = try fields.duration("wait", upTo: .seconds(60))
        #expect(wait.map { $0 >= .zero && $0 <= .seconds(60) } ?? true, "seed \(seed)")
        let name = try fields.text("name")
        #expect(name?.isEmpty != true, "seed \(seed)")
      } catch {
        #expect(error.status == .badRequest && error.detail.utf8.count < 600, "seed \(seed): \(error.detail)")
      }
    }
  }

  @Test func aBadBodyIsAProblem() async throws {
    let known = ["prompt", "name", "metadata", "max_turns"]
    let good = #"{"prompt":"é\u00e9\n","name":null,"metadata":{"a":["b",1,2.5,true]},"max_turns":3}"#
    let pieces = ["\"", "{", "}", "\\u", ",", ":", "null", "1e999", "[[", "\u{0}", "\"x\":1,", "-"].map {
      Array($0.utf8)
    }
    for (seed, bytes) in Fuzz.inputs(5000, { random in random.mutated(Array(good.utf8), pieces: pieces) }) {
      let request = Request(
        head: HTTPRequest(
          method: .post, scheme: "http", authority: "localhost", path: "/x",
          headerFields: [.contentType: "application/json"]),
        body: RequestBody(buffer: ByteBuffer(bytes: bytes)))
      do {
        let fields = try await BodyFields(request, limit: 1000, known: known)
        // What was taken is what stands there, and its canonical form is the same again.
        let canonical = try JSONValue(parsing: fields.canonical)
        let parsed = try JSONValue(parsing: bytes)
        #expect(canonical == parsed, "seed \(seed)")
        _ = try? fields.string("prompt")
        _ = try? fields.integer("max_turns")
        _ = try? fields.object("metadata")
      } catch let problem as Problem {
        #expect([400, 413, 422].contains(problem.status.code), "seed \(seed)")
        #expect(problem.detail.utf8.count < 600, "seed \(seed): \(problem.detail)")
      }
    }
  }
}

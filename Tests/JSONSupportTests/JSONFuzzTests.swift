import Foundation
import JSONSupport
import TestSupport
import Testing

/// Made-up JSON, read by two parsers.
@Suite struct JSONFuzzTests {
  private static let texts = [
    #"{"a":[1,-2.5e3,0.1,true,false,null,"x\u00e9\ud83d\ude00\n"],"b":{"c":{}},"":""}"#,
    #"[[],[[]],{"k":[{"k":"v"}]},"\\\"\/\b\f\n\r\t",1e10,123456789012345678]"#,
  ]
  private static let pieces = [
    "\"", "\\", "\\u", "\\ud800", "\\udc00", "[", "]", "{", "}", ":", ",", "0", "-", ".", "e", "1e400", "null", "tru",
    " ", "\n", "\u{0}", "\u{1f}",
  ].map { Array($0.utf8) }

  /// Both take the same texts for JSON, where the parser here isn't meant to be more patient.
  @Test func agreesWithFoundation() {
    Fuzz.rounds(10_000) { random, seed in
      let bytes = random.mutated(Array(random.pick(Self.texts).utf8), pieces: Self.pieces)
      // Bytes that aren't UTF-8 and lone surrogates are repaired here and refused there; NUL and other marks at the
      // beginning tell Foundation an encoding.
      guard let text = String(validating: bytes, as: UTF8.self), !bytes.prefix(4).contains(0), bytes.first != 0xef,
        !text.contains("\\u"), !text.lowercased().contains("e")
      else { return }
      let own = try? JSONValue(parsing: bytes)
      let other = try? JSONSerialization.jsonObject(with: Data(bytes), options: .fragmentsAllowed)
      #expect(own == nil || other != nil, "seed \(seed): \(text)")
      // Foundation also takes a comma before a closing bracket.
      guard !text.contains(#/,\s*[\]}]/#) else { return }
      #expect((own == nil) == (other == nil), "seed \(seed): \(text)")
    }
  }

  /// What was read and is written again is the same, whatever it is.
  @Test func writesWhatItReads() throws {
    let values = try Self.texts.map { try JSONValue(parsing: $0) }
    try Fuzz.rounds(5000) { random, seed in
      let value = JSONFuzz.changed(random.pick(values), &random)
      let again = try JSONValue(parsing: value.encoded())
      #expect(again == value, "seed \(seed)")
      // On one line, as the CLI wants it.
      #expect(!value.encoded().contains(UInt8(ascii: "\n")), "seed \(seed)")
    }
  }
}

import Foundation
import JSONSupport
import Testing

@Suite struct JSONValueTests {
  static let readable: [(String, JSONValue)] = [
    ("null", nil), (" true ", true), ("false", false), ("0", 0), ("-12", -12),
    ("9223372036854775807", .int(.max)), ("9223372036854775808", .double(9_223_372_036_854_775_808)),
    ("1.5", 1.5), ("1e3", 1000.0), ("-0.25E-1", -0.025), ("\"\"", ""), ("[]", []), ("{}", [:]),
    ("[1, [2], {\"a\" : null}]", [1, [2], ["a": nil]]),
    (#""a\n\t\"\\\/\u00e9\ud83d\ude00""#, "a\n\t\"\\/é😀"),
    (#""\ud83d x \ude00 \ud83d\u0041""#, "\u{FFFD} x \u{FFFD} \u{FFFD}A"),
    (#"{"a":1,"a":2}"#, ["a": 2]),
  ]

  @Test(arguments: readable)
  func parses(text: String, expected: JSONValue) throws {
    #expect(try JSONValue(parsing: text) == expected)
  }

  @Test(arguments: [
    "", " ", "nul", "tru", "01", "-", "1.", ".5", "1e", "+1", "[1,]", "[", "[1",
    "{\"a\"}", "{\"a\":}", "{a:1}",
    "{\"a\":1,}", "\"abc", "\"\\x\"", "\"\\u12g4\"", "\"\\u12", "\"a\nb\"",
    "1 2", "{} x", "NaN", "1e999", "'a'",
  ])
  func refuses(text: String) {
    #expect(throws: JSONParsingError.self) { try JSONValue(parsing: text) }
  }

  @Test func replacesInvalidUTF8() throws {
    #expect(try JSONValue(parsing: [0x22, 0x61, 0xFF, 0x22]) == "a\u{FFFD}")
  }

  @Test func boundsTheDepth() throws {
    func nested(_ depth: Int) -> String {
      String(repeating: "[", count: depth) + String(repeating: "]", count: depth)
    }
    _ = try JSONValue(parsing: nested(JSONValue.maximumDepth))
    let error = #expect(throws: JSONParsingError.self) {
      try JSONValue(parsing: nested(JSONValue.maximumDepth + 1))
    }
    #expect(error?.reason == .tooDeep)
    #expect(throws: JSONParsingError.self) {
      try JSONValue(parsing: String(repeating: "[", count: 1_000_000))
    }
  }

  @Test func encodesDeterministically() {
    let value: JSONValue = [
      "b": [1, 2.5, nil, true], "a": "x\u{1}\n\"\\é😀\u{2028}", "c": .double(.infinity),
    ]
    #expect(
      value.description == #"{"a":"x\u0001\n\"\\é😀"# + "\u{2028}" + #"","b":[1,2.5,null,true],"c":null}"#)
  }

  @Test func roundTrips() throws {
    let value: JSONValue = [
      "text": "every kind \u{0} \u{7F} \u{FFFF}", "n": [.int(.min), .double(1e300), .double(0.1), 1.0],
    ]
    #expect(try JSONValue(parsing: value.encoded()) == value)
  }

  @Test func parsesAnyCollectionOfBytes() throws {
    #expect(try JSONValue(parsing: Data("[1]".utf8)) == [1])
    #expect(try JSONValue(parsing: "xx[1]".utf8.dropFirst(2)) == [1])
    #expect(try JSONValue(parsing: Array("[1]".utf8).reversed().reversed()) == [1])
    #expect(try Array("[1]".utf8).withUnsafeBytes { try JSONValue(parsing: $0) } == [1])
  }

  @Test func isCodable() throws {
    let value: JSONValue = ["a": [1, 2.5, "x", nil, false, ["b": [:]]]]
    let data = try JSONEncoder().encode(value)
    #expect(try JSONDecoder().decode(JSONValue.self, from: data) == value)
  }

  @Test func hasAccessors() {
    let value: JSONValue = ["s": "x", "i": 3, "d": 3.0, "f": 0.5, "b": true, "a": [7], "n": nil]
    #expect(value["s"]?.stringValue == "x")
    #expect(value["i"]?.intValue == 3 && value["d"]?.intValue == 3 && value["f"]?.intValue == nil)
    #expect(value["i"]?.doubleValue == 3)
    #expect(value["b"]?.boolValue == true)
    #expect(value["a"]?[0] == 7 && value["a"]?[1] == nil)
    #expect(value["n"]?.isNull == true && value["missing"] == nil && value["s"]?["x"] == nil)
    #expect(value.objectValue?.count == 7 && value["a"]?.arrayValue == [7])
  }
}

import Foundation
import Sessions
import Testing

@Suite struct TimestampTests {
  @Test(arguments: [
    (0, "1970-01-01T00:00:00.000000Z"),
    (-1, "1969-12-31T23:59:59.999999Z"),
    (951_782_400_000_000, "2000-02-29T00:00:00.000000Z"),
    (1_709_251_199_999_999, "2024-02-29T23:59:59.999999Z"),
    (4_107_542_400_000_001, "2100-03-01T00:00:00.000001Z"),
    (-62_167_219_200_000_000, "0000-01-01T00:00:00.000000Z"),
    (253_402_300_799_999_999, "9999-12-31T23:59:59.999999Z"),
  ])
  func text(microseconds: Int64, text: String) {
    #expect(Timestamp(microseconds: microseconds).description == text)
    #expect(Timestamp(text)?.microseconds == microseconds)
  }

  @Test(arguments: [
    ("2026-01-31T12:00:00Z", "2026-01-31T12:00:00.000000Z"),
    ("2026-01-31t12:00:00z", "2026-01-31T12:00:00.000000Z"),
    ("2026-01-31T12:00:00.5Z", "2026-01-31T12:00:00.500000Z"),
    ("2026-01-31T12:00:00.123456789Z", "2026-01-31T12:00:00.123456Z"),
    ("2026-01-31T23:30:00-01:30", "2026-02-01T01:00:00.000000Z"),
    ("2026-01-01T00:15:00.25+00:30", "2025-12-31T23:45:00.250000Z"),
  ])
  func parses(text: String, expected: String) {
    #expect(Timestamp(text)?.description == expected)
  }

  @Test(arguments: [
    "", "2026", "2026-01-31", "2026-01-31T12:00:00", "2026-01-31 12:00:00Z", "2026-1-31T12:00:00Z0",
    "2026-02-29T12:00:00Z", "2100-02-29T12:00:00Z", "2026-04-31T12:00:00Z", "2026-00-01T12:00:00Z",
    "2026-13-01T12:00:00Z", "2026-01-00T12:00:00Z", "2026-01-31T24:00:00Z", "2026-01-31T12:60:00Z",
    "2026-01-31T12:00:60Z", "2026-01-31T12:00:00.Z", "2026-01-31T12:00:00ZZ", "2026-01-31T12:00:00+0100",
    "2026-01-31T12:00:00+24:00", "2026-01-31T12:00:00+01:00x", "+026-01-31T12:00:00Z",
    "0000-01-01T00:00:00+00:01", "9999-12-31T23:59:59-00:01", "２026-01-31T12:00Z", "2026-01-31T12:00:00.5",
  ])
  func refuses(text: String) {
    #expect(Timestamp(text) == nil)
  }

  @Test func agreesWithFoundation() throws {
    var calendar = Calendar(identifier: .gregorian)
    calendar.timeZone = try #require(TimeZone(identifier: "UTC"))
    // The Julian calendar of Foundation ends in 1582; every 97th day from 1600 to 2500.
    for day in stride(from: -135_140, to: 193_000, by: 97) {
      let date = Date(timeIntervalSince1970: Double(day) * 86400 + 3661)
      let parts = calendar.dateComponents([.year, .month, .day], from: date)
      let year = try #require(parts.year)
      let month = try #require(parts.month)
      let dayOfMonth = try #require(parts.day)
      func padded(_ value: Int) -> String { value < 10 ? "0\(value)" : "\(value)" }
      let expected = "\(year)-\(padded(month))-\(padded(dayOfMonth))T01:01:01.000000Z"
      let timestamp = Timestamp(microseconds: (Int64(day) * 86400 + 3661) * 1_000_000)
      #expect(timestamp.description == expected)
      #expect(Timestamp(expected) == timestamp)
    }
  }

  @Test func staysWithinItsRange() {
    #expect(Timestamp(microseconds: .max) == .max)
    #expect(Timestamp(microseconds: .min) == .min)
    #expect(Timestamp.max.advanced(by: .seconds(Int64.max)) == .max)
    #expect(Timestamp.min.advanced(by: .seconds(Int64.min)) == .min)
    #expect(Timestamp(microseconds: 5).advanced(by: .microseconds(-7)).microseconds == -2)
    #expect(Timestamp(microseconds: 7).duration(since: Timestamp(microseconds: 9)) == .microseconds(-2))
  }

  @Test func isCodedAsText() throws {
    let timestamp = Timestamp(microseconds: 1)
    let data = try JSONEncoder().encode([timestamp])
    #expect(String(decoding: data, as: UTF8.self) == #"["1970-01-01T00:00:00.000001Z"]"#)
    #expect(try JSONDecoder().decode([Timestamp].self, from: data) == [timestamp])
    #expect(throws: DecodingError.self) {
      try JSONDecoder().decode([Timestamp].self, from: Data(#"["yesterday"]"#.utf8))
    }
  }

  @Test func uuidsAreLowerCase() {
    for _ in 0..<100 {
      let id = UUID()
      #expect(id.lowercaseString == id.uuidString.lowercased())
    }
  }

  @Test func uuidsAreTakenInTheirUsualFormOnly() {
    for _ in 0..<100 {
      let id = UUID()
      #expect(UUID(canonical: id.lowercaseString) == id)
      #expect(UUID(canonical: id.uuidString) == id)
    }
    let text = "0f8fad5b-d9cb-469f-a165-70867728950e"
    for wrong in [
      "", "-", String(text.dropLast()), text + "0", text + "\0", "{\(text)}", text.replacing("-", with: ""),
      text.replacing("0f8f", with: "0g8f"), text.replacing("b-d", with: "bd-"), text.replacing("0f8f", with: "0é8"),
      text.replacing("0f8f", with: "+f8f"), text.replacing("0f8f", with: " f8f"),
    ] {
      #expect(UUID(canonical: wrong) == nil)
    }
  }
}

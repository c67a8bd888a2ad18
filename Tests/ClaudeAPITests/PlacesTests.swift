import Testing

@testable import ClaudeAPI

@Suite struct PlacesTests {
  @Test func noKeyTakesAllPlaces() {
    let places = Places(4)
    var held = [places.take(for: "a"), places.take(for: "a")]
    #expect(held.allSatisfy { $0 != nil })
    #expect(places.take(for: "a") == nil)
    held += [places.take(for: "b"), places.take(for: "c")]
    #expect(held.allSatisfy { $0 != nil })
    #expect(places.take(for: "d") == nil && places.take(for: nil) == nil)
    held.removeFirst()
    #expect(places.take(for: "b") != nil)
  }

  @Test func withoutKeysAllPlacesAreTaken() {
    let places = Places(3)
    let held = (0..<3).map { _ in places.take(for: nil) }
    #expect(held.allSatisfy { $0 != nil } && places.take(for: nil) == nil)
  }

  @Test(arguments: [
    (0, "Thu, 01 Jan 1970 00:00:00 GMT"), (Int64.max, "Fri, 31 Dec 9999 23:59:59 GMT"),
    (67_768_036_191_676_799, "Fri, 31 Dec 9999 23:59:59 GMT"), (.min, "Sat, 01 Jan 0 00:00:00 GMT"),
  ])
  func aFileMayHaveAnyTime(seconds: Int64, text: String) {
    #expect(FilesAPI.httpDate(seconds) == text)
  }
}

import Testing

@testable import HummingbirdFastCGI

@Suite struct RecordScannerTests {
  private func scanner() -> RecordScanner {
    RecordScanner(maximumParamsBytes: 1 << 16, maximumBodyBytes: 1 << 20)
  }

  private func scan(_ bytes: [UInt8], _ scanner: inout RecordScanner) -> RecordScanner.Step {
    bytes.withUnsafeBytes { scanner.scan($0) }
  }

  @Test func findsTheEndHoweverTheBytesArrive() {
    let request = Wire.request("POST", "/x", body: [UInt8](repeating: 7, count: 300), recordSize: 11)
    let following = Wire.request("GET", "/y")
    for cut in 1..<request.count {
      var scanner = scanner()
      #expect(scan(Array(request[..<cut]), &scanner) == .incomplete)
      #expect(scan(request + following, &scanner) == .complete(length: request.count))
    }
  }

  @Test func acceptsParamsCutAtEveryPlace() {
    let params = [
      ("A", ""), ("", ""), ("NAME", String(repeating: "v", count: 200)),
      ("LONG", String(repeating: "x", count: 20_000)),
    ]
    for size in [1, 2, 3, 5, 127, 4096] {
      let bytes = Wire.begin() + Wire.stream(4, Wire.pairs(params), size: size) + Wire.record(5)
      var scanner = scanner()
      #expect(scan(bytes, &scanner) == .complete(length: bytes.count))
    }
  }

  @Test(
    arguments: [
      // A name that is longer than the stream.
      [5, 1, 0x41], [0x80], [0xff, 0xff, 0xff, 0xff, 0, 0x41], [1, 0xff, 0xff, 0xff, 0xff, 0x41],
      // Lengths whose sum would overflow 31 bits.
      [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
    ] as [[UInt8]])
  func refusesParamsThatDoNotFillTheirStream(_ content: [UInt8]) {
    var scanner = scanner()
    let bytes = Wire.begin() + Wire.record(4, content) + Wire.record(4) + Wire.record(5)
    #expect(scan(bytes, &scanner) == .violation(.params))
  }

  @Test func refusesWhatIsNoRequest() {
    var garbage = scanner()
    #expect(scan(Array("GET / HTTP/1.1\r\n".utf8), &garbage) == .violation(.version(UInt8(ascii: "G"))))
    var version = scanner()
    #expect(scan(Wire.record(1, version: 2), &version) == .violation(.version(2)))
    var short = scanner()
    #expect(scan(Wire.record(1, [0, 1]), &short) == .violation(.beginRequest))
    var order = scanner()
    #expect(scan(Wire.begin() + Wire.record(5, [1]), &order) == .violation(.unexpectedRecord(5)))
    var role = scanner()
    #expect(scan(Wire.begin(role: 2), &role) == .unknownRole)
  }

  @Test func boundsParamsAndBodyBeforeTheyAreHere() {
    var params = RecordScanner(maximumParamsBytes: 100, maximumBodyBytes: 100)
    // Only the header of the second record has arrived.
    let head = Wire.begin() + Wire.record(4, Wire.pairs([("A", "b")]))
    #expect(scan(head + Wire.record(4, [UInt8](repeating: 0, count: 97)).prefix(8), &params) == .paramsTooLarge)
    var body = RecordScanner(maximumParamsBytes: 100, maximumBodyBytes: 100)
    let complete = head + Wire.record(4)
    #expect(scan(complete + Wire.record(5, [UInt8](repeating: 0, count: 101)).prefix(8), &body) == .bodyTooLarge)
  }

  @Test func reportsRecordsOfOthers() {
    var scanner = scanner()
    let begin = Wire.begin(requestID: 3)
    let second = Wire.begin(requestID: 4)
    #expect(scan(begin + second, &scanner) == .foreign(.multiplexed(requestID: 4), offset: begin.count))
    scanner.removed(second.count)
    let stray = Wire.record(5, [1, 2, 3], requestID: 9)
    #expect(scan(begin + stray, &scanner) == .foreign(.stray, offset: begin.count))
    scanner.removed(stray.count)
    #expect(scan(begin + Wire.record(2, requestID: 3), &scanner) == .aborted)
  }
}

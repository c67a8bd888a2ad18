import HTTPTypes
import NIOCore
import TestSupport
import Testing

@testable import HummingbirdFastCGI

/// Made-up records, from those of a whole request to those of nothing at all.
@Suite struct FastCGIFuzzTests {
  private static let maximumParams = 4000
  private static let maximumBody = 3000

  /// What a connection would do with the bytes.
  private struct Outcome: Equatable {
    var foreign: [RecordScanner.ForeignRecord] = []
    /// The first step that isn't to wait for more; `incomplete` if there was none.
    var step = RecordScanner.Step.incomplete
    /// The records of the request, foreign ones taken out.
    var request: [UInt8] = []
  }

  /// Goes through bytes that arrive in pieces, as a connection does.
  private func outcome(_ pieces: [[UInt8]]) -> Outcome {
    var scanner = RecordScanner(maximumParamsBytes: Self.maximumParams, maximumBodyBytes: Self.maximumBody)
    var outcome = Outcome()
    var input: [UInt8] = []
    for piece in pieces {
      input += piece
      while true {
        switch input.withUnsafeBytes({ scanner.scan($0) }) {
        case .incomplete: break
        case .foreign(let record, let offset):
          let length = input.withUnsafeBytes { RecordHeader($0, at: offset).length }
          // Where its content lies depends on what was taken out before; its bytes don't.
          if case .management(let type, _, let count) = record {
            outcome.foreign.append(.management(type: type, contentOffset: 0, contentLength: count))
          } else {
            outcome.foreign.append(record)
          }
          input.removeSubrange(offset..<offset + length)
          scanner.removed(length)
          if input.isEmpty { break }
          continue
        case let step:
          outcome.step = step
          if case .complete(let length) = step { outcome.request = Array(input[..<length]) }
          return outcome
        }
        break
      }
    }
    return outcome
  }

  /// The params of a request whose records are whole, by the specification and without libfcgi.
  private func params(_ request: [UInt8]) -> [(name: [UInt8], value: [UInt8])] {
    var stream: [UInt8] = []
    var position = 0
    while position < request.count {
      let header = request.withUnsafeBytes { RecordHeader($0, at: position) }
      if header.type == FastCGI.RecordType.params {
        stream += request[position + 8..<position + 8 + header.contentLength]
      }
      position += header.length
    }
    var rest = stream[...]
    func length() -> Int {
      guard let first = rest.popFirst(), first >= 0x80 else { return Int(stream[rest.startIndex - 1]) }
      defer { rest = rest.dropFirst(3) }
      return rest.prefix(3).reduce(Int(first & 0x7f)) { $0 << 8 | Int($1) }
    }
    var params: [(name: [UInt8], value: [UInt8])] = []
    while !rest.isEmpty {
      let (name, value) = (length(), length())
      params.append((Array(rest.prefix(name)), Array(rest.dropFirst(name).prefix(value))))
      rest = rest.dropFirst(name + value)
    }
    return params
  }

  private func randomRequest(_ random: inout SplitMix64) -> (params: [(String, String)], body: [UInt8], bytes: [UInt8])
  {
    let names = ["HTTP_A", "HTTP_X_API_KEY", "REMOTE_ADDR", "BODY_FILE", "HTTP_BODY_FILE", "X", "HTTP_COOKIE"]
    var params: [(String, String)] = [("REQUEST_METHOD", random.pick(["GET", "POST"])), ("REQUEST_URI", "/x?y=z")]
    for _ in 0..<random.number(0...8) {
      let length = random.one(in: 4) ? random.number(120...300) : random.number(0...20)
      params.append((random.pick(names), String(repeating: random.pick(["a", "ö", "%"]), count: length)))
    }
    let body = random.bytes(0...200)
    if random.one(in: 2) { params.append(("CONTENT_LENGTH", String(body.count))) }
    let size = random.one(in: 2) ? random.number(1...20) : 65_535
    let pieces = [
      Wire.begin(keep: random.one(in: 2)), Wire.stream(4, Wire.pairs(params), size: size),
      Wire.stream(5, body, size: size),
    ]
    var bytes: [UInt8] = []
    for piece in pieces {
      // Records that aren't the request's may stand between those that are.
      if random.one(in: 4) { bytes += Wire.record(9, Wire.pairs([("FCGI_MAX_CONNS", "")]), requestID: 0) }
      if random.one(in: 4), !bytes.isEmpty { bytes += Wire.record(5, random.bytes(0...9), requestID: 77) }
      bytes += piece
    }
    return (params, body, bytes)
  }

  /// A good request arrives as it was sent, however it is cut into records and pieces.
  @Test func whatWasSentArrives() throws {
    let library = try LibFCGI()
    try Fuzz.rounds(3000) { random, seed in
      let sent = randomRequest(&random)
      let outcome = outcome(random.cut(sent.bytes))
      guard case .complete = outcome.step else {
        Issue.record("\(outcome.step), seed \(seed)")
        return
      }
      let decoded = try outcome.request.withUnsafeBytes { try library.decode($0) }
      defer { library.release(decoded.open) }
      #expect(Array(decoded.body.readableBytesView) == sent.body, "seed \(seed)")
      #expect(decoded.head.path == "/x?y=z", "seed \(seed)")
      #expect(decoded.head.method.rawValue == sent.params[0].1, "seed \(seed)")
      for (name, _) in sent.params where !name.hasPrefix("HTTP_") {
        let last = sent.params.last { $0.0 == name }?.1
        #expect(decoded.parameters[name] == last, "\(name), seed \(seed)")
      }
      for (name, field) in [("HTTP_A", "a"), ("HTTP_X_API_KEY", "x-api-key"), ("HTTP_BODY_FILE", "body-file")] {
        let fieldName = try #require(HTTPField.Name(field))
        // In HTTP, several of one name are one with commas.
        let values = sent.params.filter { $0.0 == name }.map(\.1)
        #expect(decoded.head.headerFields[values: fieldName] == values, "\(name), seed \(seed)")
      }
      // A field of the client's never is a variable of the web server's.
      if !sent.params.contains(where: { $0.0 == "BODY_FILE" }) {
        #expect(decoded.parameters["BODY_FILE"] == nil, "seed \(seed)")
      }
    }
  }

  /// Whatever arrives: the pieces in which it comes make no difference, and what is taken for whole is whole.
  @Test func theScannerNeverLetsThroughWhatIsNotWhole() throws {
    let library = try LibFCGI()
    let pieces: [[UInt8]] = [
      Wire.begin(), Wire.begin(requestID: 9), Wire.record(4), Wire.record(5), Wire.record(2), Wire.begin(role: 2),
      [0x80, 0, 0, 0], [0xff, 0xff, 0xff, 0xff], [1, 4, 0, 1, 0xff, 0xff, 0xff, 0], Wire.record(9, requestID: 0),
    ]
    try Fuzz.rounds(15_000) { random, seed in
      let bytes = random.mutated(randomRequest(&random).bytes, pieces: pieces)
      let whole = outcome([bytes])
      #expect(outcome(random.cut(bytes)) == whole, "seed \(seed)")
      guard case .complete(let length) = whole.step else { return }
      #expect(length == whole.request.count, "seed \(seed)")
      let decoded = try whole.request.withUnsafeBytes { try library.decode($0) }
      defer { library.release(decoded.open) }
      #expect(decoded.body.readableBytes <= Self.maximumBody, "seed \(seed)")
      let params = params(whole.request)
      #expect(params.reduce(0) { $0 + $1.name.count + $1.value.count } <= Self.maximumParams, "seed \(seed)")
      // What libfcgi makes of the params is what is in them. Its strings end at the first NUL.
      for name in ["REMOTE_ADDR", "BODY_FILE", "X"] {
        let last = params.last { param in
          let text = param.name + [0x3d] + param.value
          let entry = text.prefix { $0 != 0 }
          return entry.starts(with: Array((name + "=").utf8))
        }
        let value = last.map { param in
          String(
            decoding: (param.name + [0x3d] + param.value).prefix { $0 != 0 }.dropFirst(name.utf8.count + 1),
            as: UTF8.self)
        }
        #expect(decoded.parameters[name] == value, "\(name), seed \(seed)")
      }
    }
  }

  /// A connection that sends rubbish costs the others nothing.
  @Test func theServerOutlivesRubbish() async throws {
    try await TestServer.run(configure: { $0.requestTimeout = .milliseconds(200) }) { server in
      let inputs = Fuzz.inputs(200) { random in
        random.one(in: 5) ? random.bytes(1...200) : random.mutated(randomRequest(&random).bytes)
      }
      for (_, bytes) in inputs {
        let client = try server.client()
        try await client.send(bytes)
        client.hangUp()
      }
      let client = try server.client()
      try await client.send(Wire.request("GET", "/hello"))
      #expect(try await client.answer()?.text == "Hello you")
    }
  }
}

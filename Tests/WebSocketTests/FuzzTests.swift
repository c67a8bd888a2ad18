import Foundation
import TestSupport
import Testing
import WebSockets

/// Random and damaged frames against the real listener, compared with a second reading of the rules.
@Suite struct FuzzTests {
  private static let maximumBytes = 600
  private static let maximumFragments = 6

  /// What a server has to answer.
  private struct Expectation {
    var frames: [RawWebSocket.Frame] = []
    var close: Int?
  }

  // MARK: Inputs

  private static func input(_ random: inout SplitMix64) -> [UInt8] {
    var bytes: [UInt8] = []
    for _ in 0..<Int.random(in: 1...8, using: &random) {
      let opcodes: [UInt8] = [0, 0, 0, 1, 1, 1, 1, 9, 9, 10, 8, 2, UInt8.random(in: 0...15, using: &random)]
      let sizes = [0, 1, 3, 20, 125, 126, 300, 599, 600, 601]
      let size = Int.random(in: 0..<sizes[Int.random(in: 0..<sizes.count, using: &random)] + 1, using: &random)
      var payload = text(size, &random)
      if random.one(in: 8) { payload = (0..<size).map { _ in UInt8.random(in: 0...255, using: &random) } }
      bytes += RawWebSocket.bytes(
        opcodes[Int.random(in: 0..<opcodes.count, using: &random)], payload, isFinal: !random.one(in: 3),
        reserved: random.one(in: 30) ? UInt8.random(in: 1...7, using: &random) : 0,
        isMasked: !random.one(in: 40),
        length: random.one(in: 40) ? UInt64.random(in: 0...UInt64.max, using: &random) : nil)
    }
    if random.one(in: 2) {
      for _ in 0..<Int.random(in: 1...4, using: &random) where !bytes.isEmpty { damage(&bytes, &random) }
    }
    return bytes
  }

  /// Characters of all lengths, cut wherever the size says.
  private static func text(_ size: Int, _ random: inout SplitMix64) -> [UInt8] {
    let characters = ["a", "é", "\u{7ff}", "水", "\u{ffff}", "😀", "\u{10ffff}", "\0"]
    var bytes: [UInt8] = []
    while bytes.count < size {
      bytes += Array(characters[Int.random(in: 0..<characters.count, using: &random)].utf8)
    }
    return random.one(in: 2) ? Array(bytes.prefix(size)) : bytes
  }

  private static func damage(_ bytes: inout [UInt8], _ random: inout SplitMix64) {
    let place = Int.random(in: 0..<bytes.count, using: &random)
    switch Int.random(in: 0..<5, using: &random) {
    case 0: bytes[place] ^= 1 << UInt8.random(in: 0...7, using: &random)
    case 1: bytes[place] = UInt8.random(in: 0...255, using: &random)
    case 2: bytes.remove(at: place)
    case 3: bytes.insert(UInt8.random(in: 0...255, using: &random), at: place)
    default: bytes.insert(contentsOf: bytes[place...].prefix(Int.random(in: 1...16, using: &random)), at: place)
    }
  }

  // MARK: The second reading

  /// Reads all of the input as a server has to; what is missing of the last frame is appended, and then a close.
  private static func expectation(_ bytes: inout [UInt8]) -> Expectation {
    var expected = Expectation()
    var message: (content: [UInt8], fragments: Int)?
    var start = 0
    var isPadded = false

    func take(_ count: Int) -> [UInt8] {
      if bytes.count < start + count { bytes += [UInt8](repeating: 0, count: start + count - bytes.count) }
      defer { start += count }
      return Array(bytes[start..<start + count])
    }

    while true {
      if start >= bytes.count {
        if isPadded { return expected }
        isPadded = true
        bytes += RawWebSocket.close(1000)
      }
      let head = take(2)
      let (first, opcode) = (head[0], head[0] & 0x0f)
      var length = UInt64(head[1] & 0x7f)
      if length >= 126 { length = take(length == 126 ? 2 : 8).reduce(0) { $0 << 8 | UInt64($1) } }
      // As soon as the length is known.
      if length > UInt64(maximumBytes) { return close(1009, &expected) }
      if opcode >= 8, first & 0x80 == 0 || length > 125 { return close(1002, &expected) }
      let key = head[1] & 0x80 == 0 ? nil : take(4)
      var payload = take(Int(length))
      guard let key, first & 0x70 == 0 else { return close(1002, &expected) }
      for index in payload.indices { payload[index] ^= key[index & 3] }
      switch opcode {
      case 0, 1:
        guard (opcode == 0) == (message != nil) else { return close(1002, &expected) }
        var whole = message ?? ([], 0)
        whole.content += payload
        whole.fragments += 1
        if whole.fragments > maximumFragments || whole.content.count > maximumBytes { return close(1009, &expected) }
        guard isPrefix(whole.content, whole: first & 0x80 != 0) else { return close(1007, &expected) }
        message = whole
        if first & 0x80 != 0 {
          message = nil
          expected.frames.append(.init(1, whole.content))
        }
      case 2: return close(message == nil ? 1003 : 1002, &expected)
      case 8: return close(closeCode(payload), &expected)
      case 9: expected.frames.append(.pong(payload))
      case 10: break
      default: return close(1002, &expected)
      }
    }
  }

  private static func close(_ code: Int?, _ expected: inout Expectation) -> Expectation {
    expected.close = code
    return expected
  }

  private static func closeCode(_ payload: [UInt8]) -> Int? {
    if payload.isEmpty { return nil }
    guard payload.count > 1 else { return 1002 }
    let code = Int(payload[0]) << 8 | Int(payload[1])
    guard (1000...1003).contains(code) || (1007...1014).contains(code) || (3000...4999).contains(code) else {
      return 1002
    }
    return String(validating: payload.dropFirst(2), as: UTF8.self) == nil ? 1007 : code
  }

  /// Whether bytes are UTF-8, or can become so by what follows.
  private static func isPrefix(_ bytes: [UInt8], whole: Bool) -> Bool {
    if String(validating: bytes, as: UTF8.self) != nil { return true }
    if whole { return false }
    for missing in 1...3 {
      // Any continuation will do if one does: the first byte after a lead decides.
      for filler in [[0x80], [0x90], [0xa0], [0xbf]] as [[UInt8]] {
        let rest = filler + [UInt8](repeating: 0x80, count: missing - 1)
        if String(validating: bytes + rest, as: UTF8.self) != nil { return true }
      }
    }
    return false
  }

  // MARK: Tests

  /// Inputs that went wrong once, in hexadecimal.
  private static let findings: [String] = []

  @Test func whatWentWrongOnceGoesWell() async throws {
    try await run(
      Self.findings.map { text in
        let digits = Array(text)
        return stride(from: 0, to: digits.count, by: 2).compactMap { UInt8(String(digits[$0...$0 + 1]), radix: 16) }
      }.map { (0, $0) })
  }

  @Test func damagedFramesAreReadByTheRules() async throws {
    try await run(Fuzz.inputs(250) { random in Self.input(&random) })
  }

  private func run(_ inputs: [(seed: UInt64, input: [UInt8])]) async throws {
    try await TestSockets.run(Echo()) { configuration in
      configuration.maximumMessageBytes = Self.maximumBytes
      configuration.maximumFragments = Self.maximumFragments
      configuration.closeTimeout = .milliseconds(50)
    } _: { sockets in
      try await withThrowingTaskGroup(of: Void.self) { group in
        for (index, (seed, input)) in inputs.enumerated() {
          if index >= 8 { try await group.next() }
          group.addTask {
            var bytes = input
            let expected = Self.expectation(&bytes)
            let socket = try await sockets.open()
            var random = SplitMix64(seed: seed)
            var rest = bytes[...]
            while !rest.isEmpty {
              let part = rest.prefix(Int.random(in: 1...max(1, bytes.count), using: &random))
              try await socket.send(raw: Array(part))
              rest = rest.dropFirst(part.count)
            }
            var frames = try await socket.rest()
            let close = frames.popLast()
            let hexadecimal =
              "seed \(seed): " + bytes.map { ($0 < 16 ? "0" : "") + String($0, radix: 16) }.joined()
            #expect(close?.opcode == 8, "\(hexadecimal)")
            // A pong may overtake a text.
            for opcode in [1, 10] as [UInt8] {
              #expect(
                frames.filter { $0.opcode == opcode } == expected.frames.filter { $0.opcode == opcode },
                "\(hexadecimal)")
            }
            #expect(frames.count == expected.frames.count && close?.closeCode == expected.close, "\(hexadecimal)")
          }
        }
        try await group.waitForAll()
      }
      // And nobody else is worse off.
      let socket = try await sockets.open()
      try await socket.send("well")
      #expect(try await socket.next() == .text("well"))
    }
  }
}

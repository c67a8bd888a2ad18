import Foundation
import Glibc
import TestSupport
import Testing
import WebSockets

/// The rules of RFC 6455, by the cases of the Autobahn test suite for servers, whose numbers stand beside them.
///
/// Its cases for binary messages (1.2, and parts of others) come to 1003 here, since only texts are understood.
/// Sections 9 (load), 12 and 13 (compression, which isn't negotiated) don't apply.
@Suite struct ProtocolTests {
  private struct Case {
    let name: String
    /// What the client sends, one part after the other.
    var parts: [[UInt8]]
    /// What it gets before the close.
    var frames: [RawWebSocket.Frame] = []
    /// The code of the close; 1000 is answered to a client that closes with it.
    var code: Int?

    init(_ name: String, _ parts: [[UInt8]], _ frames: [RawWebSocket.Frame] = [], code: Int? = 1000) {
      self.name = name
      self.parts = parts
      self.frames = frames
      self.code = code
      // Whoever isn't disconnected says goodbye.
      if code == 1000 { self.parts.append(RawWebSocket.close(1000)) }
    }
  }

  private static func text(_ text: String, isFinal: Bool = true, reserved: UInt8 = 0) -> [UInt8] {
    RawWebSocket.bytes(1, Array(text.utf8), isFinal: isFinal, reserved: reserved)
  }

  private static func more(_ text: String, isFinal: Bool = true) -> [UInt8] {
    RawWebSocket.bytes(0, Array(text.utf8), isFinal: isFinal)
  }

  private static func ping(_ payload: [UInt8] = []) -> [UInt8] { RawWebSocket.bytes(9, payload) }

  private static func chopped(_ bytes: [UInt8], by size: Int = 1) -> [[UInt8]] {
    stride(from: 0, to: bytes.count, by: size).map { Array(bytes[$0..<min($0 + size, bytes.count)]) }
  }

  /// Opens a socket for each case, some at a time, and compares.
  private func check(_ cases: [Case], _ sockets: TestSockets) async throws {
    try await withThrowingTaskGroup(of: Void.self) { group in
      for (index, one) in cases.enumerated() {
        if index >= 8 { try await group.next() }
        group.addTask {
          let socket = try await sockets.open()
          for part in one.parts { try await socket.send(raw: part) }
          var frames = try await socket.rest()
          let close = frames.popLast()
          #expect(close?.opcode == 8, "\(one.name): \(frames)")
          #expect(close?.closeCode == one.code, "\(one.name): \(String(describing: close))")
          #expect(frames == one.frames, "\(one.name)")
        }
      }
      try await group.waitForAll()
    }
  }

  // MARK: 1 to 5, frames and messages

  @Test func messagesOfAllSizes() async throws {
    try await TestSockets.run(Echo()) { sockets in
      var cases = [0, 125, 126, 127, 128, 65_535, 65_536].map { size in
        let text = String(repeating: "*", count: size)
        return Case("1.1 \(size)", [Self.text(text)], [.text(text)])
      }
      let large = String(repeating: "*", count: 65_536)
      cases.append(Case("1.1.8", Self.chopped(Self.text(large), by: 997), [.text(large)]))
      cases.append(
        Case(
          "10.1.1",
          Self.chopped(Array(large.utf8), by: 1300).enumerated().map { index, part in
            RawWebSocket.bytes(index == 0 ? 1 : 0, part, isFinal: index == 50)
          }, [.text(large)]))
      for size in [0, 125, 65_536] {
        cases.append(
          Case("1.2 \(size)", [RawWebSocket.bytes(2, [UInt8](repeating: 0xfe, count: size))], code: 1003))
      }
      try await check(cases, sockets)
    }
  }

  @Test func pingsAndPongs() async throws {
    try await TestSockets.run(Echo()) { sockets in
      let payload: [UInt8] = [0x00, 0xff, 0xfe, 0xfd, 0xfc, 0xfb, 0x00, 0xff]
      let longest = [UInt8](repeating: 0xfe, count: 125)
      let ten = (0..<10).map { Array("payload-\($0)".utf8) }
      let ownPong = RawWebSocket.bytes(10, Array("unasked".utf8))
      try await check(
        [
          Case("2.1", [Self.ping()], [.pong()]),
          Case("2.2", [Self.ping(Array("Hello".utf8))], [.pong(Array("Hello".utf8))]),
          Case("2.3", [Self.ping(payload)], [.pong(payload)]),
          Case("2.4", [Self.ping(longest)], [.pong(longest)]),
          Case("2.5", [Self.ping([UInt8](repeating: 0xfe, count: 126))], code: 1002),
          Case("2.6", Self.chopped(Self.ping(longest)), [.pong(longest)]),
          Case("2.7", [RawWebSocket.bytes(10)]),
          Case("2.8", [ownPong]),
          Case("2.9", [ownPong, Self.ping([1])], [.pong([1])]),
          Case("2.10", ten.map { Self.ping($0) }, ten.map { .pong($0) }),
          Case("2.11", ten.flatMap { Self.chopped(Self.ping($0)) }, ten.map { .pong($0) }),
        ], sockets)
    }
  }

  @Test func reservedBitsAndOpcodes() async throws {
    try await TestSockets.run(Echo()) { sockets in
      var cases = [
        Case("3.1", [Self.text("small", reserved: 4)], code: 1002),
        Case(
          "3.2", [Self.text("first"), Self.text("second", reserved: 2), Self.ping()], [.text("first")], code: 1002),
        Case(
          "3.3", [Self.text("first"), Self.text("second", reserved: 3) + Self.ping()], [.text("first")], code: 1002),
        Case(
          "3.4", Self.chopped(Self.text("first") + Self.text("second", reserved: 4) + Self.ping()), [.text("first")],
          code: 1002),
        Case("3.5", [RawWebSocket.bytes(2, [1], reserved: 5)], code: 1002),
        Case("3.6", [RawWebSocket.bytes(9, [1], reserved: 6)], code: 1002),
        Case("3.7", [RawWebSocket.bytes(8, [3, 232], reserved: 7)], code: 1002),
      ]
      for opcode in Array(3...7) + Array(11...15) as [UInt8] {
        cases.append(Case("4 \(opcode)", [RawWebSocket.bytes(opcode)], code: 1002))
        cases.append(
          Case(
            "4 \(opcode) after a text", [Self.text("first"), RawWebSocket.bytes(opcode, [1]), Self.ping()],
            [.text("first")], code: 1002))
      }
      try await check(cases, sockets)
    }
  }

  @Test func fragments() async throws {
    try await TestSockets.run(Echo()) { sockets in
      let two = [Self.text("frag1", isFinal: false), Self.more("frag2")]
      let whole = RawWebSocket.Frame.text("frag1frag2")
      try await check(
        [
          Case("5.1", [RawWebSocket.bytes(9, [1], isFinal: false), RawWebSocket.bytes(0, [2])], code: 1002),
          Case("5.2", [RawWebSocket.bytes(10, [1], isFinal: false), RawWebSocket.bytes(0, [2])], code: 1002),
          Case("fragmented close", [RawWebSocket.bytes(8, [3, 232], isFinal: false)], code: 1002),
          Case("5.3", two, [whole]),
          Case("5.4", [two[0] + two[1]], [whole]),
          Case("5.5", Self.chopped(two[0] + two[1]), [whole]),
          Case("5.6", [two[0], Self.ping([7]), two[1]], [.pong([7]), whole]),
          Case("5.7", [two[0] + Self.ping([7]) + two[1]], [.pong([7]), whole]),
          Case("5.8", Self.chopped(two[0] + Self.ping([7]) + two[1]), [.pong([7]), whole]),
          Case("5.9", [Self.more("nothing"), Self.text("Hello")], code: 1002),
          Case("5.10", [Self.more("nothing") + Self.text("Hello")], code: 1002),
          Case("5.11", Self.chopped(Self.more("nothing") + Self.text("Hello")), code: 1002),
          Case("5.12", [Self.more("nothing", isFinal: false), Self.text("Hello")], code: 1002),
          Case("5.14", Self.chopped(Self.more("nothing", isFinal: false) + Self.text("Hello")), code: 1002),
          Case("5.15", two + [Self.more("frag3", isFinal: false), Self.more("frag4")], [whole], code: 1002),
          Case(
            "5.16", [Self.more("f1", isFinal: false), Self.text("f2", isFinal: false), Self.more("f3")], code: 1002),
          Case("5.18", [Self.text("frag1", isFinal: false), Self.text("frag2")], code: 1002),
          Case("binary inside", [Self.text("frag1", isFinal: false), RawWebSocket.bytes(2, [1])], code: 1002),
          Case(
            "5.19",
            [
              Self.text("1", isFinal: false), Self.more("2", isFinal: false), Self.ping([1]),
              Self.more("3", isFinal: false), Self.more("4", isFinal: false), Self.ping([2]), Self.more("5"),
            ], [.pong([1]), .pong([2]), .text("12345")]),
        ], sockets)
    }
  }

  // MARK: 6, UTF-8

  /// Hexadecimal texts of Markus Kuhn's decoder test and Autobahn's additions.
  private static let valid = [
    "ceba", "cebae1bdb9cf83cebcceb5", "c280", "e0a080", "f0908080", "7f", "dfbf", "efbfbf", "f48fbfbf", "ed9fbf",
    "ee8080", "efbfbd", "f0908080", "efbfbe", "f09fbfbe", "f48fbfbe", "00", "e38182e38184",
  ]

  private static let invalid = [
    "f8888080 80", "fc848080 8080", "f7bfbfbf", "fbbfbfbf bf", "fdbfbfbf bfbf", "f4908080", "80", "bf", "80bf",
    "80bf80",
    "80818283 84858687", "c020c120", "e020e120", "f020f120", "f8", "fc", "c0", "e080", "f08080", "df", "efbf", "f7bfbf",
    "fe", "ff", "fefeffff", "c0af", "e080af", "f08080af", "f8808080 af", "c1bf", "e09fbf", "f08fbfbf", "c080", "e08080",
    "f0808080", "eda080", "edadbf", "edae80", "edafbf", "edb080", "edbe80", "edbfbf", "eda080edb080", "edafbfedbfbf",
    "cebae1bdb9cf83cebcceb5eda080656469746564", "ce", "cebae1", "f4bfbfbf",
  ]

  private static func bytes(_ hexadecimal: String) -> [UInt8] {
    let digits = Array(hexadecimal.filter { $0 != " " })
    return stride(from: 0, to: digits.count, by: 2).compactMap { UInt8(String(digits[$0...$0 + 1]), radix: 16) }
  }

  /// Each text whole, octet by octet in frames of their own, and octet by octet on the wire.
  @Test func textsAreUTF8() async throws {
    try await TestSockets.run(Echo()) { sockets in
      var cases = [
        Case("6.1.1", [Self.text("")], [.text("")]),
        Case(
          "6.1.2", [Self.text("", isFinal: false), Self.more("", isFinal: false), Self.more("")], [.text("")]),
        Case(
          "6.1.3", [Self.text("", isFinal: false), Self.more("middle", isFinal: false), Self.more("")],
          [.text("middle")]),
      ]
      let texts = Self.valid.map { (Self.bytes($0), true) } + Self.invalid.map { (Self.bytes($0), false) }
      for (bytes, isValid) in texts {
        let name = "6 \(bytes.map { String($0, radix: 16) })"
        let frames = isValid ? [RawWebSocket.Frame(1, bytes)] : []
        let code = isValid ? 1000 : 1007
        cases.append(Case(name, [RawWebSocket.bytes(1, bytes)], frames, code: code))
        cases.append(Case(name + " chopped", Self.chopped(RawWebSocket.bytes(1, bytes)), frames, code: code))
        let fragments = bytes.indices.map { index in
          RawWebSocket.bytes(index == 0 ? 1 : 0, [bytes[index]], isFinal: index == bytes.count - 1)
        }
        cases.append(Case(name + " in fragments", fragments, frames, code: code))
      }
      // What can't become valid any more isn't waited for.
      cases.append(
        Case("6.4.1", [RawWebSocket.bytes(1, Self.bytes("cebaf4908080"), isFinal: false)], code: 1007))
      try await check(cases, sockets)
    }
  }

  // MARK: 7, closing

  @Test func closing() async throws {
    try await TestSockets.run(Echo()) { sockets in
      let longest = [UInt8](repeating: UInt8(ascii: "*"), count: 123)
      let large = String(repeating: "*", count: 256 << 10)
      var cases = [
        Case("7.1.1", [Self.text("Hello")], [.text("Hello")]),
        Case("7.1.2", [RawWebSocket.close(1000)]),
        Case("7.1.5", [Self.text("frag1", isFinal: false), RawWebSocket.close(1000), Self.more("frag2")]),
        Case("7.1.6", [Self.text(large)], [.text(large)]),
        Case("7.3.1", [RawWebSocket.close()], code: nil),
        Case("7.3.2", [RawWebSocket.bytes(8, [3])], code: 1002),
        Case("7.3.4", [RawWebSocket.close(1000, Array("Hello".utf8))]),
        Case("7.3.5", [RawWebSocket.close(1000, longest)]),
        Case("7.3.6", [RawWebSocket.close(1000, longest + [0x2a])], code: 1002),
        Case("7.5.1", [RawWebSocket.close(1000, Self.bytes("cebae1bdb9eda080"))], code: 1007),
        Case("half a character", [RawWebSocket.close(1000, [0xce])], code: 1007),
        Case("by the server", [Self.text("Hello"), Self.text("bye")], [.text("Hello")], code: 4000),
      ]
      for code in [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 3000, 3999, 4000, 4999] {
        var one = Case("7.7 \(code)", [], code: code)
        one.parts = [RawWebSocket.close(code)]
        cases.append(one)
      }
      for code in [0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65_535] {
        cases.append(Case("7.9 \(code)", [RawWebSocket.close(code)], code: 1002))
      }
      try await check(cases, sockets)
      // 7.1.3, 7.1.4: after a close nothing is answered.
      for late in [Self.ping(), Self.text("late"), Self.chopped(Self.ping()).flatMap { $0 }] {
        let socket = try await sockets.open()
        try await socket.send(raw: RawWebSocket.close(1000) + late)
        #expect(try await socket.rest().map(\.opcode) == [8])
      }
    }
  }

  // MARK: Beyond Autobahn

  @Test func unmaskedFramesAndLimits() async throws {
    try await TestSockets.run(Echo()) { configuration in
      configuration.maximumMessageBytes = 1000
      configuration.maximumFragments = 3
    } _: { sockets in
      let thousand = String(repeating: "x", count: 1000)
      try await check(
        [
          Case("unmasked", [RawWebSocket.bytes(1, [0x41], isMasked: false)], code: 1002),
          Case("unmasked ping", [RawWebSocket.bytes(9, [], isMasked: false)], code: 1002),
          Case("at the limit", [Self.text(thousand)], [.text(thousand)]),
          Case("over it", [Self.text(thousand + "x")], code: 1009),
          Case("over it in two", [Self.text(thousand, isFinal: false), Self.more("x")], code: 1009),
          Case("a length only", [RawWebSocket.bytes(1, [], length: 1 << 40)], code: 1009),
          Case("a negative length", [RawWebSocket.bytes(1, [], length: 1 << 63)], code: 1009),
          Case(
            "fragments", [Self.text("a", isFinal: false), Self.more("b", isFinal: false), Self.more("c")],
            [.text("abc")]),
          Case(
            "too many",
            [Self.text("", isFinal: false)] + (0..<3).map { _ in Self.more("", isFinal: false) }, code: 1009),
        ], sockets)
    }
  }

  /// Who sends too many frames, of whatever kind, isn't read for a while. Nothing is lost, and it isn't taken for dead.
  @Test func framesHaveARate() async throws {
    try await TestSockets.run(Echo()) { configuration in
      configuration.framesPerSecond = 4
      configuration.frameBurst = 10
      configuration.pingInterval = .milliseconds(200)
      configuration.idleTimeout = .seconds(8)
    } _: { sockets in
      let socket = try await sockets.open()
      let start = ContinuousClock.now
      try await socket.send(raw: Array(repeatElement(Self.ping(), count: 60).joined()))
      try await socket.send("after")
      var pongs = 0
      var text: String?
      while text == nil, let frame = try await socket.next() {
        if frame.opcode == 10 { pongs += 1 }
        if frame.opcode == 1 { text = String(decoding: frame.payload, as: UTF8.self) }
      }
      #expect(pongs == 60 && text == "after")
      try await socket.send("again")
      var again = try await socket.next()
      while let frame = again, frame.opcode == 9 { again = try await socket.next() }
      #expect(again?.payload == Array("again".utf8))
      // The 62nd frame, after 10 at once: 13 s, but that the last of them are read together if they don't come at once.
      #expect(ContinuousClock.now - start > .seconds(6))
    }
  }

  @Test func aClientThatIsNotTrustedIsReadLittle() async throws {
    try await TestSockets.run(Echo(trusts: false)) { sockets in
      let socket = try await sockets.open()
      try await socket.send(String(repeating: "x", count: 1000))
      #expect(try await socket.next()?.payload.count == 1000)
      try await socket.send(raw: RawWebSocket.bytes(1, [UInt8](repeating: 0x41, count: 8 << 10)))
      #expect(try await socket.rest().last?.closeCode == 1009)
    }
  }

  /// In a process of its own, as the limit is the process's.
  @Test func withoutDescriptorsItPausesAndRecovers() async {
    await #expect(processExitsWith: .success) {
      let log = LogRecorder()
      try await TestSockets.run(Echo(), log: log) { server in
        let first = try await server.open()
        // All that there may be are taken, but for one, with which a socket can connect and not be accepted.
        var limit = rlimit()
        getrlimit(__rlimit_resource_t(RLIMIT_NOFILE.rawValue), &limit)
        var taken = [dup(0)]
        limit.rlim_cur = rlim_t(taken[0] + 16)
        setrlimit(__rlimit_resource_t(RLIMIT_NOFILE.rawValue), &limit)
        while taken.last != -1 { taken.append(dup(0)) }
        taken.removeLast()
        close(taken.removeLast())
        let last = try RawConnection(unixSocket: server.path)
        func pauses() -> Int { log.messages.count { $0 == "Accepting sockets pauses" } }
        while pauses() == 0 { await Task.yield() }
        // Sockets that are open go on.
        try await first.send("still there")
        guard try await first.next()?.payload == Array("still there".utf8) else { exit(2) }
        let before = pauses()
        for descriptor in taken { close(descriptor) }
        let socket = try await RawWebSocket.open(last, path: "/echo")
        try await socket.send("at last")
        guard try await socket.next()?.payload == Array("at last".utf8) else { exit(3) }
        // One message a pause of 100 ms; a spin would have logged thousands.
        guard pauses() - before < 50 else { exit(4) }
      }
    }
  }
}

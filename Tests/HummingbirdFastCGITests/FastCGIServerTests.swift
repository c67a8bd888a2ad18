import CLinux
import Foundation
import Glibc
import HTTPTypes
import Hummingbird
import HummingbirdFastCGI
import Logging
import ServiceLifecycle
import Synchronization
import TestSupport
import Testing

@Suite struct FastCGIServerTests {
  // MARK: Ordinary requests

  @Test func answersManyRequestsOnOneConnection() async throws {
    try await TestServer.run { server in
      let client = try server.client()
      for number in 1...50 {
        try await client.send(Wire.request("GET", "/hello?name=n\(number)", requestID: UInt16(number)))
        let answer = try #require(try await client.answer(to: UInt16(number)))
        #expect(answer.status == 200)
        #expect(answer.text == "Hello n\(number)")
        #expect(answer.fields.contains("Content-Length: \(answer.body.count)"))
        #expect(answer.protocolStatus == 0)
      }
    }
  }

  @Test func closesTheConnectionWhenTheWebServerWantsThat() async throws {
    try await TestServer.run { server in
      let client = try server.client()
      try await client.send(Wire.request("GET", "/hello", keep: false))
      #expect(try await client.answer()?.text == "Hello you")
      #expect(try await client.receive().isEmpty)
    }
  }

  @Test func takesARequestThatComesByteByByte() async throws {
    try await TestServer.run { server in
      let client = try server.client()
      for byte in Wire.request("POST", "/echo", body: Array("body".utf8)) { try await client.send([byte]) }
      #expect(try await client.answer()?.text == "body")
    }
  }

  @Test func takesRequestsThatComeTogether() async throws {
    try await TestServer.run { server in
      let client = try server.client()
      try await client.send(
        (1...20).flatMap { Wire.request("GET", "/hello?name=\($0)", requestID: UInt16($0)) })
      for number in 1...20 {
        #expect(try await client.answer(to: UInt16(number))?.text == "Hello \(number)")
      }
    }
  }

  @Test func givesTheHandlerFieldsAndVariables() async throws {
    try await TestServer.run { server in
      let client = try server.client()
      let long = String(repeating: "v", count: 9000)
      try await client.send(
        Wire.request(
          "GET", "/fields",
          params: [
            ("HTTP_X_LONG_NAME", long), ("HTTP_COOKIE", "a=b; c=d"), ("HTTP_COOKIE", "e=f"),
            ("CONTENT_TYPE", "text/plain"), ("REMOTE_ADDR", "192.0.2.7"), ("HTTP_BAD NAME", "x"),
          ], recordSize: 1000))
      let lines = try #require(try await client.answer()).text.split(separator: "\n")
      #expect(
        lines == [
          "x-long-name=\(long)", "cookie=a=b; c=d", "cookie=e=f", "content-type=text/plain", "address=192.0.2.7",
        ])
    }
  }

  @Test(arguments: [0, 1, 8183, 8184, 8192, 32_000, 32_768, 65_535, 65_536, 300_000, 3_000_000])
  func answersOfAnySizeArriveWhole(_ size: Int) async throws {
    try await TestServer.run { server in
      let client = try server.client()
      for _ in 0..<2 {
        try await client.send(Wire.request("GET", "/size/\(size)"))
        let answer = try #require(try await client.answer())
        #expect(answer.body.count == size)
        #expect(answer.body.allSatisfy { $0 == 0x61 })
      }
    }
  }

  @Test func whatIsKnownAtOnceIsAnsweredBeforeTheResponder() async throws {
    let asked = Mutex<[String]>([])
    let immediate: ImmediateResponder = { request, parameters, logger in
      asked.withLock { $0.append(request.path ?? "") }
      guard let count = request.path.flatMap({ Int($0.dropFirst("/size/".count)) }), count % 2 == 0 else { return nil }
      logger().info("at once", metadata: ["address": "\(parameters["REMOTE_ADDR"] ?? "")"])
      return ImmediateAnswer(
        status: .ok, headers: [.cacheControl: "no-store"], body: ByteBuffer(repeating: 0x62, count: count))
    }
    try await TestServer.run(immediateResponder: immediate) { server in
      let client = try server.client()
      // One after the other, and all at once on the same connection.
      let sizes = [0, 1, 2, 32_767, 32_768, 300_000, 3, 4]
      let requests = sizes.map { Wire.request("GET", "/size/\($0)", params: [("REMOTE_ADDR", "192.0.2.7")]) }
      for isPipelined in [false, true] {
        if isPipelined { try await client.send(Array(requests.joined())) }
        for (size, request) in zip(sizes, requests) {
          if !isPipelined { try await client.send(request) }
          let answer = try #require(try await client.answer())
          let isImmediate = size % 2 == 0
          #expect(answer.status == 200 && answer.body == [UInt8](repeating: isImmediate ? 0x62 : 0x61, count: size))
          #expect(answer.fields.contains("Content-Length: \(size)"))
          #expect(answer.fields.contains("Cache-Control: no-store") == isImmediate)
        }
      }
      try await client.send(Wire.request("POST", "/echo", body: [1]))
      #expect(try await client.answer()?.body == [1])
      #expect(asked.withLock { $0 } == (sizes + sizes).map { "/size/\($0)" })
      #expect(server.log.messages.contains("at once"))
    }
  }

  @Test(arguments: [1, 8184, 70_000, 5_000_000])
  func bodiesOfAnySizeArriveWhole(_ size: Int) async throws {
    try await TestServer.run { server in
      let client = try server.client()
      let body = (0..<size).map { UInt8(truncatingIfNeeded: $0 &* 31 &+ $0 >> 8) }
      try await client.send(Wire.request("POST", "/echo", body: body))
      #expect(try await client.answer()?.body == body)
    }
  }

  @Test func aBodyThatNobodyReadsDoesNotDisturbTheNextRequest() async throws {
    try await TestServer.run { server in
      let client = try server.client()
      try await client.send(Wire.request("POST", "/ignore", body: [UInt8](repeating: 1, count: 500_000)))
      #expect(try await client.answer()?.text == "ignored")
      try await client.send(Wire.request("GET", "/hello"))
      #expect(try await client.answer()?.text == "Hello you")
    }
  }

  @Test func anAnswerToHeadHasNoBody() async throws {
    try await TestServer.run(routes: { $0.head("/h") { _, _ in "body" } }) { server in
      let client = try server.client()
      try await client.send(Wire.request("HEAD", "/h"))
      let answer = try #require(try await client.answer())
      #expect(answer.status == 200)
      #expect(answer.fields.contains("Content-Length: 4"))
      #expect(answer.body.isEmpty)
    }
  }

  @Test func aFieldValueCannotForgeAnother() async throws {
    try await TestServer.run(routes: { router in
      router.get("/f") { _, _ in
        Response(status: .ok, headers: [.init("X-A")!: "b\r\nX-Forged: c\r\n\r\nbody"])
      }
    }) { server in
      let client = try server.client()
      try await client.send(Wire.request("GET", "/f"))
      let answer = try #require(try await client.answer())
      #expect(!answer.fields.contains { $0.hasPrefix("X-Forged") })
      #expect(answer.body.isEmpty)
    }
  }

  // MARK: Handlers that fail

  @Test func aHandlersErrorIsA500AndIsLogged() async throws {
    struct Broken: Error {}
    try await TestServer.run(routes: { $0.get("/b") { _, _ -> String in throw Broken() } }) { server in
      let client = try server.client()
      try await client.send(Wire.request("GET", "/b"))
      #expect(try await client.answer()?.status == 500)
      #expect(server.log.messages.contains("The handler failed"))
    }
  }

  @Test func aBodyThatBreaksOffHasNoEnd() async throws {
    struct Broken: Error {}
    try await TestServer.run(routes: { router in
      router.get("/b") { _, _ in
        Response(
          status: .ok,
          body: ResponseBody { writer in
            try await writer.write(ByteBuffer(string: "part"))
            throw Broken()
          })
      }
    }) { server in
      let client = try server.client()
      try await client.send(Wire.request("GET", "/b"))
      // The connection ends without an end of request, so nobody takes the part for the whole.
      #expect(try await client.answer() == nil)
    }
  }

  // MARK: Streams

  @Test func aStreamsHeadGoesOutBeforeItsFirstPart() async throws {
    let mayGoOn = Event()
    try await TestServer.run(routes: { router in
      router.get("/s") { _, _ in
        Response(
          status: .ok,
          body: ResponseBody { writer in
            await mayGoOn.wait()
            try await writer.write(ByteBuffer(string: "part"))
            try await writer.finish(nil)
          })
      }
    }) { server in
      let client = try server.client()
      try await client.send(Wire.request("GET", "/s"))
      let head = try #require(try await client.record())
      #expect(String(decoding: head.content, as: UTF8.self).hasPrefix("Status: 200 OK\r\n"))
      mayGoOn.happen()
      #expect(try await client.record()?.content == Array("part".utf8))
    }
  }

  @Test func aSlowReaderSuspendsTheWriterAndGetsEverything() async throws {
    let written = Mutex(0)
    let parts = 256
    let part = 64 << 10
    try await TestServer.run(routes: { router in
      router.get("/s") { _, _ in
        Response(
          status: .ok,
          body: ResponseBody { writer in
            for number in 0..<parts {
              try await writer.write(ByteBuffer(repeating: UInt8(truncatingIfNeeded: number), count: part))
              written.withLock { $0 += 1 }
            }
            try await writer.finish(nil)
          })
      }
    }) { server in
      let slow = try server.client()
      try await slow.send(Wire.request("GET", "/s"))
      _ = try await slow.record()
      // Others are served meanwhile, and when that has happened a hundred times the writer stands still.
      let other = try server.client()
      for _ in 0..<100 {
        try await other.send(Wire.request("GET", "/s/none"))
        #expect(try await other.answer()?.status == 404)
      }
      #expect(written.withLock { $0 } < 32)
      var received: [UInt8] = []
      while let record = try await slow.record(), record.type == 6 { received += record.content }
      #expect(received.count == parts * part)
      #expect((0..<parts).allSatisfy { received[$0 * part] == UInt8(truncatingIfNeeded: $0) })
    }
  }

  @Test func aReaderThatNeverReadsIsDisconnected() async throws {
    let failed = Event()
    try await TestServer.run(
      configure: { $0.writeTimeout = .milliseconds(100) },
      routes: { router in
        router.get("/s") { _, _ in
          Response(
            status: .ok,
            body: ResponseBody { writer in
              defer { failed.happen() }
              while true { try await writer.write(ByteBuffer(repeating: 0, count: 64 << 10)) }
            })
        }
      }
    ) { server in
      let client = try server.client()
      try await client.send(Wire.request("GET", "/s"))
      await failed.wait()
      #expect(server.log.messages.contains("Closed a connection whose output stood still"))
    }
  }

  // MARK: Peers that misbehave

  @Test(
    arguments: [
      [], [1], Array(Wire.begin().prefix(5)), Wire.begin(), Wire.begin() + Wire.record(4, [1, 2, 3]).prefix(9),
      Array(Wire.request("POST", "/echo", body: [1, 2, 3]).dropLast()),
    ] as [[UInt8]])
  func aPeerThatStopsHalfwayAndLeavesIsForgotten(_ bytes: [UInt8]) async throws {
    try await TestServer.run { server in
      let client = try server.client()
      try await client.send(bytes)
      client.hangUp()
      let other = try server.client()
      try await other.send(Wire.request("GET", "/hello"))
      #expect(try await other.answer()?.text == "Hello you")
    }
  }

  @Test func aHalfSentRequestIsWaitedForOnlySoLong() async throws {
    try await TestServer.run(configure: { $0.requestTimeout = .milliseconds(100) }) { server in
      let client = try server.client()
      try await client.send(Array(Wire.request("GET", "/hello").dropLast(3)))
      // Another request is served while the half one is waited for: waiting blocks nobody.
      let other = try server.client()
      try await other.send(Wire.request("GET", "/hello"))
      #expect(try await other.answer()?.text == "Hello you")
      #expect(try await client.receive().isEmpty)
      #expect(server.log.messages.contains("Closed a connection whose request did not arrive whole in time"))
    }
  }

  @Test(
    arguments: [
      Array("GET / HTTP/1.1\r\nHost: x\r\n\r\n".utf8), Wire.record(1, [0, 1, 1, 0, 0, 0, 0, 0], version: 9),
      Wire.begin() + Wire.record(5, [1]),
      Wire.begin() + Wire.record(4, [0xff, 0xff, 0xff, 0xff, 0xff]) + Wire.record(4),
    ] as [[UInt8]])
  func aPeerThatBreaksTheProtocolIsDisconnected(_ bytes: [UInt8]) async throws {
    try await TestServer.run { server in
      let client = try server.client()
      try await client.send(bytes)
      #expect(try await client.receive().isEmpty)
      let other = try server.client()
      try await other.send(Wire.request("GET", "/hello"))
      #expect(try await other.answer()?.text == "Hello you")
    }
  }

  @Test func aRoleOtherThanResponderIsRefused() async throws {
    try await TestServer.run { server in
      let client = try server.client()
      try await client.send(Wire.begin(role: 3))
      let record = try #require(try await client.record())
      #expect(record.type == 3)
      #expect(record.content[4] == 3)
    }
  }

  @Test func recordsOfOthersAreAnsweredAndDoNotDisturb() async throws {
    try await TestServer.run { server in
      let client = try server.client()
      let request = Wire.request("GET", "/hello")
      let begin = Wire.begin()
      let asked = Wire.pairs([("FCGI_MPXS_CONNS", ""), ("FCGI_MAX_REQS", ""), ("FCGI_OTHER", "")])
      try await client.send(
        Wire.record(9, asked, requestID: 0) + begin + Wire.begin(requestID: 2)
          + Wire.record(4, [9, 9], requestID: 2) + Wire.record(77, [1], requestID: 0) + request.dropFirst(begin.count))
      let values = try #require(try await client.record())
      #expect(values.type == 10)
      #expect(values.content == Wire.pairs([("FCGI_MPXS_CONNS", "0"), ("FCGI_MAX_REQS", "1024")]))
      let refused = try #require(try await client.record())
      #expect(refused.type == 3)
      #expect(refused.requestID == 2)
      #expect(refused.content[4] == 1)
      let unknown = try #require(try await client.record())
      #expect(unknown.type == 11)
      #expect(unknown.content.first == 77)
      #expect(try await client.answer()?.text == "Hello you")
    }
  }

  @Test func requestsOverTheirBoundsAreRefusedWithTheRightStatus() async throws {
    try await TestServer.run(configure: {
      $0.maximumParamsBytes = 10_000
      $0.maximumBodyBytes = 10_000
    }) { server in
      let header = try server.client()
      try await header.send(
        Wire.begin() + Wire.record(4, Wire.pairs([("HTTP_X", String(repeating: "x", count: 20_000))])))
      let tooLong = try #require(try await header.answer())
      #expect(tooLong.status == 431)
      #expect(tooLong.fields.contains("Content-Type: application/problem+json"))
      let body = try server.client()
      try await body.send(
        Wire.begin() + Wire.stream(4, Wire.pairs([("REQUEST_METHOD", "POST"), ("REQUEST_URI", "/echo")]))
          + Wire.record(5, [UInt8](repeating: 0, count: 10_001)))
      #expect(try await body.answer()?.status == 413)
    }
  }

  @Test(arguments: [false, true])
  func aPeerThatVanishesCancelsTheHandler(byAbort: Bool) async throws {
    let started = Event()
    let cancelled = Event()
    try await TestServer.run(routes: { router in
      router.get("/wait") { _, _ -> String in
        started.happen()
        await withTaskCancellationHandler {
          await cancelled.wait()
        } onCancel: {
          cancelled.happen()
        }
        return "late"
      }
    }) { server in
      let client = try server.client()
      try await client.send(Wire.request("GET", "/wait"))
      await started.wait()
      if byAbort {
        try await client.send(Wire.record(2))
        // The specification wants an end of request for an aborted one, too.
        #expect(try await client.answer()?.protocolStatus == 0)
      } else {
        client.hangUp()
      }
      await cancelled.wait()
    }
  }

  // MARK: Scarcity

  @Test func connectionsOverTheLimitWaitTheirTurn() async throws {
    try await TestServer.run(configure: { $0.maximumConnections = 2 }) { server in
      let first = try server.client()
      let second = try server.client()
      for client in [first, second] {
        try await client.send(Wire.request("GET", "/hello"))
        #expect(try await client.answer()?.status == 200)
      }
      let third = try server.client()
      try await third.send(Wire.request("GET", "/hello?name=third"))
      first.hangUp()
      #expect(try await third.answer()?.text == "Hello third")
    }
  }

  @Test func aFullBacklogRefusesAndRecovers() async throws {
    try await TestServer.run(configure: {
      $0.maximumConnections = 1
      $0.backlog = 1
    }) { server in
      let first = try server.client()
      try await first.send(Wire.request("GET", "/hello"))
      #expect(try await first.answer()?.status == 200)
      var waiting: [RawClient] = []
      while waiting.count < 10, let client = try? server.client() { waiting.append(client) }
      #expect(waiting.count < 10, "the backlog has no end")
      first.hangUp()
      let next = try #require(waiting.first)
      try await next.send(Wire.request("GET", "/hello"))
      #expect(try await next.answer()?.status == 200)
    }
  }

  /// In a process of its own, as the limit is the process's.
  @Test func withoutDescriptorsItPausesAndRecovers() async {
    await #expect(processExitsWith: .success) {
      try await TestServer.run { server in
        let probe = try server.client()
        try await probe.send(Wire.request("GET", "/hello"))
        guard try await probe.answer()?.status == 200 else { exit(2) }
        var limit = rlimit()
        getrlimit(__rlimit_resource_t(RLIMIT_NOFILE.rawValue), &limit)
        let spare = dup(0)
        close(spare)
        limit.rlim_cur = rlim_t(spare) + 3
        setrlimit(__rlimit_resource_t(RLIMIT_NOFILE.rawValue), &limit)
        // Each connection takes two descriptors of this process, so the last one can connect and not be accepted.
        var clients: [RawClient] = []
        while let client = try? server.client() { clients.append(client) }
        guard let last = clients.popLast() else { exit(3) }
        try await last.send(Wire.request("GET", "/hello?name=last"))
        while !server.log.messages.contains(where: { $0.hasPrefix("Accepting pauses") }) { await Task.yield() }
        // Requests on open connections go on.
        try await probe.send(Wire.request("GET", "/hello"))
        guard try await probe.answer()?.status == 200 else { exit(4) }
        let before = server.log.messages.count
        for client in clients { client.hangUp() }
        clients.removeAll()
        guard try await last.answer()?.text == "Hello last" else { exit(5) }
        // One message a pause of 100 ms; a spin would have logged thousands.
        guard server.log.messages.count - before < 50 else { exit(6) }
      }
    }
  }

  // MARK: Start and end

  @Test func aGracefulShutdownLetsRequestsEnd() async throws {
    let started = Event()
    let mayEnd = Event()
    try await TestServer.run(routes: { router in
      router.get("/wait") { _, _ in
        started.happen()
        await mayEnd.wait()
        return "done"
      }
    }) { server in
      let idle = try server.client()
      try await idle.send(Wire.request("GET", "/none"))
      #expect(try await idle.answer()?.status == 404)
      let client = try server.client()
      try await client.send(Wire.request("GET", "/wait"))
      await started.wait()
      await server.triggerGracefulShutdown()
      // The idle connection is to be closed (an empty record of the error stream), which shows that the shutdown has
      // begun.
      let closing: [UInt8] = [1, 7, 0, 1, 0, 0, 0, 0]
      #expect(try await idle.receive(atMost: 8) == closing)
      // A request that was sent at the same moment is answered all the same, and then there is the wish again.
      try await idle.send(Wire.request("GET", "/none"))
      #expect(try await idle.answer()?.status == 404)
      #expect(try await idle.receive(atMost: 8) == closing)
      idle.hangUp()
      mayEnd.happen()
      #expect(try await client.answer()?.text == "done")
      #expect(try await client.receive(atMost: 8) == closing)
      // Who doesn't heed it is closed on.
      #expect(try await client.receive().isEmpty)
    }
  }

  @Test func theHeartbeatComesFromTheThreadThatServes() async throws {
    let beats = AsyncStream.makeStream(of: Void.self)
    try await TestServer.run(configure: {
      $0.heartbeatInterval = .milliseconds(5)
      $0.onHeartbeat = { beats.continuation.yield() }
    }) { server in
      var count = 0
      for await _ in beats.stream {
        count += 1
        if count == 5 { break }
      }
      let client = try server.client()
      try await client.send(Wire.request("GET", "/hello"))
      #expect(try await client.answer()?.status == 200)
    }
  }

  @Test func aGracefulShutdownEndsInBoundedTime() async throws {
    let started = Event()
    let cancelled = Event()
    try await TestServer.run(
      configure: { $0.drainTimeout = .milliseconds(50) },
      routes: { router in
        router.get("/wait") { _, _ -> String in
          started.happen()
          await withTaskCancellationHandler {
            await cancelled.wait()
          } onCancel: {
            cancelled.happen()
          }
          return "late"
        }
      }
    ) { server in
      let client = try server.client()
      try await client.send(Wire.request("GET", "/wait"))
      await started.wait()
      await server.triggerGracefulShutdown()
      #expect(try await client.receive().isEmpty)
      await cancelled.wait()
    }
  }

  @Test func theSocketFileIsRemovedAtTheEnd() async throws {
    let path = try await TestServer.run { server in
      #expect(access(server.path, F_OK) == 0)
      return server.path
    }
    #expect(access(path, F_OK) != 0)
  }

  @Test func aStaleSocketFileIsReplaced() async throws {
    let directory = try makeDirectory()
    defer { removeDirectory(directory) }
    let path = directory + "/s"
    // What a killed server leaves: a socket file that nobody listens on.
    close(clinux_listen_unix(path, 1, 0o600))
    try await TestServer.run(address: .unixSocket(path: path, mode: 0o600)) { _ in
      let client = try RawClient(path: path)
      try await client.send(Wire.request("GET", "/hello"))
      #expect(try await client.answer()?.status == 200)
      let mode = try FileManager.default.attributesOfItem(atPath: path)[.posixPermissions] as? Int
      #expect(mode == 0o600)
    }
  }

  @Test func aSecondServerIsRefusedAndTheFirstUnharmed() async throws {
    try await TestServer.run { server in
      await #expect(throws: FastCGIServerError.addressInUse(server.path)) {
        try await TestServer.run(address: .unixSocket(path: server.path)) { _ in }
      }
      let client = try server.client()
      try await client.send(Wire.request("GET", "/hello"))
      #expect(try await client.answer()?.status == 200)
    }
  }

  @Test func aForeignServerOrFileIsLeftAlone() async throws {
    let directory = try makeDirectory()
    defer { removeDirectory(directory) }
    let path = directory + "/s"
    let foreign = clinux_listen_unix(path, 1, 0o600)
    await #expect(throws: FastCGIServerError.addressInUse(path)) {
      try await TestServer.run(address: .unixSocket(path: path)) { _ in }
    }
    close(foreign)
    let file = directory + "/f"
    close(open(file, O_CREAT | O_WRONLY, 0o600))
    await #expect(throws: FastCGIServerError.notASocket(file)) {
      try await TestServer.run(address: .unixSocket(path: file)) { _ in }
    }
    #expect(access(file, F_OK) == 0)
    let long = directory + "/" + String(repeating: "x", count: 120)
    await #expect(throws: FastCGIServerError.socketPathInvalid(long)) {
      try await TestServer.run(address: .unixSocket(path: long)) { _ in }
    }
  }

  @Test func anInheritedSocketKeepsWaitingConnectionsAcrossServers() async throws {
    let directory = try makeDirectory()
    defer { removeDirectory(directory) }
    let path = directory + "/s"
    let descriptor = clinux_listen_unix(path, 16, 0o600)
    defer { close(descriptor) }
    try await TestServer.run(address: .inherited(descriptor: descriptor)) { _ in
      let client = try RawClient(path: path)
      try await client.send(Wire.request("GET", "/hello"))
      #expect(try await client.answer()?.status == 200)
    }
    let waiting = try RawClient(path: path)
    try await waiting.send(Wire.request("GET", "/hello?name=waiting"))
    try await TestServer.run(address: .inherited(descriptor: descriptor)) { _ in
      let answer = try await waiting.answer()
      #expect(answer?.text == "Hello waiting")
    }
    await #expect(throws: FastCGIServerError.notListening(0)) {
      try await TestServer.run(address: .inherited(descriptor: 0)) { _ in }
    }
  }

  /// In a process of its own, as signal dispositions are the process's.
  @Test func theApplicationsSignalsStayItsOwn() async {
    await #expect(processExitsWith: .success) {
      signal(SIGTERM, SIG_IGN)
      try await TestServer.run { _ in }
      raise(SIGTERM)
      raise(SIGPIPE)
      try await TestServer.run { server in
        let client = try server.client()
        try await client.send(Wire.request("GET", "/hello"))
        guard try await client.answer()?.status == 200 else { exit(2) }
      }
    }
  }
}

import CLinux
import DequeModule
import Glibc
import HTTPTypes
import Hummingbird
import Logging
import NIOCore

/// What all connections of a server share.
///
/// `@unchecked`: it is made by the server and from then on touched only by the listener and its connections,
/// actors whose executor is the reactor.
final class ConnectionEnvironment: @unchecked Sendable {
  let configuration: FastCGIServerConfiguration
  let library: LibFCGI
  let respondImmediately: ImmediateResponder
  let respond: @Sendable (Request, FastCGIRequestContextSource) async throws -> Response
  let logger: Logger
  /// Bytes are received here first, so that a connection at rest needs no buffer.
  let receiveBuffer: UnsafeMutableRawBufferPointer
  var connections: [ObjectIdentifier: Connection] = [:]
  var connectionClosed: () -> Void = {}
  private var lastRequest: UInt64 = 0

  init(
    configuration: FastCGIServerConfiguration, library: LibFCGI, logger: Logger,
    respondImmediately: @escaping ImmediateResponder,
    respond: @escaping @Sendable (Request, FastCGIRequestContextSource) async throws -> Response
  ) {
    self.configuration = configuration
    self.library = library
    self.logger = logger
    self.respondImmediately = respondImmediately
    self.respond = respond
    receiveBuffer = .allocate(byteCount: 64 << 10, alignment: 16)
  }

  deinit {
    receiveBuffer.deallocate()
  }

  func nextRequestNumber() -> UInt64 {
    lastRequest += 1
    return lastRequest
  }
}

/// A writer's connection is gone: the web server closed it, it stood still for too long, or the server shut down.
struct ConnectionClosed: Error {}

/// One connection of the web server, which carries one request after the other.
actor Connection: Reactor.Handler {
  private enum State {
    /// Between requests, or with a part of one.
    case reading
    /// A request's task is running.
    case answering(Exchange)
    case closed
  }

  /// A request and what has become of its answer.
  private struct Exchange {
    let number: UInt64
    let requestID: UInt16
    let keepsConnection: Bool
    var task: Task<Void, Never>?
    /// libfcgi's part, until the answer turns out to be no ordinary one.
    var open: LibFCGI.OpenRequest?
    var isEnded = false
  }

  /// Answers up to here are written by libfcgi in one go. Well below the send buffer of a socket, of which half
  /// may go to the kernel's own accounts.
  private static let ordinaryAnswerBytes = 32 << 10
  /// What is read ahead of the running request's end.
  private static let readAheadBytes = 64 << 10
  private static let sendTimeoutSeconds: UInt32 = 5
  /// How long a web server that was asked to close a connection at rest may take. On a busy machine it may not have
  /// looked at it for a while, and what it sends at the end of this time is lost.
  private static let closingTimeout = Duration.seconds(5)
  private static let requestIDKey = "hb.request.id"

  private let reactor: Reactor
  private let taskExecutor: ReactorTaskExecutor
  private let descriptor: CInt
  private let environment: ConnectionEnvironment
  private var registration: Reactor.Registration?
  private var state = State.reading
  private var scanner: RecordScanner
  private var input = ByteBuffer()
  private var isReadPaused = false
  private var requestTimer: Reactor.TimerID?
  private var output: Deque<ByteBuffer> = []
  private var outputBytes = 0
  private var isWaitingForRoom = false
  private var writeTimer: Reactor.TimerID?
  private var writers: [(id: UInt64, continuation: CheckedContinuation<Void, any Error>)] = []
  private var lastWriter: UInt64 = 0
  private var closesWhenSent = false
  private var isDraining = false
  private var closingTimer: Reactor.TimerID?
  /// The id of the latest request; web servers use the same one for all.
  private var lastRequestID: UInt16 = 1

  nonisolated var unownedExecutor: UnownedSerialExecutor { reactor.asUnownedSerialExecutor() }

  /// Takes over `descriptor`. To be called on the reactor's thread.
  init(
    descriptor: CInt, reactor: Reactor, taskExecutor: ReactorTaskExecutor, environment: ConnectionEnvironment
  ) {
    self.descriptor = descriptor
    self.reactor = reactor
    self.taskExecutor = taskExecutor
    self.environment = environment
    scanner = RecordScanner(
      maximumParamsBytes: environment.configuration.maximumParamsBytes,
      maximumBodyBytes: environment.configuration.maximumBodyBytes)
  }

  func open() throws(FastCGIServerError) {
    guard clinux_set_send_timeout(descriptor, Self.sendTimeoutSeconds) == 0 else {
      throw .system(operation: "setsockopt", errno: errno)
    }
    registration = try reactor.addEdgeTriggered(descriptor, handler: self)
    environment.connections[ObjectIdentifier(self)] = self
  }

  nonisolated func descriptorReady(_ events: UInt32) {
    assumeIsolated { $0.ready(events) }
  }

  private func ready(_ events: UInt32) {
    let output = UInt32(CLINUX_EPOLLOUT)
    if events & output != 0, outputBytes > 0 { flush() }
    if events & ~output != 0 { receive(isReport: true) }
  }

  // MARK: Requests in

  /// Reads what has come. What came with a report is worked on when all connections that are ready have been read.
  private func receive(isReport: Bool = false) {
    let buffer = environment.receiveBuffer
    guard let start = buffer.baseAddress else { return }
    while true {
      switch state {
      case .closed: return
      case .answering where input.readableBytes >= Self.readAheadBytes:
        isReadPaused = true
        return
      case .reading, .answering: break
      }
      let count = clinux_recv_nowait(descriptor, start, buffer.count)
      guard count > 0 else {
        if count < 0, errno == EAGAIN { return }
        // The web server has gone, and with it the client as far as this request is concerned.
        close()
        return
      }
      input.writeBytes(UnsafeRawBufferPointer(rebasing: buffer[..<count]))
      // A short read has emptied the socket; what comes later is reported.
      let isEmptied = count < buffer.count
      if case .answering = state {
        watchForAbort()
      } else if isEmptied, isReport {
        reactor.afterReading { self.assumeIsolated { $0.scanInput() } }
      } else {
        scanInput()
      }
      if isEmptied { return }
    }
  }

  private func scanInput() {
    while case .reading = state, input.readableBytes > 0 {
      switch input.withUnsafeReadableBytes({ scanner.scan($0) }) {
      case .incomplete:
        startRequestTimer()
        return
      case .complete(let length):
        start(length: length)
      case .foreign(let record, let offset):
        cutForeign(record, at: offset)
      case .aborted:
        endUnanswered(status: FastCGI.ProtocolStatus.requestComplete)
      case .unknownRole:
        endUnanswered(status: FastCGI.ProtocolStatus.unknownRole)
      case .paramsTooLarge:
        refuse(.requestHeaderFieldsTooLarge, "The request's header fields are too large.")
      case .bodyTooLarge:
        refuse(.contentTooLarge, "The request's body is too large.")
      case .violation(let violation):
        environment.logger.warning(
          "Closed a connection that breaks the protocol", metadata: ["violation": "\(violation)"])
        close()
      }
    }
  }

  /// Answers a record that isn't part of the request and takes it out of the input.
  private func cutForeign(_ record: RecordScanner.ForeignRecord, at offset: Int) {
    var answer = ByteBuffer()
    let length = input.withUnsafeReadableBytes { bytes in
      switch record {
      case .multiplexed(let requestID):
        answer.writeEndRequest(requestID: requestID, status: FastCGI.ProtocolStatus.cannotMultiplex)
      case .management(FastCGI.RecordType.getValues, let start, let length):
        answer.writeValues(askedForIn: UnsafeRawBufferPointer(rebasing: bytes[start..<start + length]))
      case .management(let type, _, _):
        answer.writeFastCGIHeader(type: FastCGI.RecordType.unknownType, requestID: 0, contentLength: 8)
        answer.writeMultipleIntegers(type, 0 as UInt8, 0 as UInt16, 0 as UInt32)
      case .stray:
        break
      }
      return RecordHeader(bytes, at: offset).length
    }
    var rest = ByteBuffer()
    rest.writeImmutableBuffer(input.getSlice(at: input.readerIndex, length: offset) ?? ByteBuffer())
    input.moveReaderIndex(forwardBy: offset + length)
    rest.writeBuffer(&input)
    input = rest
    scanner.removed(length)
    if answer.readableBytes > 0 { send(answer) }
  }

  /// While a request is being answered the only thing to look for is that the web server gives it up.
  private func watchForAbort() {
    guard case .answering(let exchange) = state, input.readableBytes >= FastCGI.headerLength else { return }
    let header = input.withUnsafeReadableBytes { RecordHeader($0, at: 0) }
    if header.type == FastCGI.RecordType.abortRequest, header.requestID == exchange.requestID {
      input.moveReaderIndex(forwardBy: min(header.length, input.readableBytes))
      exchange.task?.cancel()
    }
  }

  private func start(length: Int) {
    cancelTimer(&requestTimer)
    cancelTimer(&closingTimer)
    lastRequestID = scanner.requestID
    let decoded: LibFCGI.DecodedRequest
    do {
      decoded = try input.withUnsafeReadableBytes {
        try environment.library.decode(UnsafeRawBufferPointer(rebasing: $0[..<length]))
      }
    } catch {
      environment.logger.error("Closed a connection: its request can't be decoded", metadata: ["error": "\(error)"])
      return close()
    }
    input.moveReaderIndex(forwardBy: length)
    // A connection at rest holds no buffer.
    if input.readableBytes == 0 { input = ByteBuffer() }
    let number = environment.nextRequestNumber()
    var exchange = Exchange(
      number: number, requestID: scanner.requestID, keepsConnection: scanner.keepsConnection,
      open: decoded.open)
    func makeLogger() -> Logger {
      var logger = environment.logger
      logger[metadataKey: Self.requestIDKey] = .string(decoded.parameters["REQUEST_ID"] ?? String(number))
      return logger
    }
    if decoded.body.readableBytes == 0,
      let answer = environment.respondImmediately(decoded.head, decoded.parameters, makeLogger)
    {
      state = .answering(exchange)
      let head = ByteBuffer(responseHead: answer.status, answer.headers, contentLength: answer.body.readableBytes)
      reactor.afterRound { self.assumeIsolated { $0.send(number, head, answer.body) } }
      return
    }
    let request = Request(head: decoded.head, body: RequestBody(buffer: decoded.body))
    let source = FastCGIRequestContextSource(logger: makeLogger(), parameters: decoded.parameters)
    // Not isolated to this actor: the handler runs on the reactor's thread all the same, and each change between the
    // two executors costs a turn in its queue.
    exchange.task = Task.detached(executorPreference: taskExecutor) { [respond = environment.respond] in
      await self.answer(number, request, source, respond)
    }
    state = .answering(exchange)
  }

  /// Ends a request that has no handler's task.
  private func endUnanswered(status: UInt8) {
    var end = ByteBuffer()
    end.writeEndRequest(requestID: scanner.requestID, status: status)
    send(end)
    closeWhenSent()
  }

  /// Answers a request that is over its bounds. The connection is closed, as the rest of it is not wanted.
  private func refuse(_ status: HTTPResponse.Status, _ detail: String) {
    let body = """
      {"type":"about:blank","title":"\(status.reasonPhrase)","status":\(status.code),"detail":"\(detail)"}
      """
    let response = Response(
      status: status,
      headers: [.contentType: "application/problem+json", .contentLength: String(body.utf8.count)])
    var output = ByteBuffer()
    output.writeStdout(ByteBuffer(responseHead: response.status, response.headers), requestID: scanner.requestID)
    output.writeStdout(ByteBuffer(string: body), requestID: scanner.requestID)
    output.writeFastCGIHeader(type: FastCGI.RecordType.stdout, requestID: scanner.requestID, contentLength: 0)
    output.writeEndRequest(requestID: scanner.requestID, status: FastCGI.ProtocolStatus.requestComplete)
    send(output)
    closeWhenSent()
  }

  // MARK: Answers

  private nonisolated func answer(
    _ number: UInt64, _ request: Request, _ source: FastCGIRequestContextSource,
    _ respond: @Sendable (Request, FastCGIRequestContextSource) async throws -> Response
  ) async {
    do {
      let response = try await respond(request, source)
      if request.method == .head {
        await send(number, ByteBuffer(responseHead: response.status, response.headers))
      } else if let length = response.body.contentLength, length <= Self.ordinaryAnswerBytes {
        let writer = CollectingWriter(limit: length)
        try await response.body.write(writer)
        await send(number, ByteBuffer(responseHead: response.status, response.headers), writer.body)
      } else {
        let requestID = source.logger[metadataKey: Self.requestIDKey]
        await startStream(number, response, requestID)
      }
    } catch {
      // A cancelled handler's failure is the consequence of its client's departure.
      if !Task.isCancelled {
        source.logger.error("The handler failed", metadata: ["error": "\(error)"])
      }
      await send(number, ByteBuffer(responseHead: .internalServerError, [:]))
    }
  }

  /// Sends the head at once, so that a stream's client learns that it is connected before the first event, and has
  /// the body written by a task of its own: that of the handler has been through the whole application, and what it
  /// took for that it would keep to its end.
  private func startStream(_ number: UInt64, _ response: Response, _ requestID: Logger.MetadataValue?) {
    guard case .answering(var exchange) = state, exchange.number == number else { return }
    park(&exchange)
    let body = response.body
    // Not detached: it goes on with the values of the handler's task.
    exchange.task = Task(executorPreference: taskExecutor) { await self.stream(number, body, requestID) }
    state = .answering(exchange)
    sendStdout(ByteBuffer(responseHead: response.status, response.headers), exchange.requestID)
  }

  private nonisolated func stream(
    _ number: UInt64, _ body: ResponseBody, _ requestID: Logger.MetadataValue?
  ) async {
    do {
      try await body.write(BodyWriter(connection: self, number: number))
      // A body that forgets to finish must not leave the client waiting.
      await endStream(number)
    } catch {
      report(error, requestID)
      // What has been sent can't be taken back. Without an end of request the web server knows that it's torn.
      await abort(number)
    }
  }

  /// Apart from its caller, whose frame every stream holds.
  @inline(never)
  private nonisolated func report(_ error: any Error, _ requestID: Logger.MetadataValue?) {
    if error is ConnectionClosed || Task.isCancelled { return }
    environment.logger.error(
      "The body of an answer failed", metadata: ["error": "\(error)", Self.requestIDKey: requestID ?? "-"])
  }

  /// Sends a whole answer.
  ///
  /// Its callers come here through the reactor's queue, or after its round, and that is as well: of the requests that
  /// arrived together, all are worked out before the first answer wakes the web server, which then finds many.
  private func send(_ number: UInt64, _ head: ByteBuffer, _ body: ByteBuffer = ByteBuffer()) {
    guard case .answering(var exchange) = state, exchange.number == number, !exchange.isEnded else { return }
    exchange.isEnded = true
    let isOrdinary =
      head.readableBytes + body.readableBytes <= Self.ordinaryAnswerBytes && outputBytes == 0
      && clinux_unsent_bytes(descriptor) == 0
    if isOrdinary, let open = exchange.open {
      exchange.open = nil
      state = .answering(exchange)
      guard environment.library.answer(open, on: descriptor, head, body) else { return close() }
      return next(exchange)
    }
    park(&exchange)
    state = .answering(exchange)
    sendStdout(head, exchange.requestID)
    sendStdout(body, exchange.requestID)
    sendEnd(exchange)
  }

  /// Leaves libfcgi: from here on the answer is written by this file, and a stream at rest costs no buffers.
  private func park(_ exchange: inout Exchange) {
    guard let open = exchange.open else { return }
    environment.library.release(open)
    exchange.open = nil
  }

  /// Sends a part of a streamed body; suspends while too much is unsent.
  fileprivate nonisolated func write(_ number: UInt64, _ buffer: ByteBuffer) async throws {
    // The task that writes is on the reactor's thread, unless the body has started one of its own.
    let isFull: Bool
    if let atOnce = try sendPartAtOnce(number, buffer) {
      isFull = atOnce
    } else {
      isFull = try await sendPart(number, buffer)
    }
    if isFull { try await waitUntilSent() }
  }

  /// Nil if this isn't the reactor's thread.
  private nonisolated func sendPartAtOnce(_ number: UInt64, _ buffer: ByteBuffer) throws -> Bool? {
    reactor.isOnThread ? try assumeIsolated { try $0.sendPart(number, buffer) } : nil
  }

  /// Returns whether so much is unsent that the writer should wait.
  private func sendPart(_ number: UInt64, _ buffer: ByteBuffer) throws -> Bool {
    guard case .answering(let exchange) = state, exchange.number == number, !exchange.isEnded else {
      throw ConnectionClosed()
    }
    sendStdout(buffer, exchange.requestID)
    return isClosed || outputBytes > environment.configuration.outputHighWater
  }

  fileprivate func endStream(_ number: UInt64) {
    guard case .answering(var exchange) = state, exchange.number == number, !exchange.isEnded else { return }
    exchange.isEnded = true
    state = .answering(exchange)
    sendEnd(exchange)
  }

  private func sendEnd(_ exchange: Exchange) {
    var end = ByteBuffer()
    end.writeFastCGIHeader(type: FastCGI.RecordType.stdout, requestID: exchange.requestID, contentLength: 0)
    end.writeEndRequest(requestID: exchange.requestID, status: FastCGI.ProtocolStatus.requestComplete)
    send(end)
    next(exchange)
  }

  private func abort(_ number: UInt64) {
    guard case .answering(let exchange) = state, exchange.number == number else { return }
    close()
  }

  private func next(_ exchange: Exchange) {
    guard !isClosed else { return }
    guard exchange.keepsConnection else { return closeWhenSent() }
    scanner = RecordScanner(
      maximumParamsBytes: environment.configuration.maximumParamsBytes,
      maximumBodyBytes: environment.configuration.maximumBodyBytes)
    state = .reading
    scanInput()
    if isReadPaused {
      isReadPaused = false
      receive()
    }
    if isDraining { askForClosing() }
  }

  // MARK: Bytes out

  private func sendStdout(_ content: ByteBuffer, _ requestID: UInt16) {
    var content = content
    while content.readableBytes > 0, !isClosed {
      let length = min(content.readableBytes, FastCGI.maximumContentLength)
      var header = ByteBuffer()
      header.writeFastCGIHeader(type: FastCGI.RecordType.stdout, requestID: requestID, contentLength: length)
      guard let part = content.readSlice(length: length) else { return }
      send(header, part)
    }
  }

  private func send(_ head: ByteBuffer, _ body: ByteBuffer = ByteBuffer()) {
    guard !isClosed else { return }
    let isIdle = outputBytes == 0
    for part in [head, body] where part.readableBytes > 0 {
      output.append(part)
      outputBytes += part.readableBytes
    }
    if isIdle { flush() }
  }

  /// Sends what the socket takes; the rest follows when it reports that there is room.
  private func flush() {
    var hasProgress = false
    while let first = output.first {
      let second = output.count > 1 ? output[1] : ByteBuffer()
      let count = first.withUnsafeReadableBytes { head in
        second.withUnsafeReadableBytes { body in
          clinux_send2_nowait(descriptor, head.baseAddress, head.count, body.baseAddress, body.count)
        }
      }
      guard count >= 0 else {
        if errno == EAGAIN { break }
        return close()
      }
      hasProgress = true
      outputBytes -= count
      if count < first.readableBytes {
        output[0].moveReaderIndex(forwardBy: count)
      } else {
        output.removeFirst()
        let rest = count - first.readableBytes
        if rest == second.readableBytes {
          if second.readableBytes > 0 { output.removeFirst() }
        } else {
          output[0].moveReaderIndex(forwardBy: rest)
        }
      }
    }
    if isWaitingForRoom != (outputBytes > 0), let registration {
      isWaitingForRoom.toggle()
      reactor.setOutput(registration, enabled: isWaitingForRoom)
    }
    if outputBytes == 0 {
      cancelTimer(&writeTimer)
      if closesWhenSent { return close() }
    } else if hasProgress || writeTimer == nil {
      cancelTimer(&writeTimer)
      writeTimer = reactor.schedule(after: environment.configuration.writeTimeout) { [weak self] in
        self?.assumeIsolated { $0.writeTimedOut() }
      }
    }
    if outputBytes <= environment.configuration.outputHighWater { resumeWriters(.success(())) }
  }

  private func writeTimedOut() {
    environment.logger.notice(
      "Closed a connection whose output stood still", metadata: ["unsent_bytes": "\(outputBytes)"])
    close()
  }

  private func waitUntilSent() async throws {
    if isClosed { throw ConnectionClosed() }
    guard outputBytes > environment.configuration.outputHighWater else { return }
    lastWriter += 1
    let id = lastWriter
    try await withTaskCancellationHandler {
      try await withCheckedThrowingContinuation { (continuation: CheckedContinuation<Void, any Error>) in
        if Task.isCancelled {
          continuation.resume(throwing: CancellationError())
        } else {
          writers.append((id, continuation))
        }
      }
    } onCancel: {
      Task(executorPreference: taskExecutor) { await self.cancelWriter(id) }
    }
  }

  private func cancelWriter(_ id: UInt64) {
    guard let index = writers.firstIndex(where: { $0.id == id }) else { return }
    writers.remove(at: index).continuation.resume(throwing: CancellationError())
  }

  private func resumeWriters(_ result: Result<Void, any Error>) {
    guard !writers.isEmpty else { return }
    let waiting = writers
    writers = []
    for writer in waiting { writer.continuation.resume(with: result) }
  }

  // MARK: End

  private var isClosed: Bool {
    if case .closed = state { return true }
    return false
  }

  private func startRequestTimer() {
    guard requestTimer == nil else { return }
    requestTimer = reactor.schedule(after: environment.configuration.requestTimeout) { [weak self] in
      self?.assumeIsolated { $0.requestTimedOut() }
    }
  }

  private func requestTimedOut() {
    environment.logger.notice("Closed a connection whose request did not arrive whole in time")
    close()
  }

  private func cancelTimer(_ timer: inout Reactor.TimerID?) {
    guard let id = timer else { return }
    reactor.cancel(id)
    timer = nil
  }

  private func closeWhenSent() {
    guard !isClosed else { return }
    if outputBytes == 0 {
      close()
    } else {
      closesWhenSent = true
    }
  }

  /// Ends the connection now. A request that is being answered loses its peer: its task is cancelled.
  func close() {
    guard !isClosed else { return }
    if case .answering(let exchange) = state {
      if let open = exchange.open { environment.library.release(open) }
      // After its end a request's task has nothing left to do but to return.
      if !exchange.isEnded { exchange.task?.cancel() }
    }
    state = .closed
    cancelTimer(&requestTimer)
    cancelTimer(&writeTimer)
    cancelTimer(&closingTimer)
    if let registration { reactor.remove(registration) }
    Glibc.close(descriptor)
    input = ByteBuffer()
    output = []
    outputBytes = 0
    resumeWriters(.failure(ConnectionClosed()))
    environment.connections[ObjectIdentifier(self)] = nil
    environment.connectionClosed()
  }

  /// Lets a running request end, and has the web server close the connection when it is at rest.
  func drain() {
    isDraining = true
    askForClosing()
  }

  /// Asks the web server to close the connection if it is at rest, as far as can be seen from here.
  ///
  /// Closing it from this side would lose a request that the web server is just writing. An empty record of the
  /// error stream doesn't: nginx closes an idle connection on which anything arrives, and one that has sent a request
  /// passes such a record over and gets its answer. Who does neither is closed on after a while.
  private func askForClosing() {
    guard case .reading = state, input.readableBytes == 0, closingTimer == nil else { return }
    var record = ByteBuffer()
    record.writeFastCGIHeader(type: FastCGI.RecordType.stderr, requestID: lastRequestID, contentLength: 0)
    send(record)
    guard !isClosed else { return }
    closingTimer = reactor.schedule(after: Self.closingTimeout) { [weak self] in
      self?.assumeIsolated { $0.closeAtRest() }
    }
  }

  private func closeAtRest() {
    closingTimer = nil
    // What has come since the descriptors were looked at has not been reported yet.
    receive()
    // With a part of a request it has the time that a request has.
    if case .reading = state, input.readableBytes == 0 { close() }
  }
}

/// Keeps a short body, which is written whole.
private final class CollectingWriter: ResponseBodyWriter {
  struct LongerThanDeclared: Error {}

  private let limit: Int
  private(set) var body = ByteBuffer()

  init(limit: Int) {
    self.limit = limit
  }

  func write(_ buffer: ByteBuffer) throws {
    guard body.readableBytes + buffer.readableBytes <= limit else { throw LongerThanDeclared() }
    if body.readableBytes == 0 { body = buffer } else { body.writeImmutableBuffer(buffer) }
  }

  func finish(_ trailingHeaders: HTTPFields?) {}
}

/// Writes the body of one answer.
private struct BodyWriter: ResponseBodyWriter {
  let connection: Connection
  let number: UInt64

  func write(_ buffer: ByteBuffer) async throws {
    try await connection.write(number, buffer)
  }

  consuming func finish(_ trailingHeaders: HTTPFields?) async throws {
    // FastCGI has no trailers.
    await connection.endStream(number)
  }
}

extension ByteBuffer {
  /// The head of an answer in CGI's form (RFC 3875, section 6).
  fileprivate init(responseHead status: HTTPResponse.Status, _ headers: HTTPFields, contentLength: Int? = nil) {
    self.init()
    reserveCapacity(1024)
    write("Status: ", String(status.code), " ", status.reasonPhrase)
    // HTTPField lets no line breaks into names and values, so a field can't forge another.
    for field in headers { write(field.name.rawName, ": ", field.value, "") }
    if let contentLength { write("Content-Length: ", String(contentLength), "", "") }
    writeString("\r\n")
  }

  /// A line of texts, at once, which takes less than each by itself.
  private mutating func write(_ first: String, _ second: String, _ third: String, _ fourth: String) {
    let length = first.utf8.count + second.utf8.count + third.utf8.count + fourth.utf8.count + 2
    writeWithUnsafeMutableBytes(minimumWritableBytes: length) { bytes in
      var end = 0
      func put(_ text: String) {
        var text = text
        text.withUTF8 { text in
          UnsafeMutableRawBufferPointer(rebasing: bytes[end...]).copyMemory(from: UnsafeRawBufferPointer(text))
          end += text.count
        }
      }
      put(first)
      put(second)
      put(third)
      put(fourth)
      bytes[end] = UInt8(ascii: "\r")
      bytes[end + 1] = UInt8(ascii: "\n")
      return end + 2
    }
  }

  fileprivate mutating func writeStdout(_ content: ByteBuffer, requestID: UInt16) {
    writeFastCGIHeader(
      type: FastCGI.RecordType.stdout, requestID: requestID, contentLength: content.readableBytes)
    writeImmutableBuffer(content)
  }

  /// The answer to FCGI_GET_VALUES: one request at a time on a connection. Names and values are shorter than 128
  /// bytes in all that the specification knows; others are ignored as it asks for.
  fileprivate mutating func writeValues(askedForIn content: UnsafeRawBufferPointer) {
    var pairs = ByteBuffer()
    var rest = content[...]
    while rest.count >= 2, let nameLength = rest.popFirst(), let valueLength = rest.popFirst(),
      nameLength < 128, valueLength < 128, rest.count >= Int(nameLength) + Int(valueLength)
    {
      let name = String(decoding: rest.prefix(Int(nameLength)), as: UTF8.self)
      rest = rest.dropFirst(Int(nameLength) + Int(valueLength))
      let value: String
      switch name {
      case "FCGI_MPXS_CONNS": value = "0"
      case "FCGI_MAX_CONNS", "FCGI_MAX_REQS": value = "1024"
      default: continue
      }
      pairs.writeMultipleIntegers(UInt8(name.utf8.count), UInt8(value.utf8.count))
      pairs.writeString(name + value)
    }
    writeFastCGIHeader(
      type: FastCGI.RecordType.getValuesResult, requestID: 0, contentLength: pairs.readableBytes)
    writeBuffer(&pairs)
  }
}

import HTTPTypes
public import Hummingbird
import JSONSupport
public import Logging
import NIOCore

/// A scripted stand-in for the Messages API, on loopback only.
///
/// It answers what it was told, so that a conversation with the real CLI can be seen to work, and does what
/// the `[[…]]` directives of the latest prompt say:
///
/// - `[[say TEXT]]`: answer exactly TEXT.
/// - `[[tool NAME {json}]]`: call a tool; several in one prompt are parallel calls. The next answer is the text
///   of the results.
/// - `[[then]]`: what follows is for the next request of the same turn, so `[[tool …]] [[then]] [[tool …]]` is
///   two calls one after the other.
/// - `[[json {…}]]`: structured output (the CLI's tool for it, or plain text if it isn't offered).
/// - `[[thinking TEXT]]`: a thinking block first; TEXT may be left out.
/// - `[[chunks N delay 100ms]]`: the text in N pieces, with a pause before each one.
/// - `[[delay 2s]]`: a pause before the first byte.
/// - `[[usage in 100 out 50]]`: report these tokens.
/// - `[[error STATUS retry-after SECONDS times N]]`: fail; `retry-after` and `times` may be left out, and
///   without `times` it fails always.
/// - `[[hang times N]]`: never answer; `[[stall times N]]`: start to and fall silent; `[[cut times N]]`: start to
///   and break the connection. `times` may be left out.
///
/// Only the latest prompt counts; what the CLI adds in `<system-reminder>` blocks is ignored, and so is what it
/// asks for itself. A directive that makes no sense is answered with 400 and the reason.
public struct DemoModelServer: Sendable {
  private let state = ScriptState()

  public init() {}

  /// The HTTP application, ready to run as a service.
  ///
  /// - Parameters:
  ///   - port: on 127.0.0.1; 0 lets the system choose.
  ///   - onRunning: called once with the port, when connections are accepted.
  public func application(
    port: Int, logger: Logger, onRunning: @escaping @Sendable (Int) async -> Void = { _ in }
  ) -> some ApplicationProtocol {
    let router = Router()
    router.post("v1/messages") { request, _ in await respond(to: request) }
    router.post("v1/messages/count_tokens") { request, _ in await countTokens(request) }
    router.get("/") { _, _ in Response(status: .ok) }
    router.head("/") { _, _ in Response(status: .ok) }
    router.add(middleware: NotFoundMiddleware())
    return Application(
      router: router,
      configuration: .init(address: .hostname("127.0.0.1", port: port), serverName: "demo-model"),
      onServerRunning: { channel in await onRunning(channel.localAddress?.port ?? port) },
      logger: logger)
  }

  private func respond(to request: Request) async -> Response {
    let isFromCLI = request.headers[.userAgent]?.hasPrefix("claude-cli") ?? false
    do {
      let message = try await readMessage(request)
      let serial = await state.nextSerial()
      if isFromCLI && message.toolNames.isEmpty {
        let reply = Reply(toBackground: message, serial: serial)
        return deliver(reply, step: Step(), fault: nil, isStreaming: message.isStreaming)
      }
      let script: Script
      do {
        script = try Script(prompt: message.prompts.last ?? "")
      } catch {
        throw RequestError("directive \(error)")
      }
      let step = script.step(after: message.answersInTurn)
      let fault = await state.fault(of: step, in: message)
      try await Task.sleep(for: fault == .hang ? Self.silence : step.delay)
      if case .error(let status, let retryAfter) = fault {
        return Self.errorResponse(status: status, message: "scripted failure", retryAfter: retryAfter)
      }
      let reply = Reply(to: message, step: step, serial: serial)
      return deliver(reply, step: step, fault: fault, isStreaming: message.isStreaming)
    } catch let error as RequestError {
      return Self.errorResponse(status: 400, message: error.message)
    } catch {
      return Self.errorResponse(status: 500, message: "\(error)")
    }
  }

  private func countTokens(_ request: Request) async -> Response {
    do {
      let message = try await readMessage(request)
      return Self.jsonResponse(["input_tokens": .int(Int64(message.cachedTokens + message.newTokens))])
    } catch let error as RequestError {
      return Self.errorResponse(status: 400, message: error.message)
    } catch {
      return Self.errorResponse(status: 500, message: "\(error)")
    }
  }

  private func readMessage(_ request: Request) async throws -> MessagesRequest {
    let buffer = try await request.body.collect(upTo: 64 << 20)
    let body: JSONValue
    do {
      body = try JSONValue(parsing: buffer.readableBytesView)
    } catch {
      throw RequestError("\(error)")
    }
    return try MessagesRequest(body)
  }

  private func deliver(
    _ reply: Reply, step: Step, fault: Step.Fault?, isStreaming: Bool
  ) -> Response {
    guard isStreaming || fault != nil else { return Self.jsonResponse(reply.message) }
    let encoder = EventStreamEncoder(
      reply: reply, chunkCount: step.chunkCount, chunkDelay: step.chunkDelay)
    let events = encoder.events
    return Response(
      status: .ok,
      headers: [.contentType: "text/event-stream", .cacheControl: "no-cache"],
      body: ResponseBody { writer in
        let sent = fault == nil ? events[...] : events.prefix(max(2, events.count / 2))
        for event in sent {
          if event.pause > .zero { try await Task.sleep(for: event.pause) }
          try await writer.write(ByteBuffer(bytes: event.bytes))
        }
        if fault == .stall { try await Task.sleep(for: Self.silence) }
        if fault != nil { throw ScriptedCut() }
        try await writer.finish(nil)
      })
  }

  /// How long a hanging answer hangs: longer than any client waits, but not for ever, as the connection is
  /// held meanwhile.
  private static let silence = Duration.seconds(900)

  private static func jsonResponse(
    _ value: JSONValue, status: HTTPResponse.Status = .ok, headers: HTTPFields = [:]
  ) -> Response {
    var headers = headers
    headers[.contentType] = "application/json"
    return Response(
      status: status, headers: headers, body: ResponseBody(byteBuffer: ByteBuffer(bytes: value.encoded())))
  }

  static func errorResponse(status: Int, message: String, retryAfter: Int? = nil) -> Response {
    var headers: HTTPFields = [:]
    if let retryAfter { headers[.retryAfter] = String(retryAfter) }
    return jsonResponse(
      ["type": "error", "error": ["type": .string(errorType(status)), "message": .string(message)]],
      status: HTTPResponse.Status(code: status), headers: headers)
  }

  private static func errorType(_ status: Int) -> String {
    switch status {
    case 400: "invalid_request_error"
    case 401: "authentication_error"
    case 403: "permission_error"
    case 404: "not_found_error"
    case 413: "request_too_large"
    case 429: "rate_limit_error"
    case 529: "overloaded_error"
    default: "api_error"
    }
  }
}

/// Ends a response body that is to be cut: the server closes the connection.
private struct ScriptedCut: Error {}

/// Makes every unknown route the JSON error that a client of the API can read.
private struct NotFoundMiddleware: RouterMiddleware {
  func handle(
    _ request: Request, context: BasicRequestContext,
    next: (Request, BasicRequestContext) async throws -> Response
  ) async throws -> Response {
    do {
      return try await next(request, context)
    } catch let error as HTTPError where error.status == .notFound {
      return DemoModelServer.errorResponse(status: 404, message: "no such route: \(request.uri.path)")
    }
  }
}

/// What must outlive a request: the numbers of replies, and how often each fault has struck.
private actor ScriptState {
  private struct FaultKey: Hashable {
    var conversation: String
    var promptCount: Int
    var answers: Int
    var step: Step
  }

  private var serial = 0
  private var strikes: [FaultKey: Int] = [:]

  func nextSerial() -> Int {
    serial += 1
    return serial
  }

  /// The fault of this step if it strikes this time too.
  func fault(of step: Step, in request: MessagesRequest) -> Step.Fault? {
    guard let fault = step.fault, let times = step.faultTimes else { return step.fault }
    let key = FaultKey(
      conversation: request.conversationID, promptCount: request.prompts.count,
      answers: request.answersInTurn, step: step)
    // Forgetting old counts only matters to a conversation with thousands of scripted faults.
    if strikes.count > 4096 { strikes.removeAll() }
    let count = strikes[key, default: 0]
    guard count < times else { return nil }
    strikes[key] = count + 1
    return fault
  }
}

import HTTPTypes
import Hummingbird
import HummingbirdFastCGI
import JSONSupport
import Logging
import NIOCore
import Sessions
import Synchronization
import WebSockets

#if canImport(FoundationEssentials)
  import FoundationEssentials
#else
  import Foundation
#endif

/// The conversation with one client: events go out as they come, and its commands are carried out one after the
/// other, in the order in which they came.
final class SessionSocket: Sendable {
  private let sockets: SessionSockets
  private let socket: WebSocket
  private let client: SessionSockets.Client
  /// Whose socket it is, once that is known.
  private let principal: Mutex<Principal?>
  /// Why the events have ended.
  private let verdict = Mutex<WebSocketClose?>(nil)

  private var api: API { sockets.api }
  private var service: SessionService { sockets.api.service }

  init(_ sockets: SessionSockets, _ socket: WebSocket, _ client: SessionSockets.Client) {
    self.sockets = sockets
    self.socket = socket
    self.client = client
    var known: Principal?
    if case .granted(let granted) = client.access { known = granted }
    principal = Mutex(known)
  }

  func run() async -> WebSocketClose {
    var messages = socket.messages.makeAsyncIterator()
    var first: SocketCommand?
    do {
      if client.access.isPending {
        guard let command = try await authenticate(&messages) else {
          AuthenticationMiddleware.log(
            .unauthorized, nil, "GET \(API.webSocketPath)", session: client.session, .zero, client.logger)
          return socket.closing ?? Self.notInTime
        }
        first = command
      }
      client.place.settle()
      socket.trust()
      let id = try API.sessionID(client.session)
      var selection = try await api.eventSelection(client.request, of: id)
      selection.holder = principal.withLock { $0?.key }
      let lease = try await Principal.$current.withValue(principal.withLock { $0 }) {
        try await api.leaseStream(of: id, over: .webSocket)
      }
      AuthenticationMiddleware.log(
        .switchingProtocols, principal.withLock { $0 }, "GET \(API.webSocketPath)", session: client.session, .zero,
        client.logger)
      try await socket.send([
        SocketMessage.ready(id, after: selection.after, last: try await service.lastSequence(of: id), first?.id)
      ])
      return try await serve(service.eventStream(of: id, selection, lease: lease), id, &messages)
    } catch let refusal as Refusal {
      return await refuse(refusal.problem, refusal.command, refusal.id)
    } catch let error as ChannelError {
      client.logger.debug("The client of a socket is gone", metadata: ["error": "\(error)"])
      return .normal
    } catch is CancellationError {
      return .goingAway
    } catch {
      return await refuse(Problem(describing: error, client.logger), first?.type, first?.id)
    }
  }

  func log(_ close: WebSocketClose, _ duration: Duration) {
    let principal = principal.withLock { $0 }
    client.logger.log(
      level: principal == nil ? .debug : .info, "Socket ended",
      metadata: [
        "key": "\(principal?.keyID ?? "-")",
        "session": "\(UUID(canonical: client.session)?.lowercaseString ?? "-")",
        "code": "\(close.code)",
        "ms": "\(Int64(duration / .milliseconds(1)))",
      ])
  }

  // MARK: Authentication

  /// A problem for which the socket is closed.
  private struct Refusal: Error {
    let problem: Problem
    let command: SocketCommand.Kind?
    let id: String?
  }

  private static let notInTime = WebSocketClose(4401, "no key came in time")

  /// Takes the client's first message, which must be its key.
  ///
  /// - Returns: nil if none came in time, or the client went away.
  private func authenticate(
    _ messages: inout NIOAsyncChannelInboundStream<ByteBuffer>.AsyncIterator
  ) async throws -> SocketCommand? {
    guard let authenticator = api.authenticator else { return nil }
    let timer = Task { [socket, timeout = sockets.configuration.authenticationTimeout] in
      try await Task.sleep(for: timeout)
      socket.endMessages()
    }
    defer { timer.cancel() }
    guard let text = try await messages.next() else { return nil }
    var command: SocketCommand.Kind?
    var id: String?
    do throws(Problem) {
      let parsed = try SocketCommand(text, id: &id)
      command = parsed.type
      guard parsed.type == .authenticate, let key = try parsed.fields(["key"]).string("key") else {
        throw Problem(
          .unauthorized, #"The first message must be {"type": "authenticate", "key": "…"}."#)
      }
      let found = try await authenticator.principal(
        showing: key, from: client.parameters["REMOTE_ADDR"], host: client.request.head.authority,
        isLocal: ClientAddress.isLocal(client.request.headers, client.parameters))
      if let found { try await authenticator.authorize(found, .read, session: client.session) }
      principal.withLock { $0 = found }
      return parsed
    } catch {
      AuthenticationMiddleware.log(
        error.status, nil, "GET \(API.webSocketPath)", session: client.session, .zero, client.logger)
      throw Refusal(problem: error, command: command, id: id)
    }
  }

  /// Tells a client the problem for which it is disconnected.
  private func refuse(
    _ problem: Problem, _ command: SocketCommand.Kind?, _ id: String?
  ) async -> WebSocketClose {
    do {
      try await socket.send([SocketMessage.error(problem, command?.rawValue, id)])
    } catch {
      client.logger.debug("The client of a socket is gone", metadata: ["error": "\(error)"])
    }
    return Self.close(for: problem)
  }

  /// 4000 and the status of HTTP, or 1011 for what is the server's fault.
  private static func close(for problem: Problem) -> WebSocketClose {
    let number = problem.status.code >= 500 ? 1011 : UInt16(4000 + problem.status.code)
    return WebSocketClose(number, problem.code.rawValue)
  }

  // MARK: Events

  private func serve(
    _ stream: EventStream, _ id: UUID,
    _ messages: inout NIOAsyncChannelInboundStream<ByteBuffer>.AsyncIterator
  ) async throws -> WebSocketClose {
    async let following: Void = follow(stream)
    let sender = principal.withLock { $0?.keyID } ?? client.session
    while let text = try await messages.next() {
      // What is here already is answered at once when the end has come.
      if let delay = sockets.paces.delay(of: sender), verdict.withLock({ $0 == nil }) {
        try await Task.sleep(for: delay)
      }
      let answer = await answer(text, id)
      try await socket.send([answer.message])
      if let close = answer.close { return close }
    }
    // Nothing more comes from the client; the events end with that, if it isn't the other way round.
    if let verdict = verdict.withLock({ $0 }) {
      await following
      return verdict
    }
    return socket.closing ?? .normal
  }

  private func follow(_ stream: EventStream) async {
    var events = stream.makeIterator()
    defer { events.close() }
    let close: WebSocketClose
    do {
      while let frames = try await events.next() {
        for texts in Self.portions(of: frames) { try await socket.send(texts) }
      }
      switch events.ending {
      case .terminated: close = WebSocketClose(4410, "session_deleted")
      case .tooSlow: close = WebSocketClose(1013, "too slow; connect again with the last sequence")
      case .revoked: close = WebSocketClose(4401, "the key is not valid any more")
      case .shuttingDown: close = .goingAway
      case .cancelled, .turnEnded, nil: return
      }
    } catch let error as SessionStoreError {
      client.logger.error("A socket's events could not be read", metadata: ["error": "\(error)"])
      close = WebSocketClose(1011, "store_failed")
    } catch {
      client.logger.debug("The client of a socket is gone", metadata: ["error": "\(error)"])
      return
    }
    verdict.withLock { $0 = close }
    socket.endMessages()
  }

  /// The texts of frames, in portions after each of which a slow client is waited for.
  private static func portions(of frames: [EventFrame]) -> [[ByteBuffer]] {
    var portions: [[ByteBuffer]] = []
    var portion: [ByteBuffer] = []
    var size = 0
    // The pings of the transport are this socket's heartbeat.
    for frame in frames where frame.kind != .heartbeat {
      portion.append(frame.json)
      size += frame.json.readableBytes
      if size >= 32 << 10 {
        portions.append(portion)
        portion = []
        size = 0
      }
    }
    return portion.isEmpty ? portions : portions + [portion]
  }

  // MARK: Commands

  private func answer(_ text: ByteBuffer, _ id: UUID) async -> (message: ByteBuffer, close: WebSocketClose?) {
    var command: SocketCommand.Kind?
    var commandID: String?
    do {
      let parsed = try SocketCommand(text, id: &commandID)
      command = parsed.type
      let principal = principal.withLock { $0 }
      try await authorize(parsed, principal)
      let answer = try await Principal.$current.withValue(principal) { try await carryOut(parsed, id) }
      return (answer, nil)
    } catch {
      let problem = Problem(describing: error, client.logger)
      let message = SocketMessage.error(problem, command?.rawValue, commandID)
      // The key has ended, and with it the socket.
      return (message, problem.status == .unauthorized ? Self.close(for: problem) : nil)
    }
  }

  private func authorize(_ command: SocketCommand, _ principal: Principal?) async throws {
    guard let authenticator = api.authenticator else { return }
    try await authenticator.confirm(principal)
    if let principal, command.type.isChange {
      try await authenticator.authorize(principal, .change, session: client.session)
    }
  }

  private func carryOut(_ command: SocketCommand, _ id: UUID) async throws -> ByteBuffer {
    switch command.type {
    case .ping:
      _ = try command.fields([])
      return SocketMessage.pong(command.id)
    case .message:
      let key = try command.text("idempotency_key")
      let accepted = try await api.accept(try command.fields(API.messageFields), for: id, idempotencyKey: key)
      let position = await service.position(of: accepted.turn)
      return SocketMessage.reply(command, .accepted, isReplay: accepted.isReplay) {
        $0.members(accepted.turn, position: position)
      }
    case .interrupt:
      _ = try command.fields([])
      let turn = try await service.interrupt(id)
      return SocketMessage.reply(command, turn.state.isFinal ? .ok : .accepted) { $0.members(turn, position: nil) }
    case .approval:
      guard let approval = try command.text("approval_id").flatMap({ UUID(canonical: $0) }) else {
        throw Problem(SessionServiceError.approvalNotFound)
      }
      let decided = try await api.decide(approval, of: id, try command.fields(API.approvalFields))
      return SocketMessage.reply(command, .ok) { $0.members(decided) }
    case .authenticate:
      throw Problem(.alreadyAuthenticated, "This socket has its key, or needs none.")
    }
  }
}

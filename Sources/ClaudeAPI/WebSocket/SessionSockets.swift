import HTTPTypes
import Hummingbird
import HummingbirdFastCGI
import Logging
import NIOCore
import Sessions
public import WebSockets

#if canImport(FoundationEssentials)
  import FoundationEssentials
#else
  import Foundation
#endif

public struct SessionSocketConfiguration: Sendable {
  /// How long a client without a key in its request may take to send one. Default 10 s.
  public var authenticationTimeout: Duration = .seconds(10)

  /// Origins of pages, such as `https://tools.example.org`, that may open sockets beside the server's own.
  public var allowedOrigins: Set<String> = []

  /// Sockets that are open at once; above it, requests are 503. Default 16,384.
  public var maximumSockets = 16_384

  /// Sockets that have not said who they are yet; above it, requests are 503. Default 256.
  public var maximumUnauthenticated = 256

  /// Of those, how many may come from one address, or network of version 6; this machine has no bound of its own, since
  /// in front of a proxy all are there. Default 16.
  public var maximumUnauthenticatedOfNetwork = 16

  /// Commands that a key may send in a second, over all of its sockets; what comes faster waits. Without keys it is each
  /// session's. Default 100.
  public var commandsPerSecond = 100.0

  /// How many may come at once beyond that. Default 200.
  public var commandBurst = 200

  public init() {}
}

/// `GET /sessions/{session_id}/ws`: the events of a session, and commands from the client, over a WebSocket.
///
/// The rules of access are those of the HTTP API. A browser, whose request can't have a key, sends it as its first
/// message; until then it is told nothing, also not whether the session exists.
public struct SessionSockets: WebSocketApplication {
  let api: API
  let configuration: SessionSocketConfiguration
  private let logger: Logger
  private let counter = SocketCounter()
  /// Of the commands of a key, over all of its sockets.
  let paces: Paces

  init(api: API, configuration: SessionSocketConfiguration) {
    self.api = api
    self.configuration = configuration
    paces = Paces(rate: configuration.commandsPerSecond, burst: Double(configuration.commandBurst))
    logger = Logger(label: "claude-api")
  }

  /// A client whose request was accepted.
  public struct Client: Sendable {
    enum Access: Sendable {
      /// Its first message has to be its key.
      case pending
      /// Nil where there are no keys.
      case granted(Principal?)
    }

    let session: String
    let request: Request
    let parameters: CGIParameters
    let logger: Logger
    let access: Access
    let place: SocketCounter.Place
  }

  // MARK: Admission

  public func admit(_ request: WebSocketRequest) async -> WebSocketAdmission<Client> {
    let start = ContinuousClock.now
    let fields = request.head.headerFields
    var logger = logger
    logger[metadataKey: "hb.request.id"] = .string(fields[.xRequestID] ?? "-")
    var session: String?
    do {
      session = try Self.session(in: request.head)
      let client = try await client(request.head, request.defect, session ?? "", logger)
      return .accepted(client, isTrusted: !client.access.isPending)
    } catch {
      let problem = Problem(describing: error, logger)
      AuthenticationMiddleware.log(
        problem.status, nil, "GET \(API.webSocketPath)", session: session, ContinuousClock.now - start, logger)
      return .refused(
        WebSocketRefusal(
          status: problem.status, headers: problem.headers, body: problem.document))
    }
  }

  private func client(
    _ head: HTTPRequest, _ defect: WebSocketRequest.Defect?, _ session: String, _ logger: Logger
  ) async throws -> Client {
    try checkOrigin(head)
    let request = Request(head: head, body: RequestBody(buffer: ByteBuffer()))
    // What nginx tells over FastCGI in params.
    let parameters = CGIParameters(
      [("REMOTE_ADDR", "Remote"), ("SERVER_ADDR", "Server"), ("PEER_ADDR", "Peer")].compactMap { name, word in
        HTTPField.Name("Claude-Api-\(word)-Addr").flatMap { head.headerFields[$0] }.map { (name: name, value: $0) }
      })
    let access = try await access(head, parameters, session, isUpgrade: defect == nil)
    // What is wrong with the query is told before the upgrade, where HTTP has a status for it.
    if case .granted = access {
      _ = try await api.eventSelection(request, of: try API.sessionID(session))
    } else {
      try API.checkEventQuery(request)
    }
    switch defect {
    case .notAnUpgrade, .unsupportedVersion: throw Problem.upgradeRequired
    case .malformed:
      throw Problem(
        .badRequest, "The request has no well-formed Sec-WebSocket-Key.")
    case nil: break
    }
    let place = try counter.enter(
      isPending: access.isPending, from: ClientAddress.network(parameters["REMOTE_ADDR"]), configuration)
    return Client(
      session: session, request: request, parameters: parameters, logger: logger, access: access, place: place)
  }

  private func access(
    _ head: HTTPRequest, _ parameters: CGIParameters, _ session: String, isUpgrade: Bool
  ) async throws -> Client.Access {
    guard let authenticator = api.authenticator else { return .granted(nil) }
    let shown = Authenticator.credentials(head.headerFields)
    if shown == nil, isUpgrade, try await authenticator.needsKey { return .pending }
    let principal = try await authenticator.principal(
      showing: shown, from: parameters["REMOTE_ADDR"], host: head.authority,
      isLocal: ClientAddress.isLocal(head.headerFields, parameters))
    if let principal { try await authenticator.authorize(principal, .read, session: session) }
    return .granted(principal)
  }

  /// The session in the path of a request, as it stands there.
  private static func session(in head: HTTPRequest) throws(Problem) -> String {
    let path = (head.path ?? "").prefix { $0 != "?" }
    let parts = path.split(separator: "/")
    guard parts.count == 3, parts[0] == "sessions", parts[2] == "ws" else {
      throw Problem(.notFound, "There is nothing at this path; GET / lists what there is.")
    }
    guard head.method == .get else {
      throw Problem(
        .methodNotAllowed, "This path has no method \(head.method.rawValue); it has GET.",
        allow: "GET")
    }
    return String(parts[1])
  }

  /// A browser tells which page opens a socket, and lets any page do so. A page of another site must not use what
  /// is open to this machine's user.
  private func checkOrigin(_ head: HTTPRequest) throws(Problem) {
    let origins = head.headerFields[values: .origin]
    guard let origin = origins.first else { return }
    if origins.count == 1 {
      if configuration.allowedOrigins.contains(origin) { return }
      if PageOrigin.isOwn(origin, head) { return }
    }
    throw Problem(
      .originNotAllowed,
      "A page of another origin may not open this socket; websocket.allowed-origins lists those that may.")
  }

  // MARK: Service

  public func serve(_ socket: WebSocket, for client: Client) async -> WebSocketClose {
    defer { counter.leave(client.place) }
    let start = ContinuousClock.now
    let connection = SessionSocket(self, socket, client)
    let close = await connection.run()
    connection.log(socket.closing ?? close, ContinuousClock.now - start)
    return close
  }
}

extension SessionSockets.Client.Access {
  var isPending: Bool { if case .pending = self { true } else { false } }
}

extension HTTPField.Name {
  static let xRequestID = Self("X-Request-Id")!
}

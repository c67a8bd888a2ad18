import Hummingbird
import Sessions
import WebSockets

extension API {
  static let webSocketPath = "/sessions/{session_id}/ws"

  /// The route for whatever must know all of them. Sockets themselves don't come over FastCGI, which can't be
  /// upgraded; see ``SessionSockets``.
  func addWebSocketRoutes(to router: Router<Context>, _ routes: inout RouteTable) {
    routes.add(
      .get, Self.webSocketPath, "Follow and steer a session over a WebSocket", for: .read, to: router
    ) { request, context in
      try Self.checkEventQuery(request)
      _ = try await service.lastSequence(of: try Self.sessionID(context))
      throw Problem.upgradeRequired
    }
  }

  /// What answers at this path over the listener for WebSockets.
  public func sockets(_ configuration: SessionSocketConfiguration) -> SessionSockets {
    SessionSockets(api: self, configuration: configuration)
  }
}

extension Problem {
  static let upgradeRequired = Problem(
    .upgradeRequired,
    "This path is for WebSockets: the request must be an HTTP/1.1 upgrade to websocket, version 13.",
    upgrade: "websocket")
}

import AsyncHTTPClient
import Foundation
import NIOCore
import NIOFoundationCompat
import NIOHTTP1

/// Why a call of the API has no result.
package enum ClientError: Error, CustomStringConvertible, Equatable {
  /// The server could not be reached, or the connection was lost before the answer was complete.
  case unreachable(String)
  /// The server answered with an error.
  case refused(status: Int, code: String?, detail: String)
  /// The server's answer is not what this client knows.
  case malformed(String)

  package var description: String {
    switch self {
    case .unreachable(let reason): "cannot reach the server: \(reason)"
    case .refused(let status, let code?, let detail): "\(detail) (\(status), \(code))"
    case .refused(let status, nil, let detail): "\(detail) (\(status))"
    case .malformed(let reason): "the server's answer cannot be understood: \(reason)"
    }
  }

  /// The exit status of a program that ends with this error.
  package var exitStatus: Int32 {
    if case .unreachable = self { 3 } else { 1 }
  }
}

/// A session as the server describes it. Fields that this client doesn't use are left out.
package struct Session: Codable, Equatable, Sendable {
  package var id: String
  package var name: String
  package var createdAt: String
  package var lastUsed: String

  enum CodingKeys: String, CodingKey {
    case id, name
    case createdAt = "created_at"
    case lastUsed = "last_used"
  }
}

/// Calls the routes of one server.
package struct Client: Sendable {
  /// The body of a successful answer, and what was read out of it.
  package struct Reply<Value: Sendable>: Sendable {
    package var value: Value
    /// The server's own JSON.
    package var json: String
  }

  package struct Description: Codable, Sendable {
    package var name: String
    package var version: String
  }

  package struct Created: Codable, Sendable {
    package var session: Session
    package var initialResponse: String?
    package var error: String?

    enum CodingKeys: String, CodingKey {
      case session, error
      case initialResponse = "initial_response"
    }
  }

  package struct SessionList: Codable, Sendable {
    package var sessions: [Session]
    package var count: Int
  }

  package struct Message: Codable, Sendable {
    package var sessionID: String
    package var prompt: String
    package var response: String
    package var timestamp: String

    enum CodingKeys: String, CodingKey {
      case prompt, response, timestamp
      case sessionID = "session_id"
    }
  }

  package struct Deleted: Codable, Sendable {
    package var message: String
    package var sessionID: String

    enum CodingKeys: String, CodingKey {
      case message
      case sessionID = "session_id"
    }
  }

  private struct Problem: Decodable {
    var title: String?
    var detail: String?
    var code: String?
  }

  /// How long a call may take that does not wait for the model.
  private static let shortLimit = TimeAmount.seconds(60)
  /// How long a turn may take: its 30 minutes, others before it in the queue, and some more.
  private static let turnLimit = TimeAmount.minutes(65)
  /// The largest answer that is taken, in bytes.
  private static let answerLimit = 64 << 20

  package let baseURL: String
  private let apiKey: String?
  private let http: HTTPClient

  /// Runs `body` with a client for the server at `url`, and closes its connections afterwards.
  ///
  /// - Parameters:
  ///   - url: from `validated(url:)`.
  ///   - apiKey: sent as a bearer token with every call.
  package static func with<Result>(
    url: String, apiKey: String?, isolation: isolated (any Actor)? = #isolation,
    _ body: (Client) async throws -> Result
  ) async throws -> Result {
    var configuration = HTTPClient.Configuration()
    configuration.timeout.connect = .seconds(10)
    // A key must not follow to another server.
    configuration.redirectConfiguration = .disallow
    configuration.connectionPool.retryConnectionEstablishment = false
    let http = HTTPClient(configuration: configuration)
    do {
      let result = try await body(Client(baseURL: url, apiKey: apiKey, http: http))
      try await http.shutdown()
      return result
    } catch {
      try await http.shutdown()
      throw error
    }
  }

  /// The URL without a slash at its end, or nil if it is not one of an HTTP server.
  package static func validated(url: String) -> String? {
    guard let parts = URLComponents(string: url),
      ["http", "https"].contains(parts.scheme?.lowercased() ?? ""),
      parts.host?.isEmpty == false, parts.query == nil, parts.fragment == nil, parts.user == nil
    else { return nil }
    return String(url.reversed().drop { $0 == "/" }.reversed())
  }

  /// Whether text can be the id of a session, so that it can stand in a path as it is.
  package static func isSessionID(_ text: String) -> Bool {
    !text.isEmpty && text.utf8.count <= 100
      && text.utf8.allSatisfy { byte in
        switch byte {
        case UInt8(ascii: "0")...UInt8(ascii: "9"), UInt8(ascii: "a")...UInt8(ascii: "z"),
          UInt8(ascii: "A")...UInt8(ascii: "Z"), UInt8(ascii: "-"), UInt8(ascii: "_"):
          true
        default: false
        }
      }
  }

  package func describe() async throws -> Reply<Description> {
    try await call(.GET, "/", as: Description.self)
  }

  package func createSession(name: String? = nil, initialPrompt: String? = nil) async throws -> Reply<Created> {
    try await call(
      .POST, "/sessions", ["session_name": name, "initial_prompt": initialPrompt], as: Created.self,
      limit: initialPrompt == nil ? Self.shortLimit : Self.turnLimit)
  }

  package func sessions() async throws -> Reply<SessionList> {
    try await call(.GET, "/sessions", as: SessionList.self)
  }

  package func session(_ id: String) async throws -> Reply<Session> {
    try await call(.GET, "/sessions/\(id)", as: Session.self)
  }

  package func send(_ prompt: String, to id: String) async throws -> Reply<Message> {
    try await call(
      .POST, "/sessions/\(id)/messages", ["prompt": prompt], as: Message.self, limit: Self.turnLimit)
  }

  package func deleteSession(_ id: String) async throws -> Reply<Deleted> {
    try await call(.DELETE, "/sessions/\(id)", as: Deleted.self)
  }

  private func call<Value: Decodable & Sendable>(
    _ method: HTTPMethod, _ path: String, _ body: [String: String?]? = nil, as type: Value.Type,
    limit: TimeAmount = shortLimit
  ) async throws -> Reply<Value> {
    var request = HTTPClientRequest(url: baseURL + path)
    request.method = method
    request.headers.add(name: "Accept", value: "application/json")
    if let apiKey { request.headers.add(name: "Authorization", value: "Bearer \(apiKey)") }
    if let body {
      request.headers.add(name: "Content-Type", value: "application/json")
      request.body = .bytes(try JSONEncoder().encodeAsByteBuffer(body, allocator: ByteBufferAllocator()))
    }

    let status: Int
    let bytes: ByteBuffer
    do {
      let response = try await http.execute(request, timeout: limit)
      status = Int(response.status.code)
      bytes = try await response.body.collect(upTo: Self.answerLimit)
    } catch let error as CancellationError {
      throw error
    } catch let error as HTTPClientError where error == .cancelled {
      throw CancellationError()
    } catch is NIOTooManyBytesError {
      throw ClientError.malformed("it is longer than \(Self.answerLimit >> 20) MiB")
    } catch {
      throw ClientError.unreachable(Self.reason(for: error))
    }

    let json = String(buffer: bytes)
    let data = Data(buffer: bytes)
    guard (200..<300).contains(status) else {
      let problem = try? JSONDecoder().decode(Problem.self, from: data)
      throw ClientError.refused(
        status: status, code: problem?.code,
        detail: problem?.detail ?? problem?.title ?? "the server answered without a reason")
    }
    do {
      return Reply(value: try JSONDecoder().decode(Value.self, from: data), json: json)
    } catch {
      throw ClientError.malformed("\(method.rawValue) \(path): \(Self.reason(for: error))")
    }
  }

  /// The first line of what an error says, without the nesting that only a programmer can read.
  private static func reason(for error: any Error) -> String {
    switch error {
    case DecodingError.keyNotFound(let key, _): return "\"\(key.stringValue)\" is missing"
    case DecodingError.typeMismatch(_, let context), DecodingError.valueNotFound(_, let context):
      return "\"\(context.codingPath.map(\.stringValue).joined(separator: "."))\" has another type"
    case is DecodingError: return "it is not JSON"
    case let error as HTTPClientError: return error.shortDescription
    default:
      let text = String(describing: error)
      return text.contains("Connection refused") ? "connection refused" : String(text.prefix(300))
    }
  }
}

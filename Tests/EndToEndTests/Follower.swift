import AsyncHTTPClient
import Foundation
import JSONSupport
import NIOCore
import NIOHTTP1
import Synchronization
import TestSupport

/// Follows the events of a session as an `EventSource` does, across lost connections.
final class Follower: Sendable {
  struct Entry: Equatable, Sendable {
    let sequence: Int64
    let type: String
    let json: JSONValue

    init(_ json: JSONValue) {
      sequence = json["sequence"]?.intValue ?? 0
      type = json["type"]?.stringValue ?? ""
      self.json = json
    }
  }

  private struct State {
    var seen: [Entry] = []
    var connections = 0
    var isStopped = false
  }

  private let stack: Stack
  private let session: String
  private let after: Int64
  private let state = Mutex(State())

  init(_ stack: Stack, _ session: String, after: Int64 = 0) {
    self.stack = stack
    self.session = session
    self.after = after
  }

  var seen: [Entry] { state.withLock { $0.seen } }
  var connections: Int { state.withLock { $0.connections } }

  /// It ends with the connection that it has.
  func stop() { state.withLock { $0.isStopped = true } }

  func follow() async {
    while !state.withLock({ $0.isStopped }) {
      // Without an answer, or in the middle of one, the next attempt goes on where this one ended.
      try? await connect()
      try? await Task.sleep(for: .milliseconds(10))
    }
  }

  private func connect() async throws {
    var request = HTTPClientRequest(
      url: "http://127.0.0.1:\(stack.nginx.port)/sessions/\(session)/events?deltas=false")
    request.headers.add(name: "Accept", value: "text/event-stream")
    let last = state.withLock { $0.seen.last?.sequence } ?? after
    if last > 0 { request.headers.add(name: "Last-Event-ID", value: "\(last)") }
    let response = try await HTTPClient.shared.execute(request, timeout: .minutes(10))
    guard response.status == .ok else { return }
    state.withLock { $0.connections += 1 }
    var rest = Data()
    for try await chunk in response.body {
      var searched = max(0, rest.count - 1)
      rest.append(contentsOf: chunk.readableBytesView)
      while let end = rest.range(of: Data("\n\n".utf8), in: searched..<rest.count) {
        searched = 0
        let fields = String(decoding: rest[..<end.lowerBound], as: UTF8.self).split(separator: "\n")
        rest = Data(rest[end.upperBound...])
        guard let id = fields.first(where: { $0.hasPrefix("id: ") })?.dropFirst(4),
          let data = fields.first(where: { $0.hasPrefix("data: ") })?.dropFirst(6)
        else { continue }
        let entry = Entry(try JSONValue(parsing: data.utf8))
        Stack.holdToContract(entry.json)
        guard String(entry.sequence) == id else { throw Stack.Failure("id \(id) of event \(entry.sequence)") }
        state.withLock { $0.seen.append(entry) }
      }
    }
  }
}

extension Stack {
  /// The whole log of a session, page by page.
  func log(_ id: String, headers: HTTPHeaders = [:]) async throws -> [Follower.Entry] {
    var entries: [Follower.Entry] = []
    while true {
      let page = try await get("/sessions/\(id)/events?limit=1000&after=\(entries.count)", headers: headers).json
      entries += (page["events"]?.arrayValue ?? []).map(Follower.Entry.init)
      if page["has_more"] != true { return entries }
    }
  }
}

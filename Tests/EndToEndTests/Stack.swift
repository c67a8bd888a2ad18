import AsyncHTTPClient
import Foundation
import JSONSupport
import NIOCore
import NIOFoundationCompat
import NIOHTTP1
import Synchronization
import TestSupport
import Testing

/// The whole system in a directory of its own: demo model, responder, nginx, through which the CLI reaches the model.
final class Stack: Sendable {
  /// Which CLI the responder runs.
  enum CLI: Sendable {
    /// The double, which is fast and fails on command.
    case fake
    /// The real one.
    case real(path: String)
    /// Any file, also one that isn't there.
    case file(String)
  }

  let directory: String
  let nginx: Nginx
  let modelURL: String
  /// The credential, which nobody but nginx and the model should ever see.
  static let modelKey = "sk-test-\(UUID().uuidString)"
  private let cli: CLI
  private let settings: [String: String]
  /// What further variables the responder gets.
  private let environment: [String: String]
  /// The sockets that the responder finds listening already, by their names for it.
  private let sockets: [(name: String, socket: UnixSocket)]
  private let responderBox = ResponderBox()

  private actor ResponderBox {
    var child: ChildProcess?
    func set(_ child: ChildProcess?) { self.child = child }
  }

  /// The real CLI, if the environment names it; scripts/test does.
  static let realCLI: String? = ProcessInfo.processInfo.environment["CLAUDE_API_TEST_CLAUDE"]

  /// The directory of the tools that know OpenAPI, if the environment names it; scripts/test does.
  static let contractTools: String? = ProcessInfo.processInfo.environment["CLAUDE_API_TEST_CONTRACT_TOOLS"]

  private init(
    directory: String, nginx: Nginx, modelURL: String, cli: CLI, settings: [String: String],
    environment: [String: String], sockets: [(name: String, socket: UnixSocket)]
  ) {
    self.directory = directory
    self.nginx = nginx
    self.modelURL = modelURL
    self.cli = cli
    self.settings = settings
    self.environment = environment
    self.sockets = sockets
  }

  /// Runs `body` with the system, and ends all of it afterwards.
  ///
  /// - Parameters:
  ///   - settings: flags of the responder without their dashes.
  ///   - environment: makes further variables of the responder, of the directory of the test.
  ///   - holdsSockets: has the responder's sockets listen all the time, as a service manager does.
  static func run<T>(
    cli: CLI = .fake, settings: [String: String] = [:], nginxOptions: [String] = [],
    environment: (_ directory: String) -> [String: String] = { _ in [:] }, holdsSockets: Bool = false,
    _ body: (Stack) async throws -> T
  ) async throws -> T {
    // Some systems at a time are enough for a small machine.
    await Gate.shared.enter()
    defer { Task { await Gate.shared.leave() } }
    return try await withTemporaryDirectory { directory in
      let portFile = directory + "/model.port"
      return try await withChild(
        [product("demo-model"), "--port", "0", "--port-file", portFile], output: directory + "/model.log"
      ) { model in
        let modelURL = "http://127.0.0.1:\(try await content(of: portFile, by: model))"
        for name in ["s", "m"] {
          try FileManager.default.createDirectory(atPath: "\(directory)/\(name)", withIntermediateDirectories: true)
        }
        let gateway = [
          "--model-socket", directory + "/m/api.sock", "--model-tokens", directory + "/state/run/model-tokens",
        ]
        return try await Nginx.with(
          in: directory, socket: directory + "/s/r.sock",
          options: gateway + ["--workspaces", directory + "/w"] + nginxOptions,
          environment: ["ANTHROPIC_API_KEY": modelKey, "ANTHROPIC_BASE_URL": modelURL]
        ) { nginx in
          let stack = Stack(
            directory: directory, nginx: nginx, modelURL: modelURL, cli: cli, settings: settings,
            environment: environment(directory),
            sockets: try (holdsSockets ? [("fastcgi", "r.sock"), ("websocket", "websocket.sock")] : []).map {
              ($0, try UnixSocket(listeningAt: directory + "/s/" + $1))
            })
          do {
            try await stack.startResponder()
            let result = try await body(stack)
            await stack.stopResponder()
            return result
          } catch {
            await stack.stopResponder()
            throw Failure("\(error)\n--- responder:\n\(stack.responderLog.suffix(4000))")
          }
        }
      }
    }
  }

  private actor Gate {
    static let shared = Gate()
    private var places = 3
    private var waiting: [CheckedContinuation<Void, Never>] = []

    func enter() async {
      if places > 0 {
        places -= 1
      } else {
        await withCheckedContinuation { waiting.append($0) }
      }
    }

    func leave() {
      if waiting.isEmpty { places += 1 } else { waiting.removeFirst().resume() }
    }
  }

  struct Failure: Error, CustomStringConvertible {
    let description: String
    init(_ description: String) { self.description = description }
  }

  /// The directory of the built programs, which is that of the test bundle.
  static func product(_ name: String) -> String {
    let bundle = CommandLine.arguments.first { $0.hasSuffix(".xctest") } ?? CommandLine.arguments[0]
    return URL(filePath: bundle).deletingLastPathComponent().appending(path: name).path()
  }

  private static func content(of path: String, by child: ChildProcess) async throws -> String {
    for _ in 0..<3000 {
      let found = text(of: path)
      if !found.isEmpty { return found.trimmingCharacters(in: .whitespacesAndNewlines) }
      if let exit = child.exit { throw Failure("the child ended with \(exit) before it wrote \(path)") }
      try await Task.sleep(for: .milliseconds(10))
    }
    throw Failure("\(path) was not written")
  }

  // MARK: Responder

  var responderLog: String { text(of: directory + "/responder.log") }
  var workspaceRoot: String { directory + "/w" }
  var stateDirectory: String { directory + "/state" }

  var responder: ChildProcess? { get async { await responderBox.child } }

  /// Starts the responder and waits until it is healthy through nginx.
  func startResponder() async throws {
    var flags = settings
    // The double needs the libraries of the toolchain, wherever they are; the real CLI runs in the sandbox.
    if case .real = cli {} else if flags["sandbox-mode"] == nil { flags["sandbox-mode"] = "off" }
    flags["state-dir"] = stateDirectory
    flags["workspace-root"] = workspaceRoot
    flags["socket-path"] = directory + "/s/r.sock"
    flags["demo-model-url"] = modelURL
    flags["model-socket"] = directory + "/m/api.sock"
    if flags["model-log"] == nil { flags["model-log"] = nginx.prefix + "/logs/model.log" }
    flags["claude-path"] =
      switch cli {
      case .fake: Self.product("fake-claude")
      case .real(let path), .file(let path): path
      }
    var variables = Nginx.withoutCredentials
    for (name, value) in environment { variables[name] = value }
    var command = [Self.product("claude-api-server"), "serve"] + flags.map { "--\($0.key)=\($0.value)" }
    if !sockets.isEmpty {
      variables["LISTEN_FDS"] = "\(sockets.count)"
      variables["LISTEN_FDNAMES"] = sockets.map(\.name).joined(separator: ":")
      // Only the child knows the number that has to be in the variable.
      command = ["/bin/sh", "-c", #"LISTEN_PID=$$ exec "$@""#, "sh"] + command
    }
    let child = try ChildProcess(
      command, environment: variables, output: directory + "/responder.log",
      descriptors: sockets.map(\.socket.descriptor))
    await responderBox.set(child)
    for _ in 0..<3000 {
      if let exit = child.exit { throw Failure("the responder ended with \(exit)") }
      if let answer = try? await get("/healthz"), answer.status == 200 {
        if Self.contract.withLock({ $0 == nil }) {
          let document = try await get("/openapi.json").json
          Self.contract.withLock { $0 = Contract(document) }
        }
        return
      }
      try await Task.sleep(for: .milliseconds(10))
    }
    throw Failure("the responder did not become healthy")
  }

  @discardableResult
  func stopResponder() async -> ChildProcess.Exit? {
    guard let child = await responderBox.child else { return nil }
    // To it alone, as a supervisor does it: a CLI that is just being started is in its group for a moment.
    child.signal(SIGTERM)
    let killer = Task {
      try await Task.sleep(for: .seconds(60))
      await child.stop(grace: .zero)
    }
    let exit = await child.waitForExit()
    killer.cancel()
    await responderBox.set(nil)
    return exit
  }

  /// Ends the responder as the kernel would.
  func killResponder() async {
    guard let child = await responderBox.child else { return }
    child.signal(SIGKILL)
    _ = await child.waitForExit()
    await responderBox.set(nil)
  }

  // MARK: Requests

  struct Answer: Sendable {
    let status: Int
    let headers: HTTPHeaders
    let body: [UInt8]

    var text: String { String(decoding: body, as: UTF8.self) }
    var json: JSONValue { get throws { try JSONValue(parsing: body) } }
  }

  func get(_ path: String, headers: HTTPHeaders = [:]) async throws -> Answer {
    try await request(.GET, path, headers: headers)
  }

  func post(_ path: String, _ body: JSONValue, headers: HTTPHeaders = [:]) async throws -> Answer {
    var headers = headers
    headers.add(name: "Content-Type", value: "application/json")
    return try await request(.POST, path, headers: headers, body: ByteBuffer(bytes: body.encoded()))
  }

  func request(
    _ method: HTTPMethod, _ path: String, headers: HTTPHeaders = [:], body: ByteBuffer? = nil,
    timeout: TimeAmount = .seconds(120)
  ) async throws -> Answer {
    var request = HTTPClientRequest(url: "http://127.0.0.1:\(nginx.port)\(path)")
    request.method = method
    request.headers = headers
    if let body { request.body = .bytes(body) }
    let response: HTTPClientResponse
    do {
      response = try await HTTPClient.shared.execute(request, timeout: timeout)
    } catch ChannelError.ioOnClosedChannel where method == .GET {
      // The client had kept the connection, and nginx was killed since.
      response = try await HTTPClient.shared.execute(request, timeout: timeout)
    }
    let answer = Answer(
      status: Int(response.status.code), headers: response.headers,
      body: Array(buffer: try await response.body.collect(upTo: 256 << 20)))
    // Long logs would take longer to look at than everything else.
    guard answer.body.count <= Self.heldToContract, let contract = Self.contract.withLock({ $0 }) else { return answer }
    let objections = contract.objections(
      to: method.rawValue, path, status: answer.status, headers: answer.headers.map { ($0.name, $0.value) },
      body: answer.body)
    for objection in objections { Issue.record("Not as the OpenAPI document has it: \(objection)") }
    return answer
  }

  /// Holds what a stream or a socket has brought against the OpenAPI document.
  static func holdToContract(_ message: JSONValue) {
    guard let contract = contract.withLock({ $0 }) else { return }
    for objection in contract.objections(toMessage: message) {
      Issue.record("Not as the OpenAPI document has it: \(objection)")
    }
  }

  /// What the running version says of itself, against which every answer is held: that of the first system, since it is
  /// the same for all.
  private static let contract = Mutex<Contract?>(nil)
  /// Bytes of an answer up to which it is.
  private static let heldToContract = 32 << 10

  // MARK: Shortcuts

  /// Makes a key of a role by the command line, beside the running responder, and returns it.
  ///
  /// - Parameter options: further ones of `keys create`.
  func createKey(_ role: String, _ options: [String] = []) async throws -> String {
    let key = try await keys(["create", "--name", "test", "--role", role] + options)
      .trimmingCharacters(in: .whitespacesAndNewlines)
    guard key.hasPrefix("cak_") else { throw Failure("keys create: \(key)") }
    return key
  }

  /// Creates a session and returns its id.
  func createSession(key: String? = nil) async throws -> String {
    let answer = try await post("/sessions", [:], headers: Self.credentials(key))
    guard answer.status == 200, let id = try answer.json["session"]?["id"]?.stringValue else {
      throw Failure("POST /sessions: \(answer.status) \(answer.text)")
    }
    return id
  }

  /// Sends a message and returns the response's text.
  func say(_ prompt: String, to session: String, headers: HTTPHeaders = [:]) async throws -> String {
    let answer = try await post("/sessions/\(session)/messages", ["prompt": .string(prompt)], headers: headers)
    guard answer.status == 200, let text = try answer.json["response"]?.stringValue else {
      throw Failure("message: \(answer.status) \(answer.text)")
    }
    return text
  }

  static func credentials(_ key: String?) -> HTTPHeaders { key.map { ["Authorization": "Bearer \($0)"] } ?? [:] }

  /// The processes whose environment names this responder's state directory or whose working directory lies in it.
  func processesLeft() throws -> [Int32] {
    try FileManager.default.contentsOfDirectory(atPath: "/proc").compactMap { Int32($0) }.filter { pid in
      guard let target = try? FileManager.default.destinationOfSymbolicLink(atPath: "/proc/\(pid)/cwd") else {
        return false
      }
      return target.hasPrefix(directory + "/w/")
    }
  }
}

import ArgumentParser
import ClientSupport
import Dispatch
import Foundation
import Synchronization

struct Chat: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "Hold a conversation.",
    discussion: """
      Enter sends, Alt-Enter starts a new line. Without a terminal each line of standard input is a message.

      \(ChatLoop.help)
      """)
  @OptionGroup var server: ServerOptions

  @Option(help: "Go on with this session instead of a new one.")
  var session: String?

  func validate() throws {
    guard session.map(Client.isSessionID) ?? true else {
      throw ValidationError("This is not the id of a session: \(session ?? "")")
    }
  }

  func run() async throws {
    let terminal = Terminal()
    let endings = [SIGTERM, SIGHUP].map { number in
      signal(number, SIG_IGN)
      let source = DispatchSource.makeSignalSource(signal: number, queue: .global())
      source.setEventHandler {
        terminal?.restore()
        Foundation.exit(128 + number)
      }
      source.resume()
      return source
    }
    let interruption = Interruption { terminal?.restore() }
    defer {
      for source in endings { source.cancel() }
      interruption.stop()
    }
    let hasFailed = try await server.withClient { client in
      var loop = ChatLoop(
        client: client, terminal: terminal, interruption: interruption, printsJSON: server.json)
      return try await loop.run(session: session)
    }
    // A script has to see that; a person has seen it.
    if hasFailed, terminal == nil { throw ExitCode(1) }
  }
}

/// What SIGINT does: it ends what is going on, or the program if that is nothing.
///
/// There is one for the whole program, since a second signal source for the same signal gets nothing after
/// the disposition was changed in between.
final class Interruption: Sendable {
  private let action = Mutex<(@Sendable () -> Void)?>(nil)
  // Only created, resumed and cancelled, each of which dispatch allows on any thread.
  private nonisolated(unsafe) let source: any DispatchSourceSignal

  init(beforeExit: @escaping @Sendable () -> Void) {
    signal(SIGINT, SIG_IGN)
    source = DispatchSource.makeSignalSource(signal: SIGINT, queue: .global())
    source.setEventHandler { [weak self] in
      if let action = self?.action.withLock({ $0 }) {
        action()
      } else {
        beforeExit()
        Foundation.exit(128 + SIGINT)
      }
    }
    source.resume()
  }

  func set(_ action: (@Sendable () -> Void)?) {
    self.action.withLock { $0 = action }
  }

  func stop() { source.cancel() }
}

struct ChatLoop {
  static let help = """
    /new       start another session with the next message
    /sessions  list the sessions
    /help      show this
    /quit      leave; Ctrl-D does too
    A message that begins with a slash is written with two.
    """

  let client: Client
  let terminal: Terminal?
  let interruption: Interruption
  let printsJSON: Bool
  private var session: Session?
  private var history: History?
  private var hasFailed = false

  init(client: Client, terminal: Terminal?, interruption: Interruption, printsJSON: Bool) {
    self.client = client
    self.terminal = terminal
    self.interruption = interruption
    self.printsJSON = printsJSON
  }

  /// Runs until the end of the input.
  ///
  /// - Returns: whether a message got no answer.
  mutating func run(session id: String?) async throws -> Bool {
    if let id { session = try await client.session(id).value }
    if terminal != nil {
      let server = try await client.describe().value
      printText("\(server.name) \(server.version) at \(client.baseURL). /help shows the commands.")
      if let session { printText("Session \(session.id): \(session.name)") }
      openHistory()
    }
    while true {
      switch try await nextInput() {
      case .end: return hasFailed
      case .interrupted: continue
      case .line(let line):
        if terminal != nil { remember(line) }
        guard try await handle(line) else { return hasFailed }
      }
    }
  }

  private mutating func openHistory() {
    guard let path = History.defaultPath(environment: ProcessInfo.processInfo.environment) else { return }
    do {
      history = try History(path: path)
    } catch {
      printError("no history: \(error)")
    }
  }

  private mutating func remember(_ line: String) {
    do {
      try history?.add(line)
    } catch {
      printError("the history cannot be written: \(error)")
      history = nil
    }
  }

  private func nextInput() async throws -> Terminal.Input {
    let entries = history?.entries ?? []
    return try await withCheckedThrowingContinuation { continuation in
      Thread.detachNewThread { [terminal] in
        continuation.resume(
          with: Result {
            guard let terminal else { return Swift.readLine().map { .line($0) } ?? .end }
            return try terminal.readLine(prompt: "> ", history: entries)
          })
      }
    }
  }

  /// Returns whether to go on.
  private mutating func handle(_ line: String) async throws -> Bool {
    let trimmed = line.trimmingCharacters(in: .whitespacesAndNewlines)
    switch trimmed {
    case "": return true
    case "/quit", "/exit": return false
    case "/help": printText(Self.help)
    case "/new":
      session = nil
      printText("The next message starts another session.")
    case "/sessions":
      do {
        let reply = try await client.sessions()
        printText(printsJSON ? reply.json : table(of: reply.value.sessions))
      } catch let error as ClientError {
        printError("\(error)")
      }
    default:
      if trimmed.hasPrefix("/"), !trimmed.hasPrefix("//") {
        printError("there is no command \(trimmed.prefix(40)); /help lists them")
        hasFailed = true
      } else {
        try await send(trimmed.hasPrefix("//") ? String(trimmed.dropFirst()) : line)
      }
    }
    return true
  }

  private mutating func send(_ prompt: String) async throws {
    do {
      let current: Session
      if let session {
        current = session
      } else {
        current = try await client.createSession().value.session
        session = current
        if terminal != nil { printText("Session \(current.id)") }
      }
      let reply = try await waiting { [client] in try await client.send(prompt, to: current.id) }
      printText(printsJSON ? reply.json : reply.value.response)
    } catch let error as ClientError {
      hasFailed = true
      // A script can't go on without its server.
      if terminal == nil, case .unreachable = error { throw error }
      printError("\(error)")
    } catch is CancellationError {
      hasFailed = true
      printError("not waiting any longer; the turn goes on at the server")
    }
  }

  /// Shows on a terminal that something is awaited, and lets Ctrl-C end the wait there.
  private func waiting<Value: Sendable>(_ body: @escaping @Sendable () async throws -> Value) async throws
    -> Value
  {
    guard terminal != nil else { return try await body() }
    let call = Task { try await body() }
    interruption.set { call.cancel() }
    let spinner = Task {
      let start = ContinuousClock.now
      let frames = Array("⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏")
      for frame in 0... {
        try await Task.sleep(for: .milliseconds(100))
        let seconds = (ContinuousClock.now - start).components.seconds
        write("\r\u{1b}[K\(frames[frame % frames.count]) \(seconds) s")
      }
    }
    let result = await call.result
    spinner.cancel()
    _ = await spinner.result
    write("\r\u{1b}[K")
    interruption.set(nil)
    return try result.get()
  }
}

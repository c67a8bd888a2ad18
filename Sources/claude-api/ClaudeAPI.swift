import ArgumentParser
import ClientSupport
import Dispatch
import Foundation

@main
struct ClaudeAPI: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "claude-api",
    abstract: "A client of the session server for the Claude Code CLI.",
    discussion: "Exit status: 0 done, 1 the server said no, 2 wrong usage, 3 the server cannot be reached.",
    subcommands: [Chat.self, Test.self, Sessions.self, Show.self, Delete.self])

  // ArgumentParser's own `main` ends with 64 after wrong usage.
  static func main() async {
    do {
      var command = try parseAsRoot()
      if var command = command as? any AsyncParsableCommand {
        try await command.run()
      } else {
        try command.run()
      }
    } catch let error as ClientError {
      printError("\(error)")
      Foundation.exit(error.exitStatus)
    } catch is CancellationError {
      Foundation.exit(128 + SIGINT)
    } catch {
      let isUsage = exitCode(for: error) == .validationFailure
      let message = fullMessage(for: error)
      if !message.isEmpty {
        if exitCode(for: error) == .success {
          print(message)
        } else {
          write(message + "\n", to: STDERR_FILENO)
        }
      }
      Foundation.exit(isUsage ? 2 : exitCode(for: error).rawValue)
    }
  }
}

/// What all commands have in common.
struct ServerOptions: ParsableArguments {
  @Option(help: "Where the server is. Environment: CLAUDE_API_URL. Default: http://127.0.0.1:8000")
  var url: String?

  @Option(help: "Sent as a bearer token. Better given as CLAUDE_API_KEY, since others can see arguments.")
  var apiKey: String?

  @Flag(help: "Print the server's JSON.")
  var json = false

  private static func environment(_ name: String) -> String? {
    ProcessInfo.processInfo.environment[name].flatMap { $0.isEmpty ? nil : $0 }
  }

  private var givenURL: String { url ?? Self.environment("CLAUDE_API_URL") ?? "http://127.0.0.1:8000" }
  private var givenKey: String? { apiKey ?? Self.environment("CLAUDE_API_KEY") }

  func validate() throws {
    guard Client.validated(url: givenURL) != nil else {
      throw ValidationError("This is not the URL of an HTTP server: \(givenURL)")
    }
    guard givenKey.map({ $0.utf8.allSatisfy { (0x21...0x7e).contains($0) } }) ?? true else {
      throw ValidationError("The key holds a character that cannot be part of one.")
    }
  }

  func withClient<Result>(
    isolation: isolated (any Actor)? = #isolation, _ body: (Client) async throws -> Result
  ) async throws -> Result {
    guard let url = Client.validated(url: givenURL) else { throw ExitCode(2) }
    return try await Client.with(url: url, apiKey: givenKey, body)
  }
}

/// The argument of the commands about one session.
struct SessionArgument: ParsableArguments {
  @Argument(help: "The id of a session.")
  var id: String

  func validate() throws {
    guard Client.isSessionID(id) else { throw ValidationError("This is not the id of a session: \(id)") }
  }
}

struct Sessions: AsyncParsableCommand {
  static let configuration = CommandConfiguration(abstract: "List the sessions.")
  @OptionGroup var server: ServerOptions

  func run() async throws {
    let reply = try await server.withClient { try await $0.sessions() }
    if server.json {
      printText(reply.json)
    } else {
      printText(table(of: reply.value.sessions))
    }
  }
}

struct Show: AsyncParsableCommand {
  static let configuration = CommandConfiguration(abstract: "Show one session.")
  @OptionGroup var server: ServerOptions
  @OptionGroup var session: SessionArgument

  func run() async throws {
    let reply = try await server.withClient { try await $0.session(session.id) }
    if server.json {
      printText(reply.json)
    } else {
      let found = reply.value
      printText(
        """
        id         \(found.id)
        name       \(found.name)
        created    \(found.createdAt)
        last used  \(found.lastUsed)
        """)
    }
  }
}

struct Delete: AsyncParsableCommand {
  static let configuration = CommandConfiguration(abstract: "Delete a session with its files.")
  @OptionGroup var server: ServerOptions
  @OptionGroup var session: SessionArgument

  func run() async throws {
    let reply = try await server.withClient { try await $0.deleteSession(session.id) }
    printText(server.json ? reply.json : "\(reply.value.message): \(reply.value.sessionID)")
  }
}

struct Test: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "Try each route of a running server, with one short conversation.")
  @OptionGroup var server: ServerOptions

  func run() async throws {
    let isJSON = server.json
    let isGood = try await server.withClient { client in
      if !isJSON { printText("Testing \(client.baseURL)") }
      let check = ServerCheck(client: client) { step in
        if isJSON {
          let encoder = JSONEncoder()
          encoder.outputFormatting = [.sortedKeys, .withoutEscapingSlashes]
          guard let data = try? encoder.encode(step) else { return }
          printText(String(decoding: data, as: UTF8.self))
        } else {
          let time = String(format: "%.3f s", step.seconds)
          printText("\(step.ok ? "ok  " : "FAIL")  \(step.name)  (\(time))\n      \(step.detail)")
        }
      }
      // Ctrl-C leaves nothing behind at the server.
      let run = Task { try await check.run() }
      signal(SIGINT, SIG_IGN)
      let interrupt = DispatchSource.makeSignalSource(signal: SIGINT, queue: .global())
      interrupt.setEventHandler { run.cancel() }
      interrupt.resume()
      defer { interrupt.cancel() }
      return try await run.value
    }
    if !isJSON { printText(isGood ? "All is well." : "Something is wrong; see above.") }
    if !isGood { throw ExitCode(1) }
  }
}

func table(of sessions: [Session]) -> String {
  guard !sessions.isEmpty else { return "There are no sessions." }
  return sessions.map {
    "\($0.id)  \($0.lastUsed)  \($0.name.split(whereSeparator: \.isNewline).joined(separator: " "))"
  }
  .joined(separator: "\n")
}

/// Prints text that may come from the server.
func printText(_ text: String) {
  write((isatty(STDOUT_FILENO) == 1 ? terminalSafe(text) : text) + "\n")
}

func printError(_ text: String) {
  write("claude-api: \(isatty(STDERR_FILENO) == 1 ? terminalSafe(text) : text)\n", to: STDERR_FILENO)
}

import ArgumentParser
import ClaudeAPI
import ClaudeRunner
import Foundation
import HummingbirdFastCGI
import Logging
import SQLiteStore
import Sandbox
import ServiceLifecycle
import Sessions
import UnixSignals
import Workspaces

struct Serve: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "Run the responder until SIGTERM or SIGINT.",
    discussion: """
      Settings come from flags, then the environment, then a JSON file, then the defaults:

      \(ServerConfiguration.help)
      """)

  // The settings are swift-configuration's; they are listed above.
  @Argument(parsing: .captureForPassthrough, help: .hidden)
  var settings: [String] = []

  func run() async throws {
    if settings.contains("--help") || settings.contains("-h") { throw CleanExit.helpRequest(Self.self) }
    let configuration: ServerConfiguration
    do {
      configuration = try await ServerConfiguration(
        arguments: settings, environment: ProcessInfo.processInfo.environment)
    } catch let error as SettingsError {
      try Self.complain("\(error)")
      throw ExitCode(64)
    }
    do {
      try await Responder(configuration).run()
    } catch let error as FastCGIServerError {
      try Self.complain("\(error)")
      throw ExitCode(1)
    } catch let error as StateLock.Failure {
      try Self.complain("\(error)")
      throw ExitCode(1)
    } catch let error as ServiceManager.Failure {
      try Self.complain("\(error)")
      throw ExitCode(1)
    } catch let error as SessionStoreError {
      try Self.complain("\(error)")
      // Another start would come to the same.
      if case .schemaTooNew = error { throw ExitCode(65) }
      throw ExitCode(1)
    } catch let error as SandboxError {
      try Self.complain("\(error) With sandbox.mode=off the agent could do all that the server's user can.")
      throw ExitCode(1)
    } catch let error as ClaudeFailure {
      try Self.complain(error.message)
      throw ExitCode(1)
    } catch let error as WorkspaceError {
      try Self.complain("\(error)")
      throw ExitCode(1)
    }
  }

  private static func complain(_ sentence: String) throws {
    try FileHandle.standardError.write(contentsOf: Data("claude-api-server: \(sentence)\n".utf8))
  }
}

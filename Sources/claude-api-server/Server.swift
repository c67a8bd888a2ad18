import ArgumentParser
import Foundation

/// The responder and its tools.
@main
struct Server: AsyncParsableCommand {
  static let version = "1.0.0"

  static let configuration = CommandConfiguration(
    commandName: "claude-api-server",
    abstract: "A session server for the Claude Code CLI: a FastCGI responder behind nginx.",
    version: version,
    subcommands: [Serve.self, Keys.self, ModelUsage.self, Backup.self, Restore.self],
    defaultSubcommand: Serve.self)
}

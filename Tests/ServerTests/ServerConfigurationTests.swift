import ClaudeRunner
import Foundation
import Sandbox
import Sessions
import TestSupport
import Testing
import Workspaces

@testable import claude_api_server

@Suite struct ServerConfigurationTests {
  private func configuration(
    _ arguments: [String] = [], _ environment: [String: String] = [:]
  ) async throws -> ServerConfiguration {
    try await ServerConfiguration(
      arguments: arguments, environment: environment.merging(["HOME": "/home/x"]) { own, _ in own })
  }

  private func message(_ arguments: [String] = [], _ environment: [String: String] = [:]) async -> String {
    do {
      _ = try await configuration(arguments, environment)
      return "no error"
    } catch {
      return "\(error)"
    }
  }

  @Test func defaultsFollowFromTheHomeDirectory() async throws {
    let plain = try await configuration()
    #expect(plain.stateDirectory == "/home/x/.local/state/claude-api-server")
    #expect(plain.workspaceRoot == plain.stateDirectory + "/workspaces")
    #expect(plain.socketPath == plain.stateDirectory + "/run/responder.sock")
    #expect(plain.queueLength == 16)
    let other = try await configuration([], ["XDG_STATE_HOME": "/state"])
    #expect(other.stateDirectory == "/state/claude-api-server")
  }

  @Test func flagsComeBeforeTheEnvironmentAndThatBeforeTheFile() async throws {
    try await withTemporaryDirectory { directory in
      let file = directory + "/settings.json"
      try #"{"queue": {"max-length": 3}, "claude": {"idle-timeout": "7m"}, "drain": {"timeout": "9s"}}"#
        .write(toFile: file, atomically: true, encoding: .utf8)
      let result = try await configuration(
        ["--queue-max-length=1", "--config-file", file],
        ["CLAUDE_API_QUEUE_MAX_LENGTH": "2", "CLAUDE_API_CLAUDE_IDLE_TIMEOUT": "8m"])
      #expect(result.queueLength == 1)
      #expect(result.idleTimeout == .seconds(480))
      #expect(result.drainTimeout == .seconds(9))
    }
  }

  @Test func listsHaveCommas() async throws {
    let wanted = ["https://example.org/a", "ssh://git@example.org/b"]
    let text = wanted.joined(separator: ", ")
    let flag = try await configuration(["--git-allowed-sources", text])
    #expect(flag.files.gitSources.map(\.text) == wanted)
    let variable = try await configuration([], ["CLAUDE_API_GIT_ALLOWED_SOURCES": text])
    #expect(variable.files.gitSources.map(\.text) == wanted)
    try await withTemporaryDirectory { directory in
      let file = directory + "/settings.json"
      for value in ["\"\(text)\"", "[\"\(wanted[0])\", \"\(wanted[1])\"]"] {
        try "{\"git\": {\"allowed-sources\": \(value)}}".write(toFile: file, atomically: true, encoding: .utf8)
        #expect(try await configuration(["--config-file", file]).files.gitSources.map(\.text) == wanted, "\(value)")
      }
    }
    #expect(await message(["--git-allowed-sources=example.org"]).contains("git.allowed-sources has \"example.org\""))
    let off = try await configuration(["--share-mode=off", "--quota-max-files=100", "--quota-max-bytes=1048576"])
    #expect(off.files.shareLifetime == .zero && off.files.limits.entries == 100 && off.files.limits.bytes == 1_048_576)
  }

  @Test func whatIsUnknownIsRefusedByName() async throws {
    #expect(await message(["--queue-length", "3"]).contains("--queue-length"))
    #expect(await message(["stray"]).contains("stray"))
    #expect(await message(["--queue-max-length"]).contains("--queue-max-length needs a value"))
    #expect(await message(["--log-level=info", "--log-level=debug"]).contains("--log-level is given twice"))
    #expect(await message([], ["CLAUDE_API_QUEUE_LENGTH": "3"]).contains("CLAUDE_API_QUEUE_LENGTH"))
    // The client's, the scripts' and the tests' variables share the prefix.
    #expect(await message([], ["CLAUDE_API_URL": "x", "CLAUDE_API_PORT": "1", "CLAUDE_API_TEST_X": "1"]) == "no error")
    try await withTemporaryDirectory { directory in
      let file = directory + "/settings.json"
      try #"{"queue": {"length": 3}}"#.write(toFile: file, atomically: true, encoding: .utf8)
      #expect(await message(["--config-file", file]).contains("queue.length in \(file)"))
      try "{".write(toFile: file, atomically: true, encoding: .utf8)
      #expect(await message(["--config-file", file]).contains(file))
      #expect(await message(["--config-file", directory + "/none"]).contains("none"))
    }
  }

  @Test(arguments: [
    ("--queue-max-length", "many"), ("--queue-max-length", "-1"), ("--queue-max-length", "10001"),
    ("--claude-idle-timeout", "10"), ("--claude-idle-timeout", "0s"), ("--claude-idle-timeout", "-5s"),
    ("--log-level", "loud"), ("--state-dir", ""),
  ])
  func badValuesAreRefusedByName(_ flag: String, _ value: String) async {
    #expect(await message(["\(flag)=\(value)"]).contains(flag))
  }

  @Test func theWayToTheModelFollowsFromTheSettings() async throws {
    let plain = try await configuration()
    #expect(plain.modelHost == "api.anthropic.com")
    #expect(plain.modelSocket == plain.stateDirectory + "/run/model/api.sock")
    #expect(plain.modelTokenDirectory == plain.stateDirectory + "/run/model-tokens")
    #expect(plain.modelSocketDirectory == plain.stateDirectory + "/run/agents")
    let longest = "/" + String(repeating: "x", count: 93)
    #expect(try await configuration(["--model-socket-dir=\(longest)"]).modelSocketDirectory == longest)
    #expect(await message(["--model-socket-dir=\(longest)x"]).contains("model.socket-dir"))
    #expect(try await configuration(["--model-url=https://gateway.example:8443/v"]).modelHost == "gateway.example:8443")
    let demo = try await configuration(["--demo-model-url=http://127.0.0.1:1", "--model-url=https://x.example"])
    #expect(demo.modelHost == "127.0.0.1:1")
    #expect(await message(["--model-url=gateway.example"]).contains("model.url"))
    #expect(await message(["--model-url=ftp://gateway.example"]).contains("model.url"))
  }

  /// All agents together, and what nginx needs to pass them on, leave the API half of nginx's connections.
  @Test(arguments: [1024, 4096, nil])
  func agentsLeaveHalfOfNginxsConnections(_ fewer: Int?) async throws {
    var limit = rlimit()
    try #require(getrlimit(__rlimit_resource_t(RLIMIT_NOFILE.rawValue), &limit) == 0)
    let descriptors = min(fewer ?? .max, Int(clamping: limit.rlim_max))
    let (plain, many) = (try await configuration(), try await configuration(["--model-max-connections=1024"]))
    #expect(plain.modelConnections(processes: 4, descriptors: descriptors) == 32)
    try await withTemporaryDirectory { directory in
      let script = #"ulimit -n "$1" && exec "$2/scripts/render-nginx" "$3" --socket /s/r.sock"#
      let exit = try await run(
        ["bash", "-c", script, "bash", "\(descriptors)", repositoryRoot, directory + "/n"], output: directory + "/log")
      try #require(exit == .status(0), "\(text(of: directory + "/log"))")
      let rendered = text(of: directory + "/n/nginx.conf")
      let connections = try #require(
        rendered.firstMatch(of: /worker_connections (\d+);/).flatMap { Int($0.1) }, "\(rendered)")
      for processes in [1, 2, 50, 100] {
        for configuration in [plain, many] {
          let each = configuration.modelConnections(processes: processes, descriptors: descriptors)
          #expect(each >= 1 && processes * each * 2 <= connections / 2, "\(processes) \(each) \(connections)")
        }
      }
    }
  }

  @Test func controlGroupsAreFoundGivenOrNone() async throws {
    #expect(try await configuration().sandbox.controlGroups == .automatic)
    #expect(try await configuration(["--sandbox-control-groups=none"]).sandbox.controlGroups == .none)
    let given = try await configuration(["--sandbox-control-groups=/a,/b"])
    #expect(given.sandbox.controlGroups == .directories(["/a", "/b"]))
    #expect(await message(["--sandbox-control-groups=a"]).contains("sandbox.control-groups"))
    #expect(try await configuration(["--sandbox-network=model-only"]).sandbox.network == .modelOnly)
    #expect(await message(["--sandbox-network=closed"]).contains("--sandbox-network"))
  }

  @Test func sumsTheLogOfTheModel() async throws {
    try await withTemporaryDirectory { directory in
      let log = directory + "/model.log"
      func line(_ session: String, _ key: String, _ input: Int, _ output: Int) -> String {
        #"{"session":"\#(session)","key":"\#(key)","model":"m","input_tokens":\#(input),"output_tokens":\#(output),"#
          + #""cache_read_tokens":1,"cache_creation_tokens":2}"#
      }
      try [line("a", "k", 10, 1), line("b", "k", 20, 2), "{\"session\":", line("a", "l", 30, 3)].joined(separator: "\n")
        .write(toFile: log, atomically: true, encoding: .utf8)
      func sums(by group: ModelUsage.Group) throws -> ([String: [Int]], Int) {
        var totals: [String: ModelTokens] = [:]
        let skipped = try ModelLog(path: log).forEachRequest { totals[$0[group], default: ModelTokens()] += $0.tokens }
        return (totals.mapValues(\.columns), skipped)
      }
      #expect(try sums(by: .session) == (["a": [2, 40, 4, 2, 4], "b": [1, 20, 2, 1, 2]], 1))
      #expect(try sums(by: .key) == (["k": [2, 30, 3, 2, 4], "l": [1, 30, 3, 1, 2]], 1))
      #expect(throws: (any Error).self) { try ModelLog(path: directory + "/none").forEachRequest { _ in } }
    }
  }

  @Test func durationsAreReadAndWritten() {
    for (text, duration) in [("250ms", Duration.milliseconds(250)), ("30s", .seconds(30)), ("2h", .seconds(7200))] {
      #expect(Duration(setting: text) == duration)
      #expect(duration.settingText == text)
    }
    for text in ["", "s", "5", "5d", "1.5s", "99999999999999999999h", "9223372036854775807h"] {
      #expect(Duration(setting: text) == nil)
    }
  }

  @Test func limitsOfKeysAreRead() async throws {
    let plain = try await configuration()
    #expect(plain.keyLimits == KeyLimits([.queuedTurns: .maximum(1000), .streams: .maximum(256)]))
    let some = try await configuration(
      ["--limits-usd-per-day=1.5", "--limits-streams", "none"], ["CLAUDE_API_LIMITS_SESSIONS": "7"])
    #expect(some.keyLimits[.usdPerDay] == KeyLimit.dollar * 3 / 2 && some.keyLimits[.sessions] == 7)
    #expect(some.keyLimits[.streams] == nil && some.keyLimits[setting: .streams] == .unlimited)
    for (flag, word) in [
      ("--limits-sessions=0", "whole number"), ("--limits-sessions=many", "whole number"),
      ("--limits-usd-per-month=-1", "US dollars"), ("--limits-usd-per-month=1,5", "US dollars"),
    ] {
      let text = await message([flag])
      #expect(text.contains(word) && text.contains("limits"), "\(text)")
    }
  }

  @Test func theReadmeListsEverySetting() throws {
    let readme = try String(contentsOfFile: repositoryRoot + "/README.md", encoding: .utf8)
    for setting in ServerConfiguration.Row.all + [Settings.fileSetting] {
      let row =
        "| `\(setting.key)` | \(setting.defaultText.replacing(",", with: ", ")) | \(setting.summary) |"
      #expect(readme.contains(row), "the README has no row\n\(row)")
    }
  }
}

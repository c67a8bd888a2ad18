import Configuration
import Foundation
import SystemPackage

/// A setting: one row of the help text and of the README's table.
///
/// Its key `queue.max-length` is the flag `--queue-max-length`, the variable `CLAUDE_API_QUEUE_MAX_LENGTH`, and in
/// the file `{"queue": {"max-length": …}}`.
struct Setting: Sendable, Equatable {
  enum Kind: Sendable, Equatable {
    case text
    case path
    case integer(ClosedRange<Int>)
    /// A number with `ms`, `s`, `m` or `h`.
    case duration(ClosedRange<Duration>)
    /// Texts that are separated by commas.
    case list
    case choice([String])
    /// A text that must be what these words say; whoever reads it checks that.
    case form(String)
  }

  let key: String
  let kind: Kind
  let defaultText: String
  let summary: String

  var flag: String { "--" + key.replacing(".", with: "-") }
  var variable: String {
    "CLAUDE_API_" + key.replacing(".", with: "_").replacing("-", with: "_").uppercased()
  }
}

/// A setting that is unknown or has a bad value.
struct SettingsError: Error, CustomStringConvertible, Equatable {
  let description: String
}

/// The values of settings from flags, then the environment, then a file, then the defaults.
struct Settings {
  private let providers: [(source: String, provider: any ConfigProvider)]

  static let fileSetting = Setting(
    key: "config.file", kind: .path, defaultText: "none",
    summary: "a JSON file with settings")
  private static let prefix = "CLAUDE_API_"
  /// Variables with the prefix that belong to the scripts, the client and the tests.
  private static let foreignVariables: Set<String> = [
    "CLAUDE_API_DEMO", "CLAUDE_API_KEY", "CLAUDE_API_PORT", "CLAUDE_API_URL",
  ]
  private static let testPrefix = "CLAUDE_API_TEST_"

  /// - Throws: ``SettingsError`` for an argument, a variable or a member of the file that is no setting.
  init(arguments: [String], environment: [String: String], catalog: [Setting]) async throws {
    let all = catalog + [Self.fileSetting]
    try Self.checkArguments(arguments, all)
    let variables = environment.filter {
      $0.key.hasPrefix(Self.prefix) && !$0.key.hasPrefix(Self.testPrefix)
    }
    if let unknown = variables.keys.filter({ name in
      !Self.foreignVariables.contains(name) && !all.contains { $0.variable == name }
    }).min() {
      throw SettingsError(description: "The environment variable \(unknown) is no setting of this program.")
    }
    let flags = CommandLineArgumentsProvider(arguments: ["claude-api-server"] + arguments)
    let names = EnvironmentVariablesProvider(environmentVariables: variables).prefixKeys(with: ["claude", "api"])
    var providers: [(String, any ConfigProvider)] = [("flag", flags), ("environment", names)]
    let fileReader = Settings(providers: providers)
    if let path = try fileReader.path(Self.fileSetting) {
      providers.append((path, try await Self.readFile(path, catalog)))
    }
    self.providers = providers
  }

  private init(providers: [(source: String, provider: any ConfigProvider)]) {
    self.providers = providers
  }

  private static func checkArguments(_ arguments: [String], _ settings: [Setting]) throws {
    var expectsValue: String?
    var seen: Set<String> = []
    for argument in arguments {
      if let flag = expectsValue {
        guard !argument.hasPrefix("--") else { throw SettingsError(description: "\(flag) needs a value.") }
        expectsValue = nil
        continue
      }
      let parts = argument.split(separator: "=", maxSplits: 1, omittingEmptySubsequences: false)
      let name = String(parts.first ?? "")
      guard settings.contains(where: { $0.flag == name }) else {
        throw SettingsError(description: "Unknown argument \(argument); claude-api-server serve --help lists them.")
      }
      guard seen.insert(name).inserted else { throw SettingsError(description: "\(name) is given twice.") }
      if parts.count == 1 { expectsValue = name }
    }
    if let flag = expectsValue { throw SettingsError(description: "\(flag) needs a value.") }
  }

  private static func readFile(_ path: String, _ settings: [Setting]) async throws -> any ConfigProvider {
    let content: Any
    do {
      content = try JSONSerialization.jsonObject(with: try Data(contentsOf: URL(filePath: path)))
    } catch {
      throw SettingsError(description: "The file \(path) can't be read as JSON: \(error.localizedDescription)")
    }
    guard let object = content as? [String: Any] else {
      throw SettingsError(description: "The file \(path) must hold a JSON object.")
    }
    try checkMembers(object, below: "", path, settings)
    return try await FileProvider<JSONSnapshot>(filePath: FilePath(path))
  }

  private static func checkMembers(
    _ object: [String: Any], below prefix: String, _ path: String, _ settings: [Setting]
  ) throws {
    for (name, value) in object.sorted(by: { $0.key < $1.key }) {
      let key = prefix + name
      if settings.contains(where: { $0.key == key }) { continue }
      guard let inner = value as? [String: Any], settings.contains(where: { $0.key.hasPrefix(key + ".") }) else {
        throw SettingsError(description: "\(key) in \(path) is no setting of this program.")
      }
      try checkMembers(inner, below: key + ".", path, settings)
    }
  }

  // MARK: Values

  func text(_ setting: Setting) throws -> String? {
    guard let found = try find(setting, .string), case .string(let text) = found.content else { return nil }
    if case .choice(let choices) = setting.kind, !choices.contains(text) {
      throw bad(setting, found.source, text, "must be one of \(choices.joined(separator: ", "))")
    }
    guard !text.isEmpty else { throw bad(setting, found.source, text, "must not be empty") }
    return text
  }

  /// An absolute path; a relative one counts from the working directory.
  func path(_ setting: Setting) throws -> String? {
    guard let text = try text(setting) else { return nil }
    guard !text.utf8.contains(0) else { throw bad(setting, "value", text, "must not hold NUL") }
    return URL(filePath: text).standardizedFileURL.path(percentEncoded: false)
  }

  func integer(_ setting: Setting) throws -> Int? {
    guard let found = try find(setting, .int), case .int(let value) = found.content else { return nil }
    guard case .integer(let range) = setting.kind, range.contains(value) else {
      throw bad(setting, found.source, "\(value)", "must be \(range(of: setting))")
    }
    return value
  }

  func duration(_ setting: Setting) throws -> Duration? {
    guard let found = try find(setting, .string), case .string(let text) = found.content else { return nil }
    guard let value = Duration(setting: text), case .duration(let range) = setting.kind, range.contains(value)
    else { throw bad(setting, found.source, text, "must be \(range(of: setting))") }
    return value
  }

  /// Texts that are separated by commas; in the file they may also be an array.
  func list(_ setting: Setting) throws -> [String]? {
    let texts: [String]
    // A flag with a comma is an array to its provider, and no text.
    if let found = try? find(setting, .stringArray), case .stringArray(let array) = found.content {
      texts = array
    } else if let found = try find(setting, .string), case .string(let text) = found.content {
      texts = [text]
    } else {
      return nil
    }
    return texts.flatMap { $0.split(separator: ",") }.map { $0.trimmingCharacters(in: .whitespaces) }
      .filter { !$0.isEmpty }
  }

  private func find(_ setting: Setting, _ type: ConfigType) throws -> (content: ConfigContent, source: String)? {
    let key = AbsoluteConfigKey(setting.key.split(separator: ".").map(String.init))
    for (source, provider) in providers {
      do {
        if let value = try provider.value(forKey: key, type: type).value { return (value.content, source) }
      } catch {
        throw SettingsError(
          description: "\(name(setting, source)) has a bad value: it must be \(range(of: setting)).")
      }
    }
    return nil
  }

  private func bad(_ setting: Setting, _ source: String, _ value: String, _ what: String) -> SettingsError {
    SettingsError(description: "\(name(setting, source)) is \"\(value)\", but \(what).")
  }

  private func name(_ setting: Setting, _ source: String) -> String {
    switch source {
    case "flag": setting.flag
    case "environment": setting.variable
    default: "\(setting.key) in \(source)"
    }
  }

  private func range(of setting: Setting) -> String {
    switch setting.kind {
    case .text: "a text"
    case .form(let words): words
    case .path: "a path"
    case .list: "texts separated by commas"
    case .choice(let choices): "one of \(choices.joined(separator: ", "))"
    case .integer(let range):
      range.upperBound == .max
        ? "a whole number of at least \(range.lowerBound)"
        : "a whole number from \(range.lowerBound) to \(range.upperBound)"
    case .duration(let range):
      "a duration from \(range.lowerBound.settingText) to \(range.upperBound.settingText), such as 30s, 5m or 2h"
    }
  }
}

extension Duration {
  private static let units: [(suffix: String, milliseconds: Int)] = [
    ("ms", 1), ("s", 1000), ("m", 60_000), ("h", 3_600_000),
  ]

  /// Reads `250ms`, `30s`, `5m` or `2h`.
  init?(setting text: String) {
    for (suffix, milliseconds) in Self.units where text.hasSuffix(suffix) {
      guard let number = Int(text.dropLast(suffix.count)), number >= 0 else { continue }
      let (total, overflow) = number.multipliedReportingOverflow(by: milliseconds)
      guard !overflow else { return nil }
      self = .milliseconds(total)
      return
    }
    return nil
  }

  /// The text that `init(setting:)` reads.
  var settingText: String {
    let total = Int(components.seconds) * 1000 + Int(components.attoseconds / 1_000_000_000_000_000)
    for (suffix, milliseconds) in Self.units.reversed() where total % milliseconds == 0 && total > 0 {
      return "\(total / milliseconds)\(suffix)"
    }
    return "\(total)ms"
  }
}

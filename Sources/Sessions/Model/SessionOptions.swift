public import JSONSupport

/// What a client may choose for a session, and for a message in place of that.
public enum SessionOption: String, CaseIterable, Hashable, Sendable {
  /// An alias such as `sonnet`, or a full name; which ones there are is the model's provider's affair.
  case model
  /// A text that is added to the agent's own system prompt. At most 100,000 bytes.
  case appendSystemPrompt = "append_system_prompt"
  /// Rules of tools that run without asking, such as `Read` or `Bash(git log:*)`; in place of the server's list.
  case allowedTools = "allowed_tools"
  /// Rules of tools that are denied. They win over those that allow.
  case disallowedTools = "disallowed_tools"
  /// One of ``PermissionMode``.
  case permissionMode = "permission_mode"
  /// The most steps of the agent in one turn, 1 to 10,000; a turn that needs more fails with `max_turns`.
  case maxTurns = "max_turns"
  /// The most that the whole conversation may cost in US dollars by the CLI's own count, not the most for a turn: the
  /// count goes on from turn to turn, over restarts of the CLI and in forks, and may fall behind when the CLI is
  /// killed. A turn that begins or goes on beyond it fails with `budget_exhausted`, and so does each later one until
  /// the budget is raised.
  case maxBudgetUSD = "max_budget_usd"
  /// A JSON Schema (draft 7) of type object which the turn's `structured_output` fits. A turn without such an output
  /// fails with `structured_output_missing`, with a schema that the CLI refuses with `invalid_output_schema`.
  case outputSchema = "output_schema"
  /// MCP servers by name, in the CLI's own form: with `command` (and `args`, `env`) or with `url` (and `type`,
  /// `headers`).
  case mcpServers = "mcp_servers"
}

/// What happens to a tool call that no rule decides.
public enum PermissionMode: String, CaseIterable, Hashable, Sendable {
  /// It is denied.
  case standard = "default"
  /// It becomes an approval, for a client to decide. Unless the client gives a list of allowed tools, no tool is on
  /// it: the server's list is for sessions that nobody watches.
  case ask
  /// As the default, but files in the workspace may be changed.
  case acceptEdits
  /// The agent only plans.
  case plan
  /// As the default, without any question that the CLI would ask.
  case dontAsk
  /// It runs.
  case bypassPermissions
}

/// Why a value can't be that of an option.
public struct SessionOptionError: Error, Hashable, Sendable {
  public let option: SessionOption
  /// What the value must be, to be put behind the option's name.
  public let requirement: String
}

/// Options that were checked. An option that isn't there is decided elsewhere: for a message by its session, for a
/// session by the server. One that is null is the server's default, whatever the session says.
public struct SessionOptions: Hashable, Sendable {
  /// Rules that were made of decisions on approvals, and that hold beside the lists.
  public struct Remembered: Hashable, Sendable {
    public var allowed: [String] = []
    public var denied: [String] = []

    public var isEmpty: Bool { allowed.isEmpty && denied.isEmpty }

    /// Adds rules as far as they can be kept. They hold words of the agent's, and become part of a list: one that
    /// the CLI could take for the end of a rule and the beginning of another is left out.
    mutating func add(_ rules: [String], _ decision: ApprovalVerdict.Decision) {
      let list = decision == .allow ? \Self.allowed : \Self.denied
      for rule in rules where SessionOption.isPlainRule(rule) && !self[keyPath: list].contains(rule) {
        self[keyPath: list].append(rule)
      }
    }
  }

  private var values: [SessionOption: JSONValue] = [:]
  public var remembered = Remembered()

  public init() {}

  public var isEmpty: Bool { values.isEmpty && remembered.isEmpty }

  public subscript(option: SessionOption) -> JSONValue? { values[option] }

  /// Sets an option to what a client gave.
  public mutating func set(_ option: SessionOption, _ value: JSONValue) throws(SessionOptionError) {
    if let requirement = value.isNull ? nil : option.objection(to: value) {
      throw SessionOptionError(option: option, requirement: requirement)
    }
    values[option] = value
  }

  /// Sets an option to a value that was checked.
  mutating func replace(_ option: SessionOption, _ value: JSONValue) { values[option] = value }

  /// Leaves an option to whoever decides it otherwise.
  public mutating func clear(_ option: SessionOption) { values[option] = nil }

  /// These options with those of a message in their place.
  public func overridden(by message: SessionOptions) -> SessionOptions {
    var result = self
    result.values.merge(message.values) { _, new in new }
    return result
  }

  // MARK: As text

  private static let rememberedKey = "remembered"

  /// - Parameter stored: what ``stored`` gave; what isn't an option is left out.
  public init(stored: JSONText) {
    if stored == "{}" { return }
    // It is this program's own text; without it the defaults hold.
    guard case .object(let members)? = try? JSONValue(parsing: stored.utf8) else { return }
    for option in SessionOption.allCases {
      if let value = members[option.rawValue] { values[option] = value }
    }
    let rules = members[Self.rememberedKey]
    remembered.allowed = rules?["allow"]?.arrayValue?.compactMap(\.stringValue) ?? []
    remembered.denied = rules?["deny"]?.arrayValue?.compactMap(\.stringValue) ?? []
  }

  /// The text that the store keeps.
  public var stored: JSONText { JSONValue.object(members).description }

  /// The members that a client is shown: as they are, but without the secrets of MCP servers.
  public var shown: [String: JSONValue] {
    var members = members
    if case .object(let servers)? = values[.mcpServers] {
      members[SessionOption.mcpServers.rawValue] = .object(servers.mapValues(Self.withoutSecrets))
    }
    return members
  }

  private var members: [String: JSONValue] {
    var members = Dictionary(uniqueKeysWithValues: values.map { ($0.key.rawValue, $0.value) })
    if !remembered.isEmpty {
      members[Self.rememberedKey] = [
        "allow": .array(remembered.allowed.map { .string($0) }),
        "deny": .array(remembered.denied.map { .string($0) }),
      ]
    }
    return members
  }

  private static func withoutSecrets(_ server: JSONValue) -> JSONValue {
    guard case .object(var members) = server else { return server }
    for name in ["env", "headers"] {
      guard case .object(let entries)? = members[name] else { continue }
      members[name] = .object(entries.mapValues { _ in "[hidden]" })
    }
    return .object(members)
  }

  // MARK: Values

  public var model: String? { values[.model]?.stringValue }
  public var appendSystemPrompt: String? { values[.appendSystemPrompt]?.stringValue }
  /// nil is the default of the permission mode.
  public var allowedTools: [String]? { texts(.allowedTools) }
  public var disallowedTools: [String] { texts(.disallowedTools) ?? [] }
  public var permissionMode: PermissionMode? {
    values[.permissionMode]?.stringValue.flatMap(PermissionMode.init(rawValue:))
  }
  public var maxTurns: Int? { values[.maxTurns]?.intValue.map(Int.init) }
  public var maxBudgetUSD: Double? { values[.maxBudgetUSD]?.doubleValue }
  public var outputSchema: JSONValue? {
    guard let schema = values[.outputSchema], !schema.isNull else { return Optional.none }
    return schema
  }
  public var mcpServers: [String: JSONValue] { values[.mcpServers]?.objectValue ?? [:] }

  private func texts(_ option: SessionOption) -> [String]? {
    values[option]?.arrayValue?.compactMap(\.stringValue)
  }
}

extension SessionOption {
  /// What the value must be and isn't; nil if it is.
  fileprivate func objection(to value: JSONValue) -> String? {
    switch self {
    case .model:
      guard let text = value.stringValue, (1...200).contains(text.utf8.count),
        text.utf8.allSatisfy({ $0 > 0x20 && $0 < 0x7f }),
        !text.hasPrefix("-")
      else {
        return "must be the name of a model: a string of 1 to 200 visible ASCII characters such as \"sonnet\""
      }
    case .appendSystemPrompt:
      guard let text = value.stringValue, text.utf8.count <= 100_000, !text.utf8.contains(0) else {
        return "must be a string of at most 100000 bytes without NUL"
      }
    case .allowedTools, .disallowedTools:
      guard let rules = value.arrayValue, rules.count <= 200 else { return "must be an array of at most 200 strings" }
      for rule in rules where !(rule.stringValue.map(Self.isRule) ?? false) {
        return "must hold names of tools and rules such as \"Read\", \"mcp__server__tool\" or \"Bash(git log:*)\""
      }
    case .permissionMode:
      guard let text = value.stringValue, PermissionMode(rawValue: text) != nil else {
        return "must be one of \(PermissionMode.allCases.map(\.rawValue).joined(separator: ", "))"
      }
    case .maxTurns:
      guard let number = value.intValue, (1...10_000).contains(number) else {
        return "must be a whole number from 1 to 10000"
      }
    case .maxBudgetUSD:
      guard let number = value.doubleValue, number >= 0.0001, number <= 1_000_000 else {
        return "must be a number of US dollars from 0.0001 to 1000000"
      }
    case .outputSchema:
      // It becomes an argument of a command line, which has a limit.
      guard value["type"] == "object", value.encoded().count <= 100_000 else {
        return "must be a JSON Schema, an object of at most 100000 bytes with \"type\": \"object\""
      }
    case .mcpServers:
      return Self.objection(toServers: value)
    }
    return nil
  }

  /// Whether it is a tool's name, or a name with something in parentheses, so that the CLI takes it for one rule.
  private static func isRule(_ text: String) -> Bool {
    guard text.utf8.count <= 1000, text.utf8.allSatisfy({ $0 >= 0x20 && $0 != 0x7f }) else { return false }
    let name = text.utf8.prefix { $0 != UInt8(ascii: "(") }
    guard !name.isEmpty, name.first != UInt8(ascii: "-"), name.allSatisfy(isNameByte) else { return false }
    let rest = text.utf8.dropFirst(name.count)
    if rest.isEmpty { return true }
    guard rest.last == UInt8(ascii: ")") else { return false }
    // The CLI finds the end of the rule by the parentheses.
    var depth = 0
    for (offset, byte) in rest.enumerated() {
      if byte == UInt8(ascii: "(") { depth += 1 }
      if byte == UInt8(ascii: ")") { depth -= 1 }
      if depth == 0 && offset < rest.count - 1 { return false }
    }
    return depth == 0 && rest.count > 2
  }

  /// Whether it is a rule in whose parentheses is nothing that could mean something in a list of rules.
  fileprivate static func isPlainRule(_ text: String) -> Bool {
    guard isRule(text) else { return false }
    return text.utf8.drop { $0 != UInt8(ascii: "(") }.dropFirst().dropLast()
      .allSatisfy { ![UInt8(ascii: "("), UInt8(ascii: ")"), UInt8(ascii: "\\")].contains($0) }
  }

  private static func isNameByte(_ byte: UInt8) -> Bool {
    switch byte {
    case UInt8(ascii: "a")...UInt8(ascii: "z"), UInt8(ascii: "A")...UInt8(ascii: "Z"),
      UInt8(ascii: "0")...UInt8(ascii: "9"), UInt8(ascii: "_"), UInt8(ascii: "-"), UInt8(ascii: "*"):
      true
    default: false
    }
  }

  private static func objection(toServers value: JSONValue) -> String? {
    guard let servers = value.objectValue, servers.count <= 50, value.encoded().count <= 200_000 else {
      return "must be an object of at most 50 servers and 200000 bytes"
    }
    for (name, server) in servers {
      guard (1...64).contains(name.utf8.count), name.utf8.allSatisfy({ isNameByte($0) && $0 != UInt8(ascii: "*") })
      else { return "must name each server with 1 to 64 letters, digits, - and _" }
      guard let members = server.objectValue else { return "must hold an object for each server" }
      let (command, url) = (members["command"]?.stringValue ?? "", members["url"]?.stringValue ?? "")
      switch members["type"]?.stringValue {
      case nil where members["type"] == nil && !command.isEmpty, "stdio" where !command.isEmpty: break
      case "http" where !url.isEmpty, "sse" where !url.isEmpty: break
      default:
        return
          "must hold, for each server, a \"command\" (with the type stdio or none) or a \"url\" with one of the types http, sse"
      }
      let known = ["args", "command", "env", "headers", "type", "url"]
      if members.keys.contains(where: { !known.contains($0) }) {
        return "must hold nothing for a server but \(known.joined(separator: ", "))"
      }
      if let args = members["args"], args.arrayValue?.allSatisfy({ $0.stringValue != nil }) != true {
        return "must hold strings as the args of a server"
      }
      for name in ["env", "headers"] {
        if let entries = members[name], entries.objectValue?.values.allSatisfy({ $0.stringValue != nil }) != true {
          return "must hold strings as the \(name) of a server"
        }
      }
    }
    return nil
  }
}

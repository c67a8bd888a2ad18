import ArgumentParser
import ClaudeAPI
import Foundation
import SQLiteStore
import Sessions

/// The API's keys. Each command works beside a running server, which heeds it with the next request.
struct Keys: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "Create, list, limit, rotate and revoke the keys of the API.",
    subcommands: [Create.self, List.self, Limit.self, Network.self, Rotate.self, Revoke.self])

  struct Location: ParsableArguments {
    @OptionGroup var state: StateLocation

    func withStore<T>(_ body: (SQLiteSessionStore, WatchedKeyStore) async throws -> T) async throws -> T {
      let configuration = try await state.configuration()
      let store = try await SQLiteSessionStore.open(
        SQLiteStoreConfiguration(path: configuration.stateDirectory + "/claude-api.sqlite"))
      do {
        let keys = WatchedKeyStore(store, stateDirectory: configuration.stateDirectory)
        let result = try await body(store, keys)
        await store.close()
        return result
      } catch {
        await store.close()
        throw error
      }
    }
  }

  struct Create: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
      abstract: "Make a key and print it. It can't be shown again.")

    @OptionGroup var location: Location

    @Option(help: "What the key is for, to recognise it in the list.")
    var name: String

    @Option(help: "admin (everything), user (its own sessions) or read (its own sessions, without changes).")
    var role: Role = .user

    @Option(help: "How long the key is good, such as 90d or 12h (default: until it is revoked).")
    var expiresIn: Lifetime?

    @Option(help: "The id of the only session that the key is good for.")
    var session: SessionID?

    @Option(name: .customLong("limit"), help: LimitSetting.help)
    var limits: [LimitSetting] = []

    @Option(help: NetworkSetting.help)
    var network: NetworkSetting = .default

    func validate() throws {
      guard (1...200).contains(name.utf8.count), name.unicodeScalars.allSatisfy({ $0.properties.isPrintable }) else {
        throw ValidationError("The name must have 1 to 200 bytes and no control characters.")
      }
      if session != nil && role == .admin { throw ValidationError("An admin's key is good for all sessions.") }
    }

    func run() async throws {
      let secret = KeySecret()
      let now = Timestamp.now()
      let key = APIKey(
        id: secret.id, name: name, role: role.role, sessionID: session?.id, digest: secret.digest, createdAt: now,
        expiresAt: expiresIn.map { now.advanced(by: $0.duration) },
        limits: LimitSetting.applied(limits, to: KeyLimits()), network: network.network)
      try await location.withStore { store, keys in
        if let id = session?.id { _ = try await store.session(id) }
        try await keys.addKey(key)
      }
      print(secret.text)
    }
  }

  struct List: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
      abstract:
        "List the keys, with tabs between id, role, state, creation, expiry, session, name, own limits and network.")

    @OptionGroup var location: Location

    func run() async throws {
      let now = Timestamp.now()
      for key in try await location.withStore({ try await $1.keys() }) {
        let state = key.revokedAt != nil ? "revoked" : key.isValid(at: now) ? "valid" : "expired"
        print(
          [
            key.id, key.role.rawValue, state, key.createdAt.description, key.expiresAt?.description ?? "-",
            key.sessionID?.lowercaseString ?? "-", key.name, key.limits.isEmpty ? "-" : LimitSetting.text(key.limits),
            NetworkSetting(key.network).rawValue,
          ].joined(separator: "\t"))
      }
    }
  }

  struct Limit: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
      abstract: "Show or change what a key may use. It holds at once.")

    @OptionGroup var location: Location
    @Argument(help: "The key's id, as in the list.") var id: String
    @Argument(help: LimitSetting.help) var limits: [LimitSetting] = []

    func run() async throws {
      let key = try await location.withStore { store, keys in
        guard let key = try await store.lookUpKey(id).key else { return nil as APIKey? }
        if limits.isEmpty { return key }
        return try await keys.setKeyLimits(id, to: LimitSetting.applied(limits, to: key.limits))
      }
      guard let key else { throw ValidationError("There is no key \(id), or it is revoked.") }
      for limit in KeyLimit.allCases {
        print("\(limit.rawValue)\t\(LimitSetting.text(limit, key.limits[setting: limit]) ?? "default")")
      }
    }
  }

  struct Network: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
      abstract: "Show or change what the agents of a key's sessions reach. It holds from their next message on.")

    @OptionGroup var location: Location
    @Argument(help: "The key's id, as in the list.") var id: String
    @Argument(help: NetworkSetting.help) var network: NetworkSetting?

    func run() async throws {
      let key = try await location.withStore { store, keys in
        guard let network else { return try await store.lookUpKey(id).key }
        return try await keys.setKeyNetwork(id, to: network.network)
      }
      guard let key else { throw ValidationError("There is no key \(id), or it is revoked.") }
      print(NetworkSetting(key.network).rawValue)
    }
  }

  /// What agents reach, on the command line.
  enum NetworkSetting: String, ExpressibleByArgument, CaseIterable {
    case modelOnly = "model-only"
    case open
    case `default`

    static let help: ArgumentHelp =
      "What the agents of its sessions reach: model-only (the model's API), open (all that the server's machine reaches, and itself), or default for what the server's settings say."

    init(_ network: AgentNetwork?) {
      self =
        switch network {
        case .modelOnly: .modelOnly
        case .open: .open
        case nil: .default
        }
    }

    var network: AgentNetwork? {
      switch self {
      case .modelOnly: .modelOnly
      case .open: .open
      case .default: nil
      }
    }
  }

  /// A limit and its amount on the command line.
  struct LimitSetting: ExpressibleByArgument {
    let limit: KeyLimit
    /// Nil leaves it to the server.
    let setting: KeyLimits.Setting?

    static let help = ArgumentHelp(
      "What the key may use: \(KeyLimit.allCases.map(\.rawValue).joined(separator: ", ")), with a number, none, or "
        + "default for what the server's settings say.",
      valueName: "name=amount")

    init?(argument: String) {
      let parts = argument.split(separator: "=", maxSplits: 1, omittingEmptySubsequences: false).map(String.init)
      guard parts.count == 2, let limit = KeyLimit(rawValue: parts[0]) else { return nil }
      self.limit = limit
      switch parts[1] {
      case "none": setting = .unlimited
      case "default": setting = nil
      default:
        guard let amount = limit.amount(parts[1]) else { return nil }
        setting = .maximum(amount)
      }
    }

    static func applied(_ settings: [LimitSetting], to limits: KeyLimits) -> KeyLimits {
      settings.reduce(into: limits) { $0[setting: $1.limit] = $1.setting }
    }

    static func text(_ limits: KeyLimits) -> String {
      KeyLimit.allCases.compactMap { limit in text(limit, limits[setting: limit]).map { "\(limit.rawValue)=\($0)" } }
        .joined(separator: " ")
    }

    static func text(_ limit: KeyLimit, _ setting: KeyLimits.Setting?) -> String? {
      switch setting {
      case nil: nil
      case .unlimited: "none"
      case .maximum(let amount): limit.text(amount)
      }
    }
  }

  struct Rotate: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
      abstract: "Give a key a new secret and print it. The old one is invalid at once, and the sessions stay its own.")

    @OptionGroup var location: Location
    @Argument(help: "The key's id, as in the list.") var id: String

    func run() async throws {
      let secret = KeySecret(id: id)
      guard try await location.withStore({ try await $1.replaceKeyDigest(id, with: secret.digest) }) != nil else {
        throw ValidationError("There is no key \(id), or it is revoked.")
      }
      print(secret.text)
    }
  }

  struct Revoke: AsyncParsableCommand {
    static let configuration = CommandConfiguration(abstract: "Make a key invalid, at once and for ever.")

    @OptionGroup var location: Location
    @Argument(help: "The key's id, as in the list.") var id: String

    func run() async throws {
      guard try await location.withStore({ try await $1.revokeKey(id, at: .now()) }) else {
        throw ValidationError("There is no key \(id).")
      }
    }
  }

  enum Role: String, ExpressibleByArgument, CaseIterable {
    case admin, user, read

    var role: APIKey.Role {
      switch self {
      case .admin: .admin
      case .user: .user
      case .read: .read
      }
    }
  }

  struct Lifetime: ExpressibleByArgument {
    let duration: Duration

    init?(argument: String) {
      if argument.hasSuffix("d"), let days = Int(argument.dropLast()), (1...36_500).contains(days) {
        duration = .seconds(days * 86_400)
      } else if let duration = Duration(setting: argument), duration > .zero, duration <= .seconds(36_500 * 86_400) {
        self.duration = duration
      } else {
        return nil
      }
    }
  }

  struct SessionID: ExpressibleByArgument {
    let id: UUID

    init?(argument: String) {
      guard let id = UUID(canonical: argument) else { return nil }
      self.id = id
    }
  }
}

extension Unicode.Scalar.Properties {
  fileprivate var isPrintable: Bool { generalCategory != .control && generalCategory != .lineSeparator }
}

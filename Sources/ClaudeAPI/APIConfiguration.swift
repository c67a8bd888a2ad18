/// What the API says of itself, and its bounds.
public struct APIConfiguration: Sendable {
  /// The model that answers, for `GET /`.
  public enum Model: Sendable, Equatable {
    /// The built-in demo model, which understands nothing.
    case demo
    /// A model of the operator's choice; `host` is that of its API.
    case configured(host: String?)
  }

  public var version: String
  public var model: Model

  /// Bytes of a prompt; more is 413. Default 4 MiB.
  public var maximumPromptBytes = 4 << 20

  /// Bytes of a request's body; more is 413. Default 16 MiB.
  public var maximumBodyBytes = 16 << 20

  /// Whether nobody is answered as long as there are no keys. Otherwise those on the same machine are. Default false.
  public var requiresKeys = false

  public init(version: String, model: Model) {
    self.version = version
    self.model = model
  }
}

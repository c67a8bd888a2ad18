/// What a session may use, and where it finds it.
public struct SandboxConfiguration: Sendable {
  /// Absolute path of bubblewrap; nil looks in the usual places.
  public var bubblewrap: String?
  /// Absolute path of a directory of the server's own for the few files that every sandbox shares. It is made, and
  /// is not visible inside.
  public var supportDirectory: String
  /// Absolute paths that are visible and read-only besides the system's, such as that of a language's tools.
  public var readOnlyPaths: [String] = []

  /// Processes and threads of a session at once. Default 512.
  public var maximumProcesses = 512
  /// Bytes of memory: of a session where a control group bounds it, else of each of its processes. Default 4 GiB.
  public var maximumMemory = 4 << 30
  /// Processors that a session may keep busy; it needs a control group. Default: all.
  public var maximumProcessors: Int?
  /// Bytes of the private /tmp, and once more of /dev/shm. They live in memory. Default 256 MiB.
  public var temporaryBytes = 256 << 20

  /// Absolute paths of control groups that were given to this server, one for each hierarchy of version 1 or a single
  /// one of version 2. Each session gets a group of its own in each of them. The server itself must be in none of
  /// them. Default none: a group that nobody has given to the server is not its to divide.
  public var controlGroups: [String] = []

  /// - Parameter supportDirectory: see ``supportDirectory``.
  public init(supportDirectory: String) {
    self.supportDirectory = supportDirectory
  }
}

/// Why there can be no sandbox.
public struct SandboxError: Error, Sendable, Equatable, CustomStringConvertible {
  public let description: String

  init(_ description: String) { self.description = description }
}

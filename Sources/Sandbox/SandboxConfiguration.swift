public import ClaudeRunner

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
  /// Processors that the sessions of one key may keep busy together; it needs a control group. Default: all.
  public var maximumProcessorsOfKey: Int?
  /// Bytes a second that the sessions of one key may write to a disk together, and a quarter of those that they may read
  /// from it; it needs a control group of version 2. What the page cache spares the disk isn't counted. Default: no bound.
  public var maximumDiskRateOfKey: Int?
  /// Absolute paths below which agents write: on the disks that have them the rate holds.
  public var agentDirectories: [String] = []
  /// Bytes of the private /tmp, and once more of /dev/shm. They live in memory. Default 256 MiB.
  public var temporaryBytes = 256 << 20

  /// What a session reaches whose launch doesn't say. Default ``ClaudeNetwork/open``.
  public var network = ClaudeNetwork.open

  /// Where the control groups of sessions are made. Default none.
  public var controlGroups = ControlGroupSource.none

  /// - Parameter supportDirectory: see ``supportDirectory``.
  public init(supportDirectory: String) {
    self.supportDirectory = supportDirectory
  }
}

/// Where the control groups of sessions are made; each session gets one of its own in each of them.
public enum ControlGroupSource: Sendable, Hashable {
  case none
  /// In those that the system gave to this server's process, as far as it did; without any, there are none.
  case automatic
  /// In these absolute paths: one for each hierarchy of version 1, or a single one of version 2. The server itself
  /// must be in none of them.
  case directories([String])
}

/// Why there can be no sandbox.
public struct SandboxError: Error, Sendable, Equatable, CustomStringConvertible {
  public let description: String

  public init(_ description: String) { self.description = description }
}

public import Workspaces

/// The bounds of the routes for files. Those of a workspace are in `WorkspaceLimits`.
public struct FilesConfiguration: Sendable {
  /// Entries of a page of a listing when the client names no number. Default 1,000.
  public var pageLength = 1000
  /// Entries of a page at most. Default 10,000.
  public var maximumPageLength = 10_000
  /// Archives that are made at the same time; further ones get 503. Default 8.
  public var maximumArchives = 8
  /// Files of one multipart upload. Default 1,000.
  public var maximumParts = 1000
  /// Bytes a second that a key may bring with bodies that aren't small (see `nginx/asked.conf`), with a second's worth at
  /// once; others wait before they are sent. Nil for no bound. Default 100 MB.
  public var maximumUploadRateOfKey: Int? = 100_000_000
  /// How long an unfinished upload is kept after its latest part. Default 24 h.
  public var uploadLifetime: Duration = .seconds(86_400)
  /// How long a share lasts at most; zero if there are to be none, and those that there are show nothing. Default 30
  /// days.
  public var maximumShareLifetime: Duration = .seconds(86_400 * 30)
  /// Bytes of a file that the responder sends by itself, if it is in the kernel's cache: nginx closes the connection
  /// to the responder with each file that it is told to send, and that costs more than the bytes. Default 16 KiB; with
  /// 0, nginx sends all files.
  public var maximumDirectBytes = 16 << 10
  /// From where repositories may be brought in. Default from nowhere.
  public var git = GitConfiguration()
  /// Repositories that are cloned at the same time; further ones get 503. Default 4.
  public var maximumClones = 4

  public init() {}
}

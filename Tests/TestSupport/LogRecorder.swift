public import Logging
import Synchronization

/// Keeps the messages that were logged.
public final class LogRecorder: LogHandler, Sendable {
  private let stored = Mutex<[String]>([])

  public init() {}

  public var messages: [String] { stored.withLock { $0 } }

  public var metadata: Logger.Metadata {
    get { [:] }
    set {}
  }

  public var logLevel: Logger.Level {
    get { .trace }
    set {}
  }

  public subscript(metadataKey _: String) -> Logger.MetadataValue? {
    get { nil }
    set {}
  }

  public func log(event: LogEvent) {
    stored.withLock { $0.append("\(event.message)") }
  }
}

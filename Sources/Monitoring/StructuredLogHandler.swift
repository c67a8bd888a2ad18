import Glibc
public import Logging

/// Writes each event of the log as one line of names and values.
public struct StructuredLogHandler: LogHandler {
  public var logLevel: Logger.Level
  public var metadata: Logger.Metadata = [:]
  public var metadataProvider: Logger.MetadataProvider?

  private let label: String
  private let format: LogFormat
  private let writer: LogWriter

  public init(label: String, format: LogFormat, level: Logger.Level, writer: LogWriter) {
    self.label = label
    self.format = format
    self.writer = writer
    logLevel = level
  }

  public subscript(metadataKey key: String) -> Logger.MetadataValue? {
    get { metadata[key] }
    set { metadata[key] = newValue }
  }

  public func log(event: LogEvent) {
    var all = metadata
    if let provided = metadataProvider?.get() { all.merge(provided) { _, new in new } }
    if let own = event.metadata { all.merge(own) { _, new in new } }
    var fields = [
      (name: "time", value: Self.now()), (name: "level", value: event.level.rawValue),
      (name: "logger", value: label), (name: "msg", value: "\(event.message)"),
    ]
    fields += all.fields
    if let error = event.error { fields.append((name: "error", value: "\(error)")) }
    writer.write(format.line(fields))
  }

  /// The time of day by RFC 3339 in UTC, to the millisecond.
  private static func now() -> String {
    var time = timespec()
    clock_gettime(CLOCK_REALTIME, &time)
    var parts = tm()
    gmtime_r(&time.tv_sec, &parts)
    func digits(_ number: Int, _ count: Int) -> String {
      let text = String(number)
      return String(repeating: "0", count: max(0, count - text.utf8.count)) + text
    }
    return digits(Int(parts.tm_year) + 1900, 4) + "-" + digits(Int(parts.tm_mon) + 1, 2) + "-"
      + digits(Int(parts.tm_mday), 2) + "T" + digits(Int(parts.tm_hour), 2) + ":" + digits(Int(parts.tm_min), 2)
      + ":" + digits(Int(parts.tm_sec), 2) + "." + digits(time.tv_nsec / 1_000_000, 3) + "Z"
  }
}

import Foundation
import Logging
import Monitoring
import TestSupport
import Testing

@Suite struct LogTests {
  /// What is written to a log by `body`, once it is all written.
  private func logged(_ format: LogFormat, _ body: (Logger) -> Void) throws -> String {
    let pipe = Pipe()
    let writer = LogWriter(descriptor: pipe.fileHandleForWriting.fileDescriptor, format: format)
    body(
      Logger(label: "test") { StructuredLogHandler(label: $0, format: format, level: .debug, writer: writer) })
    writer.flush()
    try pipe.fileHandleForWriting.close()
    return String(decoding: try pipe.fileHandleForReading.readToEnd() ?? Data(), as: UTF8.self)
  }

  private static var time: Regex<Substring> { #/[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{3}Z/# }

  @Test func anEventIsALineOfNamesAndValues() throws {
    let text = try logged(.logfmt) { logger in
      var logger = logger
      logger[metadataKey: "hb.request.id"] = "0123"
      logger.info("Access", metadata: ["status": "200", "route": "GET /sessions", "key": ""])
      logger.trace("Below the level")
    }
    #expect(
      text.replacing(Self.time, with: "T")
        == #"time=T level=info logger=test msg=Access key="" request_id=0123 route="GET /sessions" status=200"# + "\n")
  }

  @Test func anEventIsAnObject() throws {
    let text = try logged(.json) { $0.warning("Över", metadata: ["list": ["a", "b"], "level": "mine", "a.b c": "1"]) }
    let object = try #require(
      try JSONSerialization.jsonObject(with: Data(text.utf8)) as? [String: String])
    #expect(object["msg"] == "Över" && object["level"] == "warning" && object["level_"] == "mine")
    #expect(object["logger"] == "test" && object["a_b_c"] == "1" && object["list"]?.contains("a") == true)
    #expect(object["time"]?.wholeMatch(of: Self.time) != nil)
  }

  /// No value can begin another line, another field, or move the cursor of a terminal.
  @Test(arguments: LogFormat.allCases)
  func valuesCantForgeAnything(_ format: LogFormat) throws {
    let evil = "x\nlevel=error msg=forged\r\u{1b}[2J\u{0}\u{85}\u{2028}\u{202e}\" status=200 \\\u{7f}\u{9b}1m"
    let text = try logged(format) { logger in
      logger.info("\(evil)", metadata: ["a": "\(evil)", "\(evil)": "b", "nested": ["k": "\(evil)"]])
      logger.info("second")
    }
    let lines = text.split(separator: "\n", omittingEmptySubsequences: false)
    #expect(lines.count == 3 && lines[2].isEmpty)
    for scalar in text.unicodeScalars where scalar != "\n" {
      let category = scalar.properties.generalCategory
      #expect(![.control, .format, .lineSeparator, .paragraphSeparator].contains(category), "\(scalar.value)")
    }
    if format == .json {
      let object = try JSONSerialization.jsonObject(with: Data(lines[0].utf8)) as? [String: String]
      #expect(object?["a"] == evil && object?["msg"] == evil)
    } else {
      #expect(lines[0].hasPrefix("time=") && lines[0].contains(#" msg="x\nlevel=error"#))
    }
  }

  @Test(arguments: LogFormat.allCases)
  func anyTextIsOneLine(_ format: LogFormat) throws {
    try Fuzz.rounds(20) { random, seed in
      let values = (0..<50).map { _ in String(decoding: random.bytes(0...40), as: UTF8.self) }
      let text = try logged(format) { logger in
        for value in values { logger.info("\(value)", metadata: ["v": "\(value)"]) }
      }
      let lines = text.split(separator: "\n")
      #expect(lines.count == values.count, "\(seed)")
      for (line, value) in zip(lines, values) where format == .json {
        let object = try JSONSerialization.jsonObject(with: Data(line.utf8)) as? [String: String]
        #expect(object?["v"] == value, "\(seed)")
      }
    }
  }

  @Test func aLongValueIsCut() throws {
    let text = try logged(.logfmt) { $0.info("long", metadata: ["v": "\(String(repeating: "ä", count: 100_000))"]) }
    #expect(text.utf8.count < 5000 && text.hasSuffix("…\"\n"))
  }

  /// A log that nobody reads holds up nobody, and says afterwards what is missing.
  @Test func aReaderThatDoesNotReadHoldsUpNobody() async throws {
    let pipe = Pipe()
    let writer = LogWriter(descriptor: pipe.fileHandleForWriting.fileDescriptor, format: .logfmt, limit: 100_000)
    let line = String(repeating: "x", count: 99) + "\n"
    // More than the pipe and the buffer take together.
    for _ in 0..<10_000 { writer.write(line) }
    let dropped = writer.dropped
    #expect(dropped > 1000)
    let reading = Task {
      try await onThread {
        String(decoding: try pipe.fileHandleForReading.readToEnd() ?? Data(), as: UTF8.self)
      }
    }
    try await onThread {
      writer.flush()
      try pipe.fileHandleForWriting.close()
    }
    let text = try await reading.value
    let lines = text.split(separator: "\n")
    #expect(lines.count { $0 + "\n" == line } == 10_000 - dropped)
    let said = lines.filter { $0.contains("Lines were dropped") }
      .compactMap { $0.split(separator: "lines=").last.flatMap { Int($0) } }
    #expect(said.reduce(0, +) == dropped)
  }
}

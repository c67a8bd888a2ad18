import Logging

/// How an event of the log is written: on one line, whatever it holds.
public enum LogFormat: String, Sendable, CaseIterable {
  /// `time=… level=info logger=… msg="…" key=value`
  case logfmt
  /// An object a line.
  case json

  /// Bytes of a value that are written; the rest is left out.
  static let maximumValue = 4096

  /// - Parameter fields: in their order, with names of the program's.
  func line(_ fields: [(name: String, value: String)]) -> String {
    var line = ""
    line.reserveCapacity(256)
    for (index, field) in fields.enumerated() {
      let name = Self.name(field.name)
      switch self {
      case .logfmt:
        if index > 0 { line += " " }
        line += name + "="
        if Self.isWord(field.value) { line += field.value } else { Self.quote(field.value, into: &line) }
      case .json:
        line += index > 0 ? "," : "{"
        line += "\"\(name)\":"
        Self.quote(field.value, into: &line)
      }
    }
    if self == .json { line += "}" }
    line += "\n"
    return line
  }

  private static func name(_ name: String) -> String {
    let isPlain = { (byte: UInt8) in
      switch byte {
      case 0x30...0x39, 0x41...0x5a, 0x61...0x7a, 0x5f: true
      default: false
      }
    }
    if !name.isEmpty, name.utf8.allSatisfy(isPlain) { return name }
    return name.isEmpty ? "_" : String(decoding: name.utf8.map { isPlain($0) ? $0 : 0x5f }, as: UTF8.self)
  }

  /// Whether a value can stand without quotes: it has only visible ASCII, and nothing that has a meaning.
  private static func isWord(_ value: String) -> Bool {
    let bytes = value.utf8
    guard !bytes.isEmpty, bytes.count <= maximumValue else { return false }
    return bytes.allSatisfy { $0 > 0x20 && $0 < 0x7f && $0 != 0x22 && $0 != 0x3d && $0 != 0x5c }
  }

  /// A text in quotes by the rules of JSON, in which nothing moves a cursor, ends a line or turns the reading
  /// direction round.
  private static func quote(_ value: String, into line: inout String) {
    line += "\""
    var bytes = 0
    for scalar in value.unicodeScalars {
      bytes += UTF8.width(scalar)
      if bytes > maximumValue {
        line += "…"
        break
      }
      switch scalar {
      case "\"": line += "\\\""
      case "\\": line += "\\\\"
      case "\n": line += "\\n"
      case "\r": line += "\\r"
      case "\t": line += "\\t"
      default:
        switch scalar.properties.generalCategory {
        case .control, .format, .lineSeparator, .paragraphSeparator, .surrogate, .privateUse, .unassigned:
          for unit in String(scalar).utf16 { line += escape(unit) }
        default: line.unicodeScalars.append(scalar)
        }
      }
    }
    line += "\""
  }

  private static func escape(_ unit: UInt16) -> String {
    let digits = String(unit, radix: 16)
    return "\\u" + String(repeating: "0", count: 4 - digits.count) + digits
  }
}

extension Logger.Metadata {
  /// The entries in the order of their names, with nested ones as text.
  var fields: [(name: String, value: String)] {
    map { (name: Self.fieldName($0.key), value: "\($0.value)") }.sorted { $0.name < $1.name }
  }

  /// Names that the line has already get a line below; the transport's name of a request's id is the framework's.
  private static func fieldName(_ key: String) -> String {
    switch key {
    case "hb.request.id": "request_id"
    case "time", "level", "logger", "msg": key + "_"
    default: key
    }
  }
}

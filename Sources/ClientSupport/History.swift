import Foundation

/// The lines that were written earlier, kept in a file that only its owner can read.
package struct History: Sendable {
  /// How many lines are kept.
  package static let limit = 1000

  /// The oldest first.
  package private(set) var entries: [String] = []
  private let path: String

  /// Reads what there is; a file that is missing is an empty history.
  package init(path: String) throws {
    self.path = path
    guard let data = FileManager.default.contents(atPath: path) else { return }
    entries = String(decoding: data, as: UTF8.self).split(separator: "\n").map { Self.unescaped($0) }.suffix(
      Self.limit)
  }

  /// Where the history is by default: below XDG_STATE_HOME, or `~/.local/state`.
  package static func defaultPath(environment: [String: String]) -> String? {
    let base: String
    if let state = environment["XDG_STATE_HOME"], state.hasPrefix("/") {
      base = state
    } else if let home = environment["HOME"], home.hasPrefix("/") {
      base = home + "/.local/state"
    } else {
      return nil
    }
    return base + "/claude-api/history"
  }

  /// Adds a line unless it is blank or the same as the last one, and writes the file.
  package mutating func add(_ line: String) throws {
    guard !line.allSatisfy(\.isWhitespace), line != entries.last else { return }
    entries.append(line)
    entries.removeFirst(max(0, entries.count - Self.limit))
    let files = FileManager.default
    let directory = (path as NSString).deletingLastPathComponent
    try files.createDirectory(
      atPath: directory, withIntermediateDirectories: true, attributes: [.posixPermissions: 0o700])
    let text = entries.map { Self.escaped($0) + "\n" }.joined()
    // The new file is private from its first byte on, and takes the old one's place as a whole.
    let new = path + ".\(getpid())"
    guard files.createFile(atPath: new, contents: nil, attributes: [.posixPermissions: 0o600]) else {
      throw CocoaError(.fileWriteUnknown)
    }
    do {
      try Data(text.utf8).write(to: URL(fileURLWithPath: new))
    } catch {
      try files.removeItem(atPath: new)
      throw error
    }
    guard rename(new, path) == 0 else { throw CocoaError(.fileWriteUnknown) }
  }

  private static func escaped(_ line: String) -> String {
    line.replacing("\\", with: "\\\\").replacing("\n", with: "\\n")
  }

  private static func unescaped(_ line: Substring) -> String {
    var result = ""
    var isEscaped = false
    for character in line {
      if isEscaped {
        result.append(character == "n" ? "\n" : character)
        isEscaped = false
      } else if character == "\\" {
        isEscaped = true
      } else {
        result.append(character)
      }
    }
    return result
  }
}

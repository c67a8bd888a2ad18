/// The text that a person is writing, and what each key does to it. Knows nothing of the terminal.
package struct LineEditor: Sendable {
  package enum Outcome: Equatable, Sendable {
    case editing
    case line(String)
    /// Control-C: the line is given up.
    case interrupted
    /// Control-D on an empty line.
    case end
    case suspend
    case clearScreen
  }

  private struct Search: Sendable {
    var query: [Character] = []
    /// The entry that is shown.
    var index: Int?
    var savedText: [Character]
    var savedCursor: Int
  }

  /// What stands in the line; it may hold `\n`.
  package private(set) var text: [Character] = []
  /// The character before which the cursor is.
  package private(set) var cursor = 0
  private let history: [String]
  /// The entry of the history that is shown; its count for the line that is being written.
  private var index: Int
  private var draft: [Character] = []
  private var killed: [Character] = []
  private var search: Search?

  /// - Parameter history: earlier lines, the oldest first.
  package init(history: [String] = []) {
    self.history = history
    index = history.count
  }

  /// What a search in the history looks for, while there is one.
  package var searchQuery: String? { search.map { String($0.query) } }

  package mutating func handle(_ key: Key) -> Outcome {
    if search != nil, handleInSearch(key) { return .editing }
    switch key {
    case .text(let string), .paste(let string): insert(string)
    case .newline: insert("\n")
    case .tab: insert("\t")
    case .enter: return .line(String(text))
    case .interrupt: return .interrupted
    case .suspend: return .suspend
    case .clearScreen: return .clearScreen
    case .cancel: break
    case .left: cursor = max(cursor - 1, 0)
    case .right: cursor = min(cursor + 1, text.count)
    case .home: cursor = lineStart
    case .end: cursor = lineEnd
    case .wordLeft: cursor = wordStart
    case .wordRight: cursor = wordEnd
    case .up: up()
    case .down: down()
    case .backspace: remove(max(cursor - 1, 0)..<cursor)
    case .delete: remove(cursor..<min(cursor + 1, text.count))
    case .deleteOrEnd:
      if text.isEmpty { return .end }
      remove(cursor..<min(cursor + 1, text.count))
    case .deleteWordBefore: kill(blankDelimitedWordStart..<cursor)
    case .deleteWordAfter: kill(cursor..<wordEnd)
    case .killToStart: kill(lineStart..<cursor)
    case .killToEnd: kill(cursor..<(lineEnd == cursor ? min(cursor + 1, text.count) : lineEnd))
    case .yank: insert(String(killed))
    case .transpose: transpose()
    case .search: search = Search(index: nil, savedText: text, savedCursor: cursor)
    }
    return .editing
  }

  // A mark that is typed joins the character before it, and one that follows joins what is typed.
  private mutating func insert(_ string: String) {
    let before = Array(String(text[..<cursor]) + string)
    let rest = text[cursor...]
    text = Array(String(before) + String(rest))
    cursor = min(before.count, text.count)
  }

  private mutating func remove(_ range: Range<Int>) {
    text.removeSubrange(range)
    cursor = range.lowerBound
  }

  private mutating func kill(_ range: Range<Int>) {
    guard !range.isEmpty else { return }
    killed = Array(text[range])
    remove(range)
  }

  private mutating func transpose() {
    guard cursor > 0, text.count > 1 else { return }
    let second = min(cursor, text.count - 1)
    text.swapAt(second - 1, second)
    cursor = second + 1
  }

  private var lineStart: Int { (text[..<cursor].lastIndex(of: "\n") ?? -1) + 1 }
  private var lineEnd: Int { text[cursor...].firstIndex(of: "\n") ?? text.count }

  private var wordStart: Int {
    var position = cursor
    while position > 0, !text[position - 1].isPartOfWord { position -= 1 }
    while position > 0, text[position - 1].isPartOfWord { position -= 1 }
    return position
  }

  private var wordEnd: Int {
    var position = cursor
    while position < text.count, !text[position].isPartOfWord { position += 1 }
    while position < text.count, text[position].isPartOfWord { position += 1 }
    return position
  }

  private var blankDelimitedWordStart: Int {
    var position = cursor
    while position > 0, text[position - 1].isWhitespace { position -= 1 }
    while position > 0, !text[position - 1].isWhitespace { position -= 1 }
    return position
  }

  private mutating func up() {
    guard lineStart == 0 else {
      let column = cursor - lineStart
      let end = lineStart - 1
      let start = (text[..<end].lastIndex(of: "\n") ?? -1) + 1
      cursor = min(start + column, end)
      return
    }
    if index > 0 { show(index - 1) }
  }

  private mutating func down() {
    guard lineEnd == text.count else {
      let column = cursor - lineStart
      let start = lineEnd + 1
      let end = text[start...].firstIndex(of: "\n") ?? text.count
      cursor = min(start + column, end)
      return
    }
    if index < history.count { show(index + 1) }
  }

  private mutating func show(_ entry: Int) {
    if index == history.count { draft = text }
    index = entry
    text = entry == history.count ? draft : Array(history[entry])
    cursor = text.count
  }

  /// Returns whether the key belongs to the search; otherwise the search has ended and the key counts.
  private mutating func handleInSearch(_ key: Key) -> Bool {
    guard var current = search else { return false }
    switch key {
    case .text(let string): current.query += Array(string)
    case .backspace: current.query = current.query.dropLast()
    case .search:
      search = current
      find(from: (current.index ?? history.count) - 1)
      return true
    case .cancel, .interrupt:
      text = current.savedText
      cursor = current.savedCursor
      search = nil
      return true
    default:
      search = nil
      return false
    }
    search = current
    find(from: history.count - 1)
    return true
  }

  private mutating func find(from start: Int) {
    guard let query = search.map({ String($0.query) }), !query.isEmpty, start >= 0,
      let found = history[...start].lastIndex(where: { $0.contains(query) })
    else { return }
    search?.index = found
    text = Array(history[found])
    cursor = text.count
  }
}

extension Character {
  fileprivate var isPartOfWord: Bool { isLetter || isNumber || self == "_" }
}

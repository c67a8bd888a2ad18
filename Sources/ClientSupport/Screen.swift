/// Draws a prompt and the text after it over as many rows as they take, again and again at one place.
package struct Screen: Sendable {
  /// The row, counted from the first one drawn, in which the cursor was left.
  private var cursorRow = 0

  package init() {}

  /// The bytes that replace what was drawn before.
  ///
  /// - Parameters:
  ///   - width: columns of the terminal.
  ///   - height: rows of the terminal; text that needs more is shown in part, around the cursor.
  package mutating func draw(
    prompt: String, text: [Character], cursor: Int, width: Int, height: Int
  ) -> String {
    let layout = Self.layOut(Array(prompt), text, cursor: cursor, width: max(width, 4))
    let visible = max(height, 1)
    let first = max(0, min(layout.cursorRow - visible / 2, layout.rows.count - visible))
    let rows = layout.rows[first..<min(first + visible, layout.rows.count)]

    var output = "\r"
    if cursorRow > 0 { output += "\u{1b}[\(cursorRow)A" }
    output += "\u{1b}[J" + rows.joined(separator: "\r\n")
    cursorRow = layout.cursorRow - first
    let below = rows.count - 1 - cursorRow
    if below > 0 { output += "\u{1b}[\(below)A" }
    output += "\r"
    if layout.cursorColumn > 0 { output += "\u{1b}[\(layout.cursorColumn)C" }
    return output
  }

  /// What is drawn next starts at the row where the terminal's cursor then is.
  package mutating func forget() { cursorRow = 0 }

  struct Layout: Equatable {
    var rows: [String]
    var cursorRow: Int
    var cursorColumn: Int
  }

  // Rows are broken here and not by the terminal, since terminals differ at the last column.
  static func layOut(_ prompt: [Character], _ text: [Character], cursor: Int, width: Int) -> Layout {
    var layout = Layout(rows: [""], cursorRow: 0, cursorColumn: 0)
    var column = 0
    func breakRow() {
      layout.rows.append("")
      column = 0
    }
    func markCursor() {
      layout.cursorRow = layout.rows.count - 1
      layout.cursorColumn = column
    }
    for (position, character) in (prompt + text).enumerated() {
      let isCursor = position == prompt.count + cursor
      if character == "\n" {
        if isCursor { markCursor() }
        breakRow()
        continue
      }
      let (shown, size) = display(character)
      if column + size > width { breakRow() }
      if isCursor { markCursor() }
      layout.rows[layout.rows.count - 1] += shown
      column += size
      if column == width { breakRow() }
    }
    if cursor >= text.count { markCursor() }
    return layout
  }

  private static func display(_ character: Character) -> (String, Int) {
    if character == "\t" { return ("  ", 2) }
    let shown = terminalSafe(String(character))
    return (shown, shown.reduce(0) { $0 + columns(of: $1) })
  }
}

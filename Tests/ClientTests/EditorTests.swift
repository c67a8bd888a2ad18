import Foundation
import Testing

@testable import ClientSupport

private func keys(_ text: String) -> [Key] {
  var decoder = KeyDecoder()
  var keys = text.utf8.compactMap { decoder.decode($0) }
  if let key = decoder.timeOut() { keys.append(key) }
  return keys
}

@Suite struct KeyTests {
  @Test(arguments: [
    ("a", [Key.text("a")]), ("é漢", [.text("é"), .text("漢")]), ("\r", [.enter]), ("\n", [.enter]),
    ("\u{1b}[A", [.up]), ("\u{1b}OA", [.up]), ("\u{1b}[1;5C", [.wordRight]), ("\u{1b}[H", [.home]),
    ("\u{1b}[4~", [.end]), ("\u{1b}[3~", [.delete]), ("\u{1b}\r", [.newline]), ("\u{1b}b", [.wordLeft]),
    (
      "\u{1}\u{5}\u{b}\u{15}\u{17}\u{12}",
      [.home, .end, .killToEnd, .killToStart, .deleteWordBefore, .search]
    ),
    ("\u{3}\u{4}", [.interrupt, .deleteOrEnd]), ("\u{1b}", [.cancel]), ("\u{1b}[99~x", [.text("x")]),
    ("\u{1b}[200~a\r\nb\rc\u{1b}[A\u{1b}[201~d", [.paste("a\nb\nc\u{1b}[A"), .text("d")]),
  ])
  func decodes(bytes: String, expected: [Key]) {
    #expect(keys(bytes) == expected)
  }

  @Test func whatIsNotUTF8IsDropped() {
    var decoder = KeyDecoder()
    let bytes: [UInt8] = [0xff, 0xc3, 0x28, 0xe6, 0xbc, 0x61, 0xed, 0xa0, 0x80, 0x62]
    #expect(bytes.compactMap { decoder.decode($0) } == [.text("("), .text("a"), .text("b")])
  }

  @Test func aSequenceWithoutAnEndIsBounded() {
    var decoder = KeyDecoder()
    for byte in "\u{1b}[\(String(repeating: "1", count: 33))".utf8 { #expect(decoder.decode(byte) == nil) }
    #expect(decoder.decode(UInt8(ascii: "x")) == .text("x"))
  }
}

@Suite struct LineEditorTests {
  /// Types keys and returns the text with a bar where the cursor is.
  private func type(_ text: String, history: [String] = []) -> String {
    var editor = LineEditor(history: history)
    for key in keys(text) { #expect(editor.handle(key) == .editing) }
    return String(editor.text[..<editor.cursor]) + "|" + String(editor.text[editor.cursor...])
  }

  @Test(arguments: [
    ("abc", "abc|"), ("abc\u{1b}[D\u{1b}[DX", "aX|bc"), ("abc\u{1}X", "X|abc"), ("abc\u{1}\u{5}X", "abcX|"),
    ("abc\u{7f}", "ab|"), ("abc\u{1}\u{1b}[3~", "|bc"), ("abc\u{1}\u{4}", "|bc"), ("ab\u{1}\u{7f}", "|ab"),
    ("one two\u{17}", "one |"), ("one two\u{17}\u{17}", "|"), ("one two\u{17}\u{19}\u{19}", "one twotwo|"),
    ("one two\u{1b}b\u{b}", "one |"), ("one two\u{1b}b\u{15}", "|two"), ("one two\u{1}\u{1b}f", "one| two"),
    ("one two\u{1}\u{1b}d", "| two"), ("ab\u{14}", "ba|"), ("e\u{301}x\u{1b}[D\u{7f}", "|x"),
    ("漢字\u{2}X", "漢X|字"),
    ("👩‍👩‍👧\u{7f}", "|"), ("a\u{1b}\rb", "a\nb|"), ("a\u{1b}\rb\u{1}X", "a\nX|b"),
    ("ab\u{1b}\rc\u{1b}[A", "a|b\nc"),
    ("ab\u{1b}\rc\u{1b}[A\u{1b}[B", "ab\nc|"), ("a\u{1b}[200~1\n2\u{1b}[201~b", "a1\n2b|"),
  ])
  func edits(typed: String, expected: String) {
    #expect(type(typed) == expected)
  }

  @Test(arguments: [
    ("\u{10}", "second|"), ("\u{10}\u{10}\u{10}", "first|"), ("new\u{10}\u{e}", "new|"), ("\u{e}", "|"),
    ("\u{12}fir", "first|"), ("\u{12}s\u{12}", "first|"), ("x\u{12}fir\u{7}", "x|"),
    ("\u{12}fir\u{1}", "|first"),
    ("\u{12}none", "second|"), ("\u{12}fir\u{7f}\u{7f}\u{7f}sec", "second|"),
  ])
  func findsInHistory(typed: String, expected: String) {
    #expect(type(typed, history: ["first", "second"]) == expected)
  }

  @Test func endsTheLine() {
    var editor = LineEditor()
    #expect(editor.handle(.deleteOrEnd) == .end)
    #expect(editor.handle(.text("a")) == .editing)
    #expect(editor.handle(.deleteOrEnd) == .editing)
    #expect(editor.handle(.interrupt) == .interrupted)
    #expect(editor.handle(.enter) == .line("a"))
  }
}

@Suite struct ScreenTests {
  @Test func breaksRowsAtTheWidth() {
    let layout = Screen.layOut(Array("> "), Array("abcdef"), cursor: 6, width: 4)
    #expect(layout == .init(rows: ["> ab", "cdef", ""], cursorRow: 2, cursorColumn: 0))
  }

  @Test func aWideCharacterIsNotCut() {
    let layout = Screen.layOut(Array("> "), Array("a漢字"), cursor: 1, width: 4)
    #expect(layout == .init(rows: ["> a", "漢字", ""], cursorRow: 1, cursorColumn: 0))
  }

  @Test func linesOfTheTextAreRows() {
    let layout = Screen.layOut(Array("> "), Array("a\nb"), cursor: 1, width: 10)
    #expect(layout == .init(rows: ["> a", "b"], cursorRow: 0, cursorColumn: 3))
  }

  @Test func controlCharactersAreShown() {
    let layout = Screen.layOut([], Array("\u{1b}[2J\t"), cursor: 5, width: 20)
    #expect(layout == .init(rows: ["␛[2J  "], cursorRow: 0, cursorColumn: 6))
  }

  @Test func drawsOverWhatWasThere() {
    var screen = Screen()
    #expect(
      screen.draw(prompt: "> ", text: Array("abcd"), cursor: 4, width: 4, height: 9)
        == "\r\u{1b}[J> ab\r\ncd\r\u{1b}[2C")
    #expect(
      screen.draw(prompt: "> ", text: Array("a"), cursor: 0, width: 4, height: 9)
        == "\r\u{1b}[1A\u{1b}[J> a\r\u{1b}[2C")
  }

  @Test func longTextIsShownAroundTheCursor() {
    var screen = Screen()
    let text = Array((0..<100).map { "\($0)" }.joined(separator: "\n"))
    let drawn = screen.draw(prompt: "", text: text, cursor: text.count, width: 80, height: 5)
    #expect(drawn.contains("95\r\n96\r\n97\r\n98\r\n99"))
    #expect(!drawn.contains("94"))
  }
}

@Suite struct TerminalTextTests {
  @Test(arguments: [
    ("plain\n\ttext", "plain\n\ttext"), ("a\r\nb", "a\nb"), ("a\rb", "a␍b"), ("\u{1b}]0;x\u{7}", "␛]0;x␇"),
    ("\u{9b}2J", "\u{fffd}2J"), ("\u{7f}", "␡"), ("a\u{202e}b", "a\u{fffd}b"), ("é漢👩‍👧", "é漢👩‍👧"), ("\0", "␀"),
  ])
  func neutralises(text: String, expected: String) {
    #expect(terminalSafe(text) == expected)
  }

  @Test(
    arguments: [
      ("a", 1), ("é", 1), ("e\u{301}", 1), ("漢", 2), ("ｱ", 1), ("Ａ", 2), ("👍", 2), ("👩‍👩‍👧", 2), ("❤️", 2),
      ("❤", 1),
      ("🇩🇪", 2), ("한", 2), ("—", 1),
    ] as [(Character, Int)])
  func knowsTheWidth(character: Character, width: Int) {
    #expect(columns(of: character) == width)
  }
}

@Suite struct HistoryTests {
  @Test func isKeptForItsOwnerOnly() throws {
    let directory = FileManager.default.temporaryDirectory.path + "/history-\(UUID().uuidString)"
    defer { try? FileManager.default.removeItem(atPath: directory) }
    let path = directory + "/deep/history"
    var history = try History(path: path)
    for line in ["one", "one", "  ", "two\nlines \\n", "three"] { try history.add(line) }
    let expected = ["one", "two\nlines \\n", "three"]
    #expect(history.entries == expected)
    #expect(try History(path: path).entries == expected)
    let mode = try FileManager.default.attributesOfItem(atPath: path)[.posixPermissions] as? NSNumber
    #expect(mode?.intValue == 0o600)
    #expect(try FileManager.default.contentsOfDirectory(atPath: directory + "/deep") == ["history"])
  }

  @Test func isBounded() throws {
    let directory = FileManager.default.temporaryDirectory.path + "/history-\(UUID().uuidString)"
    defer { try? FileManager.default.removeItem(atPath: directory) }
    try FileManager.default.createDirectory(atPath: directory, withIntermediateDirectories: true)
    let path = directory + "/history"
    try Data((0..<3000).map { "\($0)\n" }.joined().utf8).write(to: URL(fileURLWithPath: path))
    var history = try History(path: path)
    try history.add("last")
    #expect(history.entries.count == History.limit)
    #expect(history.entries.last == "last")
  }

  @Test func hasADefaultPlace() {
    #expect(
      History.defaultPath(environment: ["XDG_STATE_HOME": "/s", "HOME": "/h"]) == "/s/claude-api/history")
    #expect(
      History.defaultPath(environment: ["XDG_STATE_HOME": "s", "HOME": "/h"])
        == "/h/.local/state/claude-api/history")
    #expect(History.defaultPath(environment: [:]) == nil)
  }
}

@Suite struct ClientValueTests {
  @Test(
    arguments: [
      ("http://127.0.0.1:8000", "http://127.0.0.1:8000"), ("https://h/base//", "https://h/base"),
      ("ftp://h", nil),
      ("127.0.0.1:8000", nil), ("http://", nil), ("http://u:p@h", nil), ("http://h?x", nil), ("", nil),
    ] as [(String, String?)])
  func validatesURLs(url: String, expected: String?) {
    #expect(Client.validated(url: url) == expected)
  }

  @Test(arguments: [
    ("4f6d2a1e-0000-4000-8000-000000000000", true), ("..", false), ("a/b", false), ("a%2f", false),
    ("", false), ("é", false),
  ])
  func validatesSessionIDs(id: String, expected: Bool) {
    #expect(Client.isSessionID(id) == expected)
  }
}

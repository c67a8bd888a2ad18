import Foundation
import Synchronization

/// The terminal of this process, for reading lines with editing.
///
/// Only one line is read at a time; the state between two lines is behind a lock, since each may be read on
/// another thread.
package final class Terminal: Sendable {
  package enum Input: Equatable, Sendable {
    case line(String)
    case interrupted
    case end
  }

  private struct State {
    /// The settings to go back to, while the terminal is in raw mode.
    var saved: termios?
    /// Bytes that came after the end of the last line.
    var pending: [UInt8] = []
    var decoder = KeyDecoder()
  }

  private let state = Mutex(State())

  /// Nil unless standard input and output are a terminal that can move its cursor.
  package init?() {
    guard isatty(STDIN_FILENO) == 1, isatty(STDOUT_FILENO) == 1,
      ProcessInfo.processInfo.environment["TERM"].map({ $0 != "dumb" && !$0.isEmpty }) == true
    else { return nil }
  }

  /// Reads one line. Blocks its thread.
  package func readLine(prompt: String, history: [String]) throws -> Input {
    try enterRawMode()
    defer { restore() }
    var editor = LineEditor(history: history)
    var screen = Screen()
    var size = Self.size()
    func draw(cursor: Int? = nil) {
      let shown = editor.searchQuery.map { "(search) \($0): " } ?? prompt
      write(
        screen.draw(
          prompt: shown, text: editor.text, cursor: cursor ?? editor.cursor, width: size.columns,
          height: size.rows))
    }
    draw()
    while true {
      var (bytes, decoder) = state.withLock { state in
        defer { state.pending = [] }
        return (state.pending, state.decoder)
      }
      if bytes.isEmpty {
        guard let read = try Self.read(timeout: decoder.isUndecided ? 50 : 500) else { return .end }
        bytes = read
      }
      var keys: [Key] = []
      if bytes.isEmpty, let key = decoder.timeOut() { keys.append(key) }
      var used = 0
      for byte in bytes {
        used += 1
        guard let key = decoder.decode(byte) else { continue }
        keys.append(key)
        // What follows may belong to the next line.
        if [.enter, .interrupt, .suspend, .deleteOrEnd].contains(key) { break }
      }
      state.withLock {
        $0.pending = Array(bytes[used...])
        $0.decoder = decoder
      }

      for key in keys {
        switch editor.handle(key) {
        case .editing: break
        case .line(let line):
          draw(cursor: editor.text.count)
          write("\r\n")
          return .line(line)
        case .interrupted:
          draw(cursor: editor.text.count)
          write("^C\r\n")
          return .interrupted
        case .end:
          write("\r\n")
          return .end
        case .clearScreen:
          write("\u{1b}[H\u{1b}[2J")
          screen.forget()
        case .suspend:
          restore()
          write("\r\n")
          screen.forget()
          kill(0, SIGTSTP)
          try enterRawMode()
        }
      }
      let newSize = Self.size()
      if !keys.isEmpty || newSize != size {
        size = newSize
        draw()
      }
    }
  }

  /// Puts the terminal back as it was; for the end of the process too.
  package func restore() {
    state.withLock { state in
      guard var saved = state.saved else { return }
      state.saved = nil
      write("\u{1b}[?2004l")
      tcsetattr(STDIN_FILENO, TCSADRAIN, &saved)
    }
  }

  private func enterRawMode() throws {
    var settings = termios()
    guard tcgetattr(STDIN_FILENO, &settings) == 0 else { throw POSIXError(.ENOTTY) }
    let saved = settings
    settings.c_iflag &= ~tcflag_t(BRKINT | ICRNL | INPCK | ISTRIP | IXON)
    settings.c_lflag &= ~tcflag_t(ECHO | ICANON | IEXTEN | ISIG)
    settings.c_cflag |= tcflag_t(CS8)
    state.withLock { $0.saved = saved }
    guard tcsetattr(STDIN_FILENO, TCSADRAIN, &settings) == 0 else { throw POSIXError(.ENOTTY) }
    // A paste is marked as such, so that a line end in it doesn't send it.
    write("\u{1b}[?2004h")
  }

  /// Nothing after the time-out in milliseconds, nil at the end of the input.
  private static func read(timeout: Int32) throws -> [UInt8]? {
    var request = pollfd(fd: STDIN_FILENO, events: Int16(POLLIN), revents: 0)
    guard poll(&request, 1, timeout) > 0 else { return [] }
    var buffer = [UInt8](repeating: 0, count: 4096)
    let count = Glibc.read(STDIN_FILENO, &buffer, buffer.count)
    if count < 0, errno == EINTR || errno == EAGAIN { return [] }
    return count > 0 ? Array(buffer[..<count]) : nil
  }

  private static func size() -> Size {
    var size = winsize()
    guard ioctl(STDOUT_FILENO, UInt(TIOCGWINSZ), &size) == 0, size.ws_col > 0, size.ws_row > 0 else {
      return Size(columns: 80, rows: 24)
    }
    return Size(columns: Int(size.ws_col), rows: Int(size.ws_row))
  }

  private struct Size: Equatable {
    var columns: Int
    var rows: Int
  }
}

/// Writes text to standard output, or to another descriptor, at once. What nobody reads is lost.
package func write(_ text: String, to descriptor: Int32 = STDOUT_FILENO) {
  var rest = Array(text.utf8)[...]
  while !rest.isEmpty {
    let count = rest.withUnsafeBytes { Glibc.write(descriptor, $0.baseAddress, $0.count) }
    if count < 0, errno == EINTR { continue }
    guard count > 0 else { return }
    rest = rest.dropFirst(count)
  }
}

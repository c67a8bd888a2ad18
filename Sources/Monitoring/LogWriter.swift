import Dispatch
import Glibc
import Synchronization

/// Writes lines to a descriptor by a thread of its own, so that who logs never waits for who reads the log.
///
/// What can't be written in time is bounded; lines over the bound are dropped and counted, and the log says so as soon
/// as there is room again. The thread lives until the end of the process: one writer a process is meant.
public final class LogWriter: Sendable {
  private struct State {
    var waiting: [UInt8] = []
    /// Lines that were dropped since the log last said so.
    var dropped = 0
    var droppedEver = 0
  }

  private let descriptor: CInt
  private let limit: Int
  private let format: LogFormat
  private let state = Mutex(State())
  /// Held while something is written, so that lines stay in their order.
  private let output = Mutex<Void>(())
  private let news = DispatchSemaphore(value: 0)

  /// - Parameters:
  ///   - descriptor: stays the caller's, and open.
  ///   - format: of the line that tells of dropped ones.
  ///   - limit: bytes that wait at most. Default 1 MiB.
  public init(descriptor: CInt, format: LogFormat, limit: Int = 1 << 20) {
    self.descriptor = descriptor
    self.format = format
    self.limit = limit
    let context = Unmanaged.passRetained(self)
    var thread = pthread_t()
    let code = pthread_create(
      &thread, nil,
      { argument in
        guard let argument else { return nil }
        Unmanaged<LogWriter>.fromOpaque(argument).takeRetainedValue().run()
        return nil
      }, context.toOpaque())
    precondition(code == 0, "no thread for the log")
    pthread_detach(thread)
  }

  /// Lines that were dropped since the start.
  public var dropped: Int { state.withLock { $0.droppedEver } }

  /// - Parameter line: with its line break.
  public func write(_ line: String) {
    let isFirst = state.withLock { state in
      guard state.waiting.count + line.utf8.count <= limit else {
        state.dropped += 1
        state.droppedEver += 1
        return false
      }
      defer { state.waiting.append(contentsOf: line.utf8) }
      return state.waiting.isEmpty
    }
    if isFirst { news.signal() }
  }

  /// Returns when everything that was logged before is written. To be called at the end of the program.
  public func flush() { drain() }

  private func run() {
    while true {
      news.wait()
      drain()
    }
  }

  private func drain() {
    output.withLock { _ in
      while true {
        let (bytes, dropped) = state.withLock { state in
          defer {
            state.waiting = []
            state.dropped = 0
          }
          return (state.waiting, state.dropped)
        }
        put(bytes)
        if dropped > 0 {
          let line = format.line([
            ("level", "warning"), ("logger", "log"), ("msg", "Lines were dropped"), ("lines", "\(dropped)"),
          ])
          put(Array(line.utf8))
        }
        if bytes.isEmpty, dropped == 0 { return }
      }
    }
  }

  private func put(_ bytes: [UInt8]) {
    var rest = bytes[...]
    while !rest.isEmpty {
      let count = rest.withUnsafeBytes { Glibc.write(descriptor, $0.baseAddress, $0.count) }
      if count > 0 {
        rest = rest.dropFirst(count)
      } else if errno == EAGAIN {
        var wait = pollfd(fd: descriptor, events: Int16(POLLOUT), revents: 0)
        poll(&wait, 1, -1)
      } else if errno != EINTR {
        // There is nowhere left to say it.
        return
      }
    }
  }
}

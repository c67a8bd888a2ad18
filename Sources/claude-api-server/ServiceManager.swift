import CLinux
import Foundation
import Glibc

/// What systemd, or a supervisor like it, hands to this process and wants to hear from it.
///
/// See sd_listen_fds(3), sd_notify(3) and sd_watchdog_enabled(3).
struct ServiceManager: Sendable {
  struct Failure: Error, CustomStringConvertible {
    let description: String
  }

  /// The names of the sockets that may be handed over, as in FileDescriptorName= of a socket unit.
  enum SocketName: String, CaseIterable, Sendable {
    case fastCGI = "fastcgi"
    case webSocket = "websocket"
  }

  /// Sockets that listen already.
  let sockets: [SocketName: Int32]
  /// How long the watchdog waits for a sign of life before it has this process ended; nil if there is none.
  let watchdogTimeout: Duration?
  private let notificationSocket: String?

  private static let firstDescriptor: Int32 = 3

  /// - Throws: ``Failure`` for sockets that this program doesn't know or can't tell apart.
  init(environment: [String: String], processID: Int32 = getpid()) throws(Failure) {
    sockets = try Self.sockets(environment, processID)
    notificationSocket = environment["NOTIFY_SOCKET"].flatMap { $0.isEmpty ? nil : $0 }
    let isMine = environment["WATCHDOG_PID"].map { $0 == "\(processID)" } ?? true
    let microseconds = environment["WATCHDOG_USEC"].flatMap { Int64($0) } ?? 0
    watchdogTimeout = isMine && microseconds > 0 ? .microseconds(microseconds) : nil
  }

  private static func sockets(
    _ environment: [String: String], _ processID: Int32
  ) throws(Failure) -> [SocketName: Int32] {
    // The variables may be meant for a process that this one was started by.
    guard environment["LISTEN_PID"] == "\(processID)" else { return [:] }
    guard let count = environment["LISTEN_FDS"].flatMap({ Int32($0) }), (1...64).contains(count) else {
      throw Failure(description: "LISTEN_FDS is no number of sockets.")
    }
    var names = environment["LISTEN_FDNAMES"]?.split(separator: ":", omittingEmptySubsequences: false).map(String.init)
    // Without names there is no doubt about a single one.
    if count == 1, names == nil || names == ["unknown"] { names = [SocketName.fastCGI.rawValue] }
    guard let names, names.count == Int(count) else {
      throw Failure(description: "LISTEN_FDNAMES has not as many names as there are sockets.")
    }
    var sockets: [SocketName: Int32] = [:]
    for (index, text) in names.enumerated() {
      let descriptor = firstDescriptor + Int32(index)
      guard let name = SocketName(rawValue: text) else {
        let known = SocketName.allCases.map(\.rawValue).joined(separator: ", ")
        throw Failure(description: "There is a socket named \(text), but known are only: \(known).")
      }
      guard sockets.updateValue(descriptor, forKey: name) == nil else {
        throw Failure(description: "There are two sockets named \(text).")
      }
      guard clinux_set_cloexec(descriptor) == 0 else {
        throw Failure(description: "Socket \(text): \(String(cString: strerror(errno)))")
      }
    }
    return sockets
  }

  // MARK: What it wants to hear

  enum Message {
    case ready
    /// The end has begun and may take so long.
    case stopping(within: Duration)
    case alive

    fileprivate var text: String {
      switch self {
      case .ready: "READY=1"
      case .stopping(let time): "STOPPING=1\nEXTEND_TIMEOUT_USEC=\(max(1, Int64(time / .microseconds(1))))"
      case .alive: "WATCHDOG=1"
      }
    }
  }

  /// Does nothing without a service manager.
  ///
  /// - Throws: ``Failure`` if there is one that can't be reached.
  func tell(_ message: Message) throws(Failure) {
    guard let notificationSocket else { return }
    let text = message.text
    guard clinux_send_datagram(notificationSocket, text, text.utf8.count) == 0 else {
      throw Failure(description: "\(notificationSocket): \(String(cString: strerror(errno)))")
    }
  }
}

import Glibc

/// The control group that a service manager gave to this process, to divide as it likes (`Delegate=` of systemd).
///
/// A group of version 2 that has processes can't hand controllers to groups inside. So this process moves into one
/// inside, and another one is there for the sessions.
struct DelegatedControlGroup {
  struct Failure: Error, CustomStringConvertible {
    let description: String
  }

  /// The word that stands for it in `sandbox.control-groups`.
  static let setting = "delegated"

  private static let controllers = ["cpu", "memory", "pids"]

  /// - Returns: the absolute path of the group for the sessions.
  /// - Throws: ``Failure`` if there is no such group.
  static func prepare(root: String = "/sys/fs/cgroup", membership: String = "/proc/self/cgroup") throws -> String {
    let lines = try text(membership).split(separator: "\n")
    guard let own = lines.first(where: { $0.hasPrefix("0::/") })?.dropFirst(3), own != "/" else {
      throw Failure(description: "this process is in no control group of version 2 but the topmost")
    }
    let group = root + own
    let available = try text(group + "/cgroup.controllers").split(whereSeparator: \.isWhitespace).map(String.init)
    let wanted = controllers.filter(available.contains)
    guard !wanted.isEmpty else {
      throw Failure(description: "\(group) has no controller of processes, memory or CPU")
    }
    for name in ["server", "sessions"] {
      guard mkdir("\(group)/\(name)", 0o755) == 0 || errno == EEXIST else {
        throw Failure(description: "\(group)/\(name): \(String(cString: strerror(errno)))")
      }
    }
    try write("\(getpid())", to: group + "/server/cgroup.procs")
    try write(wanted.map { "+" + $0 }.joined(separator: " "), to: group + "/cgroup.subtree_control")
    return group + "/sessions"
  }

  private static func text(_ path: String) throws(Failure) -> String {
    let file = open(path, O_RDONLY | O_CLOEXEC)
    guard file >= 0 else { throw Failure(description: "\(path): \(String(cString: strerror(errno)))") }
    defer { close(file) }
    var buffer = [UInt8](repeating: 0, count: 64 << 10)
    let count = read(file, &buffer, buffer.count)
    guard count >= 0 else { throw Failure(description: "\(path): \(String(cString: strerror(errno)))") }
    return String(decoding: buffer[..<count], as: UTF8.self)
  }

  private static func write(_ value: String, to path: String) throws(Failure) {
    let file = open(path, O_WRONLY | O_CLOEXEC)
    guard file >= 0 else { throw Failure(description: "\(path): \(String(cString: strerror(errno)))") }
    defer { close(file) }
    guard Glibc.write(file, value, value.utf8.count) == value.utf8.count else {
      throw Failure(description: "\(path) does not take \(value): \(String(cString: strerror(errno)))")
    }
  }
}

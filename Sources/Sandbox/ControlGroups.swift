import Foundation
import Synchronization

/// The control groups of sessions, in those that were given to the server.
final class ControlGroups: Sendable {
  /// Moves itself into the groups that are named before `--` and becomes the command that is named after it.
  private static let script =
    #"while [ "$1" != -- ]; do echo 0 >"$1/cgroup.procs" || exit 126; shift; done; shift; exec "$@""#
  /// How long after a group was made nothing may be in it yet.
  private static let settling = Duration.seconds(60)

  private let parents: [String]
  /// What to write into those of these files that a new group has; version 1 and 2 have different names.
  private let values: [(file: String, value: String)]
  private let bounded: Set<Resource>

  /// What groups can bound.
  enum Resource: CaseIterable {
    case memory, processes, processors

    /// The files of a group, in version 2 and 1, that tell that it can.
    var files: [String] {
      switch self {
      case .memory: ["memory.max", "memory.limit_in_bytes"]
      case .processes: ["pids.max"]
      case .processors: ["cpu.max", "cpu.cfs_quota_us"]
      }
    }
  }

  private let entered = Mutex<[String: ContinuousClock.Instant]>([:])

  /// - Throws: ``SandboxError`` if one of the directories can't be used so.
  init(_ directories: [String], _ configuration: SandboxConfiguration) throws(SandboxError) {
    parents = directories
    let memory = String(configuration.maximumMemory)
    var values = [
      ("pids.max", String(configuration.maximumProcesses)),
      ("memory.max", memory), ("memory.swap.max", "0"), ("memory.oom.group", "1"),
      ("memory.limit_in_bytes", memory), ("memory.memsw.limit_in_bytes", memory),
    ]
    if let processors = configuration.maximumProcessors {
      values += [("cpu.max", "\(processors * 100_000) 100000"), ("cpu.cfs_quota_us", String(processors * 100_000))]
    }
    self.values = values
    var bounded: Set<Resource> = []
    for parent in parents {
      guard access(parent + "/cgroup.procs", W_OK) == 0, access(parent, W_OK) == 0 else {
        throw SandboxError("\(parent) is no control group that this user may divide.")
      }
      // Version 2 hands a controller down only if it is told to.
      let control = parent + "/cgroup.subtree_control"
      if access(control, F_OK) == 0 { try Self.handDown(in: parent, control) }
      let trial = parent + "/trial"
      guard mkdir(trial, 0o755) == 0 || errno == EEXIST else {
        throw SandboxError("No group can be made in \(parent): \(String(cString: strerror(errno)))")
      }
      let found = Resource.allCases.filter { $0.files.contains { access("\(trial)/\($0)", F_OK) == 0 } }
      rmdir(trial)
      guard !found.isEmpty else { throw SandboxError("\(parent) has no controller for processes, memory or CPU.") }
      bounded.formUnion(found)
    }
    self.bounded = bounded
    removeEmpty()
  }

  /// How often a process of the session was killed for want of memory in the groups that it has now; nil without.
  func outOfMemoryKills(_ session: String) -> Int? {
    guard bounds(.memory) else { return nil }
    for parent in parents {
      // The names of version 2 and version 1.
      for file in ["memory.events", "memory.oom_control"] {
        guard let text = try? String(contentsOfFile: "\(parent)/\(session)/\(file)", encoding: .utf8) else { continue }
        for line in text.split(separator: "\n") where line.hasPrefix("oom_kill ") { return Int(line.dropFirst(9)) }
      }
    }
    return nil
  }

  /// Whether the groups bound this.
  func bounds(_ resource: Resource) -> Bool { bounded.contains(resource) }

  /// Removes the groups of sessions that have ended, and those of the server if nothing is left in them.
  func removeAll() {
    entered.withLock { $0 = [:] }
    removeEmpty()
    for parent in parents where access(parent + "/cgroup.subtree_control", F_OK) != 0 { rmdir(parent) }
  }

  private static func handDown(in parent: String, _ control: String) throws(SandboxError) {
    let text = FileManager.default.contents(atPath: parent + "/cgroup.controllers") ?? Data()
    let available = String(decoding: text, as: UTF8.self).split(whereSeparator: \.isWhitespace)
    let wanted = ["pids", "memory", "cpu"].filter { available.contains($0[...]) }
    if !wanted.isEmpty { try write(wanted.map { "+" + $0 }.joined(separator: " "), to: control) }
  }

  /// Makes the groups of a session with their limits.
  ///
  /// - Returns: the beginning of a command line that runs the rest of it in them.
  func enter(_ session: String) throws(SandboxError) -> [String] {
    removeEmpty(entering: session)
    var command = ["/bin/sh", "-c", Self.script, "sh"]
    for parent in parents {
      let group = "\(parent)/\(session)"
      guard mkdir(group, 0o755) == 0 || errno == EEXIST else {
        throw SandboxError("The group \(group) can't be made: \(String(cString: strerror(errno)))")
      }
      for (file, value) in values where access("\(group)/\(file)", F_OK) == 0 {
        try Self.write(value, to: "\(group)/\(file)")
      }
      command.append(group)
    }
    return command + ["--"]
  }

  /// Removes the groups that nothing is in any more; the kernel refuses the others.
  private func removeEmpty(entering session: String? = nil) {
    entered.withLock { entered in
      let limit = ContinuousClock.now - Self.settling
      entered = entered.filter { $0.value > limit }
      if let session { entered[session] = .now }
      for parent in parents {
        guard let names = try? FileManager.default.contentsOfDirectory(atPath: parent) else { continue }
        for name in names where UUID(uuidString: name) != nil && entered[name] == nil { rmdir("\(parent)/\(name)") }
      }
    }
  }

  private static func write(_ value: String, to path: String) throws(SandboxError) {
    let file = open(path, O_WRONLY | O_CLOEXEC)
    guard file >= 0 else { throw SandboxError("\(path) can't be opened: \(String(cString: strerror(errno)))") }
    defer { close(file) }
    let count = value.utf8.count
    guard Glibc.write(file, value, count) == count else {
      throw SandboxError("\(path) does not take \(value): \(String(cString: strerror(errno)))")
    }
  }
}

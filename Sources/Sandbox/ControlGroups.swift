import Foundation
import Synchronization

/// The control groups of sessions, in those that were given to the server.
///
/// The sessions of each key are in a group of the key's, so that keys that keep the processors busy share them evenly,
/// however many sessions they do it with, and none of them takes all.
final class ControlGroups: Sendable {
  /// Moves itself into the groups that are named before `--` and becomes the command that is named after it.
  private static let script =
    #"while [ "$1" != -- ]; do echo 0 >"$1/cgroup.procs" || exit 126; shift; done; shift; exec "$@""#
  /// What the names of the groups of keys begin with.
  private static let keyPrefix = "key-"
  /// How long a session that has used up its share of the processors waits for the next one: shorter than the
  /// kernel's default of 100 ms, of which such a session could take all processors for the first half.
  private static let period = 10_000
  /// How long after a group was made nothing may be in it yet.
  private static let settling = Duration.seconds(60)

  /// Of version 2. What a session writes counts for its key where it isn't handed down further.
  private static let controllersOfSessions = ["pids", "memory", "cpu"]
  private static let controllersOfKeys = controllersOfSessions + ["io"]

  /// Disks read faster than they write, and reading holds up others less.
  private static let readsPerWrite = 4

  private let parents: [String]
  /// What to write into those of these files that a new group has; version 1 and 2 have different names.
  private let values: [(file: String, value: String)]
  /// The same for the group of a key.
  private let valuesOfKeys: [(file: String, value: String)]
  private let bounded: Set<Resource>

  /// What groups can bound.
  enum Resource: CaseIterable {
    case memory, processes, processors, disk

    /// The files of a group, in version 2 and 1, that tell that it can.
    var files: [String] {
      switch self {
      case .memory: ["memory.max", "memory.limit_in_bytes"]
      case .processes: ["pids.max"]
      case .processors: ["cpu.max", "cpu.cfs_quota_us"]
      // Version 1 would bound only what doesn't go through the page cache.
      case .disk: ["io.max"]
      }
    }
  }

  /// When groups were made for a session, and below that of which key.
  private let entered = Mutex<[String: (time: ContinuousClock.Instant, key: String)]>([:])

  /// - Throws: ``SandboxError`` if one of the directories can't be used so.
  init(_ directories: [String], _ configuration: SandboxConfiguration) throws(SandboxError) {
    parents = directories
    let memory = String(configuration.maximumMemory)
    let values = [
      ("pids.max", String(configuration.maximumProcesses)),
      ("memory.max", memory), ("memory.swap.max", "0"), ("memory.oom.group", "1"),
      ("memory.limit_in_bytes", memory), ("memory.memsw.limit_in_bytes", memory),
    ]
    // Version 1 refuses a group more than the group around it has.
    let ofKey = configuration.maximumProcessorsOfKey
    let processors = [configuration.maximumProcessors, ofKey].compactMap { $0 }.min()
    self.values = values + Self.quota(processors)
    var valuesOfKeys = Self.quota(ofKey)
    var bounded: Set<Resource> = []
    let disks =
      configuration.maximumDiskRateOfKey.map { rate in
        Disk.all(below: configuration.agentDirectories).map { "\($0) rbps=\(Self.readsPerWrite * rate) wbps=\(rate)" }
      } ?? []
    for parent in parents {
      guard access(parent + "/cgroup.procs", W_OK) == 0, access(parent, W_OK) == 0 else {
        throw SandboxError("\(parent) is no control group that this user may divide.")
      }
      // Version 2 hands a controller down only if it is told to.
      let control = parent + "/cgroup.subtree_control"
      if access(control, F_OK) == 0 { try Self.handDown(Self.controllersOfKeys, in: parent, control) }
      let trial = parent + "/trial"
      guard mkdir(trial, 0o755) == 0 || errno == EEXIST else {
        throw SandboxError("No group can be made in \(parent): \(String(cString: strerror(errno)))")
      }
      var found = Resource.allCases.filter { $0.files.contains { access("\(trial)/\($0)", F_OK) == 0 } }
      if found.contains(.disk) {
        // Not every device takes it, for which no session should fail.
        let possible = disks.filter { line in (try? Self.write(line, to: trial + "/io.max")) != nil }
        valuesOfKeys += possible.map { ("io.max", $0) }
        if possible.isEmpty || possible != disks { found.removeAll { $0 == .disk } }
      }
      rmdir(trial)
      guard !found.isEmpty else { throw SandboxError("\(parent) has no controller for processes, memory or CPU.") }
      bounded.formUnion(found)
    }
    self.bounded = bounded
    self.valuesOfKeys = valuesOfKeys
    removeEmpty()
  }

  /// How often a process of the session was killed for want of memory in the groups that it has now; nil without.
  func outOfMemoryKills(_ session: String) -> Int? {
    guard bounds(.memory) else { return nil }
    for parent in parents {
      for key in Self.names(in: parent) where key.hasPrefix(Self.keyPrefix) {
        // The names of version 2 and version 1.
        for file in ["memory.events", "memory.oom_control"] {
          let path = "\(parent)/\(key)/\(session)/\(file)"
          guard let text = try? String(contentsOfFile: path, encoding: .utf8) else { continue }
          for line in text.split(separator: "\n") where line.hasPrefix("oom_kill ") { return Int(line.dropFirst(9)) }
        }
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

  private static func handDown(
    _ controllers: [String], in parent: String, _ control: String
  ) throws(SandboxError) {
    let text = FileManager.default.contents(atPath: parent + "/cgroup.controllers") ?? Data()
    let available = String(decoding: text, as: UTF8.self).split(whereSeparator: \.isWhitespace)
    let wanted = controllers.filter { available.contains($0[...]) }
    if !wanted.isEmpty { try write(wanted.map { "+" + $0 }.joined(separator: " "), to: control) }
  }

  /// Makes the groups of a session with their limits.
  ///
  /// - Parameter account: the key that the session belongs to; nil if there is none.
  /// - Returns: the beginning of a command line that runs the rest of it in them.
  func enter(_ session: String, of account: String?) throws(SandboxError) -> [String] {
    let key = Self.keyPrefix + (account ?? "")
    removeEmpty(entering: session, of: key)
    var command = ["/bin/sh", "-c", Self.script, "sh"]
    for parent in parents {
      let keyGroup = "\(parent)/\(key)"
      try Self.make(keyGroup)
      // Without keys there is nobody to leave anything to.
      if account != nil { try Self.write(valuesOfKeys, to: keyGroup) }
      let control = keyGroup + "/cgroup.subtree_control"
      if access(control, F_OK) == 0 { try Self.handDown(Self.controllersOfSessions, in: keyGroup, control) }
      let group = "\(keyGroup)/\(session)"
      try Self.make(group)
      try Self.write(values, to: group)
      command.append(group)
    }
    return command + ["--"]
  }

  private static func make(_ group: String) throws(SandboxError) {
    guard mkdir(group, 0o755) == 0 || errno == EEXIST else {
      throw SandboxError("The group \(group) can't be made: \(String(cString: strerror(errno)))")
    }
  }

  /// Removes the groups that nothing is in any more; the kernel refuses the others.
  private func removeEmpty(entering session: String? = nil, of key: String = "") {
    entered.withLock { entered in
      let limit = ContinuousClock.now - Self.settling
      entered = entered.filter { $0.value.time > limit }
      if let session { entered[session] = (.now, key) }
      let keys = Set(entered.values.map(\.key))
      for parent in parents {
        for name in Self.names(in: parent) where name.hasPrefix(Self.keyPrefix) {
          let group = "\(parent)/\(name)"
          for session in Self.names(in: group) where UUID(uuidString: session) != nil && entered[session] == nil {
            rmdir("\(group)/\(session)")
          }
          if !keys.contains(name) { rmdir(group) }
        }
      }
    }
  }

  private static func names(in directory: String) -> [String] {
    // There may be none any more.
    (try? FileManager.default.contentsOfDirectory(atPath: directory)) ?? []
  }

  private static func quota(_ processors: Int?) -> [(file: String, value: String)] {
    guard let processors else { return [] }
    let quota = String(processors * period)
    return [("cpu.max", "\(quota) \(period)"), ("cpu.cfs_period_us", String(period)), ("cpu.cfs_quota_us", quota)]
  }

  private static func write(_ values: [(file: String, value: String)], to group: String) throws(SandboxError) {
    for (file, value) in values where access("\(group)/\(file)", F_OK) == 0 {
      try write(value, to: "\(group)/\(file)")
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

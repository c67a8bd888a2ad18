import CLinux
import Foundation

/// Finds the control groups that the server may divide among its sessions.
///
/// A group of version 2 is the server's if systemd has delegated it, or if it belongs to an ordinary user; the
/// server then moves into a group below it, as the kernel wants no process beside groups that are divided. With
/// version 1 groups are made below the server's own, where that can be written.
struct ControlGroupDiscovery {
  /// Where the hierarchies are mounted.
  var mountPoint = "/sys/fs/cgroup"
  /// What the kernel says of the server's own groups.
  var ownGroups = (try? String(contentsOfFile: "/proc/self/cgroup", encoding: .utf8)) ?? ""
  /// Whether being able to write a group doesn't mean that it was given.
  var isRoot = geteuid() == 0
  /// The name of the groups of version 1.
  let name: String

  static let controllers = ["memory", "pids", "cpu"]
  private static let controllersOfVersion2 = controllers + ["io"]
  /// The group of version 2 in which the server itself is.
  static let serverGroup = "server"
  /// Its share of busy processors, beside 100 of each key's sessions: it takes little, and everybody waits for it.
  private static let serverWeight = "1000"

  /// - Returns: groups for sessions, at most one of version 2 or three of version 1; none if there are none to be had.
  func find() -> [String] {
    if let group = delegated() { return [group] }
    return Self.controllers.compactMap(groupOfVersion1)
  }

  /// The server's path in a hierarchy: that of a controller, or of version 2 (no controller).
  private func path(_ controller: String) -> String? {
    for line in ownGroups.split(separator: "\n") {
      let fields = line.split(separator: ":", maxSplits: 2, omittingEmptySubsequences: false)
      guard fields.count == 3 else { continue }
      let names = fields[1].split(separator: ",").map(String.init)
      guard controller.isEmpty ? fields[0] == "0" : names.contains(controller) else { continue }
      return fields[2] == "/" ? "" : String(fields[2])
    }
    return nil
  }

  private func groupOfVersion1(_ controller: String) -> String? {
    guard let path = path(controller) else { return nil }
    let group = "\(mountPoint)/\(controller)\(path)/\(name)"
    guard mkdir(group, 0o755) == 0 || errno == EEXIST else { return nil }
    return access(group + "/cgroup.procs", W_OK) == 0 ? group : nil
  }

  private func delegated() -> String? {
    guard var path = path("") else { return nil }
    // Where it moved itself when it was started before in this group.
    if path.hasSuffix("/" + Self.serverGroup) { path.removeLast(Self.serverGroup.count + 1) }
    let group = mountPoint + path
    let available = words(of: group + "/cgroup.controllers")
    let wanted = Self.controllersOfVersion2.filter(available.contains)
    guard !path.isEmpty, wanted.contains("memory") || wanted.contains("pids"), isGiven(group) else { return nil }
    let server = "\(group)/\(Self.serverGroup)"
    guard mkdir(server, 0o755) == 0 || errno == EEXIST,
      write(String(getpid()), to: server + "/cgroup.procs"),
      write(wanted.map { "+" + $0 }.joined(separator: " "), to: group + "/cgroup.subtree_control")
    else { return nil }
    // Without it there is still the default.
    let weight = server + "/cpu.weight"
    if access(weight, W_OK) == 0 { _ = write(Self.serverWeight, to: weight) }
    return group
  }

  private func isGiven(_ group: String) -> Bool {
    guard access(group + "/cgroup.procs", W_OK) == 0, access(group + "/cgroup.subtree_control", W_OK) == 0 else {
      return false
    }
    return !isRoot || clinux_extended_attribute_is(group, "trusted.delegate", "1")
      || clinux_extended_attribute_is(group, "user.delegate", "1")
  }

  private func words(of file: String) -> Set<String> {
    Set(
      ((try? String(contentsOfFile: file, encoding: .utf8)) ?? "").split { $0 == " " || $0 == "\n" }.map(String.init))
  }

  private func write(_ text: String, to file: String) -> Bool {
    let descriptor = open(file, O_WRONLY | O_CLOEXEC)
    guard descriptor >= 0 else { return false }
    defer { close(descriptor) }
    return Glibc.write(descriptor, text, text.utf8.count) == text.utf8.count
  }
}

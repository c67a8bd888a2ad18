import Foundation
import TestSupport
import Testing

@testable import Sandbox

/// The choice of control groups and what is written into them, on a tree of plain files.
@Suite struct ControlGroupTests {
  private static let session = UUID().uuidString.lowercased()

  private func make(_ directory: String, _ files: [String: String]) throws {
    try FileManager.default.createDirectory(atPath: directory, withIntermediateDirectories: true)
    for (name, text) in files { try Data(text.utf8).write(to: URL(filePath: "\(directory)/\(name)")) }
  }

  /// A delegated group of version 2. The kernel would make the files of new groups; here they are there before.
  private func withDelegated(
    controllers: String = "cpuset cpu io memory pids\n", _ body: (_ mount: String, _ group: String) throws -> Void
  ) async throws {
    try await withTemporaryDirectory { mount in
      let group = mount + "/system.slice/claude-api.service"
      try make(group, ["cgroup.procs": "", "cgroup.controllers": controllers, "cgroup.subtree_control": ""])
      try make(group + "/server", ["cgroup.procs": "", "cpu.weight": "100\n"])
      try make(
        group + "/key-somebody",
        ["cgroup.controllers": controllers, "cgroup.subtree_control": "", "cpu.max": "max 100000\n"])
      for name in ["trial", "key-somebody/" + Self.session] {
        try make(
          "\(group)/\(name)",
          [
            "cgroup.procs": "", "memory.max": "max\n", "memory.swap.max": "max\n", "memory.oom.group": "0\n",
            "memory.events": "low 0\nhigh 0\nmax 7\noom 3\noom_kill 2\noom_group_kill 1\n", "pids.max": "max\n",
            "cpu.max": "max 10000\n",
          ])
      }
      try body(mount, group)
    }
  }

  private func discovery(_ mount: String, _ ownGroups: String, isRoot: Bool = false) -> ControlGroupDiscovery {
    var discovery = ControlGroupDiscovery(name: "claude-api-x")
    discovery.mountPoint = mount
    discovery.ownGroups = ownGroups
    discovery.isRoot = isRoot
    return discovery
  }

  @Test(arguments: ["", "/server"])
  func dividesADelegatedGroupOfVersion2(_ below: String) async throws {
    try await withDelegated { mount, group in
      let found = discovery(mount, "0::/system.slice/claude-api.service\(below)\n").find()
      #expect(found == [group])
      #expect(text(of: group + "/server/cgroup.procs") == String(getpid()))
      #expect(text(of: group + "/cgroup.subtree_control") == "+memory +pids +cpu")
      #expect(text(of: group + "/server/cpu.weight") == "1000")
      var configuration = SandboxConfiguration(supportDirectory: "/nonexistent")
      configuration.maximumProcesses = 99
      configuration.maximumMemory = 1 << 30
      configuration.maximumProcessors = 4
      configuration.maximumProcessorsOfKey = 2
      let groups = try ControlGroups(found, configuration)
      #expect(ControlGroups.Resource.allCases.allSatisfy(groups.bounds))
      let command = try groups.enter(Self.session, of: "somebody")
      #expect(text(of: group + "/key-somebody/cgroup.subtree_control") == "+pids +memory +cpu")
      let own = "\(group)/key-somebody/\(Self.session)"
      #expect(command.suffix(2) == [own, "--"])
      // A plain file keeps what was longer.
      #expect(text(of: own + "/pids.max").hasPrefix("99"))
      #expect(text(of: own + "/memory.max") == "1073741824")
      #expect(text(of: own + "/memory.swap.max").hasPrefix("0"))
      #expect(text(of: own + "/memory.oom.group") == "1\n")
      // No more than the key's.
      #expect(text(of: own + "/cpu.max") == "20000 10000")
      #expect(text(of: group + "/key-somebody/cpu.max") == "20000 10000")
      #expect(groups.outOfMemoryKills(Self.session) == 2)
      #expect(groups.outOfMemoryKills(UUID().uuidString) == nil)
    }
  }

  @Test func leavesAGroupThatRootWasNotGiven() async throws {
    try await withDelegated { mount, group in
      #expect(discovery(mount, "0::/system.slice/claude-api.service\n", isRoot: true).find().isEmpty)
      #expect(text(of: group + "/server/cgroup.procs").isEmpty)
    }
  }

  @Test(arguments: ["", "9:name=systemd:/\n", "0::/\n", "0::/elsewhere\n", "nonsense\n4:memory:/elsewhere\n"])
  func findsNoneWhereThereIsNone(_ ownGroups: String) async throws {
    try await withDelegated { mount, _ in #expect(discovery(mount, ownGroups).find().isEmpty) }
  }

  @Test func usesOnlyTheControllersThereAre() async throws {
    try await withDelegated(controllers: "pids\n") { mount, group in
      #expect(discovery(mount, "0::/system.slice/claude-api.service\n").find() == [group])
      #expect(text(of: group + "/cgroup.subtree_control") == "+pids")
    }
    try await withDelegated(controllers: "io\n") { mount, _ in
      #expect(discovery(mount, "0::/system.slice/claude-api.service\n").find().isEmpty)
    }
  }

  @Test func makesGroupsOfVersion1BelowTheServersOwn() async throws {
    try await withTemporaryDirectory { mount in
      for group in ["memory/a", "pids"] {
        // The kernel would make the file.
        try make("\(mount)/\(group)/claude-api-x", ["cgroup.procs": ""])
      }
      let found = discovery(mount, "5:pids:/\n4:memory:/a\n3:cpu,cpuacct:/b\n0::/\n", isRoot: true).find()
      #expect(found == [mount + "/memory/a/claude-api-x", mount + "/pids/claude-api-x"])
    }
  }
}

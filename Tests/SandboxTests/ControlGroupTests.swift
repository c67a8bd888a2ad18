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
        ["cgroup.controllers": controllers, "cgroup.subtree_control": "", "cpu.max": "max 100000\n", "io.max": ""])
      for name in ["trial", "key-somebody/" + Self.session] {
        try make(
          "\(group)/\(name)",
          [
            "cgroup.procs": "", "memory.max": "max\n", "memory.swap.max": "max\n", "memory.oom.group": "0\n",
            "memory.events": "low 0\nhigh 0\nmax 7\noom 3\noom_kill 2\noom_group_kill 1\n", "pids.max": "max\n",
            "cpu.max": "max 10000\n",
          ])
      }
      try make(group + "/trial", ["io.max": ""])
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
      #expect(text(of: group + "/cgroup.subtree_control") == "+memory +pids +cpu +io")
      #expect(text(of: group + "/server/cpu.weight") == "1000")
      var configuration = SandboxConfiguration(supportDirectory: "/nonexistent")
      configuration.maximumProcesses = 99
      configuration.maximumMemory = 1 << 30
      configuration.maximumProcessors = 4
      configuration.maximumProcessorsOfKey = 2
      configuration.maximumDiskRateOfKey = 5_000_000
      configuration.agentDirectories = [mount, group]
      let groups = try ControlGroups(found, configuration)
      let disks = Disk.all(below: [mount])
      #expect(disks.count <= 1)
      // Where this runs in a file system without a disk, there is none to be bounded.
      #expect(ControlGroups.Resource.allCases.allSatisfy { groups.bounds($0) || ($0 == .disk && disks.isEmpty) })
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
      #expect(text(of: group + "/key-somebody/io.max") == disks.map { "\($0) rbps=20000000 wbps=5000000" }.joined())
      // Who has no key leaves nothing to others.
      try make(
        group + "/key-", ["cgroup.controllers": "", "cgroup.subtree_control": "", "cpu.max": "", "io.max": ""])
      try make("\(group)/key-/\(Self.session)", ["cgroup.procs": ""])
      _ = try groups.enter(Self.session, of: nil)
      #expect(text(of: group + "/key-/io.max").isEmpty)
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

  @Test func boundsTheDiskOfAPartition() async throws {
    try await withTemporaryDirectory { devices in
      let disk = devices + "/devices/vda"
      try make(disk, ["dev": "254:0\n"])
      try make(disk + "/vda1", ["dev": "254:1\n", "partition": "1\n"])
      for (number, target) in [("254:0", disk), ("254:1", disk + "/vda1")] {
        try FileManager.default.createSymbolicLink(atPath: "\(devices)/\(number)", withDestinationPath: target)
      }
      #expect(Disk.whole("254:1", devices) == "254:0")
      #expect(Disk.whole("254:0", devices) == "254:0")
      #expect(Disk.whole("0:25", devices) == nil)
    }
  }

  @Test func boundsNoDiskOfAFileSystemInMemory() {
    #expect(Disk.all(below: ["/proc", "/nonexistent"]).isEmpty)
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

import ClaudeRunner
import Foundation
import TestSupport
import Testing

@testable import Sandbox

/// What an agent that tries can see and do. All decoys are in the test's own directory.
@Suite(.serialized, .timeLimit(.minutes(5)), .enabled(if: obstacle == nil, "bubblewrap or prlimit is missing"))
struct SandboxTests {
  private func withFixture(
    _ change: (inout SandboxConfiguration) -> Void = { _ in }, _ body: (Fixture) async throws -> Void
  ) async throws {
    try await withTemporaryDirectory { directory in try await body(Fixture(in: directory, change)) }
  }

  @Test func writesTheSessionsDirectoriesAndTmpOnly() async throws {
    try await withFixture { fixture in
      let script = """
        for path in "$1" "$2" /tmp /dev/shm /var/tmp; do echo mine >"$path/probe" || echo "not writable: $path"; done
        for path in / /usr /usr/bin /etc /etc/ssl /dev /proc /proc/sys/kernel /var "$3" "$3/w" "$3/state"; do
          case $path in /tmp/*) continue ;; esac
          (echo theirs >"$path/probe") 2>/dev/null && echo "writable: $path"
        done
        for path in /proc/sys/kernel/core_pattern /proc/sys/vm/drop_caches /proc/sysrq-trigger /etc/passwd /usr/bin/env
        do
          [ -w "$path" ] && echo "writable: $path"
        done
        true
        """
      let own = fixture.own
      let (exit, output) = try await fixture.run(
        script, [own.workingDirectory, own.configDirectory, fixture.directory])
      #expect(exit == .status(0) && output.isEmpty, "\(output)")
      #expect(text(of: own.workingDirectory + "/probe") == "mine\n")
      #expect(text(of: own.configDirectory + "/probe") == "mine\n")
      #expect(!FileManager.default.fileExists(atPath: fixture.directory + "/probe"))
    }
  }

  @Test func seesNothingOfTheServerAndOtherSessions() async throws {
    try await withFixture { fixture in
      let state = fixture.directory + "/state"
      let (_, output) = try await fixture.run(
        #"for path in "$@"; do [ -e "$path" ] && echo "visible: $path"; done; ls "$1/.." "$1/../run""#,
        [
          state + "/claude-config", state + "/claude-api.sqlite", state + "/sandbox", fixture.other.workingDirectory,
          fixture.other.configDirectory, state + "/run/agents/other", "/etc/shadow", "/root", "/home", "/run", "/sys",
          "/boot", "/opt", "/srv",
          "/var/lib", "/etc/ssl/private", "/proc/1/root/root", "/proc/self/root/etc/shadow",
        ])
      #expect(
        output == "visible: \(state)/claude-config\n\(state)/claude-config/..:\nclaude-config\nrun\n\n"
          + "\(state)/claude-config/../run:\nagents", "\(output)")
      let (_, around) = try await fixture.run(#"ls -A "$1/w" "$1/state/claude-config" "$1""#, [fixture.directory])
      #expect(!around.contains(fixture.other.sessionID) && around.contains(fixture.own.sessionID), "\(around)")
      #expect(!around.contains("sqlite") && !around.contains("output"))
    }
  }

  @Test func followsNoLinkOutOfTheWorkspace() async throws {
    try await withFixture { fixture in
      try FileManager.default.createSymbolicLink(
        atPath: fixture.own.workingDirectory + "/link", withDestinationPath: fixture.other.workingDirectory)
      let (exit, output) = try await fixture.run("cat link/theirs")
      #expect(exit != .status(0) && !output.contains("decoy"))
    }
  }

  @Test func seesOnlyItsOwnProcessesAndEnvironment() async throws {
    try await withFixture { fixture in
      let (_, output) = try await fixture.run(
        """
        ls -d /proc/[0-9]* | wc -l
        cat /proc/[0-9]*/environ | tr '\\0' '\\n' | cut -d= -f1 | sort -u | tr '\\n' ' '
        echo
        kill -0 "$1" 2>&1 && echo reached
        id -u
        hostname
        grep -h ^CapEff /proc/[0-9]*/status | sort -u
        unshare --user true 2>/dev/null && echo nested
        tr '\\0' ' ' </proc/1/cmdline | grep -c 'o[f]-the-model'
        """, [String(getpid())])
      let lines = output.split(separator: "\n").map(String.init)
      let processes = try #require(Int(lines[0]))
      #expect(processes < 8)
      #expect(lines[1].split(separator: " ").allSatisfy { ["PATH", "PWD", "SHLVL", "TOKEN", "_"].contains($0) })
      #expect(!output.contains("reached") && !output.contains("nested"), "\(output)")
      #expect(output.contains("\n1000\nsandbox\nCapEff:\t0000000000000000\n"), "\(output)")
      #expect(lines.last == "0")
    }
  }

  @Test func findsNamesCertificatesAndLibraries() async throws {
    try await withFixture { fixture in
      let (exit, output) = try await fixture.run(
        """
        set -e
        test "$(id -un)" = agent
        getent hosts localhost >/dev/null
        ls /etc/ssl/certs >/dev/null
        date >/dev/null
        test "$(pwd)" = "$1"
        awk 'BEGIN { print "ok" }'
        """, [fixture.own.workingDirectory])
      #expect(exit == .status(0) && output == "ok", "\(output)")
    }
  }

  @Test func leavesNothingBehind() async throws {
    try await withFixture { fixture in
      // It would write the file's second line as soon as it is let go of.
      let pipe = fixture.own.workingDirectory + "/pipe"
      #expect(mkfifo(pipe, 0o600) == 0)
      let (exit, _) = try await fixture.run(
        #"setsid sh -c 'exec 3<>pipe; echo started >log; read line <&3; echo survived >>log' >/dev/null 2>&1 &"#
          + "\nuntil [ -s log ]; do sleep 0.01; done")
      #expect(exit == .status(0))
      // Nobody has the pipe open for reading any more once the kernel has taken the daemon.
      var descriptor = open(pipe, O_WRONLY | O_NONBLOCK)
      for _ in 0..<1000 where descriptor >= 0 {
        close(descriptor)
        try await Task.sleep(for: .milliseconds(10))
        descriptor = open(pipe, O_WRONLY | O_NONBLOCK)
      }
      #expect(descriptor < 0 && errno == ENXIO)
      #expect(text(of: fixture.own.workingDirectory + "/log") == "started\n")
    }
  }

  @Test func endsWithTheProcessThatIsKilled() async throws {
    try await withFixture { fixture in
      let pipe = fixture.own.workingDirectory + "/pipe"
      #expect(mkfifo(pipe, 0o600) == 0)
      let command = try fixture.sandbox.wrap(
        ["/bin/bash", "-c", "exec 3<>pipe; echo started >log; read line <&3"], for: fixture.own)
      let child = try ChildProcess(command, output: fixture.directory + "/output")
      while text(of: fixture.own.workingDirectory + "/log").isEmpty, child.exit == nil {
        try await Task.sleep(for: .milliseconds(10))
      }
      child.signal(SIGKILL)
      #expect(await child.waitForExit() == .signal(SIGKILL))
      var descriptor = open(pipe, O_WRONLY | O_NONBLOCK)
      for _ in 0..<1000 where descriptor >= 0 {
        close(descriptor)
        try await Task.sleep(for: .milliseconds(10))
        descriptor = open(pipe, O_WRONLY | O_NONBLOCK)
      }
      #expect(descriptor < 0 && errno == ENXIO)
    }
  }

  @Test func reportsTheStatusOfTheCommand() async throws {
    try await withFixture { fixture in
      let ended = try await fixture.run("exit 7")
      #expect(ended.exit == .status(7))
      let killed = try await fixture.run("kill -KILL $$")
      #expect(killed.exit == .status(137))
    }
  }

  // MARK: Limits

  @Test func boundsTheMemoryOfAProcess() async throws {
    try await withFixture({ $0.maximumMemory = 256 << 20 }) { fixture in
      let limit = try await fixture.run("ulimit -d")
      #expect(limit.output == String((256 << 20) / 1024))
      // One string of 300 MB, if it were let; the limit has just been seen to hold.
      let (exit, output) = try await fixture.run(#"perl -e 'my $x = "a" x 300_000_000; print "got it"'"#)
      #expect(exit != .status(0) && !output.contains("got it"))
    }
  }

  @Test func boundsTheTemporaryFiles() async throws {
    try await withFixture({ $0.temporaryBytes = 1 << 20 }) { fixture in
      let (_, output) = try await fixture.run(
        """
        for path in /tmp /dev/shm; do
          head -c 3000000 /dev/zero >"$path/big" 2>/dev/null && echo "no bound: $path"
          stat -c %s "$path/big"
        done
        """)
      #expect(output.split(separator: "\n") == ["1048576", "1048576"], "\(output)")
    }
  }

  @Test func boundsDescriptors() async throws {
    try await withFixture { fixture in
      let limits = try await fixture.run("ulimit -n; ulimit -Hn")
      #expect(limits.output == "4096\n4096")
    }
  }

  @Test func boundsTheProcessesOfAnOrdinaryUser() async throws {
    try await withFixture({ $0.maximumProcesses = 40 }) { fixture in
      let limit = try await fixture.run("ulimit -u")
      #expect(limit.output == "40")
      guard geteuid() != 0 else {
        print("Root's processes are not counted; the bound was only seen to be set.")
        return
      }
      let many = try await fixture.run(Self.hundredChildren)
      #expect(many.output == "bounded")
    }
  }

  /// Asks for a hundred children that wait, never for children of children.
  private static let hundredChildren =
    #"perl -e 'my @c; for (1..100) { my $p = fork; if (!defined $p) { print "bounded"; last } "#
    + #"if (!$p) { sleep 60; exit } push @c, $p } kill 9, @c; print "not bounded" if @c == 100'"#

  @Test func boundsASessionByItsControlGroups() async throws {
    try await withDecoyGroups { groups in
      guard groups.count == ControlGroupDiscovery.controllers.count else {
        print("There are no control groups of version 1 that this user may divide; only \(groups).")
        return
      }
      try await withFixture({
        $0.maximumProcesses = 40
        $0.maximumMemory = 256 << 20
        $0.maximumProcessors = 2
        $0.maximumProcessorsOfKey = 1
        $0.controlGroups = .directories(groups)
      }) { fixture in
        #expect(fixture.sandbox.boundsMemory && fixture.sandbox.boundsProcesses && fixture.sandbox.boundsProcessors)
        // Each group holds its limit before anything of the agent runs in it.
        let (_, inside) = try await fixture.run("cat /proc/self/cgroup; \(Self.hundredChildren)")
        #expect(inside.hasSuffix("bounded") && !inside.hasSuffix("not bounded"), "\(inside)")
        for group in groups {
          let own = "\(group)/key-somebody/\(fixture.own.sessionID)"
          if group.contains("/pids/") { #expect(text(of: own + "/pids.max") == "40\n") }
          if group.contains("/cpu/") {
            #expect(text(of: own + "/cpu.cfs_quota_us") == "10000\n")
            #expect(text(of: group + "/key-somebody/cpu.cfs_quota_us") == "10000\n")
          }
          if group.contains("/memory/") { #expect(text(of: own + "/memory.limit_in_bytes") == "\(256 << 20)\n") }
        }
        let before = fixture.sandbox.outOfMemoryKills(ofSession: fixture.own.sessionID)
        #expect(before == 0)
        // Two processes, each of which has less than what both may have, and what they have in /tmp counts as well.
        let (exit, output) = try await fixture.run(
          """
          head -c 120000000 /dev/zero >/tmp/big || exit 1
          perl -e 'my $x = "a" x 90_000_000; print "small "; my $y = "b" x 190_000_000; print "got it"'
          """)
        #expect(exit != .status(0) && !output.contains("got it"), "\(exit) \(output)")
        let kills = try #require(fixture.sandbox.outOfMemoryKills(ofSession: fixture.own.sessionID))
        #expect(kills > 0)
        // The session goes on.
        #expect(try await fixture.run("echo alive").output == "alive")
      }
    }
  }

  // MARK: Network

  /// Prints what of the network can be reached: loopback at a port, and the model's socket.
  private static let networkProbe = """
    (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null && echo "tcp reached" || echo "tcp refused"
    perl -MIO::Socket::UNIX -e 'print IO::Socket::UNIX->new(Peer => $ARGV[0]) ? "model reached\n" : "model refused\n"' \
      "$2/model"
    tail -n +3 /proc/net/dev | cut -d: -f1 | tr -d ' ' | sort | tr '\n' ' '
    """

  private func listener(_ path: String) throws -> Int32 {
    let descriptor = socket(AF_UNIX, Int32(SOCK_STREAM.rawValue), 0)
    var address = sockaddr_un()
    address.sun_family = sa_family_t(AF_UNIX)
    withUnsafeMutableBytes(of: &address.sun_path) { $0.copyBytes(from: Array(path.utf8)) }
    let result = withUnsafePointer(to: &address) {
      $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
        bind(descriptor, $0, socklen_t(MemoryLayout<sockaddr_un>.size))
      }
    }
    guard result == 0, listen(descriptor, 16) == 0 else { throw SystemError(call: "listen on \(path)") }
    return descriptor
  }

  @Test func reachesNothingButTheModelIfItIsToldSo() async throws {
    try await withFixture({ $0.network = .modelOnly }) { fixture in
      let port = try freePort()
      try await withChild(
        ["python3", "-m", "http.server", "\(port)", "--bind", "127.0.0.1", "-d", fixture.own.workingDirectory],
        output: fixture.directory + "/decoy.log"
      ) { child in
        try await waitUntilListening(port: port, child: child)
        let socket = fixture.gatewayDirectory + "/model"
        var descriptor = try listener(socket)
        let arguments = [String(port), fixture.gatewayDirectory]
        let (_, only) = try await fixture.run(Self.networkProbe, arguments)
        #expect(only.split(separator: "\n") == ["tcp refused", "model reached", "lo"], "\(only)")
        // Another socket in its place is seen as well.
        close(descriptor)
        unlink(socket)
        descriptor = try listener(socket)
        #expect(try await fixture.run(Self.networkProbe, arguments).output.contains("model reached"))
        let (_, open) = try await fixture.run(Self.networkProbe, arguments, network: .open)
        #expect(open.hasPrefix("tcp reached\nmodel reached\n"), "\(open)")
        close(descriptor)
        // Nothing can be put beside it or in its place.
        let (_, written) = try await fixture.run(
          #"rm -f "$1/model" 2>/dev/null && echo removed; touch "$1/x" 2>/dev/null && echo made; ls "$1""#,
          [fixture.gatewayDirectory])
        #expect(written == "model")
      }
    }
  }

  // MARK: Preparation

  @Test func refusesWhatCannotWork() async throws {
    try await withTemporaryDirectory { directory in
      var missing = SandboxConfiguration(supportDirectory: directory + "/sandbox")
      missing.bubblewrap = directory + "/bwrap"
      await #expect(throws: SandboxError.self) { try await BubblewrapSandbox.prepare(missing) }
      var failing = SandboxConfiguration(supportDirectory: directory + "/sandbox")
      failing.bubblewrap = "/bin/false"
      await #expect(throws: SandboxError.self) { try await BubblewrapSandbox.prepare(failing) }
      var noGroup = SandboxConfiguration(supportDirectory: directory + "/sandbox")
      noGroup.controlGroups = .directories([directory])
      await #expect(throws: SandboxError.self) { try await BubblewrapSandbox.prepare(noGroup) }
      // Groups that nobody has asked for are no reason not to run.
      var automatic = SandboxConfiguration(supportDirectory: directory + "/sandbox")
      automatic.controlGroups = .automatic
      try await BubblewrapSandbox.prepare(automatic).close()
      let left = try FileManager.default.contentsOfDirectory(atPath: directory + "/sandbox")
      #expect(left.sorted() == ["group", "passwd"])
    }
  }
}

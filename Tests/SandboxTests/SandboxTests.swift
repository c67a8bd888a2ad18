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
        #"for path in "$@"; do [ -e "$path" ] && echo "visible: $path"; done; ls "$1/.." | grep -v '^claude-config$'"#,
        [
          state + "/claude-config", state + "/claude-api.sqlite", state + "/sandbox", fixture.other.workingDirectory,
          fixture.other.configDirectory, "/etc/shadow", "/root", "/home", "/run", "/sys", "/boot", "/opt", "/srv",
          "/var/lib", "/etc/ssl/private", "/proc/1/root/root", "/proc/self/root/etc/shadow",
        ])
      #expect(output == "visible: \(state)/claude-config", "\(output)")
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

  private static let givenGroup = ProcessInfo.processInfo.environment["CLAUDE_API_TEST_CGROUP"]

  @Test(.enabled(if: givenGroup != nil, "CLAUDE_API_TEST_CGROUP names no control group that is given to the tests"))
  func boundsASessionByItsControlGroup() async throws {
    let parent = try #require(Self.givenGroup)
    try await withFixture({
      $0.maximumProcesses = 40
      $0.controlGroups = [parent]
    }) { fixture in
      let group = "\(parent)/\(fixture.own.sessionID)"
      let (_, inside) = try await fixture.run("cat /proc/self/cgroup")
      #expect(inside.contains("/"), "\(inside)")
      if FileManager.default.fileExists(atPath: group + "/pids.max") {
        #expect(text(of: group + "/pids.max") == "40\n")
        let many = try await fixture.run(Self.hundredChildren)
        #expect(many.output == "bounded")
      }
      for _ in 0..<1000 where !text(of: group + "/cgroup.procs").isEmpty {
        try await Task.sleep(for: .milliseconds(10))
      }
      for name in try FileManager.default.contentsOfDirectory(atPath: parent) where UUID(uuidString: name) != nil {
        #expect(rmdir("\(parent)/\(name)") == 0)
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
      noGroup.controlGroups = [directory]
      await #expect(throws: SandboxError.self) { try await BubblewrapSandbox.prepare(noGroup) }
      let left = try FileManager.default.contentsOfDirectory(atPath: directory + "/sandbox")
      #expect(left.sorted() == ["group", "passwd"])
    }
  }
}

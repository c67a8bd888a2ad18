import Foundation
import JSONSupport
import NIOHTTP1
import TestSupport
import Testing

/// An agent that tries everything, in the sandbox of the real CLI, while another session works.
@Suite(.enabled(if: Stack.realCLI != nil, "CLAUDE_API_TEST_CLAUDE names no CLI"), .serialized)
struct SandboxAttackTests {
  /// Bounds that a bomb reaches soon, and that leave the CLI room.
  private static let settings = [
    "sandbox-mode": "required", "sandbox-max-processes": "200", "sandbox-max-memory": "1200000000",
    "sandbox-tmp-size": "16777216",
  ]

  /// Scripts of the shell that print `held` if they could do nothing; `$1` is the test's directory, `$2` the other
  /// session, `$3` a process outside, `$4` the server's port.
  private static let attacks = [
    "files": #"""
    for path in /etc/shadow "$1/state/claude-api.sqlite" "$1/w/$2/secret" "$1/state/claude-config/$2" \
        "$1/state/run/model-tokens" "$1/nginx/model/model-credential.conf" /proc/1/root/etc/shadow /proc/kcore; do
      cat "$path" >/dev/null 2>&1 && echo "read $path"; ls "$path" >/dev/null 2>&1 && [ -d "$path" ] && echo "saw $path"
    done
    for path in "$1/state/x" "$1/w/x" "$1/w/$2/x" "$1/m/x" /usr/x /etc/x /proc/sys/kernel/core_pattern; do
      (echo x >"$path") 2>/dev/null && [ "${path#/tmp}" = "$path" ] && echo "wrote $path"
    done
    ln -s "$1/w/$2" link; cat link/secret 2>/dev/null && echo "followed"; true
    """#,
    "processes": #"""
    kill -0 "$3" 2>/dev/null && echo "signalled"
    perl -e 'print "traced\n" if syscall(101, 16, $ARGV[0], 0, 0) == 0' "$3"
    perl -e 'open my $f, "<", "/proc/$ARGV[0]/mem" and print "opened\n"' "$3"
    ls -d /proc/[0-9]* | wc -l | awk '$1 > 40 { print "saw", $1 }'
    unshare --user --map-root-user true 2>/dev/null && echo "nested"
    mount -t tmpfs none /mnt 2>/dev/null && echo "mounted"; true
    """#,
    "network": #"""
    for port in $4 22 80 443; do (exec 3<>/dev/tcp/127.0.0.1/$port) 2>/dev/null && echo "reached $port"; done
    (exec 3<>/dev/tcp/169.254.169.254/80) 2>/dev/null && echo "reached metadata"
    (echo x >/dev/udp/192.0.2.1/53) 2>/dev/null && echo "sent"; true
    """#,
    "forks": #"""
    perl -e 'my @c; for (1..600) { my $p = fork; last unless defined $p; if (!$p) { sleep 60; exit } push @c, $p }
      kill 9, @c; waitpid $_, 0 for @c; print "forked ", scalar @c, "\n" if @c >= 600'
    """#,
    "memory": #"""
    perl -e 'my @x; for (1..200) { push @x, chr(65 + $_ % 26) x 10_000_000; } print "got all\n"' 2>/dev/null; true
    """#,
    "disk": #"""
    head -c 30000000 /dev/zero >/tmp/big 2>/dev/null && echo "filled /tmp"
    head -c 30000000 /dev/zero >/dev/shm/big 2>/dev/null && echo "filled /dev/shm"
    rm -f /tmp/big /dev/shm/big
    (ulimit -f unlimited; head -c 1000 /dev/zero >/x) 2>/dev/null && echo "filled /"; true
    """#,
    "daemon": #"""
    setsid sh -c 'trap "" HUP TERM; exec sleep 600' >/dev/null 2>&1 &
    true
    """#,
  ]

  @Test func everythingIsHeldWhileAnotherSessionWorks() async throws {
    try await Stack.run(cli: .real(path: try #require(Stack.realCLI)), settings: Self.settings) { stack in
      let attacker = try await stack.createSession()
      let other = try await stack.createSession()
      #expect(try await stack.say("first", to: other).contains("first"))
      try "decoy".write(toFile: "\(stack.workspaceRoot)/\(other)/secret", atomically: true, encoding: .utf8)
      let pid = try #require(await stack.responder?.pid)
      // Root's processes can be counted by control groups only, and without them the bomb would hit the machine.
      let boundsProcesses = stack.responderLog.contains("bounds_processes=true")
      let arguments = "'\(stack.directory)' \(other) \(pid) \(stack.nginx.port)"
      for (name, script) in Self.attacks.sorted(by: { $0.key < $1.key }) where boundsProcesses || name != "forks" {
        try "exec 2>/dev/null\n\(script)\necho held\n"
          .write(toFile: "\(stack.workspaceRoot)/\(attacker)/\(name).sh", atomically: true, encoding: .utf8)
        async let attack = stack.post(
          "/sessions/\(attacker)/messages",
          ["prompt": .string(#"[[tool Bash {"command":"bash \#(name).sh \#(arguments)"}]]"#)])
        #expect(try await stack.say("during \(name)", to: other).contains("during \(name)"))
        let answer = try await attack
        // What is too much may cost the attacker its CLI, but nobody else anything.
        let text = try answer.json["response"]?.stringValue
        if name == "memory", text == nil {
          #expect(try answer.json["code"] == "out_of_memory", "\(answer.text)")
        } else {
          #expect(text == "The tool said:\nheld", "\(name): \(answer.text)")
        }
        #expect(try await stack.say("after \(name)", to: attacker).contains("after \(name)"))
        #expect(await stack.responder?.pid == pid)
      }
      // The daemon ends with its session.
      #expect(try stack.processesLeft().count > 0)
      #expect(try await stack.request(.DELETE, "/sessions/\(attacker)").status == 200)
      while try stack.processesLeft().contains(where: { process in
        (try? FileManager.default.destinationOfSymbolicLink(atPath: "/proc/\(process)/cwd"))?.contains(attacker) == true
      }) { try await Task.sleep(for: .milliseconds(10)) }
      #expect(try await stack.say("at the end", to: other).contains("at the end"))
    }
  }

  /// Speaks as much of the CLI's protocol as a turn needs, and takes memory without end if it is told to.
  private static let greedyCLI = #"""
    #!/usr/bin/perl
    use strict; $| = 1;
    if (grep { $_ eq "--version" } @ARGV) { print "2.1.330 (Claude Code)\n"; exit }
    my ($id) = map { /^--(?:session-id|resume)=(.*)/ } @ARGV;
    mkdir "$ENV{CLAUDE_CONFIG_DIR}/projects"; mkdir "$ENV{CLAUDE_CONFIG_DIR}/projects/-w";
    open my $transcript, ">>", "$ENV{CLAUDE_CONFIG_DIR}/projects/-w/$id.jsonl"; print $transcript "{}\n"; close $transcript;
    while (my $line = <STDIN>) {
      if ($line =~ /"control_request"/ && $line =~ /"request_id" *: *"([^"]+)"/) {
        print qq({"type":"control_response","response":{"subtype":"success","request_id":"$1","response":{}}}\n);
      } elsif ($line =~ /"type" *: *"user"/) {
        if ($line =~ /greedy/) { my @x; push @x, chr(65 + @x % 26) x 10_000_000 for 1..100; }
        print qq({"type":"result","subtype":"success","is_error":false,"result":"modest","num_turns":1,),
          qq("total_cost_usd":0,"usage":{"input_tokens":1,"output_tokens":1}}\n);
      }
    }
    """#

  @Test func aCLIThatIsOutOfMemoryIsReportedAndReplaced() async throws {
    try await withTemporaryDirectory { directory in
      let program = directory + "/claude"
      try Self.greedyCLI.write(toFile: program + ".text", atomically: true, encoding: .utf8)
      let copied = try await run(["install", "-m", "0755", program + ".text", program], output: directory + "/log")
      try #require(copied == .status(0))
      let settings = ["sandbox-mode": "required", "sandbox-max-memory": "268435456"]
      try await Stack.run(cli: .file(program), settings: settings) { stack in
        guard stack.responderLog.contains("bounds_memory=true") else {
          print("There is no control group of memory that this user may divide.")
          return
        }
        let id = try await stack.createSession()
        #expect(try await stack.say("hello", to: id) == "modest")
        let answer = try await stack.post("/sessions/\(id)/messages", ["prompt": "be greedy"])
        #expect(answer.status == 502)
        #expect(try answer.json["code"] == "out_of_memory", "\(answer.text)")
        #expect(try await stack.say("hello again", to: id) == "modest")
      }
    }
  }
}

import Foundation
import JSONSupport
import NIOHTTP1
import TestSupport
import Testing

/// The real CLI without a credential, in its sandbox.
@Suite(.enabled(if: Stack.realCLI != nil, "CLAUDE_API_TEST_CLAUDE names no CLI"))
struct GatewayTests {
  private func run<T>(_ settings: [String: String] = [:], _ body: (Stack) async throws -> T) async throws -> T {
    try await Stack.run(
      cli: .real(path: try #require(Stack.realCLI)),
      settings: ["sandbox-mode": "required"].merging(settings) { $1 }, body)
  }

  /// Looks for a text, which is given backwards so that this program's callers don't hold it, in the environment
  /// and the memory of every process in sight but its own, and in all files that can be read below some paths.
  /// Prints where it was found, `place:text`, and how much was searched.
  private static let hunt = #"""
    use strict;
    my %needles = (key => scalar reverse($ARGV[0]), token => $ENV{ANTHROPIC_API_KEY});
    my ($bytes, $processes) = (0, 0);
    sub look { my ($where, $data) = @_; $bytes += length $data;
      for my $name (keys %needles) { print "$where:$name\n" if index($data, $needles{$name}) >= 0 } }
    for my $pid (grep { /^\d+$/ && $_ != $$ } map { s{/proc/}{}r } glob "/proc/[0-9]*") {
      $processes++;
      for my $file (qw(environ cmdline)) {
        if (open my $f, "<", "/proc/$pid/$file") { local $/; look($file, scalar(<$f>) // "") } }
      open my $maps, "<", "/proc/$pid/maps" or next;
      open my $memory, "<:raw", "/proc/$pid/mem" or do { print "no memory of $pid: $!\n"; next };
      while (my $line = <$maps>) {
        next unless $line =~ /^([0-9a-f]+)-([0-9a-f]+) rw/;
        my ($from, $to) = (hex $1, hex $2);
        while ($from < $to) {
          my $size = $to - $from > 8 << 20 ? 8 << 20 : $to - $from;
          sysseek $memory, $from, 0; my $read = sysread $memory, my $data, $size;
          last unless $read; look("memory", $data); $from += $read > 4096 && $read == 8 << 20 ? $read - 4096 : $read } } }
    for my $file (glob("$ENV{HOME}/* $ENV{HOME}/.* $ENV{HOME}/*/* $ENV{HOME}/*/*/* /etc/* /run/* /tmp/*")) {
      next unless -f $file && -r _; if (open my $f, "<:raw", $file) { local $/; look("file", scalar(<$f>) // "") } }
    print "searched $processes processes, ", $bytes > 50_000_000 ? "enough" : "too little", "\n";
    """#

  @Test func theCredentialIsNowhereInTheSandbox() async throws {
    try await run { stack in
      let id = try await stack.createSession()
      _ = try await stack.say("hello", to: id)
      try Self.hunt.write(toFile: "\(stack.workspaceRoot)/\(id)/hunt.pl", atomically: true, encoding: .utf8)
      let needle = String(Stack.modelKey.reversed())
      let found = try await stack.say(
        #"[[tool Bash {"command":"perl hunt.pl \#(needle) | sort | uniq -c | awk '{print $2, $3, $4, $5}'; printenv"}]]"#,
        to: id)
      // That the token of the process is found shows that the credential would be.
      #expect(found.contains("environ:token") && found.contains("memory:token"), "\(found)")
      #expect(found.contains("processes, enough"), "\(found)")
      #expect(!found.contains(":key") && !found.contains(Stack.modelKey), "\(found)")
      #expect(found.contains("ANTHROPIC_API_KEY=\(id).none."), "\(found)")
      // Nor is it with the responder or in what it writes.
      let pid = try #require(await stack.responder?.pid)
      #expect(!text(of: "/proc/\(pid)/environ").contains(Stack.modelKey))
      #expect(!stack.responderLog.contains(Stack.modelKey))
      #expect(!text(of: stack.nginx.prefix + "/logs/model.log").contains(Stack.modelKey))
    }
  }

  @Test func aTokenIsGoodAsLongAsItsProcess() async throws {
    try await run { stack in
      let (tokens, sockets) = (stack.stateDirectory + "/run/model-tokens", stack.stateDirectory + "/run/agents")
      // For each token there is a socket.
      func names() async throws -> [String] {
        while true {
          let names = try FileManager.default.contentsOfDirectory(atPath: tokens)
          if try FileManager.default.contentsOfDirectory(atPath: sockets).count == names.count { return names }
          try await Task.sleep(for: .milliseconds(10))
        }
      }
      #expect(try await names().isEmpty)
      let id = try await stack.createSession()
      _ = try await stack.say("hello", to: id)
      #expect(try await names().map { String($0.prefix(36)) } == [id])
      let seen = try await stack.say(#"[[tool Bash {"command":"ls \#(stack.stateDirectory)/run \#(tokens)"}]]"#, to: id)
      #expect(!seen.contains(id), "\(seen)")
      #expect(try await stack.request(.DELETE, "/sessions/\(id)").status == 200)
      while !(try await names().isEmpty) { try await Task.sleep(for: .milliseconds(10)) }
      let other = try await stack.createSession()
      _ = try await stack.say("hello", to: other)
      await stack.killResponder()
      #expect(try await names().count == 1)
      try await stack.startResponder()
      #expect(try await names().isEmpty)
      _ = try await stack.say("hello again", to: other)
    }
  }

  /// Opens connections to the model all the time and never says enough on any of them to be a request. Notes in a file
  /// when no more are taken, and ends when there is another one.
  private static let attack = #"""
    use strict; use Socket qw(:DEFAULT SOCK_NONBLOCK);
    my $address = pack_sockaddr_un($ENV{ANTHROPIC_UNIX_SOCKET});
    my ($opened, @held) = (0);
    until (-e "enough") {
      socket(my $s, AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0) or die "socket: $!";
      if (connect $s, $address) {
        syswrite $s, "POST /v1/messages HTTP/1.1\r\nHost: model\r\nX-";
        push @held, $s; $opened++;
      } else {
        open my $note, ">", "full"; close $note;
        select undef, undef, undef, 0.002;
        @held = grep { my $read = sysread $_, my $byte, 1; !(defined $read && $read == 0) } @held;
      }
    }
    print "opened $opened\n";
    """#

  /// The connections that something holds to the socket of this path.
  private func connections(to socket: String) -> Int {
    text(of: "/proc/net/unix").split(separator: "\n").count { line in
      let fields = line.split(separator: " ")
      return fields.last.map(String.init) == socket && fields.count > 5 && fields[5] == "03"
    }
  }

  @Test func aHostileAgentTakesItsOwnConnectionsOnly() async throws {
    try await run(["model-max-connections": "8"]) { stack in
      let (hostile, other) = (try await stack.createSession(), try await stack.createSession())
      _ = try await stack.say("hello", to: other)
      let workspace = "\(stack.workspaceRoot)/\(hostile)"
      try Self.attack.write(toFile: workspace + "/attack.pl", atomically: true, encoding: .utf8)
      async let attack = stack.say(#"[[tool Bash {"command":"perl attack.pl"}]]"#, to: hostile)
      while !FileManager.default.fileExists(atPath: workspace + "/full") {
        try await Task.sleep(for: .milliseconds(10))
      }
      // All that it may have is held, and costs neither the API nor the other session anything.
      for round in 0..<5 {
        #expect(try await stack.get("/sessions").status == 200)
        #expect(try await stack.say("round \(round)", to: other).contains("round \(round)"))
        // What the one side has closed is the other's for a moment.
        var held = connections(to: stack.directory + "/m/api.sock")
        for _ in 0..<500 where held > 2 * 8 {
          try await Task.sleep(for: .milliseconds(10))
          held = connections(to: stack.directory + "/m/api.sock")
        }
        #expect(held <= 2 * 8)
      }
      let metrics = try PrometheusText(try await stack.get("/metrics").text)
      #expect(metrics.value("claude_api_model_connections_bounded_total") ?? 0 >= 1)
      #expect((1...16).contains(metrics.value("claude_api_model_connections") ?? 0))
      let notices = stack.responderLog.split(separator: "\n").filter {
        $0.contains("connections to the model as it may")
      }
      #expect(notices.count == 1 && notices[0].contains(hostile), "\(notices)")
      try Data().write(to: URL(filePath: workspace + "/enough"))
      let said = try await attack
      let opened = try #require(said.firstMatch(of: /opened (\d+)/).flatMap { Int($0.1) }, "\(said)")
      #expect(opened > 100)
      #expect(try await stack.say("and now", to: hostile).contains("and now"))
    }
  }

  @Test func noAgentSeesNginxsOwnSocketOrAnothersWay() async throws {
    try await run { stack in
      let (one, two) = (try await stack.createSession(), try await stack.createSession())
      _ = try await stack.say("hello", to: two)
      let look =
        "ls -A \(stack.directory) \(stack.directory)/m \(stack.stateDirectory)/run/agents 2>&1; echo $ANTHROPIC_UNIX_SOCKET"
      let seen = try await stack.say(#"[[tool Bash {"command":"\#(look)"}]]"#, to: one)
      let sockets = try FileManager.default.contentsOfDirectory(atPath: stack.stateDirectory + "/run/agents")
      #expect(sockets.count == 2)
      let own = try #require(sockets.first { seen.contains("/run/agents/\($0)/model") }, "\(seen)")
      #expect(!seen.contains(try #require(sockets.first { $0 != own })), "\(seen)")
      #expect(seen.contains("cannot access '\(stack.directory)/m'") && !seen.contains("api.sock"), "\(seen)")
    }
  }

  @Test func withoutNginxTheClientIsToldSo() async throws {
    try await run(["claude-model-retries": "1"]) { stack in
      let id = try await stack.createSession()
      let socket = stack.directory + "/m/api.sock"
      try FileManager.default.moveItem(atPath: socket, toPath: socket + ".away")
      let answer = try await stack.post("/sessions/\(id)/messages", ["prompt": "are you there?"])
      #expect(answer.status == 502)
      #expect(try answer.json["code"] == "model_error", "\(answer.text)")
      #expect(answer.text.contains("nginx does not answer on the model's socket"), "\(answer.text)")
      try FileManager.default.moveItem(atPath: socket + ".away", toPath: socket)
      #expect(try await stack.say("and now?", to: id).contains("and now?"))
    }
  }

  @Test func theTokensOfTheGatewayAreThoseOfTheCLI() async throws {
    try await run { stack in
      var expected: [String: [Int64]] = [:]
      for prompts in [["[[usage in 100 out 50]] one", "two"], [#"[[tool Bash {"command":"echo x"}]]"#, "three"]] {
        let id = try await stack.createSession()
        for prompt in prompts { _ = try await stack.say(prompt, to: id) }
        let turns = try #require(try await stack.get("/sessions/\(id)/turns").json["turns"]?.arrayValue)
        #expect(turns.count == 2)
        expected[id] = ["input_tokens", "output_tokens", "cache_read_input_tokens", "cache_creation_input_tokens"].map {
          name in turns.reduce(0) { $0 + ($1["usage"]?[name]?.intValue ?? 0) }
        }
      }
      let output = stack.directory + "/usage"
      let exit = try await TestSupport.run(
        [Stack.product("claude-api-server"), "model-usage", stack.nginx.prefix + "/logs/model.log"], output: output)
      #expect(exit == .status(0))
      var counted: [String: [Int64]] = [:]
      for line in text(of: output).split(separator: "\n") {
        let columns = line.split(separator: "\t").map(String.init)
        counted[columns[0]] = columns.dropFirst(2).compactMap { Int64($0) }
      }
      #expect(counted == expected)
      #expect(expected.values.allSatisfy { $0[1] > 0 })
    }
  }

  /// Whether the agent reaches this server's own port.
  private static func reach(_ stack: Stack) -> String {
    #"[[tool Bash {"command":"(exec 3<>/dev/tcp/127.0.0.1/\#(stack.nginx.port)) 2>/dev/null && echo reached || echo held"}]]"#
  }

  @Test func anAgentReachesTheModelOnly() async throws {
    try await run { stack in
      let id = try await stack.createSession()
      #expect(try await stack.say(Self.reach(stack), to: id).contains("held"))
    }
    try await run(["sandbox-network": "open"]) { stack in
      let id = try await stack.createSession()
      #expect(try await stack.say(Self.reach(stack), to: id).contains("reached"))
      #expect(stack.responderLog.contains("That includes the agents"))
    }
  }

  /// Whether the agent reaches more than the model in a message of `key`.
  private func reaches(_ stack: Stack, _ id: String, _ key: String) async throws -> Bool {
    let said = try await stack.say(Self.reach(stack), to: id, headers: Stack.credentials(key))
    try #require(said.contains("reached") != said.contains("held"), "\(said)")
    return said.contains("reached")
  }

  @Test func aKeyThatIsHeldToTheModelIsSoWhateverHappens() async throws {
    try await run(["sandbox-network": "open"]) { stack in
      let admin = try await stack.createKey("admin")
      let closed = try await stack.createKey("user", ["--network", "model-only"])
      let id = try await stack.createSession(key: closed)
      #expect(try await !reaches(stack, id, closed))
      // Nor by somebody else's message or copy, or after a restart.
      #expect(try await !reaches(stack, id, admin))
      let fork = try await stack.post("/sessions/\(id)/fork", [:], headers: Stack.credentials(admin))
      let forkID = try #require(try fork.json["session"]?["id"]?.stringValue, "\(fork.text)")
      await stack.stopResponder()
      try await stack.startResponder()
      #expect(try await !reaches(stack, forkID, admin))
      #expect(try await !reaches(stack, id, closed))
      // What nothing is said of has what the server's settings say, but for messages of who is held.
      let plain = try await stack.createKey("user")
      let other = try await stack.createSession(key: plain)
      #expect(try await reaches(stack, other, plain))
      let guest = try await stack.createKey("user", ["--session", other, "--network", "model-only"])
      #expect(try await !reaches(stack, other, guest))
      #expect(try await reaches(stack, other, plain))
      // A change holds from the next message on; another secret is none.
      let keyID = try #require(closed.split(separator: "_").dropFirst().first.map(String.init))
      #expect(try await stack.keys(["network", keyID, "open"]) == "open\n")
      #expect(try await reaches(stack, id, closed))
      try await stack.keys(["network", keyID, "model-only"])
      let rotated = try await stack.keys(["rotate", keyID]).trimmingCharacters(in: .whitespacesAndNewlines)
      #expect(
        try await stack.keys(["list"]).split(separator: "\n").contains {
          $0.hasPrefix(keyID) && $0.hasSuffix("\tmodel-only")
        })
      #expect(try await !reaches(stack, id, rotated))
      let usage = try await stack.get("/usage", headers: Stack.credentials(rotated))
      #expect(try usage.json["network"] == "model-only")
    }
  }

  @Test func aKeyMayOpenTheNetworkUnlessTheServerForbidsIt() async throws {
    try await run { stack in
      let open = try await stack.createKey("user", ["--network", "open"])
      let plain = try await stack.createKey("user")
      let id = try await stack.createSession(key: open)
      #expect(try await reaches(stack, id, open))
      let other = try await stack.createSession(key: plain)
      #expect(try await !reaches(stack, other, plain))
      // The owner's key decides, not that of a guest.
      let guest = try await stack.createKey("user", ["--session", other, "--network", "open"])
      #expect(try await !reaches(stack, other, guest))
    }
    try await run(["sandbox-network": "always-model-only"]) { stack in
      let open = try await stack.createKey("user", ["--network", "open"])
      let id = try await stack.createSession(key: open)
      #expect(try await !reaches(stack, id, open))
    }
  }
}

import ClaudeAPI
import Foundation
import Sandbox
import Sessions
import TestSupport
import Testing
import Workspaces

/// Sessions that begin with a repository.
@Suite struct GitTests {
  /// A repository with two commits, a tag, a submodule, links, and hooks that leave a trace if they are run.
  private static let making = """
    set -eu
    export GIT_CONFIG_GLOBAL=/dev/null GIT_CONFIG_NOSYSTEM=1 GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@example.org
    export GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@example.org
    git init -q -b main "$1/project"
    cd "$1/project"
    echo one >file.txt
    printf '#!/bin/sh\\n' >run.sh
    chmod +x run.sh
    ln -s /etc/passwd far
    ln -s file.txt near
    git add -A
    git commit -qm one
    git tag v1
    echo two >file.txt
    git init -q -b main "$1/inner"
    git -C "$1/inner" commit -q --allow-empty -m inner
    git -c protocol.file.allow=always submodule add -q "file://$1/inner" sub
    git commit -qam two
    git checkout -q -b side
    echo side >side.txt
    git add -A
    git commit -qm side
    git checkout -q main
    for hook in post-checkout post-merge reference-transaction fsmonitor-watchman; do
      printf '#!/bin/sh\\ntouch "%s/hook-ran"\\n' "$1" >.git/hooks/$hook
      chmod +x .git/hooks/$hook
    done
    cp -r "$1/project" "$1/project-evil"
    """

  private func withRepositories(
    limits: WorkspaceLimits = WorkspaceLimits(), sources: (String) -> [String] = { ["file://\($0)/project"] },
    timeout: Duration = .seconds(60), sandbox: GitConfiguration.Sandbox? = nil,
    _ body: (FilesServer, _ repositories: String) async throws -> Void
  ) async throws {
    try await withTemporaryDirectory { directory in
      let exit = try await run(["bash", "-c", Self.making, "make", directory], output: directory + "/log")
      try #require(exit == .status(0), "\(text(of: directory + "/log"))")
      var configuration = FilesConfiguration()
      configuration.git.allowedSources = sources(directory).compactMap { GitURL($0) }
      configuration.git.timeout = timeout
      configuration.git.sandbox = sandbox
      try await FilesServer.run(limits: limits, configuration: configuration) { server in
        try await body(server, directory)
        #expect(try server.staged.isEmpty)
        #expect(!FileManager.default.fileExists(atPath: directory + "/hook-ran"))
      }
    }
  }

  private struct Made: Decodable {
    struct Session: Decodable {
      let id: String
      let workspace: String
    }
    let session: Session
    let initial_response: String?
  }

  private func create(_ server: FilesServer, _ git: String, _ fields: [String: String] = [:]) async throws
    -> RawResponse
  {
    var fields = fields
    fields["Content-Type"] = "application/json"
    return try await server.send(
      "POST", "/sessions", fields, text: #"{"initial_prompt":"Look","session_name":"Git","git":\#(git)}"#)
  }

  private func git(_ arguments: [String], in directory: String) async throws -> String {
    let log = directory + "/../\(UUID().uuidString).log"
    _ = try await run(["git", "-C", directory] + arguments, output: log)
    return text(of: log).trimmingCharacters(in: .whitespacesAndNewlines)
  }

  @Test func aRepositoryIsThereWhenTheSessionIs() async throws {
    try await withRepositories { server, repositories in
      let response = try await create(server, #"{"url":"file://\#(repositories)/project"}"#)
      #expect(response.status == 200, "\(response.text)")
      let made = try response.decode(Made.self)
      let workspace = made.session.workspace
      #expect(made.initial_response == "You said: Look")
      #expect(text(of: workspace + "/file.txt") == "two\n" && access(workspace + "/run.sh", X_OK) == 0)
      #expect(try await git(["rev-list", "--count", "HEAD"], in: workspace) == "2")
      #expect(try await git(["status", "--porcelain"], in: workspace).isEmpty)
      // Submodules are not brought along, links are, and lead nowhere for a client.
      #expect(try FileManager.default.contentsOfDirectory(atPath: workspace + "/sub").isEmpty)
      #expect(try FileManager.default.destinationOfSymbolicLink(atPath: workspace + "/far") == "/etc/passwd")
      #expect(try await server.send("GET", "/sessions/\(made.session.id)/files/far").problemCode == "symbolic_link")
      #expect(!FileManager.default.fileExists(atPath: workspace + "/.git/hooks"))

      let side = try await create(server, #"{"url":"file://\#(repositories)/project/","branch":"side","depth":1}"#)
      let shallow = try side.decode(Made.self).session.workspace
      #expect(text(of: shallow + "/side.txt") == "side\n")
      #expect(try await git(["rev-list", "--count", "HEAD"], in: shallow) == "1")
      let tag = try await create(server, #"{"url":"file://\#(repositories)/project","branch":"v1"}"#)
      #expect(text(of: try tag.decode(Made.self).session.workspace + "/file.txt") == "one\n")

      // Again with the same key: the same session, and nothing is cloned.
      let key = ["Idempotency-Key": "k1"]
      let first = try await create(server, #"{"url":"file://\#(repositories)/project"}"#, key)
      let count = try sessions(server)
      let again = try await create(server, #"{"url":"file://\#(repositories)/project"}"#, key)
      #expect(try first.decode(Made.self).session.id == again.decode(Made.self).session.id)
      #expect(again["idempotency-replayed"] == ["true"])
      #expect(try sessions(server) == count)

      let form = multipart([
        ("session_name", nil, Array("x".utf8)), ("git", nil, Array(#"{"url":"file://\#(repositories)/project"}"#.utf8)),
      ])
      let posted = try await server.send("POST", "/sessions", form.fields, form.body)
      #expect(text(of: try posted.decode(Made.self).session.workspace + "/file.txt") == "two\n")
    }
  }

  private func sessions(_ server: FilesServer) throws -> Int {
    try FileManager.default.contentsOfDirectory(atPath: server.directory + "/workspaces").count
  }

  @Test func whatMayNotBeBroughtIn() async throws {
    try await withRepositories { server, repositories in
      let before = try sessions(server)
      for (git, status, code) in [
        (#"{"url":"file://\#(repositories)/project-evil"}"#, 403, "git_source_not_allowed"),
        (#"{"url":"file://\#(repositories)/inner"}"#, 403, "git_source_not_allowed"),
        (#"{"url":"file:///"}"#, 403, "git_source_not_allowed"),
        (#"{"url":"file://\#(repositories)/project/../inner"}"#, 422, "invalid_field"),
        (#"{"url":"file://\#(repositories)/project/%2e%2e/inner"}"#, 422, "invalid_field"),
        (#"{"url":"\#(repositories)/project"}"#, 422, "invalid_field"),
        (#"{"url":"ext::sh -c touch% \#(repositories)/hook-ran"}"#, 422, "invalid_field"),
        (#"{"url":"https://example.org/x"}"#, 403, "git_source_not_allowed"),
        (#"{"url":"--upload-pack=touch"}"#, 422, "invalid_field"),
        (#"{"url":"file://\#(repositories)/project","branch":"--upload-pack=x"}"#, 422, "invalid_field"),
        (#"{"url":"file://\#(repositories)/project","depth":0}"#, 422, "invalid_field"),
        (#"{"url":"file://\#(repositories)/project","submodules":true}"#, 422, "unknown_field"),
        (#"{"branch":"main"}"#, 422, "invalid_field"),
        (#""file://x""#, 422, "invalid_field"),
        (#"{"url":"file://\#(repositories)/project","branch":"none"}"#, 422, "git_failed"),
        (#"{"url":"file://\#(repositories)/project/none"}"#, 422, "git_failed"),
      ] {
        let response = try await create(server, git)
        #expect(response.status == status && response.problemCode == code, "\(git): \(response.text)")
        #expect(!response.text.contains(".incoming"), "\(response.text)")
      }
      #expect(try sessions(server) == before)
    }
    // Nothing is allowed as long as nobody says so.
    try await FilesServer.run { server in
      let response = try await create(server, #"{"url":"file:///tmp"}"#)
      #expect(response.problemCode == "git_source_not_allowed")
    }
  }

  @Test func aRepositoryThatIsTooLarge() async throws {
    var limits = WorkspaceLimits()
    limits.bytes = 3_000_000
    try await withRepositories(limits: limits) { server, repositories in
      let script = """
        set -eu
        cd "$1/project"
        head -c 8000000 /dev/urandom >large
        git add large
        git -c user.name=a -c user.email=a@example.org commit -qm large
        """
      #expect(try await run(["bash", "-c", script, "x", repositories], output: repositories + "/log2") == .status(0))
      unlink(repositories + "/hook-ran")
      let before = try sessions(server)
      let response = try await create(server, #"{"url":"file://\#(repositories)/project"}"#)
      #expect(response.status == 507 && response.problemCode == "quota_exceeded", "\(response.text)")
      #expect(try sessions(server) == before)
    }
  }

  /// A web server that never answers, sends elsewhere, or wants a password.
  private static let server = """
    import http.server, sys, time
    class Handler(http.server.BaseHTTPRequestHandler):
      def do_GET(self):
        open(sys.argv[2], 'a').write(self.path + '\\n')
        if self.path.startswith('/hang/'):
          time.sleep(600)
        elif self.path.startswith('/redirect/'):
          self.send_response(302)
          self.send_header('Location', '/private' + self.path)
          self.end_headers()
        elif self.path.startswith('/auth/'):
          self.send_response(401)
          self.send_header('WWW-Authenticate', 'Basic realm="x"')
          self.end_headers()
        else:
          self.send_response(404)
          self.end_headers()
      def log_message(self, *_): pass
    server = http.server.ThreadingHTTPServer(('127.0.0.1', int(sys.argv[1])), Handler)
    server.daemon_threads = True
    server.serve_forever()
    """

  @Test func serversThatDoNotWant() async throws {
    let port = try freePort()
    let sources = ["hang", "redirect", "auth"].map { "http://127.0.0.1:\(port)/\($0)" }
    try await withRepositories(sources: { _ in sources }, timeout: .seconds(2)) { server, repositories in
      let hits = repositories + "/hits"
      try await withChild(["python3", "-c", Self.server, "\(port)", hits], output: repositories + "/server.log") {
        child in
        try await waitUntilListening(port: port, child: child)
        for (name, status, code) in [
          ("hang", 504, "git_timeout"), ("redirect", 422, "git_failed"), ("auth", 422, "git_failed"),
        ] {
          let response = try await create(server, #"{"url":"http://127.0.0.1:\#(port)/\#(name)/x.git"}"#)
          #expect(response.status == status && response.problemCode == code, "\(name): \(response.text)")
        }
        #expect(text(of: hits).contains("/hang/") && text(of: hits).contains("/auth/"))
        #expect(text(of: hits).contains("/redirect/") && !text(of: hits).contains("/private"))
        // A client that goes away takes the clone with it.
        do {
          let connection = try RawConnection(port: server.port)
          let body = #"{"git":{"url":"http://127.0.0.1:\#(port)/hang/y.git"}}"#
          let head =
            "POST /sessions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: \(body.utf8.count)"
          try await connection.send("\(head)\r\n\r\n\(body)")
          try await eventually("git asks") { text(of: hits).contains("/hang/y") }
          #expect(try !server.staged.isEmpty)
        }
        try await eventually("nothing is left") { try server.staged.isEmpty }
      }
    }
  }

  /// What is in a repository leads nowhere but to itself, also where the server could go.
  @Test func submodulesAreNotFetched() async throws {
    let port = try freePort()
    let script = """
      set -eu
      cd "$1/project"
      git config -f .gitmodules submodule.web.path web
      git config -f .gitmodules submodule.web.url "http://127.0.0.1:$2/allowed/web.git"
      git config -f .gitmodules submodule.web.update checkout
      git add .gitmodules
      git update-index --add --cacheinfo "160000,$(git rev-parse HEAD),web"
      git -c user.name=a -c user.email=a@example.org commit -qm web
      """
    try await withRepositories(
      sources: { ["file://\($0)", "http://127.0.0.1:\(port)/allowed"] }
    ) { server, repositories in
      let made = try await run(
        ["bash", "-c", script, "x", repositories, "\(port)"], output: repositories + "/submodule.log")
      try #require(made == .status(0), "\(text(of: repositories + "/submodule.log"))")
      unlink(repositories + "/hook-ran")
      let hits = repositories + "/hits"
      try await withChild(["python3", "-c", Self.server, "\(port)", hits], output: repositories + "/server.log") {
        child in
        try await waitUntilListening(port: port, child: child)
        let response = try await create(server, #"{"url":"file://\#(repositories)/project"}"#)
        #expect(response.status == 200, "\(response.text)")
        let workspace = try response.decode(Made.self).session.workspace
        #expect(text(of: workspace + "/.gitmodules").contains("/allowed/web.git"))
        #expect(try FileManager.default.contentsOfDirectory(atPath: workspace + "/web").isEmpty)
        #expect(!FileManager.default.fileExists(atPath: workspace + "/.git/modules"))
        #expect(text(of: hits).isEmpty)
        // The server does write down who comes.
        _ = try await create(server, #"{"url":"http://127.0.0.1:\#(port)/allowed/web.git"}"#)
        #expect(text(of: hits).contains("/allowed/web.git"))
      }
    }
  }

  // MARK: ssh

  /// Keys of a server and a client, and the server's configuration. It runs as this user, who is the only one that can
  /// log in, and looks at nothing of the machine's own ssh.
  private static let makingKeys = """
    set -eu
    cd "$1"
    mkdir -m 700 client
    ssh-keygen -q -t ed25519 -N '' -f host
    ssh-keygen -q -t ed25519 -N '' -f client/id_ed25519
    cp client/id_ed25519.pub authorized
    echo "[127.0.0.1]:$2 $(cut -d' ' -f1,2 host.pub)" >client/known_hosts
    cat >config <<END
    ListenAddress 127.0.0.1
    Port $2
    HostKey $1/host
    AuthorizedKeysFile $1/authorized
    StrictModes no
    UsePAM no
    PasswordAuthentication no
    KbdInteractiveAuthentication no
    PermitRootLogin prohibit-password
    PidFile none
    END
    """
  private static let sshd = "/usr/sbin/sshd"
  private static let hasSSH = ["/usr/bin/ssh", "/usr/bin/bwrap", sshd].allSatisfy { (path: String) in
    access(path, X_OK) == 0
  }

  @Test(.enabled(if: hasSSH, "there is no ssh, sshd or bubblewrap"))
  func aRepositoryComesOverSSH() async throws {
    try await withTemporaryDirectory { keys in
      let port = try freePort()
      let made = try await run(["bash", "-c", Self.makingKeys, "x", keys, "\(port)"], output: keys + "/log")
      try #require(made == .status(0), "\(text(of: keys + "/log"))")
      let sandbox = try await BubblewrapSandbox.prepare(SandboxConfiguration(supportDirectory: keys + "/sandbox"))
      let host = "ssh://\(NSUserName())@127.0.0.1:\(port)"
      // Started by root it wants a directory that is root's own.
      let server = [
        "/usr/bin/bwrap", "--dev-bind", "/", "/", "--tmpfs", "/run", "--perms", "0755", "--dir", "/run/sshd",
        "--die-with-parent", Self.sshd, "-D", "-e", "-f", keys + "/config",
      ]
      try await withRepositories(
        sources: { ["\(host)\($0)/project"] },
        sandbox: { command, directory, _ in
          sandbox.wrap(command, in: directory, readable: [(path: keys + "/client", place: "/tmp/.ssh")])
        }
      ) { files, repositories in
        try await withChild(server, output: keys + "/sshd.log") { child in
          try await waitUntilListening(port: port, child: child)
          let url = host + repositories
          let response = try await create(files, #"{"url":"\#(url)/project","depth":1}"#)
          #expect(response.status == 200, "\(response.text) \(text(of: keys + "/sshd.log"))")
          let workspace = try response.decode(Made.self).session.workspace
          #expect(text(of: workspace + "/file.txt") == "two\n")
          #expect(try FileManager.default.contentsOfDirectory(atPath: workspace + "/sub").isEmpty)

          let before = try sessions(files)
          func refused(_ url: String, _ code: String, _ reason: String) async throws {
            let response = try await create(files, #"{"url":"\#(url)"}"#)
            #expect(response.problemCode == code && response.text.contains(reason), "\(response.text)")
          }
          try await refused(url + "/inner", "git_source_not_allowed", "allowed-sources")
          try await refused(url + "/project/none", "git_failed", "does not appear to be a git repository")
          try Data().write(to: URL(filePath: keys + "/authorized"))
          try await refused(url + "/project", "git_failed", "Permission denied")
          try Data().write(to: URL(filePath: keys + "/client/known_hosts"))
          try await refused(url + "/project", "git_failed", "Host key verification failed")
          // The host that was refused isn't known from now on.
          #expect(text(of: keys + "/client/known_hosts").isEmpty)
          await child.stop()
          try await eventually("sshd is gone") { (try? RawConnection(port: port)) == nil }
          try await refused(url + "/project", "git_failed", "Connection refused")
          #expect(try sessions(files) == before)
        }
      }
    }
  }
}

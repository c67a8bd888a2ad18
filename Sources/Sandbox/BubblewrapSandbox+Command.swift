extension BubblewrapSandbox {
  /// A command of the server's own, in namespaces of its own but for the network, as it handles what strangers have
  /// made. It sees the system and what it is given, and ends with the one who starts it.
  ///
  /// - Parameters:
  ///   - directory: where it works, the only directory besides a private /tmp that it can write to.
  ///   - readable: what it can read, and under which path.
  public func wrap(
    _ command: [String], in directory: String, readable: [(path: String, place: String)]
  ) -> [String] {
    let temporary = String(configuration.temporaryBytes)
    var arguments = [
      "--unshare-user", "--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try", "--disable-userns",
      "--uid", "1000", "--gid", "1000", "--hostname", "sandbox", "--die-with-parent", "--new-session",
    ]
    arguments += systemArguments
    arguments += ["--ro-bind", passwords, "/etc/passwd", "--ro-bind", groupNames, "/etc/group"]
    arguments += ["--proc", "/proc", "--dev", "/dev", "--size", temporary, "--perms", "1777", "--tmpfs", "/tmp"]
    for (path, place) in readable { arguments += ["--ro-bind", path, place] }
    arguments += ["--bind", directory, directory]
    for path in ["/proc", "/dev", "/"] { arguments += ["--remount-ro", path] }
    return [bubblewrap] + arguments + ["--chdir", directory, "--"] + limits + command
  }
}

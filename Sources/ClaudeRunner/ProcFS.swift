import CLinux
import Glibc

/// The little that is needed of /proc. What can't be read is empty: processes end while one looks at them.
enum ProcFS {
  struct Status {
    var isZombie: Bool
    var parent: pid_t
    var session: pid_t
    /// When it began, by ``ProcFS/now``.
    var start: UInt64
    /// Its environment has nothing in it, rather than being out of sight while it starts a program.
    var hasEmptyEnvironment: Bool
  }

  static func bytes(_ path: String, limit: Int = 4 << 20) -> [UInt8] {
    let file = open(path, O_RDONLY | O_CLOEXEC)
    guard file >= 0 else { return [] }
    defer { close(file) }
    var bytes: [UInt8] = []
    var chunk = [UInt8](repeating: 0, count: 16 << 10)
    while bytes.count < limit {
      let count = read(file, &chunk, chunk.count)
      guard count > 0 else { break }
      bytes += chunk[..<count]
    }
    return bytes
  }

  static func text(_ path: String) -> String {
    String(decoding: bytes(path), as: UTF8.self)
  }

  /// The names in a directory that are numbers.
  static func numbers(in path: String) -> [Int32] {
    guard let directory = opendir(path) else { return [] }
    defer { closedir(directory) }
    var numbers: [Int32] = []
    while let entry = readdir(directory) {
      let name = withUnsafePointer(to: &entry.pointee.d_name) {
        $0.withMemoryRebound(to: CChar.self, capacity: 256) { String(cString: $0) }
      }
      if let number = Int32(name) { numbers.append(number) }
    }
    return numbers
  }

  static func status(of pid: pid_t) -> Status? {
    // The name, in parentheses, may hold anything; the fields follow its last one.
    let stat = text("/proc/\(pid)/stat")
    guard let end = stat.lastIndex(of: ")") else { return nil }
    let fields = stat[end...].split(separator: " ").dropFirst()
    let values = Array(fields.prefix(49))
    guard values.count == 49, let parent = pid_t(values[1]), let session = pid_t(values[3]),
      let start = UInt64(values[19])
    else { return nil }
    // A thread of the kernel has no memory, and the start of the code says 1 where one may not look. `execve` gives a
    // process new memory first and tells later where in it the environment is.
    let (memory, code, environment) = (values[20], values[23], (start: values[47], end: values[48]))
    return Status(
      isZombie: values[0] == "Z", parent: parent, session: session, start: start,
      hasEmptyEnvironment: memory == "0" || code == "1"
        || (environment.end != "0" && environment.start == environment.end))
  }

  /// The time in the kernel's ticks since the system started, in which it tells when processes began.
  static var now: UInt64 {
    var time = timespec()
    clock_gettime(CLOCK_BOOTTIME, &time)
    let ticks = UInt64(max(1, sysconf(Int32(_SC_CLK_TCK))))
    return UInt64(time.tv_sec) * ticks + UInt64(time.tv_nsec) * ticks / 1_000_000_000
  }

  static func owner(of pid: pid_t) -> uid_t? {
    var info = stat()
    return lstat("/proc/\(pid)", &info) == 0 ? info.st_uid : nil
  }

  /// How often the system has killed a process for want of memory.
  static func outOfMemoryKills() -> Int {
    for line in text("/proc/vmstat").split(separator: "\n") where line.hasPrefix("oom_kill ") {
      return Int(line.dropFirst(9)) ?? 0
    }
    return 0
  }
}

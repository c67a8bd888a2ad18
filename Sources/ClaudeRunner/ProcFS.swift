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

    /// - Parameter stat: what `/proc/PID/stat` says; nil comes of anything else.
    init?(_ stat: String) {
      // The name, in parentheses, may hold anything; the fields follow its last one.
      // By bytes: with some that could be in a name, the parenthesis would be one character.
      guard let end = stat.utf8.lastIndex(of: UInt8(ascii: ")")) else { return nil }
      let values = Array(stat[stat.utf8.index(after: end)...].split(separator: " ").prefix(49))
      guard values.count == 49, let parent = pid_t(values[1]), let session = pid_t(values[3]),
        let start = UInt64(values[19])
      else { return nil }
      isZombie = values[0] == "Z"
      self.parent = parent
      self.session = session
      self.start = start
      // A thread of the kernel has no memory, and the start of the code says 1 where one may not look. `execve` gives a
      // process new memory first, then its environment, whose end is at its start until it is complete, and tells where
      // the code is at last.
      let (memory, code, environment) = (values[20], values[23], (start: values[47], end: values[48]))
      hasEmptyEnvironment = memory == "0" || code == "1" || (code != "0" && environment.start == environment.end)
    }
  }

  static func text(_ path: String) -> String {
    let file = open(path, O_RDONLY | O_CLOEXEC)
    guard file >= 0 else { return "" }
    defer { close(file) }
    var bytes: [UInt8] = []
    var chunk = [UInt8](repeating: 0, count: 16 << 10)
    while bytes.count < 4 << 20 {
      let count = read(file, &chunk, chunk.count)
      guard count > 0 else { break }
      bytes += chunk[..<count]
    }
    return String(decoding: bytes, as: UTF8.self)
  }

  /// The environment that a process was started with, its entries apart by zeros.
  ///
  /// It is read at once: between two reads the process may start another program, and the second finds nothing.
  static func environment(of pid: pid_t) -> [UInt8] {
    // The second is more than the kernel lets a program be given.
    for size in [16 << 10, 8 << 20] {
      let file = open("/proc/\(pid)/environ", O_RDONLY | O_CLOEXEC)
      guard file >= 0 else { return [] }
      defer { close(file) }
      let bytes = [UInt8](unsafeUninitializedCapacity: size) { buffer, count in
        count = max(0, read(file, buffer.baseAddress, size))
      }
      if bytes.count < size { return bytes }
    }
    return []
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

  static func status(of pid: pid_t) -> Status? { Status(text("/proc/\(pid)/stat")) }

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

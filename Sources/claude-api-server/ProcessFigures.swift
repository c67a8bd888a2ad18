import Foundation

/// What the kernel says of a process in /proc. Reading it may block.
struct ProcessFigures: Sendable {
  var processorSeconds = 0.0
  var residentBytes = 0
  var openDescriptors = 0
  var maximumDescriptors = 0
  var threads = 0

  static func ofThisProcess() -> ProcessFigures {
    var figures = ProcessFigures()
    if let stat = Stat(pid: "self") {
      figures.processorSeconds = Double(stat.ticks) / Double(sysconf(Int32(_SC_CLK_TCK)))
      figures.residentBytes = stat.residentBytes
      figures.threads = stat.threads
    }
    figures.openDescriptors = names(in: "/proc/self/fd").count
    var limit = rlimit()
    if getrlimit(__rlimit_resource_t(RLIMIT_NOFILE.rawValue), &limit) == 0 {
      figures.maximumDescriptors = Int(clamping: limit.rlim_cur)
    }
    return figures
  }

  /// How many processes there are below this one, and their memory. What they share is counted for each.
  static func ofDescendants() -> (count: Int, residentBytes: Int) {
    var children: [Int32: [Stat]] = [:]
    for name in names(in: "/proc") {
      guard Int32(name) != nil, let stat = Stat(pid: name) else { continue }
      children[stat.parent, default: []].append(stat)
    }
    var found = (count: 0, residentBytes: 0)
    var waiting = [getpid()]
    while let parent = waiting.popLast() {
      // Each is taken once, so that a number that was given out anew meanwhile can't lead round in a circle.
      for child in children.removeValue(forKey: parent) ?? [] {
        found.count += 1
        found.residentBytes += child.residentBytes
        waiting.append(child.pid)
      }
    }
    return found
  }

  private struct Stat {
    let pid: Int32
    let parent: Int32
    let ticks: Int
    let threads: Int
    let residentBytes: Int

    /// Nil if the process is gone.
    init?(pid: String) {
      guard let data = FileManager.default.contents(atPath: "/proc/\(pid)/stat") else { return nil }
      let text = String(decoding: data, as: UTF8.self)
      // The name, in parentheses, may hold anything; the fields follow its last one. See proc(5).
      // By bytes: with some that could be in a name, the parenthesis would be one character.
      guard let number = Int32(text.prefix { $0 != " " }), let end = text.utf8.lastIndex(of: UInt8(ascii: ")")) else {
        return nil
      }
      let fields = text[text.utf8.index(after: end)...].split(separator: " ")
      func field(_ number: Int) -> Int? { fields.count > number - 3 ? Int(fields[number - 3]) : nil }
      guard let parent = field(4), let user = field(14), let system = field(15), let threads = field(20),
        let pages = field(24)
      else { return nil }
      self.pid = number
      self.parent = Int32(clamping: parent)
      ticks = user + system
      self.threads = threads
      residentBytes = pages * Int(sysconf(Int32(_SC_PAGESIZE)))
    }
  }

  private static func names(in directory: String) -> [String] {
    // A directory of /proc that can't be read is one of a process that has ended.
    (try? FileManager.default.contentsOfDirectory(atPath: directory)) ?? []
  }
}

/// What the kernel says of files. Asking may block.
enum FileFigures {
  /// Bytes that are free on the file system of a directory, for who isn't root; nil if it can't be found out.
  static func freeBytes(of directory: String) -> Int? {
    var status = statvfs()
    guard statvfs(directory, &status) == 0 else { return nil }
    return Int(clamping: UInt64(status.f_bavail) * UInt64(status.f_frsize))
  }

  /// Nil if it can't be found out.
  static func size(of path: String) -> Int? {
    do {
      return try FileManager.default.attributesOfItem(atPath: path)[.size] as? Int
    } catch {
      return nil
    }
  }
}

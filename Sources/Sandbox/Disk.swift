import CLinux
import Foundation

/// The disks that files are on, by their numbers, such as `254:0`.
enum Disk {
  /// - Parameter devices: where the kernel tells of them.
  /// - Returns: the disks of these directories, each once; none for a file system that is on no disk, or on several.
  static func all(below directories: [String], devices: String = "/sys/dev/block") -> [String] {
    var disks: [String] = []
    for directory in directories {
      var information = stat()
      guard stat(directory, &information) == 0 else { continue }
      let number = "\(gnu_dev_major(information.st_dev)):\(gnu_dev_minor(information.st_dev))"
      if let disk = whole(number, devices), !disks.contains(disk) { disks.append(disk) }
    }
    return disks
  }

  /// The disk of a partition, as only whole disks can be bounded; that of a disk is itself.
  static func whole(_ number: String, _ devices: String) -> String? {
    let device = "\(devices)/\(number)"
    guard access(device, F_OK) == 0 else { return nil }
    guard access(device + "/partition", F_OK) == 0 else { return number }
    // A partition is a link to a directory in that of its disk.
    let target = URL(filePath: device).resolvingSymlinksInPath()
    guard
      let text = try? String(contentsOf: target.deletingLastPathComponent().appending(path: "dev"), encoding: .utf8)
    else { return nil }
    return text.trimmingCharacters(in: .whitespacesAndNewlines)
  }
}

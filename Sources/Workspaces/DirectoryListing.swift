import CLinux
import Glibc
import HeapModule

/// A page of a directory's entries: directories first, then by the bytes of the names.
public struct DirectoryListing: Sendable {
  public struct Entry: Sendable, Hashable {
    public let name: [UInt8]
    public let status: FileStatus
  }

  public let entries: [Entry]
  /// The number of all entries of the directory.
  public let count: Int
  /// Where the next page begins; nil if there is none.
  public let next: Cursor?

  /// A place in a directory: what comes after an entry, which need not exist any more.
  public struct Cursor: Sendable, Hashable, Comparable {
    public let isDirectory: Bool
    public let name: [UInt8]

    public init(isDirectory: Bool, name: [UInt8]) {
      self.isDirectory = isDirectory
      self.name = name
    }

    public static func < (a: Cursor, b: Cursor) -> Bool {
      a.isDirectory == b.isDirectory ? a.name.lexicographicallyPrecedes(b.name) : a.isDirectory
    }
  }
}

/// Reads the names of a directory that come after `cursor` in order, `limit` at most. The directory is read as a
/// stream, so that memory depends on `limit` and not on the size of the directory.
///
/// - Parameter directory: a descriptor of its own for this call, open for reading.
func readNames(
  of directory: CInt, after cursor: DirectoryListing.Cursor?, limit: Int
) throws(FileError) -> (names: [DirectoryListing.Cursor], count: Int, isComplete: Bool) {
  let copy = openat(directory, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC)
  guard copy >= 0 else { throw FileError("openat") }
  guard let stream = fdopendir(copy) else {
    let error = FileError("fdopendir")
    close(copy)
    throw error
  }
  defer { closedir(stream) }
  guard let nameOffset = MemoryLayout<dirent>.offset(of: \.d_name) else { throw FileError("dirent", EINVAL) }
  var heap = Heap<DirectoryListing.Cursor>()
  var count = 0
  var isComplete = true
  while true {
    errno = 0
    guard let entry = readdir(stream) else {
      guard errno == 0 else { throw FileError("readdir") }
      break
    }
    // The structure ends with its name, and may be shorter than its declaration.
    let start = UnsafeRawPointer(entry).advanced(by: nameOffset).assumingMemoryBound(to: CChar.self)
    let name = UnsafeRawBufferPointer(start: start, count: strlen(start))
    if name.elementsEqual([0x2e]) || name.elementsEqual([0x2e, 0x2e]) { continue }
    count += 1
    let isDirectory = clinux_entry_type(copy, start, entry.pointee.d_type) == UInt8(DT_DIR)
    if let cursor, compare(isDirectory, name, cursor) <= 0 { continue }
    if heap.count == limit {
      isComplete = false
      guard let last = heap.max, compare(isDirectory, name, last) < 0 else { continue }
      heap.removeMax()
    }
    heap.insert(DirectoryListing.Cursor(isDirectory: isDirectory, name: Array(name)))
  }
  var names: [DirectoryListing.Cursor] = []
  names.reserveCapacity(heap.count)
  while let name = heap.popMin() { names.append(name) }
  return (names, count, isComplete)
}

/// Compares a name as it was read with a place; below 0 if it comes before.
private func compare(_ isDirectory: Bool, _ name: UnsafeRawBufferPointer, _ place: DirectoryListing.Cursor) -> Int32 {
  if isDirectory != place.isDirectory { return isDirectory ? -1 : 1 }
  return place.name.withUnsafeBytes { other in
    let length = min(name.count, other.count)
    if length > 0, let a = name.baseAddress, let b = other.baseAddress {
      let result = memcmp(a, b, length)
      if result != 0 { return result }
    }
    return Int32(clamping: name.count - other.count)
  }
}

extension Beneath {
  func list(_ path: RelativePath, after cursor: DirectoryListing.Cursor?, limit: Int) throws(FileError)
    -> DirectoryListing
  {
    let directory = try directory(path)
    let (names, count, isComplete) = try readNames(of: directory.raw, after: cursor, limit: limit)
    var entries: [DirectoryListing.Entry] = []
    entries.reserveCapacity(names.count)
    for place in names {
      do throws(FileError) {
        entries.append(.init(name: place.name, status: try FileStatus(of: place.name[...], in: directory.raw)))
      } catch .notFound {
        // Removed since its name was read.
      }
    }
    return DirectoryListing(entries: entries, count: count, next: isComplete ? nil : names.last)
  }
}

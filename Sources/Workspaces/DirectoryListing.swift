import CLinux
import Glibc

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
  public struct Cursor: Sendable, Hashable {
    public let isDirectory: Bool
    public let name: [UInt8]

    public init(isDirectory: Bool, name: [UInt8]) {
      self.isDirectory = isDirectory
      self.name = name
    }
  }
}

/// The names of a page of a directory.
struct NamePage: Sendable {
  var names: [DirectoryListing.Cursor] = []
  /// The number of all entries of the directory.
  var count = 0
  /// Whether nothing comes after these names.
  var isComplete = true
}

/// Reads the names of a directory that come after `cursor` in order, `limit` at most. The directory is read as a
/// stream, so that memory depends on `limit` and not on the size of the directory.
///
/// - Parameter directory: a descriptor that is open for reading, or a reference.
func readNames(
  of directory: CInt, after cursor: DirectoryListing.Cursor?, limit: Int
) throws(FileError) -> NamePage {
  var page = clinux_directory_page()
  let result: CInt
  if let cursor {
    result = withSystemName(cursor.name[...]) { name in
      var place = clinux_directory_entry()
      place.name = name
      place.length = cursor.name.count
      place.is_directory = cursor.isDirectory ? 1 : 0
      return clinux_read_directory_page(directory, &place, limit, &page)
    }
  } else {
    result = clinux_read_directory_page(directory, nil, limit, &page)
  }
  guard result == 0 else { throw FileError("read a directory") }
  defer { clinux_free_directory_page(&page) }
  let names = UnsafeBufferPointer(start: page.entries, count: page.length).map { entry in
    DirectoryListing.Cursor(
      isDirectory: entry.is_directory != 0,
      name: Array(UnsafeRawBufferPointer(start: entry.name, count: entry.length)))
  }
  return NamePage(names: names, count: Int(page.count), isComplete: page.is_complete != 0)
}

extension Beneath {
  func list(
    _ path: RelativePath, after cursor: DirectoryListing.Cursor?, limit: Int, _ cache: PageCache
  ) throws(FileError) -> DirectoryListing {
    let directory = try directory(path)
    let page = try cache.names(of: directory.raw, after: cursor, limit: limit)
    var entries: [DirectoryListing.Entry] = []
    entries.reserveCapacity(page.names.count)
    for place in page.names {
      do throws(FileError) {
        entries.append(.init(name: place.name, status: try FileStatus(of: place.name[...], in: directory.raw)))
      } catch .notFound {
        // Removed since its name was read.
      }
    }
    return DirectoryListing(entries: entries, count: page.count, next: page.isComplete ? nil : page.names.last)
  }
}

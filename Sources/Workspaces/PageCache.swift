import CLinux
import Glibc
import Synchronization

/// Names of large directories' pages, so that somebody who looks at one again, as a page that refreshes itself does,
/// needn't wait until all of it is read anew. It holds for as long as the directory's own time of change, which nobody
/// can set, stays the same; the status of the entries is never kept.
///
/// Bounded by the number of names in all; the page that was asked for least recently goes first.
final class PageCache: Sendable {
  private struct Key: Hashable {
    let device: dev_t
    let inode: ino_t
    let cursor: DirectoryListing.Cursor?
    let limit: Int
  }

  private struct Entry {
    let page: NamePage
    let changed: Moment
    var use: UInt64

    /// A page without names takes room, too.
    var cost: Int { page.names.count + 16 }
  }

  private struct Moment: Equatable {
    let seconds: Int
    let nanoseconds: Int

    func age(at now: timespec) -> Duration {
      .seconds(now.tv_sec - seconds) + .nanoseconds(now.tv_nsec - nanoseconds)
    }

    /// Some file systems know seconds only, or two; the others' clock ticks a hundred times a second at least.
    var longestTick: Duration { nanoseconds == 0 ? .seconds(2) : .milliseconds(50) }
  }

  private struct State {
    var entries: [Key: Entry] = [:]
    var cost = 0
    var uses: UInt64 = 0
  }

  /// Entries of a directory from which on it is worth it.
  private let threshold: Int
  /// Names that are kept, each of up to 255 bytes.
  private let capacity: Int
  private let state = Mutex(State())

  init(threshold: Int = 5000, capacity: Int = 50_000) {
    self.threshold = threshold
    self.capacity = capacity
  }

  /// Pages that are kept.
  var count: Int { state.withLock { $0.entries.count } }

  func names(
    of directory: CInt, after cursor: DirectoryListing.Cursor?, limit: Int
  ) throws(FileError) -> NamePage {
    var start = timespec()
    clock_gettime(CLOCK_REALTIME, &start)
    let (key, changed) = try Self.look(at: directory, cursor, limit)
    if let page = known(key, changed) { return page }
    let page = try readNames(of: directory, after: cursor, limit: limit)
    // A change within the same tick of the file system's clock could not be seen.
    guard page.count >= threshold, changed.age(at: start) > changed.longestTick,
      try Self.look(at: directory, cursor, limit).1 == changed
    else { return page }
    keep(page, key, changed)
    return page
  }

  private static func look(
    at directory: CInt, _ cursor: DirectoryListing.Cursor?, _ limit: Int
  ) throws(FileError) -> (Key, Moment) {
    var status = stat()
    guard fstat(directory, &status) == 0 else { throw FileError("fstat") }
    return (
      Key(device: status.st_dev, inode: status.st_ino, cursor: cursor, limit: limit),
      Moment(seconds: status.st_ctim.tv_sec, nanoseconds: status.st_ctim.tv_nsec)
    )
  }

  private func known(_ key: Key, _ changed: Moment) -> NamePage? {
    state.withLock { state in
      guard let entry = state.entries[key], entry.changed == changed else { return nil }
      state.uses += 1
      state.entries[key]?.use = state.uses
      return entry.page
    }
  }

  private func keep(_ page: NamePage, _ key: Key, _ changed: Moment) {
    state.withLock { state in
      state.uses += 1
      let entry = Entry(page: page, changed: changed, use: state.uses)
      state.cost += entry.cost - (state.entries.updateValue(entry, forKey: key)?.cost ?? 0)
      while state.cost > capacity, let oldest = state.entries.min(by: { $0.value.use < $1.value.use }) {
        state.entries[oldest.key] = nil
        state.cost -= oldest.value.cost
      }
    }
  }
}

import Glibc

/// The name of each folder of a chain, so that twenty of them have a longer path than the system takes.
private let link = String(repeating: "d", count: 250)

/// Makes folders within folders.
public func makeChain(of length: Int, in directory: CInt) -> Bool {
  forEachOfChain(in: directory) { above, depth in depth < length && mkdirat(above, link, 0o700) == 0 } == length
}

/// How many folders are within each other.
public func lengthOfChain(in directory: CInt) -> Int { forEachOfChain(in: directory) { _, _ in true } }

/// Removes all folders within each other.
public func removeChain(in directory: CInt) {
  let next = openat(directory, link, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC)
  guard next >= 0 else { return }
  removeChain(in: next)
  close(next)
  unlinkat(directory, link, AT_REMOVEDIR)
}

/// Goes down as long as `body`, which gets the folder and its depth, says so, and there is one more.
private func forEachOfChain(in directory: CInt, _ body: (CInt, Int) -> Bool) -> Int {
  var (current, depth) = (dup(directory), 0)
  while body(current, depth) {
    let next = openat(current, link, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC)
    guard next >= 0 else { break }
    close(current)
    (current, depth) = (next, depth + 1)
  }
  close(current)
  return depth
}

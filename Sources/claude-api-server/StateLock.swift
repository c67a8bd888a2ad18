import Glibc

/// Makes sure that one process at a time works with a state directory. The kernel lets go of it however the process
/// ends.
final class StateLock: Sendable {
  struct Failure: Error, CustomStringConvertible {
    let description: String
  }

  private let descriptor: CInt

  /// - Throws: ``Failure`` if another process has the lock, or the directory can't be used.
  init(_ stateDirectory: String) throws(Failure) {
    let path = stateDirectory + "/lock"
    descriptor = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0o600)
    guard descriptor >= 0 else { throw Failure(description: "\(path): \(String(cString: strerror(errno)))") }
    guard flock(descriptor, LOCK_EX | LOCK_NB) == 0 else {
      let code = errno
      close(descriptor)
      throw Failure(
        description: code == EWOULDBLOCK
          ? "another process serves on the state directory \(stateDirectory)"
          : "\(path): \(String(cString: strerror(code)))")
    }
  }

  deinit { close(descriptor) }
}

import Glibc

/// Makes sure that one process at a time works with a state directory. The kernel lets go of it however the process
/// ends.
final class StateLock: Sendable {
  struct Failure: Error, CustomStringConvertible {
    let description: String
  }

  private let descriptor: CInt

  /// - Parameter patience: how long to wait for the lock. A process that was killed while it started another one leaves
  ///   the lock to that for the moment until it runs its program.
  /// - Throws: ``Failure`` if another process has the lock, or the directory can't be used.
  init(_ stateDirectory: String, patience: Duration = .seconds(2)) async throws(Failure) {
    let path = stateDirectory + "/lock"
    descriptor = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0o600)
    guard descriptor >= 0 else { throw Failure(description: "\(path): \(String(cString: strerror(errno)))") }
    let end = ContinuousClock.now + patience
    while flock(descriptor, LOCK_EX | LOCK_NB) != 0 {
      let code = errno
      if code == EWOULDBLOCK, .now < end, (try? await Task.sleep(for: .milliseconds(10))) != nil { continue }
      close(descriptor)
      throw Failure(
        description: code == EWOULDBLOCK
          ? "another process serves on the state directory \(stateDirectory)"
          : "\(path): \(String(cString: strerror(code)))")
    }
  }

  deinit { close(descriptor) }
}

import CLinux
import Glibc

/// A listening stream socket with the guarantee that no other server on this path is disturbed.
package struct ListeningSocket: Sendable {
  package let descriptor: CInt
  private let path: String?
  /// Locked as long as the server runs; the kernel lets go of it however the process ends.
  private let lock: CInt

  package init(_ address: FastCGIServerConfiguration.Address, backlog: Int) throws(FastCGIServerError) {
    switch address {
    case .inherited(let descriptor):
      try Self.prepareInherited(descriptor)
      self.descriptor = descriptor
      path = nil
      lock = -1
    case .unixSocket(let path, let mode):
      lock = try Self.lock(path)
      self.path = path
      do throws(FastCGIServerError) {
        try Self.removeStale(path)
        let descriptor = clinux_listen_unix(path, CInt(clamping: backlog), mode)
        guard descriptor >= 0 else { throw .system(operation: "listen on \(path)", errno: errno) }
        self.descriptor = descriptor
      } catch {
        Glibc.close(lock)
        throw error
      }
    }
  }

  private static func prepareInherited(_ descriptor: CInt) throws(FastCGIServerError) {
    guard clinux_is_listening(descriptor) == 1 else { throw .notListening(descriptor) }
    let flags = fcntl(descriptor, F_GETFL)
    guard clinux_set_cloexec(descriptor) == 0, flags >= 0, fcntl(descriptor, F_SETFL, flags | O_NONBLOCK) == 0
    else { throw .system(operation: "fcntl", errno: errno) }
  }

  private static func lock(_ path: String) throws(FastCGIServerError) -> CInt {
    guard (1...107).contains(path.utf8.count), !path.utf8.contains(0) else { throw .socketPathInvalid(path) }
    let lock = Glibc.open(path + ".lock", O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0o600)
    guard lock >= 0 else { throw .system(operation: "open \(path).lock", errno: errno) }
    guard flock(lock, LOCK_EX | LOCK_NB) == 0 else {
      let code = errno
      Glibc.close(lock)
      throw code == EWOULDBLOCK ? .addressInUse(path) : .system(operation: "flock \(path).lock", errno: code)
    }
    return lock
  }

  /// Removes the socket that a server left behind when it was killed, but none that a program which knows nothing
  /// of the lock file serves on.
  private static func removeStale(_ path: String) throws(FastCGIServerError) {
    var status = stat()
    guard lstat(path, &status) == 0 else {
      if errno == ENOENT { return }
      throw .system(operation: "lstat \(path)", errno: errno)
    }
    guard status.st_mode & S_IFMT == S_IFSOCK else { throw .notASocket(path) }
    let probe = clinux_connect_unix(path)
    if probe >= 0 {
      Glibc.close(probe)
      throw .addressInUse(path)
    }
    // EAGAIN: somebody listens whose backlog is full.
    guard errno != EAGAIN else { throw .addressInUse(path) }
    guard unlink(path) == 0 || errno == ENOENT else { throw .system(operation: "unlink \(path)", errno: errno) }
  }

  /// Stops listening: new connections are refused, or wait if the socket was inherited.
  package func close() {
    if let path {
      Glibc.close(descriptor)
      unlink(path)
      // The lock file stays: removing it would let two servers lock two files of one name.
      Glibc.close(lock)
    }
  }
}

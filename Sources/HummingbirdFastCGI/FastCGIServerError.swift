import Glibc

/// Why a ``FastCGIServer`` could not start or go on.
public enum FastCGIServerError: Error, Sendable, Equatable, CustomStringConvertible {
  /// The path of the socket is empty or longer than the 107 bytes that the system allows.
  case socketPathInvalid(String)
  /// Another process serves on the socket; it was not disturbed.
  case addressInUse(String)
  /// Something that is no socket exists at the path; it was left alone.
  case notASocket(String)
  /// The descriptor that was passed in is not a listening socket.
  case notListening(CInt)
  /// libfcgi could not be initialised.
  case library(code: CInt)
  /// A call of the operating system failed.
  case system(operation: String, errno: CInt)

  public var description: String {
    switch self {
    case .socketPathInvalid(let path):
      "the socket path must have 1 to 107 bytes: \(path)"
    case .addressInUse(let path):
      "another process serves on \(path)"
    case .notASocket(let path):
      "\(path) exists and is not a socket"
    case .notListening(let descriptor):
      "descriptor \(descriptor) is not a listening socket"
    case .library(let code):
      "FCGX_Init failed with \(code)"
    case .system(let operation, let code):
      "\(operation): \(String(cString: strerror(code)))"
    }
  }
}

internal import GRDB
internal import Glibc
internal import Sessions

extension SessionStoreError {
  /// The store's error for what GRDB threw.
  ///
  /// Only the result code and SQLite's own message are kept: neither the SQL nor its arguments, which hold text
  /// of conversations.
  init(_ error: any Error, path: String) {
    switch error {
    case let error as SessionStoreError:
      self = error
    case let error as DatabaseError:
      switch error.resultCode {
      case .SQLITE_FULL: self = .diskFull
      case .SQLITE_BUSY, .SQLITE_LOCKED: self = .busy
      case .SQLITE_CORRUPT, .SQLITE_NOTADB: self = .corrupt(path: path)
      default:
        let code = error.extendedResultCode.rawValue
        self = .io("\(error.message ?? "no message") (SQLite result code \(code)), \(path)")
      }
    case is RowDecodingError, is InvalidColumn:
      // The schema's types and constraints rule this out in a file that is in order.
      self = .corrupt(path: path)
    case let error as FileError where error.number == ENOSPC || error.number == EDQUOT:
      self = .diskFull
    default:
      self = .io("\(error), \(path)")
    }
  }
}

/// A system call that failed. It is made right after the call, while `errno` holds.
struct FileError: Error, CustomStringConvertible {
  let call: String
  let path: String
  let number: Int32

  init(call: String, path: String) {
    number = errno
    self.call = call
    self.path = path
  }

  var description: String { "\(call): \(String(cString: strerror(number)))" }
}

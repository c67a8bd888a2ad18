import CFastCGI
import CLinux
import Glibc
import HTTPTypes
import NIOCore

/// The two jobs that libfcgi does: turning the records of a whole request into its params and body, and writing
/// an ordinary answer.
///
/// libfcgi waits in `read` and `write`, so it never reads from a connection: the records, whose completeness
/// `RecordScanner` has established, are handed to it through a file in memory, where `read` can't wait. It writes
/// to a connection only what fits into the empty send buffer. It never gets to close a connection, which it would
/// do with a lingering wait.
///
/// Belongs to the reactor's thread, for which libfcgi, with its buffers a request, is safe to use.
final class LibFCGI {
  struct Failure: Error {
    let code: CInt
  }

  /// A request that libfcgi holds open for its answer, about 17 KB. It must be ended by `answer` or `release`.
  struct OpenRequest {
    fileprivate let pointer: UnsafeMutablePointer<FCGX_Request>
  }

  struct DecodedRequest {
    let open: OpenRequest
    let head: HTTPRequest
    let parameters: CGIParameters
    let body: ByteBuffer
  }

  /// Longer content of the scratch file is given back to the system after use.
  private static let keptScratch = 256 << 10

  private var scratch: CInt
  /// Bodies are read here first, so that a request without one takes nothing for it.
  private let readBuffer = UnsafeMutableBufferPointer<CChar>.allocate(capacity: 8192)
  private var names: [String: HTTPField.Name] = [:]

  /// libfcgi keeps one state a process, which is made here at the first use.
  init() throws(FastCGIServerError) {
    try Self.initialiseOnce.get()
    scratch = try Self.makeScratch()
  }

  deinit {
    close(scratch)
    readBuffer.deallocate()
  }

  private static let initialiseOnce: Result<Void, FastCGIServerError> = {
    // FCGX_Init takes over SIGTERM, SIGUSR1 and SIGPIPE, after which reads fail for ever; the application's own
    // dispositions are put back. SIGPIPE is ignored: libfcgi writes with write(2).
    var terminate = sigaction()
    var user = sigaction()
    sigaction(SIGTERM, nil, &terminate)
    sigaction(SIGUSR1, nil, &user)
    let code = FCGX_Init()
    sigaction(SIGTERM, &terminate, nil)
    sigaction(SIGUSR1, &user, nil)
    signal(SIGPIPE, SIG_IGN)
    return code == 0 ? .success(()) : .failure(.library(code: code))
  }()

  private static func makeScratch() throws(FastCGIServerError) -> CInt {
    let descriptor = clinux_memory_file("fastcgi-request")
    guard descriptor >= 0 else { throw .system(operation: "memfd_create", errno: errno) }
    return descriptor
  }

  // MARK: Requests

  /// `records` must be one whole request by `RecordScanner`'s judgement.
  func decode(_ records: UnsafeRawBufferPointer) throws -> DecodedRequest {
    try fillScratch(records)
    defer {
      if records.count > Self.keptScratch { _ = ftruncate(scratch, 0) }
    }
    let pointer = UnsafeMutablePointer<FCGX_Request>.allocate(capacity: 1)
    // No listening socket: when libfcgi gives a request up and wants the next connection, it gets an error.
    FCGX_InitRequest(pointer, -1, 0)
    pointer.pointee.ipcFd = scratch
    // Without this, FCGX_Accept_r begins with closing the descriptor.
    pointer.pointee.keepConnection = 1
    let code = FCGX_Accept_r(pointer)
    guard code == 0 else {
      // It has closed the scratch file, as it does with the connection of a bad request.
      pointer.deallocate()
      scratch = try Self.makeScratch()
      throw Failure(code: code)
    }
    let open = OpenRequest(pointer: pointer)
    var builder = HeadBuilder()
    var next = pointer.pointee.envp
    while let entry = next?.pointee {
      builder.add(UnsafeRawBufferPointer(start: entry, count: strlen(entry)), names: &names)
      next = next?.advanced(by: 1)
    }
    var body = ByteBuffer()
    if let input = pointer.pointee.in {
      if let length = builder.contentLength, length > 0 { body.reserveCapacity(min(length, records.count)) }
      while true {
        let count = FCGX_GetStr(readBuffer.baseAddress, CInt(readBuffer.count), input)
        if count <= 0 { break }
        body.writeBytes(UnsafeRawBufferPointer(rebasing: UnsafeRawBufferPointer(readBuffer)[..<Int(count)]))
      }
      let error = FCGX_GetError(input)
      guard error == 0 else {
        release(open)
        throw Failure(code: error)
      }
    }
    return DecodedRequest(open: open, head: builder.head, parameters: builder.parameters, body: body)
  }

  private func fillScratch(_ records: UnsafeRawBufferPointer) throws(FastCGIServerError) {
    var offset = 0
    while offset < records.count {
      let count = pwrite(
        scratch, records.baseAddress?.advanced(by: offset), records.count - offset, off_t(offset))
      guard count > 0 else {
        if errno == EINTR { continue }
        throw .system(operation: "pwrite", errno: errno)
      }
      offset += count
    }
    guard lseek(scratch, 0, SEEK_SET) == 0 else { throw .system(operation: "lseek", errno: errno) }
  }

  // MARK: Answers

  /// Writes a whole answer and ends the request; the connection stays open. Waits only if `bytes` doesn't fit into
  /// the send buffer of `descriptor`, and then no longer than its send time-out. False when it could not be
  /// written whole.
  func answer(_ request: OpenRequest, on descriptor: CInt, _ head: ByteBuffer, _ body: ByteBuffer) -> Bool {
    let pointer = request.pointer
    pointer.pointee.ipcFd = descriptor
    var isWritten = true
    if let out = pointer.pointee.out {
      for part in [head, body] {
        part.withUnsafeReadableBytes { bytes in
          guard let start = bytes.baseAddress, bytes.count > 0 else { return }
          let count = CInt(bytes.count)
          isWritten =
            FCGX_PutStr(start.assumingMemoryBound(to: CChar.self), count, out) == count && isWritten
        }
      }
      isWritten = FCGX_FClose(pointer.pointee.err) == 0 && isWritten
      isWritten = FCGX_FClose(out) == 0 && isWritten
    }
    release(request)
    return isWritten
  }

  /// Frees what libfcgi holds of a request, without a word to the web server.
  func release(_ request: OpenRequest) {
    request.pointer.pointee.ipcFd = -1
    FCGX_Free(request.pointer, 0)
    request.pointer.deallocate()
  }
}

/// Makes the head of an HTTP request from CGI variables.
private struct HeadBuilder {
  private var method = "GET"
  private var requestURI: String?
  private var scriptName = ""
  private var pathInfo = ""
  private var query = ""
  private var scheme: String?
  private var authority: String?
  private var fields = HTTPFields()
  private var others: [UInt8] = []
  private(set) var contentLength: Int?

  /// Field names are few and come again with each request; the bound keeps made-up ones from piling up.
  private static let maximumNames = 256
  private static let fieldPrefix = Array("HTTP_".utf8)

  init() {
    fields.reserveCapacity(12)
    others.reserveCapacity(1024)
  }

  mutating func add(_ entry: UnsafeRawBufferPointer, names: inout [String: HTTPField.Name]) {
    guard let separator = entry.firstIndex(of: UInt8(ascii: "=")) else { return }
    let nameBytes = UnsafeRawBufferPointer(rebasing: entry[..<separator])
    let valueBytes = UnsafeRawBufferPointer(rebasing: entry[(separator + 1)...])
    if nameBytes.starts(with: Self.fieldPrefix) {
      addField(nameBytes, valueBytes, names: &names)
      return
    }
    // Only what the head is made of becomes a string now.
    func isNamed(_ name: StaticString) -> Bool {
      nameBytes.count == name.utf8CodeUnitCount
        && nameBytes.elementsEqual(UnsafeBufferPointer(start: name.utf8Start, count: name.utf8CodeUnitCount))
    }
    if isNamed("REQUEST_METHOD") {
      method = text(valueBytes)
    } else if isNamed("REQUEST_URI") {
      requestURI = text(valueBytes)
    } else if isNamed("REQUEST_SCHEME") {
      scheme = text(valueBytes)
    } else if isNamed("SCRIPT_NAME") {
      scriptName = text(valueBytes)
    } else if isNamed("PATH_INFO") {
      pathInfo = text(valueBytes)
    } else if isNamed("QUERY_STRING") {
      query = text(valueBytes)
    } else if isNamed("CONTENT_TYPE"), !valueBytes.isEmpty {
      fields.append(HTTPField(name: .contentType, value: text(valueBytes)))
    } else if isNamed("CONTENT_LENGTH"), !valueBytes.isEmpty {
      let value = text(valueBytes)
      contentLength = Int(value)
      fields.append(HTTPField(name: .contentLength, value: value))
    }
    others.append(contentsOf: entry)
    others.append(0)
  }

  private mutating func addField(
    _ nameBytes: UnsafeRawBufferPointer, _ valueBytes: UnsafeRawBufferPointer, names: inout [String: HTTPField.Name]
  ) {
    let name = text(nameBytes)
    switch name {
    case "HTTP_CONTENT_TYPE", "HTTP_CONTENT_LENGTH":
      // The same fields again, as the web server repeats them among the others.
      break
    case "HTTP_HOST":
      authority = text(valueBytes)
    default:
      if let fieldName = fieldName(name, names: &names) {
        fields.append(HTTPField(name: fieldName, value: text(valueBytes)))
      }
    }
  }

  private func text(_ bytes: UnsafeRawBufferPointer) -> String { String(decoding: bytes, as: UTF8.self) }

  private func fieldName(_ name: String, names: inout [String: HTTPField.Name]) -> HTTPField.Name? {
    if let known = names[name] { return known }
    let text = String(
      decoding: name.utf8.dropFirst(Self.fieldPrefix.count).map { byte in
        switch byte {
        case UInt8(ascii: "_"): UInt8(ascii: "-")
        case UInt8(ascii: "A")...UInt8(ascii: "Z"): byte | 0x20
        default: byte
        }
      }, as: UTF8.self)
    guard let made = HTTPField.Name(text) else { return nil }
    if names.count < Self.maximumNames { names[name] = made }
    return made
  }

  var head: HTTPRequest {
    let path = requestURI ?? scriptName + pathInfo + (query.isEmpty ? "" : "?" + query)
    return HTTPRequest(
      // A method that isn't a token can't come from a web server that speaks HTTP.
      method: HTTPRequest.Method(method) ?? .get, scheme: scheme, authority: authority, path: path,
      headerFields: fields)
  }

  var parameters: CGIParameters { CGIParameters(entries: others) }
}

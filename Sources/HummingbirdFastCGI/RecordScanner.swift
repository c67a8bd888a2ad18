/// Finds the end of a request in the records that a web server sends, without copying or waiting.
///
/// It sees to it that libfcgi, which reads and waits record by record and trusts the lengths it is told, gets
/// nothing but one whole request whose records and params are consistent.
struct RecordScanner {
  /// One reason why the connection can't go on.
  enum Violation: Error, Equatable {
    case version(UInt8)
    case beginRequest
    case unexpectedRecord(UInt8)
    case params
  }

  enum Step: Equatable {
    /// More bytes are needed.
    case incomplete
    /// The first `length` bytes are one request.
    case complete(length: Int)
    /// The bytes from `offset` to the scanner's position are a record that isn't part of the request. They have to
    /// be removed (see `removed(_:)`) before the scan goes on.
    case foreign(ForeignRecord, offset: Int)
    /// The web server gave the request up.
    case aborted
    /// The request is larger than its bounds.
    case paramsTooLarge
    case bodyTooLarge
    /// Not for a responder; the web server is told so.
    case unknownRole
    case violation(Violation)
  }

  enum ForeignRecord: Equatable {
    /// A second request on this connection.
    case multiplexed(requestID: UInt16)
    /// A record of the connection, such as FCGI_GET_VALUES.
    case management(type: UInt8, contentOffset: Int, contentLength: Int)
    /// A record of a request that is unknown here; the specification wants it ignored.
    case stray
  }

  private enum Phase { case begin, params, stdin, done }

  let maximumParamsBytes: Int
  let maximumBodyBytes: Int
  private(set) var requestID: UInt16 = 0
  private(set) var keepsConnection = false
  private var phase = Phase.begin
  private var position = 0
  private var bodyBytes = 0
  private var params: ParamsChecker

  init(maximumParamsBytes: Int, maximumBodyBytes: Int) {
    self.maximumParamsBytes = maximumParamsBytes
    self.maximumBodyBytes = maximumBodyBytes
    params = ParamsChecker(limit: maximumParamsBytes)
  }

  /// Whether a request has begun, so that an answer can be addressed to it.
  var hasBegun: Bool { phase != .begin }

  /// Goes on with `bytes`, which start where the request starts and are those of the last call and maybe more.
  mutating func scan(_ bytes: UnsafeRawBufferPointer) -> Step {
    while true {
      let available = bytes.count - position
      guard available >= 1 else { return .incomplete }
      guard bytes[position] == FastCGI.version else { return .violation(.version(bytes[position])) }
      guard available >= FastCGI.headerLength else { return .incomplete }
      let header = RecordHeader(bytes, at: position)
      let end = position + header.length
      if phase == .params, header.type == FastCGI.RecordType.params, header.requestID == requestID,
        params.count + header.contentLength > maximumParamsBytes
      {
        return .paramsTooLarge
      }
      if phase == .stdin, header.type == FastCGI.RecordType.stdin, header.requestID == requestID,
        bodyBytes + header.contentLength > maximumBodyBytes
      {
        return .bodyTooLarge
      }
      guard bytes.count >= end else { return .incomplete }
      let start = position
      let contentOffset = start + FastCGI.headerLength
      position = end

      if header.requestID == 0 {
        return .foreign(
          .management(
            type: header.type, contentOffset: contentOffset, contentLength: header.contentLength),
          offset: start)
      }
      if phase == .begin {
        guard header.type == FastCGI.RecordType.beginRequest else { return .foreign(.stray, offset: start) }
        guard header.contentLength == 8 else { return .violation(.beginRequest) }
        requestID = header.requestID
        keepsConnection = bytes[contentOffset + 2] & FastCGI.keepConnectionFlag != 0
        phase = .params
        let role = UInt16(bytes[contentOffset]) << 8 | UInt16(bytes[contentOffset + 1])
        guard role == FastCGI.responderRole else { return .unknownRole }
        continue
      }
      guard header.requestID == requestID else {
        if header.type == FastCGI.RecordType.beginRequest {
          return .foreign(.multiplexed(requestID: header.requestID), offset: start)
        }
        return .foreign(.stray, offset: start)
      }
      switch (phase, header.type) {
      case (_, FastCGI.RecordType.abortRequest):
        return .aborted
      case (.params, FastCGI.RecordType.params):
        if header.contentLength == 0 {
          guard params.isComplete else { return .violation(.params) }
          phase = .stdin
        } else {
          guard params.check(bytes[contentOffset..<contentOffset + header.contentLength]) else {
            return .violation(.params)
          }
        }
      case (.stdin, FastCGI.RecordType.stdin):
        if header.contentLength == 0 {
          phase = .done
          return .complete(length: position)
        }
        bodyBytes += header.contentLength
      default:
        return .violation(.unexpectedRecord(header.type))
      }
    }
  }

  /// Tells the scanner that `count` bytes before its position were taken out.
  mutating func removed(_ count: Int) {
    position -= count
  }
}

struct RecordHeader {
  let type: UInt8
  let requestID: UInt16
  let contentLength: Int
  let paddingLength: Int

  /// `bytes` must hold the eight bytes of the header at `offset`.
  init(_ bytes: UnsafeRawBufferPointer, at offset: Int) {
    type = bytes[offset + 1]
    requestID = UInt16(bytes[offset + 2]) << 8 | UInt16(bytes[offset + 3])
    contentLength = Int(bytes[offset + 4]) << 8 | Int(bytes[offset + 5])
    paddingLength = Int(bytes[offset + 6])
  }

  /// The record's bytes, header and padding included.
  var length: Int { FastCGI.headerLength + contentLength + paddingLength }
}

/// Checks that name-value pairs fill their stream exactly, however it is cut into records.
struct ParamsChecker {
  private enum State {
    case nameLength
    case nameLengthRest(missing: Int, value: Int)
    case valueLength(name: Int)
    case valueLengthRest(missing: Int, value: Int, name: Int)
    case skipping(Int)
  }

  private let limit: Int
  private var state = State.nameLength
  /// The bytes seen.
  private(set) var count = 0

  init(limit: Int) {
    self.limit = limit
  }

  /// Whether the stream may end here.
  var isComplete: Bool {
    if case .nameLength = state { return true }
    return false
  }

  /// False when a pair would be longer than the limit, and so longer than the stream can be.
  mutating func check(_ bytes: Slice<UnsafeRawBufferPointer>) -> Bool {
    count += bytes.count
    var index = bytes.startIndex
    while index < bytes.endIndex {
      if case .skipping(let length) = state {
        let step = min(length, bytes.endIndex - index)
        index += step
        state = length == step ? .nameLength : .skipping(length - step)
        continue
      }
      let byte = Int(bytes[index])
      index += 1
      switch state {
      case .nameLength:
        state = byte < 0x80 ? .valueLength(name: byte) : .nameLengthRest(missing: 3, value: byte & 0x7f)
      case .nameLengthRest(let missing, let value):
        let value = value << 8 | byte
        guard value <= limit else { return false }
        state = missing == 1 ? .valueLength(name: value) : .nameLengthRest(missing: missing - 1, value: value)
      case .valueLength(let name):
        if byte < 0x80 {
          state = name + byte == 0 ? .nameLength : .skipping(name + byte)
        } else {
          state = .valueLengthRest(missing: 3, value: byte & 0x7f, name: name)
        }
      case .valueLengthRest(let missing, let value, let name):
        let value = value << 8 | byte
        guard name + value <= limit else { return false }
        if missing > 1 {
          state = .valueLengthRest(missing: missing - 1, value: value, name: name)
        } else {
          state = name + value == 0 ? .nameLength : .skipping(name + value)
        }
      case .skipping:
        break
      }
    }
    return true
  }
}

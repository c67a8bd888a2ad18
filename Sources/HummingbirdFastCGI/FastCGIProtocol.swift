import NIOCore

/// The constants of the FastCGI specification 1.0 that this module uses.
enum FastCGI {
  static let version: UInt8 = 1
  static let headerLength = 8
  static let maximumContentLength = 65_535
  static let keepConnectionFlag: UInt8 = 1
  static let responderRole: UInt16 = 1

  enum RecordType {
    static let beginRequest: UInt8 = 1
    static let abortRequest: UInt8 = 2
    static let endRequest: UInt8 = 3
    static let params: UInt8 = 4
    static let stdin: UInt8 = 5
    static let stdout: UInt8 = 6
    static let stderr: UInt8 = 7
    static let getValues: UInt8 = 9
    static let getValuesResult: UInt8 = 10
    static let unknownType: UInt8 = 11
  }

  enum ProtocolStatus {
    static let requestComplete: UInt8 = 0
    static let cannotMultiplex: UInt8 = 1
    static let overloaded: UInt8 = 2
    static let unknownRole: UInt8 = 3
  }
}

extension ByteBuffer {
  mutating func writeFastCGIHeader(type: UInt8, requestID: UInt16, contentLength: Int, padding: UInt8 = 0) {
    writeMultipleIntegers(
      FastCGI.version, type, requestID, UInt16(contentLength), padding, 0 as UInt8)
  }

  mutating func writeEndRequest(requestID: UInt16, status: UInt8) {
    writeFastCGIHeader(type: FastCGI.RecordType.endRequest, requestID: requestID, contentLength: 8)
    writeMultipleIntegers(0 as UInt32, status, 0 as UInt8, 0 as UInt16)
  }
}

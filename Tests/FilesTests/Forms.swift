import Foundation

/// A form with files, or fields where there is no file's name.
func multipart(_ parts: [(name: String, fileName: String?, content: String)]) -> (
  fields: [String: String], body: [UInt8]
) {
  multipart(parts.map { ($0.name, $0.fileName, Array($0.content.utf8)) })
}

func multipart(
  _ parts: [(name: String, fileName: String?, content: [UInt8])]
) -> (fields: [String: String], body: [UInt8]) {
  let boundary = "boundary-\(UUID().uuidString)"
  var body: [UInt8] = []
  for part in parts {
    let file = part.fileName.map { "; filename=\"\($0)\"" } ?? ""
    body += Array(
      "--\(boundary)\r\nContent-Disposition: form-data; name=\"\(part.name)\"\(file)\r\nContent-Type: x/y\r\n\r\n".utf8)
    body += part.content
    body += Array("\r\n".utf8)
  }
  return (["Content-Type": "multipart/form-data; boundary=\(boundary)"], body + Array("--\(boundary)--\r\n".utf8))
}

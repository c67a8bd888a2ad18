import NIOCore
import Sessions
import Workspaces

#if canImport(FoundationEssentials)
  import FoundationEssentials
#else
  import Foundation
#endif

/// A page of a folder's listing, for programs and for people.
struct ListingPage {
  /// Where the links lead.
  struct Base {
    /// The URL's path of the top folder, without a slash at its end.
    let path: String
    /// The URL's path of the archive route.
    let archive: String?
    /// The name of the top folder.
    let title: String
  }

  let base: Base
  let path: RelativePath
  let listing: DirectoryListing
  let isFirst: Bool
  let limit: Int

  private var folder: String { path.isRoot ? base.path + "/" : "\(base.path)/\(path.percentEncoded)/" }

  private func href(_ entry: DirectoryListing.Entry) -> String {
    folder + RelativePath.encode(entry.name) + (entry.status.kind == .directory ? "/" : "")
  }

  // MARK: JSON

  var json: ByteBuffer {
    var json = JSONWriter(capacity: 256 + listing.entries.count * 160)
    json.object { json in
      json.field("path", path.displayText)
      json.field("type", "directory")
      json.field("count", Int64(listing.count))
      json.field("entries", array: listing.entries) { json, entry in
        json.object { json in
          json.field("name", String(decoding: entry.name, as: UTF8.self))
          if String(validating: entry.name, as: UTF8.self) == nil {
            json.field("name_base64", Data(entry.name).base64EncodedString())
          }
          json.field("type", entry.status.kind.rawValue)
          json.field("size", entry.status.kind == .file ? entry.status.size : nil)
          json.field("modified", entry.status.timestamp.description)
          json.field("href", href(entry))
          if entry.status.kind == .file { json.field("etag", entry.status.entityTag) }
        }
      }
      json.field("next_cursor", listing.next?.text)
    }
    return json.finish()
  }

  // MARK: HTML

  var html: ByteBuffer {
    var html = ByteBuffer()
    html.reserveCapacity(4096 + listing.entries.count * 320)
    let name = path.isRoot ? base.title : String(decoding: path.name, as: UTF8.self)
    html.writeString(
      """
      <!DOCTYPE html>
      <html lang="en">
      <head>
      <meta charset="utf-8">
      <meta name="viewport" content="width=device-width, initial-scale=1">
      <title>\(Self.escape(name))</title>
      <style>\(Self.style)</style>
      </head>
      <body>
      <header>
      <nav aria-label="Path">
      """)
    writeCrumbs(&html)
    html.writeString("</nav>\n")
    let items = listing.count == 1 ? "1 item" : "\(Self.grouped(listing.count)) items"
    html.writeString("<p class=\"tools\"><span>\(items)</span>")
    if let archive = base.archive {
      let query = path.isRoot ? "" : "&amp;path=\(path.percentEncoded)"
      for (format, label) in [("tar.gz", "tar.gz"), ("zip", "zip")] {
        html.writeString("<a class=\"button\" href=\"\(archive)?format=\(format)\(query)\">Download \(label)</a>")
      }
    }
    html.writeString("</p>\n</header>\n<main>\n")
    if listing.entries.isEmpty && isFirst {
      if !path.isRoot { writeUpLink(&html) }
      html.writeString("<p class=\"empty\">This folder is empty.</p>\n")
    } else {
      html.writeString(
        """
        <table>
        <thead><tr><th scope="col">Name</th><th scope="col" class="n">Size</th>\
        <th scope="col" class="t">Modified (UTC)</th><th><span class="hidden">Download</span></th></tr></thead>
        <tbody>

        """)
      if let parent = path.parent {
        let target = parent.isRoot ? "" : parent.percentEncoded + "/"
        html.writeString(
          """
          <tr><td class="up"><a href="\(base.path)/\(target)">Up</a></td><td class="n"></td><td class="t"></td><td></td></tr>

          """)
      }
      for entry in listing.entries { write(entry, &html) }
      html.writeString("</tbody>\n</table>\n")
    }
    if !isFirst || listing.next != nil {
      html.writeString("<p class=\"pages\">")
      if !isFirst { html.writeString("<a class=\"button\" href=\"\(folder)\">First page</a>") }
      if let next = listing.next {
        html.writeString("<a class=\"button\" href=\"?limit=\(limit)&amp;cursor=\(next.text)\">Next page</a>")
      }
      html.writeString("</p>\n")
    }
    html.writeString("</main>\n</body>\n</html>\n")
    return html
  }

  private func writeUpLink(_ html: inout ByteBuffer) {
    let target = path.parent.flatMap { $0.isRoot ? nil : $0.percentEncoded + "/" } ?? ""
    html.writeString("<p class=\"up\"><a href=\"\(base.path)/\(target)\">Up</a></p>\n")
  }

  private func writeCrumbs(_ html: inout ByteBuffer) {
    if path.isRoot {
      html.writeString("<h1>\(Self.escape(base.title))</h1>")
      return
    }
    html.writeString("<a href=\"\(base.path)/\">\(Self.escape(base.title))</a>")
    let components = path.components
    var target = base.path + "/"
    for (index, component) in components.enumerated() {
      let text = Self.escape(String(decoding: component, as: UTF8.self))
      target += RelativePath.encode(component) + "/"
      html.writeString("<span aria-hidden=\"true\">/</span>")
      html.writeString(
        index == components.count - 1 ? "<h1>\(text)</h1>" : "<a href=\"\(target)\">\(text)</a>")
    }
  }

  private func write(_ entry: DirectoryListing.Entry, _ html: inout ByteBuffer) {
    let name = Self.escape(String(decoding: entry.name, as: UTF8.self))
    let time = entry.status.timestamp.description
    let shown = String(time.prefix(16)).replacing("T", with: " ")
    let size: String
    var download = ""
    html.writeString("<tr><td>")
    switch entry.status.kind {
    case .directory:
      size = ""
      html.writeString("<a class=\"dir\" href=\"\(href(entry))\">\(name)/</a>")
      if let archive = base.archive {
        let target = (try? path.appending(RelativePath(entry.name)))?.percentEncoded
        if let target {
          download = "<a href=\"\(archive)?format=zip&amp;path=\(target)\" title=\"Download as zip\">&darr;</a>"
        }
      }
    case .file:
      size = Self.readable(entry.status.size)
      html.writeString("<a href=\"\(href(entry))\">\(name)</a>")
      download = "<a href=\"\(href(entry))?download=1\" title=\"Download\">&darr;</a>"
    case .symbolicLink:
      size = "link"
      html.writeString("<span>\(name)</span>")
    case .special:
      size = "special"
      html.writeString("<span>\(name)</span>")
    }
    html.writeString(
      """
      </td><td class="n">\(size)</td><td class="t"><time datetime="\(time)">\(shown)</time></td><td>\(download)</td></tr>

      """)
  }

  private static func escape(_ text: String) -> String {
    var escaped = ""
    escaped.reserveCapacity(text.utf8.count)
    for scalar in text.unicodeScalars {
      switch scalar {
      case "&": escaped += "&amp;"
      case "<": escaped += "&lt;"
      case ">": escaped += "&gt;"
      case "\"": escaped += "&quot;"
      case "'": escaped += "&#39;"
      // What can't be seen is shown as a sign, so that two names never look the same by it; among it are the
      // characters that turn the direction of text.
      case _ where scalar.value < 0x20: escaped.unicodeScalars.append(Unicode.Scalar(0x2400 + scalar.value) ?? "?")
      case "\u{7f}": escaped += "\u{2421}"
      case _ where scalar.properties.generalCategory == .format || scalar.properties.generalCategory == .control:
        escaped += "\u{fffd}"
      default: escaped.unicodeScalars.append(scalar)
      }
    }
    return escaped
  }

  private static func readable(_ size: Int64) -> String {
    if size < 1000 { return size == 1 ? "1 byte" : "\(size) bytes" }
    var value = Double(size)
    for unit in ["kB", "MB", "GB", "TB", "PB"] {
      value /= 1000
      // What would be rounded to 1000 belongs to the next unit.
      if value < 999.5 {
        let tenths = Int((value * 10).rounded())
        return tenths < 100 ? "\(tenths / 10).\(tenths % 10) \(unit)" : "\(Int(value.rounded())) \(unit)"
      }
    }
    return "\(Int(value / 1000)) EB"
  }

  private static func grouped(_ number: Int) -> String {
    var text = ""
    for (index, digit) in String(number).reversed().enumerated() {
      if index > 0, index % 3 == 0 { text.append(",") }
      text.append(digit)
    }
    return String(text.reversed())
  }

  private static let style = """
    :root{color-scheme:light dark;--line:#8883;--soft:#666;--link:#0b57d0;--hover:#8881}
    @media(prefers-color-scheme:dark){:root{--soft:#aaa;--link:#8ab4f8}}
    *{box-sizing:border-box}
    body{font:16px/1.5 system-ui,sans-serif;max-width:64rem;margin:0 auto;padding:1.5rem 1rem 3rem}
    a{color:var(--link);text-decoration:none}a:hover{text-decoration:underline}
    nav{display:flex;flex-wrap:wrap;gap:.15rem .5rem;align-items:baseline;font-size:1.1rem;overflow-wrap:anywhere}
    nav span{color:var(--soft)}h1{font-size:1.1rem;margin:0}
    .tools,.pages{display:flex;flex-wrap:wrap;gap:.5rem .75rem;align-items:center;color:var(--soft);margin:.75rem 0 1.25rem}
    .button{border:1px solid var(--line);border-radius:.5rem;padding:.25rem .75rem}
    table{width:100%;border-collapse:collapse}
    th{text-align:left;font-weight:500;font-size:.85rem;color:var(--soft)}
    th,td{padding:.5rem;border-bottom:1px solid var(--line);vertical-align:top}
    td:first-child{overflow-wrap:anywhere;width:100%}td:last-child{text-align:center}
    tbody tr:hover{background:var(--hover)}
    .n,.t{white-space:nowrap;color:var(--soft);font-variant-numeric:tabular-nums}.n{text-align:right}
    .dir{font-weight:600}td>span{color:var(--soft)}.empty{color:var(--soft)}
    .hidden{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%)}
    @media(max-width:36rem){.t{display:none}th,td{padding:.6rem .25rem}}
    """
}

extension FileStatus {
  /// When the content was changed the last time.
  var timestamp: Timestamp {
    let (value, overflow) = modified.multipliedReportingOverflow(by: 1_000_000)
    guard !overflow else { return modified < 0 ? .min : .max }
    return Timestamp(microseconds: value &+ Int64(modifiedNanoseconds / 1000))
  }
}

extension DirectoryListing.Cursor {
  /// A text that needs no escapes in a URL.
  var text: String { (isDirectory ? "d" : "f") + Self.hexadecimal(name) }

  init?(text: some StringProtocol) {
    guard let kind = text.first, kind == "d" || kind == "f", text.utf8.count <= 512 else { return nil }
    var name: [UInt8] = []
    var rest = text.dropFirst()
    while !rest.isEmpty {
      guard rest.utf8.count >= 2, let byte = UInt8(rest.prefix(2), radix: 16) else { return nil }
      name.append(byte)
      rest = rest.dropFirst(2)
    }
    self.init(isDirectory: kind == "d", name: name)
  }

  private static func hexadecimal(_ bytes: [UInt8]) -> String {
    bytes.map { ($0 < 16 ? "0" : "") + String($0, radix: 16) }.joined()
  }
}

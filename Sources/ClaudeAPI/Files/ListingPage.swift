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
  /// The URL's path of the folder, with a slash at its end.
  private let folder: String

  init(base: Base, path: RelativePath, listing: DirectoryListing, isFirst: Bool, limit: Int) {
    self.base = base
    self.path = path
    self.listing = listing
    self.isFirst = isFirst
    self.limit = limit
    folder = path.isRoot ? base.path + "/" : "\(base.path)/\(path.percentEncoded)/"
  }

  private func href(_ entry: DirectoryListing.Entry) -> String {
    folder + RelativePath.encode(entry.name[...]) + (entry.status.kind == .directory ? "/" : "")
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
          if let name = String(validating: entry.name, as: UTF8.self) {
            json.field("name", name)
          } else {
            json.field("name", String(decoding: entry.name, as: UTF8.self))
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
    Page.begin(title: name, &html)
    html.writeString(Self.icons)
    html.writeString("<header>\n<nav aria-label=\"Path\">")
    writeCrumbs(&html)
    html.writeString("</nav>\n")
    let items = listing.count == 1 ? "1 item" : "\(Self.grouped(listing.count)) items"
    html.writeString("<p class=\"tools\"><span role=\"status\">\(items)</span>")
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
        <th scope="col" class="t">Modified (UTC)</th><th scope="col"><span class="hidden">Download</span></th></tr></thead>
        <tbody>

        """)
      if let parent = path.parent {
        let target = parent.isRoot ? "" : parent.percentEncoded + "/"
        html.writeString(
          """
          <tr><td class="up"><a href="\(base.path)/\(target)">&uarr; Up</a></td><td class="n"></td><td class="t"></td><td></td></tr>

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
    html.writeString("</main>\n<script>\(FolderScript.text)</script>\n")
    Page.end(&html)
    return html
  }

  private func writeUpLink(_ html: inout ByteBuffer) {
    let target = path.parent.flatMap { $0.isRoot ? nil : $0.percentEncoded + "/" } ?? ""
    html.writeString("<p><a href=\"\(base.path)/\(target)\">&uarr; Up</a></p>\n")
  }

  private func writeCrumbs(_ html: inout ByteBuffer) {
    if path.isRoot {
      html.writeString("<h1>\(Page.escape(base.title))</h1>")
      return
    }
    html.writeString("<a href=\"\(base.path)/\">\(Page.escape(base.title))</a>")
    let components = path.components
    var target = base.path + "/"
    for (index, component) in components.enumerated() {
      let text = Page.escape(String(decoding: component, as: UTF8.self))
      target += RelativePath.encode(component) + "/"
      html.writeString("<span aria-hidden=\"true\">/</span>")
      html.writeString(
        index == components.count - 1 ? "<h1>\(text)</h1>" : "<a href=\"\(target)\">\(text)</a>")
    }
  }

  private func write(_ entry: DirectoryListing.Entry, _ html: inout ByteBuffer) {
    let name = Page.escape(String(decoding: entry.name, as: UTF8.self))
    let href = href(entry)
    switch entry.status.kind {
    case .directory:
      html.write("<tr><td><a class=\"dir\" href=\"", href, "\">", Self.folderIcon, name, "/</a>")
    case .file:
      html.write("<tr><td><a href=\"", href, "\">", Self.fileIcon, name, "</a>")
    case .symbolicLink:
      html.write("<tr><td><span>", Self.linkIcon, name, "</span>")
    case .special:
      html.write("<tr><td><span>", Self.specialIcon, name, "</span>")
    }
    let time = entry.status.timestamp.description
    html.write(
      "</td><td class=\"n\">", Self.size(entry.status), "</td><td class=\"t\"><time datetime=\"", time, "\">",
      String(Substring(time.utf8.prefix(10))), " ", String(Substring(time.utf8.dropFirst(11).prefix(5))),
      "</time></td><td>")
    switch entry.status.kind {
    case .directory:
      if let archive = base.archive, let target = try? path.appending(RelativePath(entry.name)) {
        html.write(
          "<a href=\"", archive, "?format=zip&amp;path=", target.percentEncoded,
          "\" title=\"Download as zip\" aria-label=\"Download ", name, " as zip\">&darr;</a>")
      }
    case .file:
      html.write(
        "<a href=\"", href, "?download=1\" title=\"Download\" aria-label=\"Download ", name, "\">&darr;</a>")
    case .symbolicLink, .special:
      break
    }
    html.writeString("</td></tr>\n")
  }

  private static let folderIcon = icon("d")
  private static let fileIcon = icon("f")
  private static let linkIcon = icon("l")
  private static let specialIcon = icon("s")

  private static func icon(_ name: String) -> String {
    "<svg aria-hidden=\"true\"><use href=\"#\(name)\"/></svg>"
  }

  private static func size(_ status: FileStatus) -> String {
    switch status.kind {
    case .directory: ""
    case .file: readable(status.size)
    case .symbolicLink: "link"
    case .special: "special"
    }
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

  /// Drawings that the rows refer to.
  private static let icons = """
    <svg class="hidden" aria-hidden="true"><symbol id="d" viewBox="0 0 20 20"><path d="M2.5 5.5v10h15v-8.5h-8l-2-2h-4z"/></symbol>\
    <symbol id="f" viewBox="0 0 20 20"><path d="M5 2.5h6.5l3.5 3.5v11.5h-10zM11.5 2.5v3.5h3.5"/></symbol>\
    <symbol id="l" viewBox="0 0 20 20"><path d="M4 10h11m-4.5-4.5 4.5 4.5-4.5 4.5"/></symbol>\
    <symbol id="s" viewBox="0 0 20 20"><path d="M4.5 4.5h11v11h-11zM8 8h4v4h-4z"/></symbol></svg>

    """
}

extension ByteBuffer {
  /// Without making one text of them, and at once: either takes longer than all else for a page of many rows.
  fileprivate mutating func write(_ texts: String...) {
    let length = texts.reduce(0) { $0 + $1.utf8.count }
    writeWithUnsafeMutableBytes(minimumWritableBytes: length) { bytes in
      var end = 0
      for var text in texts {
        text.withUTF8 { text in
          UnsafeMutableRawBufferPointer(rebasing: bytes[end...]).copyMemory(from: UnsafeRawBufferPointer(text))
          end += text.count
        }
      }
      return end
    }
  }
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

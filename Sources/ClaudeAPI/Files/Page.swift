import Crypto
import HTTPTypes
import Hummingbird
import NIOCore

#if canImport(FoundationEssentials)
  import FoundationEssentials
#else
  import Foundation
#endif

/// What the pages for people have in common: they are whole without script, nothing is loaded, and nothing in them runs
/// but the server's own script of a folder.
enum Page {
  /// Begins a page up to its body's content.
  static func begin(title: String, _ html: inout ByteBuffer) {
    html.writeString(
      """
      <!DOCTYPE html>
      <html lang="en">
      <head>
      <meta charset="utf-8">
      <meta name="viewport" content="width=device-width, initial-scale=1">
      <meta name="robots" content="noindex">
      <title>\(escape(title))</title>
      <style>\(style)</style>
      </head>
      <body>

      """)
  }

  static func end(_ html: inout ByteBuffer) { html.writeString("</body>\n</html>\n") }

  /// - Parameter script: the sources of a policy that let the page's script run.
  static func response(
    _ html: ByteBuffer, status: HTTPResponse.Status = .ok, _ headers: HTTPFields = [:], script: String? = nil
  ) -> Response {
    var headers = headers
    headers[.contentType] = "text/html; charset=utf-8"
    headers[.contentSecurityPolicy] =
      "default-src 'none'; \(script.map { $0 + "; " } ?? "")style-src '\(styleDigest)'; base-uri 'none'; "
      + "form-action 'none'; frame-ancestors 'none'"
    headers[.xContentTypeOptions] = "nosniff"
    headers[.referrerPolicy] = "no-referrer"
    return Response(status: status, headers: headers, body: ResponseBody(byteBuffer: html))
  }

  /// Whether who asks would rather read a page than JSON.
  static func isWanted(_ request: Request) -> Bool {
    request.headers[.accept].map { best($0) == .html } ?? false
  }

  enum Form {
    case json
    case html
  }

  /// The form that has more weight, or is named first; nil if neither is named.
  static func best(_ accept: String) -> Form? {
    var best: (form: Form?, weight: Double) = (nil, 0)
    for part in accept.split(separator: ",") {
      let pieces = part.split(separator: ";").map(\.trimmed)
      let form: Form
      switch pieces.first {
      case "application/json": form = .json
      case "text/html": form = .html
      default: continue
      }
      let weight = pieces.dropFirst().compactMap { $0.hasPrefix("q=") ? Double($0.dropFirst(2)) : nil }.first ?? 1
      if weight > best.weight { best = (form, weight) }
    }
    return best.form
  }

  /// What a policy calls something that is written in the page.
  static func digest(_ text: String) -> String {
    "sha256-" + Data(SHA256.hash(data: Data(text.utf8))).base64EncodedString()
  }

  private static let styleDigest = digest(style)

  /// Text as it is written in HTML, also inside of quotes.
  static func escape(_ text: String) -> String {
    if text.utf8.allSatisfy({ isPlain($0) }) { return text }
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

  private static func isPlain(_ byte: UInt8) -> Bool {
    switch byte {
    case UInt8(ascii: "&"), UInt8(ascii: "<"), UInt8(ascii: ">"), UInt8(ascii: "\""), UInt8(ascii: "'"): false
    default: (0x20..<0x7f).contains(byte)
    }
  }

  private static let style = """
    :root{color-scheme:light dark;--line:#8884;--soft:#5f6368;--link:#0b57d0;--hover:#8881}
    @media(prefers-color-scheme:dark){:root{--soft:#a8adb3;--link:#8ab4f8}}
    *{box-sizing:border-box}
    body{font:16px/1.5 system-ui,sans-serif;max-width:64rem;margin:0 auto;padding:1.5rem 1rem 3rem}
    a{color:var(--link);text-decoration:none}a:hover{text-decoration:underline}
    a:focus-visible{outline:2px solid var(--link);outline-offset:2px;border-radius:.25rem}
    nav{display:flex;flex-wrap:wrap;gap:.15rem .5rem;align-items:baseline;font-size:1.25rem;overflow-wrap:anywhere}
    nav span{color:var(--soft)}h1{font-size:1.25rem;margin:0}
    .tools,.pages{display:flex;flex-wrap:wrap;gap:.5rem .75rem;align-items:center;color:var(--soft);margin:.75rem 0 1.25rem}
    .tools span{flex:1 0 auto}
    .button{border:1px solid var(--line);border-radius:.5rem;padding:.3rem .8rem}
    .button:hover{background:var(--hover);text-decoration:none}
    table{width:100%;border-collapse:collapse}
    th{text-align:left;font-weight:500;font-size:.85rem;color:var(--soft)}
    th,td{padding:.5rem;border-bottom:1px solid var(--line);vertical-align:top}
    td:first-child{overflow-wrap:anywhere;width:100%}td:last-child{text-align:center}
    td:first-child>*{display:block;padding-left:1.75em;text-indent:-1.75em;white-space:pre-wrap}.up>a{padding:0!important;text-indent:0!important}
    tbody tr:hover{background:var(--hover)}
    .n,.t{white-space:nowrap;color:var(--soft);font-variant-numeric:tabular-nums}.n{text-align:right}
    svg{width:1.15em;height:1.15em;margin-right:.6em;vertical-align:-.2em;fill:none;stroke:var(--soft);stroke-width:1.5}
    .dir{font-weight:600}td>span,.soft,.empty{color:var(--soft)}
    .fresh{animation:fresh 2s}@keyframes fresh{from{background:#fbbc0433}}@media(prefers-reduced-motion){.fresh{animation:none}}
    .hidden{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%)}
    @media(max-width:40rem){thead{display:none}tr{display:grid;grid-template-columns:1fr auto 2.75rem;border-bottom:1px solid var(--line)}
    td{border:0;padding:.55rem .25rem}td:first-child{grid-column:1/3;padding-bottom:0}td:last-child{grid-row:1/3;grid-column:3;padding:0}
    td:last-child a{display:grid;place-items:center;height:100%}
    .n,.t{font-size:.85rem;padding-top:.1rem}.n{grid-column:2;grid-row:2}.t{grid-column:1;grid-row:2;padding-left:2rem}
    .up~td{display:none}.up{padding-bottom:.55rem!important}}
    """
}

/// A problem as a page, for somebody who follows a link to a file in a browser.
struct ProblemPage {
  let problem: Problem

  /// The folder from which one can go on, as the path of its URL.
  var folder: String?

  /// Whether a request is for something that people look at in a browser.
  static func isWanted(_ request: Request, _ route: String?) -> Bool {
    guard request.method == .get || request.method == .head, let route else { return false }
    return (route.hasSuffix("/files") || route.hasSuffix("/files/**") || route.hasPrefix("/shared/"))
      && Page.isWanted(request)
  }

  var response: Response {
    var html = ByteBuffer()
    Page.begin(title: "\(problem.status.code) \(problem.status.reasonPhrase)", &html)
    html.writeString(
      """
      <main>
      <h1>\(Page.escape(problem.status.reasonPhrase))</h1>
      <p>\(Page.escape(problem.detail))</p>
      <p class="soft">\(problem.status.code) <code>\(Page.escape(problem.code.rawValue))</code></p>

      """)
    if let folder { html.writeString("<p><a class=\"button\" href=\"\(folder)\">All files</a></p>\n") }
    html.writeString("</main>\n")
    Page.end(&html)
    var headers: HTTPFields = [.cacheControl: "no-store", .vary: "Accept"]
    if let seconds = problem.retryAfter { headers[.retryAfter] = String(seconds) }
    return Page.response(html, status: problem.status, headers)
  }
}

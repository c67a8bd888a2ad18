import HTTPTypes
import Crypto
import JSONSupport
import NIOCore

#if canImport(FoundationEssentials)
  import FoundationEssentials
#else
  import Foundation
#endif

/// The documentation for people: one page that needs no script and nothing from elsewhere.
struct DocumentationPage {
  let openAPI: OpenAPIDocument

  /// Nothing but the page's own style, which is told by its digest.
  static let contentSecurityPolicy: String = {
    let digest = Data(SHA256.hash(data: Data(style.utf8))).base64EncodedString()
    return
      "default-src 'none'; style-src 'sha256-\(digest)'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
  }()

  var html: ByteBuffer {
    let described = openAPI.described
    var html = """
      <!DOCTYPE html>
      <html lang="en">
      <head>
      <meta charset="utf-8">
      <meta name="viewport" content="width=device-width, initial-scale=1">
      <title>Claude API</title>
      <style>\(Self.style)</style>
      </head>
      <body>
      <header>
      <h1>Claude API <small>\(Self.escape(openAPI.version))</small></h1>
      \(Self.prose(OpenAPIDocument.introduction))
      <p>The same for programs: <a href="/openapi.json">openapi.json</a>.</p>
      </header>
      <nav aria-label="Contents">
      <ul>

      """
    for tag in Operation.Tag.allCases {
      let routes = described.filter { $0.operation.tag == tag }
      if routes.isEmpty { continue }
      html += "<li><a href=\"#\(Self.anchor(tag.rawValue))\">\(tag.rawValue)</a> <small>\(routes.count)</small></li>\n"
    }
    html += """
      <li><a href="#objects">Objects</a></li>
      <li><a href="#the-events">The events</a></li>
      <li><a href="#problems">Problems</a></li>
      </ul>
      </nav>
      <main>

      """
    for tag in Operation.Tag.allCases {
      let routes = described.filter { $0.operation.tag == tag }
      if routes.isEmpty { continue }
      html += "<h2 id=\"\(Self.anchor(tag.rawValue))\">\(tag.rawValue)</h2>\n"
      for route in routes { html += section(route) }
    }
    html += "<h2 id=\"objects\">Objects</h2>\n"
    for (name, schema) in Schemas.all.sorted(by: { $0.key < $1.key }) where !name.hasPrefix("event.") && name != "Event"
    {
      html += object(name, title: name, schema)
    }
    html +=
      "<h2 id=\"the-events\">The events</h2>\n<div id=\"schema-Event\">\(Self.prose(Self.eventIntroduction))</div>\n"
    for payload in Schemas.eventPayloads {
      guard let schema = Schemas.eventTypes["event.\(payload.type)"] else { continue }
      html += object("event.\(payload.type)", title: payload.type, schema, leavingOut: 6)
    }
    html += problems + "</main>\n</body>\n</html>\n"
    return ByteBuffer(string: html)
  }

  private static let eventIntroduction = """
    Every event has `id`, `sequence` (1, 2, … without a gap), `type`, `session_id`, `turn_id`, `processed_at` and what is \
    said below.
    """

  // MARK: Routes

  private func section(_ route: OpenAPIDocument.Described) -> String {
    let operation = route.operation
    let method = operation.method.rawValue
    let access =
      switch route.entry.access {
      case .open: "no key needed"
      case .information: "any key"
      case .read: "reads"
      case .change: "changes"
      case .operation: "a key with the role admin, or this machine"
      }
    var html = """
      <details id="\(operation.id)">
      <summary><b class="m \(method)">\(method)</b> <code>\(Self.path(operation.path))</code>\
      <span>\(Self.escape(route.entry.summary))</span></summary>
      <div>
      \(Self.prose(operation.description))
      <p class="soft">\(access)</p>

      """
    let parameters =
      operation.pathParameters.compactMap { name in
        PathParameter.all[name].map { ("path", Schema.Field.required(name, $0.schema)) }
      }
      + operation.query.map { ("query", Schema.Field(name: $0.name, schema: $0.schema, isRequired: $0.isRequired)) }
      + operation.headers.map { ("header", Schema.Field(name: $0.name, schema: $0.schema, isRequired: $0.isRequired)) }
    if !parameters.isEmpty {
      html += "<h4>Parameters</h4>\n<dl>\n"
      for (place, field) in parameters { html += Self.field(field, note: place) }
      html += "</dl>\n"
    }
    for content in operation.body?.contents ?? [] {
      html += "<h4>Body <small>\(content.type)</small></h4>\n" + Self.content(content)
    }
    html += example(operation)
    for answer in operation.answers {
      html += "<h4>\(answer.status) <small>\(Self.inline(answer.description))</small></h4>\n"
      if !answer.headers.isEmpty {
        html += "<dl>\n"
        for header in answer.headers {
          html += Self.field(
            .init(name: header.name, schema: header.schema, isRequired: header.isRequired), note: "header")
        }
        html += "</dl>\n"
      }
      for content in answer.contents {
        html += "<p class=\"soft\">\(content.type)</p>\n" + Self.content(content)
        if let example = content.example { html += "<pre>\(Self.escape(Self.pretty(example)))</pre>\n" }
      }
    }
    html += "<h4>Problems</h4>\n<p class=\"codes\">"
    html += OpenAPIDocument.problems(of: route)
      .map { "<a href=\"#code-\($0.rawValue)\">\($0.definition.status) \($0.rawValue)</a>" }.joined(separator: " ")
    return html + "</p>\n</div>\n</details>\n"
  }

  /// The route as one would call it in a shell.
  private func example(_ operation: Operation) -> String {
    var path = operation.path
    for name in operation.pathParameters {
      path = path.replacing("{\(name)}", with: PathParameter.all[name]?.example.stringValue ?? name)
    }
    var command = "curl -s"
    if operation.method == .head {
      command += " -I"
    } else if operation.method != .get {
      command += " -X \(operation.method.rawValue)"
    }
    command += " \"$URL\(path)\" -H \"Authorization: Bearer $KEY\""
    for header in operation.headers where header.isRequired {
      command += " \\\n  -H '\(header.name): \(header.example?.stringValue ?? "")'"
    }
    if let content = operation.body?.contents.first {
      command += " \\\n  -H 'Content-Type: \(content.type)'"
      if let example = content.example {
        command += " \\\n  -d '\(example)'"
      } else if content.type != "multipart/form-data" {
        command += " --data-binary @FILE"
      } else {
        command = command.replacing(" \\\n  -H 'Content-Type: multipart/form-data'", with: " -F file=@FILE")
      }
    }
    return "<pre>\(Self.escape(command))</pre>\n"
  }

  // MARK: Schemas

  private func object(_ name: String, title: String, _ schema: Schema, leavingOut count: Int = 0) -> String {
    var html = """
      <details id="schema-\(name)">
      <summary><code>\(title)</code><span>\(Self.inline(schema.description ?? ""))</span></summary>
      <div>

      """
    html += Self.fields(Array(schema.fields.dropFirst(count)))
    return html + "</div>\n</details>\n"
  }

  private static func content(_ content: Content) -> String {
    if !content.schema.fields.isEmpty { return fields(content.schema.fields) }
    let type = type(content.schema.json)
    return type.isEmpty && content.schema.description == nil
      ? "" : "<p>\(type) \(inline(content.schema.description ?? ""))</p>\n"
  }

  private static func fields(_ fields: [Schema.Field]) -> String {
    if fields.isEmpty { return "" }
    return "<dl>\n" + fields.map { field($0) }.joined() + "</dl>\n"
  }

  private static func field(_ field: Schema.Field, note: String? = nil) -> String {
    let required = field.isRequired ? "" : " <i>optional</i>"
    let note = note.map { " <i>\($0)</i>" } ?? ""
    return """
      <dt><code>\(escape(field.name))</code> <small>\(type(field.schema.json))\(note)\(required)</small></dt>
      <dd>\(inline(field.schema.description ?? ""))\(fields(field.schema.fields))</dd>

      """
  }

  /// What a schema says of the kind of its values, in short.
  private static func type(_ schema: JSONValue) -> String {
    if let reference = schema["$ref"]?.stringValue {
      let name = reference.split(separator: "/").last.map(String.init) ?? ""
      return "<a href=\"#schema-\(name)\">\(name)</a>"
    }
    if let schemas = schema["anyOf"]?.arrayValue ?? schema["oneOf"]?.arrayValue {
      return schemas.map(type).joined(separator: " or ")
    }
    if let word = schema["const"] { return "<code>\(escape(word.description))</code>" }
    if let words = schema["enum"]?.arrayValue {
      // The codes have a table of their own.
      if words.count > 20 { return "<a href=\"#problems\">a code</a>" }
      return words.map { "<code>\(escape($0.stringValue ?? $0.description))</code>" }.joined(separator: " or ")
    }
    var text =
      switch schema["type"] {
      case .string(let type)?: type
      case .array(let types)?: types.compactMap(\.stringValue).joined(separator: " or ")
      default: ""
      }
    if let items = schema["items"], !type(items).isEmpty { text += " of " + type(items) }
    if let format = schema["format"]?.stringValue { text += ", " + format }
    let bounds = ["minimum", "minLength"].lazy.compactMap { schema[$0] }.first
    let upper = ["maximum", "maxLength", "maxItems"].lazy.compactMap { schema[$0] }.first
    if let upper, upper != .int(.max), schema["format"] != "uuid" {
      text += ", \(bounds?.description ?? "at most") \(bounds == nil ? "" : "to ")\(upper.description)"
    }
    return text
  }

  // MARK: Problems

  private var problems: String {
    var html = "<h2 id=\"problems\">Problems</h2>\n<dl class=\"problems\">\n"
    for code in ProblemCode.allCases {
      html += """
        <dt id="code-\(code.rawValue)"><code>\(code.rawValue)</code> <small>\(code.definition.status)</small></dt>
        <dd>\(Self.inline(code.definition.meaning))</dd>

        """
    }
    return html + "</dl>\n"
  }

  // MARK: Text

  private static func anchor(_ text: String) -> String { text.lowercased().replacing(" ", with: "-") }

  /// A path that may be broken at its slashes.
  private static func path(_ path: String) -> String { escape(path).replacing("/", with: "<wbr>/") }

  private static func prose(_ text: String) -> String {
    text.isEmpty ? "" : text.split(separator: "\n\n").map { "<p>\(inline(String($0)))</p>" }.joined(separator: "\n")
  }

  /// With what is between backticks as code.
  private static func inline(_ text: String) -> String {
    escape(text).split(separator: "`", omittingEmptySubsequences: false).enumerated()
      .map { $0.offset % 2 == 1 ? "<code>\($0.element)</code>" : String($0.element) }.joined()
  }

  private static func escape(_ text: String) -> String {
    text.replacing("&", with: "&amp;").replacing("<", with: "&lt;").replacing(">", with: "&gt;")
      .replacing("\"", with: "&quot;")
  }

  private static func pretty(_ value: JSONValue, _ indent: String = "") -> String {
    let inner = indent + "  "
    switch value {
    case .object(let members) where !members.isEmpty:
      let lines = members.sorted { $0.key < $1.key }
        .map { "\(inner)\(JSONValue.string($0.key)): \(pretty($0.value, inner))" }
      return "{\n\(lines.joined(separator: ",\n"))\n\(indent)}"
    case .array(let elements) where !elements.isEmpty:
      return "[\n\(elements.map { inner + pretty($0, inner) }.joined(separator: ",\n"))\n\(indent)]"
    default: return value.description
    }
  }

  private static let style = """
    :root{color-scheme:light dark;--line:#8883;--soft:#666;--link:#0b57d0;--box:#8881}
    @media(prefers-color-scheme:dark){:root{--soft:#aaa;--link:#8ab4f8}}
    *{box-sizing:border-box}html{scroll-padding-top:1rem}
    body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:0 auto;padding:1.5rem 1rem 4rem;overflow-wrap:anywhere}
    a{color:var(--link);text-decoration:none}a:hover{text-decoration:underline}
    h1{font-size:1.6rem;margin:0}h2{font-size:1.25rem;margin:2.5rem 0 .75rem}h4{margin:1.25rem 0 .25rem;font-size:1rem}
    small,.soft,summary span,i{color:var(--soft);font-weight:400}i{font-size:.85em}small{font-size:.85em}
    code,pre{font:.9em/1.45 ui-monospace,monospace}
    pre{background:var(--box);border-radius:.5rem;padding:.75rem;overflow-x:auto;white-space:pre}
    nav ul{display:flex;flex-wrap:wrap;gap:.25rem 1rem;list-style:none;padding:0;margin:1rem 0}
    details{border:1px solid var(--line);border-radius:.5rem;margin:.4rem 0}
    summary{cursor:pointer;padding:.5rem .75rem;display:flex;flex-wrap:wrap;gap:.1rem .6rem;align-items:baseline}
    summary::-webkit-details-marker{display:none}summary:hover{background:var(--box)}
    details[open]>summary{border-bottom:1px solid var(--line)}details>div{padding:.25rem .75rem .75rem}
    .m{font-size:.8rem;min-width:3.6rem}.GET,.HEAD{color:#1a7f37}.POST{color:#0b57d0}.PUT,.PATCH{color:#9a6700}.DELETE{color:#cf222e}
    @media(prefers-color-scheme:dark){.GET,.HEAD{color:#57ab5a}.POST{color:#8ab4f8}.PUT,.PATCH{color:#d4a72c}.DELETE{color:#f47067}}
    dl{margin:.25rem 0}dt{margin-top:.4rem}dd{margin:0 0 0 1rem}dd dl{border-left:2px solid var(--line);padding-left:.75rem}
    .codes{display:flex;flex-wrap:wrap;gap:.1rem .75rem;font-size:.85rem}dt:target{background:var(--box)}
    """
}

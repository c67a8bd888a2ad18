import Foundation
import HTTPTypes
import JSONSupport
import Sessions
import TestSupport
import Testing

@testable import ClaudeAPI

/// The OpenAPI document says what the code does: every route, parameter, field and code, and nothing that isn't there.
@Suite struct OpenAPITests {
  // MARK: Routes and descriptions

  @Test func everyRouteHasItsDescription() async throws {
    try await withAPI { fixture in
      let routes = fixture.api.routes.entries.map { "\($0.method) \($0.path)" }
      let described = Operation.all.map { "\($0.method) \($0.path)" }
      #expect(Set(routes).subtracting(described).sorted() == [], "routes without a description")
      #expect(Set(described).subtracting(routes).sorted() == [], "descriptions without a route")
      #expect(described.count == Set(described).count)
      #expect(Set(Operation.all.map(\.id)).count == Operation.all.count)
      for operation in Operation.all {
        for name in operation.pathParameters { #expect(PathParameter.all[name] != nil, "{\(name)} has no description") }
        #expect(!operation.answers.isEmpty, "\(operation.id)")
      }
    }
  }

  /// What a route takes is asked of the route itself: it lists its parameters and fields when it is given another.
  @Test func everyParameterAndFieldIsDescribed() async throws {
    try await withAPI { fixture in
      let session = try await fixture.newSession(nil).lowercaseString
      for operation in Operation.all {
        let path = operation.pathParameters.reduce(operation.path) { path, name in
          path.replacing(
            "{\(name)}", with: name == "session_id" ? session : name == "path" ? "x" : UUID().lowercaseString)
        }
        let what = "\(operation.method) \(operation.path)"
        let query = try await fixture.send(operation.method, path + "?zzz=1", headers: [.tusResumable: "1.0.0"])
        #expect(query.status == 400, "\(what): \(query.text)")
        if operation.method != .head {
          #expect(try Self.names(query.text, "unknown_parameter") == operation.query.map(\.name).sorted(), "\(what)")
        }
        guard let fields = operation.body?.jsonFields else { continue }
        let body = try await fixture.send(operation.method, path, body: ["zzz": 1])
        #expect(body.status == 422, "\(what): \(body.text)")
        #expect(try Self.names(body.text, "unknown_field") == fields.sorted(), "\(what)")
        // A session's form has them all, too, and an archive.
        if operation.id == "createSession" {
          let form = operation.body?.contents.first { $0.type == "multipart/form-data" }?.schema.fields.map(\.name)
          #expect(form?.sorted() == (fields + ["archive"]).sorted())
        }
      }
    }
  }

  /// The names that a problem lists, as in "…; the fields are a, b."
  private static func names(_ text: String, _ code: String) throws -> [String] {
    let problem = try JSONValue(parsing: text.utf8)
    guard problem["code"] == .string(code), let detail = problem["detail"]?.stringValue,
      let start = detail.firstRange(of: " are ")
    else { return ["\(problem)"] }
    let list = detail[start.upperBound...].dropLast()
    return list == "none" || list.isEmpty ? [] : list.split(separator: ", ").map(String.init).sorted()
  }

  // MARK: The document

  @Test func everyExampleFitsItsSchema() async throws {
    try await withAPI { fixture in
      let document = fixture.document
      let contract = Contract(document)
      var count = 0
      func check(_ holder: JSONValue, _ place: String) {
        for example in [holder["example"]].compactMap({ $0 })
          + (holder["examples"]?.objectValue ?? [:]).values.map({
            $0["value"] ?? .null
          })
        {
          count += 1
          let found = contract.objections(to: example, holder["schema"] ?? true, at: place)
          #expect(found == [], "\(place)")
        }
      }
      func walk(_ value: JSONValue, _ place: String) {
        switch value {
        case .object(let members):
          if members["schema"] != nil { check(value, place) }
          for (name, member) in members where name != "schema" && name != "schemas" { walk(member, "\(place)/\(name)") }
        case .array(let elements):
          for (index, element) in elements.enumerated() { walk(element, "\(place)/\(index)") }
        default: break
        }
      }
      walk(document, "")
      #expect(count > 100)
      // Every parameter and every JSON body has one.
      for operation in Operation.all {
        for parameter in operation.query { #expect(parameter.example != nil, "\(operation.id) \(parameter.name)") }
        for content in (operation.body?.contents ?? []) + operation.answers.flatMap(\.contents)
        where content.type == "application/json" {
          #expect(content.example != nil, "\(operation.id)")
        }
      }
    }
  }

  @Test func everythingThatIsReferredToIsThere() async throws {
    try await withAPI { fixture in
      let document = fixture.document
      let ids = Set(Operation.all.map(\.id))
      var references = 0
      func walk(_ value: JSONValue) {
        switch value {
        case .object(let members):
          if let reference = members["$ref"]?.stringValue {
            references += 1
            let target = reference.split(separator: "/").dropFirst().reduce(document) { $0[String($1)] ?? .null }
            #expect(reference.hasPrefix("#/") && !target.isNull, "\(reference)")
          }
          if let id = members["operationId"]?.stringValue { #expect(ids.contains(id), "\(id)") }
          members.values.forEach(walk)
        case .array(let elements): elements.forEach(walk)
        default: break
        }
      }
      walk(document)
      #expect(references > 100)
      let links = document["paths"]?["/sessions"]?["post"]?["responses"]?["200"]?["links"]?.objectValue ?? [:]
      #expect(links["sendMessage"] != nil && links["deleteSession"] != nil && links["getTurn"] == nil)
    }
  }

  @Test func itIsServedAndShownWithoutAnythingFromElsewhere() async throws {
    try await withAPI { fixture in
      let document = try await fixture.send(.get, "/openapi.json")
      #expect(document.status == 200 && document.headers[.contentType] == "application/json")
      #expect(try JSONValue(parsing: document.text.utf8) == fixture.document)
      let page = try await fixture.send(.get, "/docs")
      #expect(page.status == 200)
      #expect(page.headers[.contentSecurityPolicy] == DocumentationPage.contentSecurityPolicy)
      for operation in Operation.all { #expect(page.text.contains("id=\"\(operation.id)\"")) }
      for code in ProblemCode.allCases { #expect(page.text.contains("id=\"code-\(code.rawValue)\"")) }
      for wrong in ["http://", "https://", "<script", "style=\"", "src="] {
        #expect(!page.text.contains(wrong), "\(wrong)")
      }
      let targets = Set(page.text.matches(of: #/href="#([^"]+)"/#).map { String($0.1) })
      for target in targets { #expect(page.text.contains("id=\"\(target)\""), "#\(target)") }
    }
  }

  // MARK: Codes

  @Test func everyCodeIsDescribed() async throws {
    try await withAPI { fixture in
      let described = OpenAPIDocument(routes: fixture.api.routes.entries, version: "1").described
      let told = Set(described.flatMap(OpenAPIDocument.problems))
      // No route answers with these: they are for requests that reach none, or whose client doesn't see the answer.
      let others: Set<ProblemCode> = [
        .methodNotAllowed, .notFound, .clientGone, .lengthRequired, .forbidden, .serviceUnavailable,
      ]
      #expect(Set(ProblemCode.allCases).subtracting(told) == others)
      for code in ProblemCode.allCases {
        #expect((400..<600).contains(code.definition.status) && !code.status.reasonPhrase.isEmpty, "\(code)")
        #expect(code.definition.meaning.hasSuffix("."), "\(code)")
      }
    }
  }

  /// One row for each status, in the order of the list.
  @Test func theReadmeListsThemAll() throws {
    let readme = text(of: repositoryRoot + "/README.md")
    let rows = Dictionary(grouping: ProblemCode.allCases, by: \.definition.status).sorted { $0.key < $1.key }
      .map { status, codes in "| \(status) | \(codes.map { "`\($0.rawValue)`" }.joined(separator: ", ")) |" }
    for row in rows { #expect(readme.contains(row + "\n"), "README.md has no row: \(row)") }
  }

  @Test func nginxAnswersWithTheirCodes() throws {
    let configuration = text(of: repositoryRoot + "/nginx/http.conf")
    let map = try #require(configuration.split(separator: "map $status ").first { $0.hasPrefix("$claude_api_code") })
    let rows = map.matches(of: #/(\d{3}) "([a-z_]+)";/#)
    #expect(rows.count > 15)
    for row in rows {
      let code = try #require(ProblemCode(rawValue: String(row.2)), "\(row.2)")
      #expect(code.definition.status == Int(row.1), "\(row.2)")
    }
  }
}

import HTTPTypes
import JSONSupport

/// The description of a route: what the OpenAPI document and the page of the documentation are made from.
///
/// A route needs one; its summary and who may use it come from the ``RouteTable``. Write it where its siblings are (in
/// the files `Operations+….swift` of this folder; a new list goes into ``Operation/all``), with what is its own only:
///
///     Operation(
///       .post, "/sessions/{session_id}/rename", "renameSession", .sessions,
///       "The longer story, in Markdown's simplest form: paragraphs and `code`.",
///       query: [Parameter("dry_run", .boolean("Only checks."), example: true)],
///       body: .json(.object(nil, [.required("name", .string("The new one."))], others: .nothing),
///         example: ["name": "Numbers"]),
///       answers: [Answer(200, "The session.", .json(.reference("Session"), example: Examples.session))],
///       problems: [.sessionBusy])
///
/// Parameters of the path are described once for all (``PathParameter``). The problems that come of a key, of the
/// parameters in the path, of a query, of a JSON body and of nginx are added by themselves (see
/// ``OpenAPIDocument/problems(of:)``). Tests say when a route, a query parameter, a field, a code or an answer of the
/// running system has no description, when a description has no route, and when an example doesn't fit its schema.
struct Operation: Sendable {
  /// The chapters of the documentation, in their order.
  enum Tag: String, CaseIterable, Sendable {
    case sessions = "Sessions"
    case messages = "Messages and turns"
    case events = "Events"
    case control = "Control"
    case files = "Files"
    case uploads = "Uploads in parts"
    case shares = "Shares"
    case server = "Server"
  }

  let method: HTTPRequest.Method
  let path: String
  /// A name for programs, unique and in camelCase.
  let id: String
  let tag: Tag
  let description: String
  let query: [Parameter]
  let headers: [Parameter]
  let body: Body?
  /// What is answered when all is well.
  let answers: [Answer]
  /// The problems that are this route's own.
  let problems: [ProblemCode]

  init(
    _ method: HTTPRequest.Method, _ path: String, _ id: String, _ tag: Tag, _ description: String = "",
    query: [Parameter] = [], headers: [Parameter] = [], body: Body? = nil, answers: [Answer],
    problems: [ProblemCode] = []
  ) {
    self.method = method
    self.path = path
    self.id = id
    self.tag = tag
    self.description = description
    self.query = query
    self.headers = headers
    self.body = body
    self.answers = answers
    self.problems = problems
  }

  /// Every description.
  static let all: [Operation] =
    sessionOperations + messageOperations + eventOperations + controlOperations + fileOperations + uploadOperations
    + shareOperations + serverOperations

  private struct Route: Hashable {
    let method: HTTPRequest.Method
    let path: String
  }

  private static let withQuery = Set(
    all.filter { !$0.query.isEmpty }.map { Route(method: $0.method, path: $0.path) })

  static func takesQuery(_ method: HTTPRequest.Method, _ path: String) -> Bool {
    withQuery.contains(Route(method: method, path: path))
  }

  /// Whether browsers get its answers as pages, its problems among them; see ``ProblemPage``.
  var isPage: Bool { tag != .server && answers.contains { $0.contents.contains { $0.type == Content.page.type } } }

  /// The names of the parameters in the path.
  var pathParameters: [String] {
    path.split(separator: "/").filter { $0.hasPrefix("{") }.map { String($0.dropFirst().dropLast()) }
  }
}

/// A parameter of a query, or a header field of a request.
struct Parameter: Sendable {
  let name: String
  let schema: Schema
  let isRequired: Bool
  let example: JSONValue?

  init(_ name: String, _ schema: Schema, isRequired: Bool = false, example: JSONValue? = nil) {
    self.name = name
    self.schema = schema
    self.isRequired = isRequired
    self.example = example
  }
}

/// A parameter of a path, which means the same wherever it occurs.
struct PathParameter: Sendable {
  let schema: Schema
  let example: JSONValue
  /// The answer where nothing has this value.
  let problems: [ProblemCode]

  static let all: [String: PathParameter] = [
    "session_id": PathParameter(
      schema: .uuid("The session."), example: .string(Examples.sessionID), problems: [.sessionNotFound]),
    "turn_id": PathParameter(
      schema: .uuid("The turn."), example: .string(Examples.turnID), problems: [.turnNotFound]),
    "approval_id": PathParameter(
      schema: .uuid("The approval."), example: .string(Examples.approvalID), problems: [.approvalNotFound]),
    "upload_id": PathParameter(
      schema: .uuid("The upload."), example: .string(Examples.uploadID), problems: [.uploadNotFound]),
    "share_id": PathParameter(
      schema: .uuid("The share."), example: .string(Examples.shareID), problems: [.shareNotFound]),
    "token": PathParameter(
      schema: .string("The secret of a share's link.", length: 1...200, pattern: "^[A-Za-z0-9._~-]+$"),
      example: .string(Examples.shareToken), problems: [.shareNotFound]),
    "path": PathParameter(
      schema: .string(
        "The path below the workspace, with `/` between its components and everything else that is unusual "
          + "percent-encoded; names are bytes and need not be UTF-8.",
        length: 1...4095, pattern: "^[A-Za-z0-9_][A-Za-z0-9_. -]*(/[A-Za-z0-9_][A-Za-z0-9_. -]*)*$"),
      example: "notes/plan.md", problems: [.invalidPath]),
  ]
}

/// A representation of a body.
struct Content: Sendable {
  let type: String
  let schema: Schema
  let example: JSONValue?

  init(_ type: String, _ schema: Schema, example: JSONValue? = nil) {
    self.type = type
    self.schema = schema
    self.example = example
  }

  static func json(_ schema: Schema, example: JSONValue) -> Content {
    Content("application/json", schema, example: example)
  }

  static let page = Content("text/html; charset=utf-8", .string())

  static let eventStream = Content(
    "text/event-stream",
    .object(
      "What each entry has. Between them are comments.",
      [
        .optional("id", .string("The event's number. Previews have none.")),
        .optional("event", .string("The event's type.")),
        .optional("data", .reference("StreamEvent", "The event as JSON.").asText),
        .optional("retry", .anything("Milliseconds, at the beginning.")),
      ], others: .anything))
}

/// What a request may bring.
struct Body: Sendable {
  let contents: [Content]
  let isRequired: Bool

  static func json(_ schema: Schema, example: JSONValue, isRequired: Bool = true) -> Body {
    Body(contents: [.json(schema, example: example)], isRequired: isRequired)
  }

  /// The fields that the JSON of this body may have; nil if it isn't JSON.
  var jsonFields: [String]? { contents.first { $0.type == "application/json" }?.schema.fields.map(\.name) }
}

/// An answer when all is well.
struct Answer: Sendable {
  let status: Int
  let description: String
  let contents: [Content]
  let headers: [Parameter]
  /// Where the answer tells the parameters of other routes' paths, by the names of those; from this the links of the
  /// document are made.
  let tells: [String: String]

  init(
    _ status: Int, _ description: String, _ contents: Content..., headers: [Parameter] = [],
    tells: [String: String] = [:]
  ) {
    self.status = status
    self.description = description
    self.contents = contents
    self.headers = headers
    self.tells = tells
  }
}

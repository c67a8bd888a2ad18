import HTTPTypes
import JSONSupport

/// The OpenAPI 3.1 document of the API, made from the route table and the descriptions.
struct OpenAPIDocument {
  let routes: [RouteTable.Entry]
  let version: String

  /// A route with its description.
  struct Described {
    let entry: RouteTable.Entry
    let operation: Operation
  }

  /// The routes in the order of the documentation. A route without a description is left out; a test finds it.
  var described: [Described] {
    Operation.all.compactMap { operation in
      routes.first { $0.method == operation.method && $0.path == operation.path }
        .map { Described(entry: $0, operation: operation) }
    }
  }

  var json: JSONValue {
    let described = described
    var responses: [String: JSONValue] = [:]
    var paths: [String: JSONValue] = [:]
    for route in described {
      let method = route.operation.method.rawValue.lowercased()
      let operation = operation(route, among: described, &responses)
      var item = paths[route.operation.path]?.objectValue ?? pathItem(route.operation)
      item[method] = operation
      paths[route.operation.path] = .object(item)
    }
    return [
      "openapi": "3.1.0",
      "info": [
        "title": "Claude API", "version": .string(version), "summary": "Sessions of Claude Code over plain HTTP",
        "description": .string(Self.introduction),
        "license": ["name": "Proprietary", "identifier": "LicenseRef-Proprietary"],
      ],
      "servers": [["url": "/", "description": "This server"]],
      "tags": .array(Operation.Tag.allCases.map { ["name": .string($0.rawValue)] }),
      "security": [["bearer": []], ["apiKey": []]],
      "paths": .object(paths),
      "components": [
        "schemas": .object(Schemas.all.mapValues(\.json)),
        "responses": .object(responses),
        "headers": .object(Self.sharedHeaders.mapValues(Self.header)),
        "securitySchemes": [
          "bearer": ["type": "http", "scheme": "bearer", "description": "`Authorization: Bearer KEY`"],
          "apiKey": ["type": "apiKey", "in": "header", "name": "X-Api-Key", "description": "The same key."],
        ],
      ],
    ]
  }

  static let introduction = """
    People send plain HTTP, and a real `claude` process works for them in a workspace of its own.

    A message is a turn. Its answer comes when the turn is over, at once with `Prefer: respond-async`, or as a stream \
    of events with `Accept: text/event-stream`. Every error is a problem document (RFC 9457) whose `code` doesn't \
    change. As long as the server has no keys, clients on its own machine need none.
    """

  // MARK: Operations

  private func pathItem(_ operation: Operation) -> [String: JSONValue] {
    let parameters = operation.pathParameters.map { name -> JSONValue in
      let parameter = PathParameter.all[name]
      return [
        "name": .string(name), "in": "path", "required": true, "schema": parameter?.schema.json ?? true,
        "description": .string(parameter?.schema.description ?? ""), "example": parameter?.example ?? .null,
      ]
    }
    return parameters.isEmpty ? [:] : ["parameters": .array(parameters)]
  }

  private func operation(
    _ route: Described, among others: [Described], _ components: inout [String: JSONValue]
  ) -> JSONValue {
    let operation = route.operation
    var json: [String: JSONValue] = [
      "operationId": .string(operation.id), "summary": .string(route.entry.summary),
      "tags": [.string(operation.tag.rawValue)],
    ]
    if !operation.description.isEmpty { json["description"] = .string(operation.description) }
    switch route.entry.access {
    case .open: json["security"] = []
    // On the server's own machine without a key, too.
    case .operation: json["security"] = [[:], ["bearer": []], ["apiKey": []]]
    case .information, .read, .change: break
    }
    let parameters =
      operation.query.map { Self.parameter($0, in: "query") }
      + operation.headers.map { Self.parameter($0, in: "header") }
    if !parameters.isEmpty { json["parameters"] = .array(parameters) }
    if let body = operation.body {
      json["requestBody"] = ["required": .bool(body.isRequired), "content": Self.content(body.contents)]
    }
    var responses: [String: JSONValue] = [:]
    for answer in operation.answers { responses[String(answer.status)] = response(answer, operation, others) }
    for (status, codes) in Dictionary(grouping: Self.problems(of: route), by: \.definition.status) {
      let isOfTurn = operation.problems.contains(.turnFailed) && !Set(codes).isDisjoint(with: ProblemCode.ofTurns)
      let marks = (operation.isPage ? ["page"] : []) + (isOfTurn ? ["turn"] : [])
      let name = (["\(status)"] + codes.map(\.rawValue) + marks).joined(separator: ".")
      components[name] = Self.problemResponse(codes, isPage: operation.isPage, isOfTurn: isOfTurn)
      responses[String(status)] = ["$ref": .string("#/components/responses/\(name)")]
    }
    json["responses"] = .object(responses)
    return .object(json)
  }

  private static func parameter(_ parameter: Parameter, in place: String) -> JSONValue {
    var json: [String: JSONValue] = [
      "name": .string(parameter.name), "in": .string(place), "schema": parameter.schema.json,
    ]
    if let description = parameter.schema.description { json["description"] = .string(description) }
    if parameter.isRequired { json["required"] = true }
    json["example"] = parameter.example
    return .object(json)
  }

  private static func content(_ contents: [Content]) -> JSONValue {
    .object(
      Dictionary(
        uniqueKeysWithValues: contents.map { content in
          var json: [String: JSONValue] = ["schema": content.schema.json]
          json["example"] = content.example
          return (content.type, .object(json))
        }))
  }

  private func response(_ answer: Answer, _ operation: Operation, _ others: [Described]) -> JSONValue {
    var headers = Self.responseHeaders
    for header in answer.headers {
      headers[header.name] = Self.sharedHeaders[header.name] == nil ? Self.header(header) : Self.reference(header.name)
    }
    var json: [String: JSONValue] = ["description": .string(answer.description), "headers": .object(headers)]
    if !answer.contents.isEmpty { json["content"] = Self.content(answer.contents) }
    let links = links(answer, operation, others)
    if !links.isEmpty { json["links"] = .object(links) }
    return .object(json)
  }

  /// To every route whose path has only parameters that are known after this answer, among them a new one.
  private func links(_ answer: Answer, _ operation: Operation, _ others: [Described]) -> [String: JSONValue] {
    var links: [String: JSONValue] = [:]
    for other in others.map(\.operation) where !answer.tells.isEmpty {
      let wanted = other.pathParameters
      let known = Set(answer.tells.keys).union(operation.pathParameters)
      guard wanted.contains(where: { answer.tells[$0] != nil }), known.isSuperset(of: wanted) else { continue }
      let parameters = wanted.map { ($0, JSONValue.string(answer.tells[$0] ?? "$request.path.\($0)")) }
      links[other.id] = [
        "operationId": .string(other.id), "parameters": .object(Dictionary(uniqueKeysWithValues: parameters)),
      ]
    }
    return links
  }

  // MARK: Problems

  /// What nginx may answer by itself, wherever the request was to go.
  static let problemsOfNginx: [ProblemCode] = [
    .badRequest, .requestTimeout, .contentTooLarge, .uriTooLong, .misdirectedRequest, .headerTooLarge,
    .notImplemented, .responderUnavailable, .responderTimeout, .httpVersionNotSupported,
  ]

  /// All problems that a route may answer with, in the order of the list of codes.
  static func problems(of route: Described) -> [ProblemCode] {
    let operation = route.operation
    var codes = Set(operation.problems).union(problemsOfNginx).union([.unknownParameter, .internalError])
    if !operation.query.isEmpty { codes.insert(.invalidParameter) }
    if operation.headers.contains(where: { $0.name == "Idempotency-Key" }) {
      codes.formUnion([.invalidIdempotencyKey, .idempotencyMismatch])
    }
    if operation.body?.jsonFields != nil {
      codes.formUnion([.invalidJSON, .invalidBody, .invalidField, .unknownField, .unsupportedMediaType])
    }
    for name in operation.pathParameters { codes.formUnion(PathParameter.all[name]?.problems ?? []) }
    if route.entry.access != .open {
      codes.formUnion([.unauthorized, .noKeys, .tooManyWrongKeys, .tooManyRequests, .storeFailed, .storeBusy])
    }
    if route.entry.access == .change {
      codes.formUnion([.readOnlyKey, .foreignOrigin, .shuttingDown, .diskFull, .workspaceFailed])
    }
    if !operation.pathParameters.contains("session_id"), route.entry.access == .read || route.entry.access == .change {
      codes.insert(.keyOfSession)
    }
    return ProblemCode.allCases.filter(codes.contains)
  }

  /// The response of some problems that have one status.
  ///
  /// - Parameters:
  ///   - isPage: whether browsers get them as a page.
  ///   - isOfTurn: whether the request may have made a turn that failed.
  private static func problemResponse(_ codes: [ProblemCode], isPage: Bool, isOfTurn: Bool) -> JSONValue {
    let examples = codes.map { code in
      (code.rawValue, ["summary": .string(code.definition.meaning), "value": example(of: code)] as JSONValue)
    }
    var headers = responseHeaders
    if codes.contains(.unauthorized) { headers["WWW-Authenticate"] = reference("WWW-Authenticate") }
    if codes.contains(where: \.mayHaveRetryAfter) { headers["Retry-After"] = reference("Retry-After") }
    if isOfTurn { headers[Parameter.replayed.name] = header(.replayed) }
    if isOfTurn || !Set(codes).isDisjoint(with: [.turnsPerHourLimit, .streamsLimit, .queuedTurnsLimit]) {
      headers["RateLimit"] = reference("RateLimit")
      headers["RateLimit-Policy"] = reference("RateLimit-Policy")
    }
    if isOfTurn || codes.contains(.shuttingDown) {
      headers["Location"] = header(Parameter("Location", .string("The turn, if the request has made one.")))
    }
    if codes.contains(.upgradeRequired) {
      headers["Upgrade"] = header(Parameter("Upgrade", .constant("websocket")))
      headers["Sec-WebSocket-Version"] = header(Parameter("Sec-WebSocket-Version", .constant("13")))
    }
    var contents: [String: JSONValue] = [
      "application/problem+json": [
        "schema": [
          "allOf": [
            ["$ref": "#/components/schemas/Problem"],
            [
              "type": "object", "additionalProperties": true,
              "properties": ["code": ["enum": .array(codes.map { .string($0.rawValue) })]],
            ],
          ]
        ],
        "examples": .object(Dictionary(uniqueKeysWithValues: examples)),
      ]
    ]
    if isPage {
      contents[Content.page.type] = ["schema": Schema.string("The same for people, with `Accept: text/html`.").json]
    }
    return [
      "description": .string(codes.map { "`\($0.rawValue)`: \($0.definition.meaning)" }.joined(separator: "\n\n")),
      "headers": .object(headers), "content": .object(contents),
    ]
  }

  static func example(of code: ProblemCode) -> JSONValue {
    [
      "type": "about:blank", "title": .string(code.status.reasonPhrase), "status": .int(Int64(code.definition.status)),
      "detail": .string(code.definition.meaning), "code": .string(code.rawValue),
    ]
  }

  // MARK: Header fields

  static let sharedHeaders: [String: Parameter] = [
    "X-Request-Id": Parameter(
      "X-Request-Id", .string("Names the request in the logs.", pattern: "^[0-9a-f]{32}$"), isRequired: true,
      example: "6d1e2f0c9a7b4c35a1d8e4f2b7c60913"),
    "Retry-After": Parameter(
      "Retry-After", .string("Seconds after which another try makes sense.", pattern: "^[0-9]+$"), example: "5"),
    "RateLimit": Parameter(
      "RateLimit", .string("What is left of a limit (draft-ietf-httpapi-ratelimit-headers-10), where the key has one."),
      example: "\"turns-per-hour\";r=7;t=1380"),
    "RateLimit-Policy": Parameter(
      "RateLimit-Policy", .string("That limit."), example: "\"turns-per-hour\";q=60;w=3600"),
    "WWW-Authenticate": Parameter("WWW-Authenticate", .string("How to show a key."), example: "Bearer"),
  ]

  private static let responseHeaders: [String: JSONValue] = ["X-Request-Id": reference("X-Request-Id")]

  private static func reference(_ header: String) -> JSONValue {
    ["$ref": .string("#/components/headers/\(header)")]
  }

  private static func header(_ header: Parameter) -> JSONValue {
    var json: [String: JSONValue] = ["schema": header.schema.json]
    if let description = header.schema.description { json["description"] = .string(description) }
    if header.isRequired { json["required"] = true }
    json["example"] = header.example
    return .object(json)
  }
}

extension ProblemCode {
  /// Whether a problem can tell when another try makes sense.
  fileprivate var mayHaveRetryAfter: Bool {
    switch self {
    case .usdPerDayLimit, .usdPerMonthLimit: true
    default: [409, 423, 429, 502, 503, 504].contains(definition.status)
    }
  }
}

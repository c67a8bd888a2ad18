public import HTTPTypes
import Sessions

/// Every `code` that a problem document can have: the one list from which problems are made, and against which the
/// OpenAPI document, the README, nginx's own answers and the failures of turns are checked.
///
/// To add one, add its case here and its status and meaning in ``definition``, name it in the `problems` of the
/// operations that answer with it (Sources/ClaudeAPI/OpenAPI), and put it into the README's table; tests say what
/// is missing. A code is for programs and doesn't change.
public enum ProblemCode: String, CaseIterable, Sendable {
  // Requests
  case badRequest = "bad_request"
  case invalidJSON = "invalid_json"
  case invalidParameter = "invalid_parameter"
  case unknownParameter = "unknown_parameter"
  case invalidCursor = "invalid_cursor"
  case unknownCursor = "unknown_cursor"
  case invalidIdempotencyKey = "invalid_idempotency_key"
  case invalidPath = "invalid_path"
  case invalidCondition = "invalid_condition"
  case invalidDigest = "invalid_digest"
  case digestMismatch = "digest_mismatch"
  case contentRange = "content_range"
  case invalidForm = "invalid_form"
  case invalidUpload = "invalid_upload"
  case methodNotAllowed = "method_not_allowed"
  case requestTimeout = "request_timeout"
  case lengthRequired = "length_required"
  case preconditionFailed = "precondition_failed"
  case upgradeRequired = "upgrade_required"
  case tusVersion = "tus_version"
  case contentTooLarge = "content_too_large"
  case promptTooLarge = "prompt_too_large"
  case uploadTooLarge = "upload_too_large"
  case uploadTooLong = "upload_too_long"
  case tooManyParts = "too_many_parts"
  case uriTooLong = "uri_too_long"
  case unsupportedMediaType = "unsupported_media_type"
  case contentEncoding = "content_encoding"
  case rangeNotSatisfiable = "range_not_satisfiable"
  case misdirectedRequest = "misdirected_request"
  case invalidBody = "invalid_body"
  case invalidField = "invalid_field"
  case unknownField = "unknown_field"
  case idempotencyMismatch = "idempotency_mismatch"
  case invalidArchive = "invalid_archive"
  case unsafeArchive = "unsafe_archive"
  case tooManyRequests = "too_many_requests"
  case headerTooLarge = "header_too_large"
  case checksumMismatch = "checksum_mismatch"
  case clientGone = "client_gone"
  case notImplemented = "not_implemented"
  case httpVersionNotSupported = "http_version_not_supported"

  // Keys
  case unauthorized
  case forbidden
  case noKeys = "no_keys"
  case keyOfSession = "key_of_session"
  case keyRevoked = "key_revoked"
  case readOnlyKey = "read_only_key"
  case foreignOrigin = "foreign_origin"
  case adminOnly = "admin_only"
  case originNotAllowed = "origin_not_allowed"
  case alreadyAuthenticated = "already_authenticated"
  case keyNotFound = "key_not_found"
  case tooManyWrongKeys = "too_many_wrong_keys"
  case sessionsLimit = "sessions_limit"
  case runningTurnsLimit = "running_turns_limit"
  case queuedTurnsLimit = "queued_turns_limit"
  case streamsLimit = "streams_limit"
  case turnsPerHourLimit = "turns_per_hour_limit"
  case tokensPerDayLimit = "tokens_per_day_limit"
  case usdPerDayLimit = "usd_per_day_limit"
  case usdPerMonthLimit = "usd_per_month_limit"
  case diskBytesLimit = "disk_bytes_limit"

  // Things
  case notFound = "not_found"
  case sessionNotFound = "session_not_found"
  case turnNotFound = "turn_not_found"
  case approvalNotFound = "approval_not_found"
  case nothingRuns = "nothing_runs"
  case turnRunning = "turn_running"
  case turnState = "turn_state"
  case sessionBusy = "session_busy"
  case approvalResolved = "approval_resolved"
  case sessionDeleted = "session_deleted"
  case queueFull = "queue_full"

  // Files
  case fileNotFound = "file_not_found"
  case shareNotFound = "share_not_found"
  case uploadNotFound = "upload_not_found"
  case symbolicLink = "symbolic_link"
  case specialFile = "special_file"
  case filePermissionDenied = "file_permission_denied"
  case isAFolder = "is_a_folder"
  case fileExists = "file_exists"
  case folderNotEmpty = "folder_not_empty"
  case intoItself = "into_itself"
  case wrongOffset = "wrong_offset"
  case tooManyShares = "too_many_shares"
  case uploadExpired = "upload_expired"
  case uploadBusy = "upload_busy"
  case tooManyUploads = "too_many_uploads"
  case tooManyArchives = "too_many_archives"
  case sharingDisabled = "sharing_disabled"
  case gitSourceNotAllowed = "git_source_not_allowed"
  case gitFailed = "git_failed"
  case gitTimeout = "git_timeout"
  case gitUnavailable = "git_unavailable"
  case tooManyClones = "too_many_clones"
  case quotaExceeded = "quota_exceeded"

  // Turns
  case budgetExhausted = "budget_exhausted"
  case permissionDenied = "permission_denied"
  case interrupted
  case cancelled
  case busy
  case killed
  case maxTurns = "max_turns"
  case invalidOutputSchema = "invalid_output_schema"
  case rateLimited = "rate_limited"
  case crashed
  case outOfMemory = "out_of_memory"
  case cliProtocolError = "cli_protocol_error"
  case lineTooLong = "line_too_long"
  case notLoggedIn = "not_logged_in"
  case modelAuthFailed = "model_auth_failed"
  case modelError = "model_error"
  case conversationLost = "conversation_lost"
  case structuredOutputMissing = "structured_output_missing"
  case turnFailed = "turn_failed"
  case cliMissing = "cli_missing"
  case cliNotExecutable = "cli_not_executable"
  case cliIncompatible = "cli_incompatible"
  case startFailed = "start_failed"
  case overloaded
  case modelTimeout = "model_timeout"
  case stalled
  case turnTimeout = "turn_timeout"
  case postResultHang = "post_result_hang"

  // The server
  case internalError = "internal_error"
  case workspaceFailed = "workspace_failed"
  case storeFailed = "store_failed"
  case noBodyFile = "no_body_file"
  case responderUnavailable = "responder_unavailable"
  case shuttingDown = "shutting_down"
  case notReady = "not_ready"
  case storeBusy = "store_busy"
  case streamsExhausted = "streams_exhausted"
  case tooManySockets = "too_many_sockets"
  case serviceUnavailable = "service_unavailable"
  case responderTimeout = "responder_timeout"
  case diskFull = "disk_full"
}

extension ProblemCode {
  struct Definition: Sendable {
    let status: Int
    /// A sentence for people who read the documentation.
    let meaning: String

    fileprivate init(_ status: Int, _ meaning: String) {
      self.status = status
      self.meaning = meaning
    }
  }

  var definition: Definition {
    switch self {
    // Requests
    case .badRequest: .init(400, "The request line, the path or a header field is not well-formed.")
    case .invalidJSON: .init(400, "The body is not valid JSON, not UTF-8, or missing.")
    case .invalidParameter: .init(400, "A query parameter has a value that it can't have.")
    case .unknownParameter: .init(400, "There is no query parameter of this name here.")
    case .invalidCursor: .init(400, "`Last-Event-ID` is not the number of an event.")
    case .unknownCursor: .init(409, "The session has no event of this number yet.")
    case .invalidIdempotencyKey:
      .init(400, "`Idempotency-Key` is given twice, is empty or too long, or can't be used with this request.")
    case .invalidPath: .init(400, "The path can't be that of a file in a workspace.")
    case .invalidCondition: .init(400, "`If-Match` or `If-None-Match` is neither `*` nor tags in quotes.")
    case .invalidDigest: .init(400, "`Content-Digest` or `Upload-Checksum` is malformed or of an unknown algorithm.")
    case .digestMismatch: .init(400, "The bytes that arrived don't have the digest of `Content-Digest`.")
    case .contentRange: .init(400, "A part of a file can't be put; uploads in parts have a route of their own.")
    case .invalidForm: .init(400, "The body is not whole multipart/form-data.")
    case .invalidUpload: .init(400, "A header field of an upload in parts is missing or malformed.")
    case .methodNotAllowed: .init(405, "The path has no such method; `Allow` lists those that it has.")
    case .requestTimeout: .init(408, "The request was not complete in time.")
    case .lengthRequired: .init(411, "The request needs a `Content-Length`.")
    case .upgradeRequired: .init(426, "The path is for WebSockets; the request is no upgrade to one.")
    case .preconditionFailed:
      .init(412, "The file is not as `If-Match`, `If-None-Match` or `If-Unmodified-Since` demands.")
    case .tusVersion: .init(412, "The request has no `Tus-Resumable: 1.0.0`.")
    case .contentTooLarge: .init(413, "The body is larger than allowed.")
    case .promptTooLarge: .init(413, "The prompt is larger than allowed.")
    case .uploadTooLarge: .init(413, "A file would be larger than allowed.")
    case .uploadTooLong: .init(413, "The part goes beyond the `Upload-Length`.")
    case .tooManyParts: .init(413, "The form has more parts than allowed.")
    case .uriTooLong: .init(414, "The request line is too long.")
    case .unsupportedMediaType: .init(415, "The body is of a type that this route doesn't take.")
    case .contentEncoding: .init(415, "A file must be sent without a `Content-Encoding`.")
    case .rangeNotSatisfiable: .init(416, "The file doesn't have the range asked for.")
    case .misdirectedRequest: .init(421, "The server doesn't answer for the host name in the request.")
    case .invalidBody: .init(422, "The body is JSON, but no object.")
    case .invalidField:
      .init(422, "A field is missing or has a value that it can't have; `detail` names it and what is allowed.")
    case .unknownField: .init(422, "There is no field of this name here.")
    case .idempotencyMismatch: .init(422, "The `Idempotency-Key` was used with another request in the last 24 hours.")
    case .invalidArchive: .init(422, "The file is no whole tar or zip archive.")
    case .unsafeArchive: .init(422, "The archive has an entry that would lie or lead outside; nothing was kept.")
    case .tooManyRequests: .init(429, "There were too many requests in a short time.")
    case .headerTooLarge: .init(431, "A header field, or all of them together, is too large.")
    case .checksumMismatch: .init(460, "The bytes that arrived don't have the checksum of `Upload-Checksum`.")
    case .clientGone: .init(499, "The client went away before its answer; only logs show this.")
    case .notImplemented: .init(501, "The request uses a transfer coding that the server doesn't know.")
    case .httpVersionNotSupported: .init(505, "The server doesn't speak this version of HTTP.")
    // Keys
    case .unauthorized: .init(401, "The request has no key, or one that is not valid (any more).")
    case .forbidden: .init(403, "Access to this path is not allowed.")
    case .noKeys: .init(403, "The server has no keys yet and answers only on its own machine.")
    case .keyOfSession: .init(403, "The key is good for a single session only.")
    case .keyRevoked: .init(403, "The key that sent the turn's message was revoked or has expired; the turn was ended.")
    case .readOnlyKey: .init(403, "The key may only read.")
    case .foreignOrigin: .init(403, "A page of another site can't change anything here.")
    case .originNotAllowed: .init(403, "A page of another origin may not open a socket here.")
    case .alreadyAuthenticated: .init(409, "The socket has its key, or needs none.")
    case .adminOnly: .init(403, "Only a key with the role admin may see this.")
    case .keyNotFound: .init(404, "There is no such key.")
    case .tooManyWrongKeys: .init(429, "Too many wrong keys came from this address; this one was not looked at.")
    case .sessionsLimit: .init(403, "The key owns as many sessions as it may.")
    case .runningTurnsLimit: .init(429, "As many turns of the key run as may.")
    case .queuedTurnsLimit: .init(429, "As many turns of the key wait as may.")
    case .streamsLimit: .init(429, "The key has as many streams of events open as it may.")
    case .turnsPerHourLimit: .init(429, "The key has sent as many messages in this hour as it may.")
    case .tokensPerDayLimit: .init(429, "The key has used as many tokens today as it may.")
    case .usdPerDayLimit: .init(402, "The key has spent as much today as it may.")
    case .usdPerMonthLimit: .init(402, "The key has spent as much this month as it may.")
    case .diskBytesLimit: .init(507, "The sessions of the key take, or would take, as much of the disk as they may.")
    // Things
    case .notFound: .init(404, "There is nothing at this path.")
    case .sessionNotFound: .init(404, "There is no such session, or not for this key.")
    case .turnNotFound: .init(404, "The session has no such turn.")
    case .approvalNotFound: .init(404, "The session has no such approval.")
    case .nothingRuns: .init(409, "No turn of the session is running.")
    case .turnRunning: .init(409, "The turn is running and can only be interrupted.")
    case .turnState: .init(409, "The turn has ended already.")
    case .sessionBusy: .init(409, "The session has a turn that runs or waits.")
    case .approvalResolved: .init(409, "The approval was decided before, or is void; `approval` shows it.")
    case .sessionDeleted: .init(410, "The session was deleted while the request waited.")
    case .queueFull: .init(429, "As many messages as may wait for their turn in this session are waiting.")
    // Files
    case .fileNotFound: .init(404, "There is no such file or folder in the session.")
    case .shareNotFound: .init(404, "The link leads to nothing (any more).")
    case .uploadNotFound: .init(404, "There is no such upload; it may be complete.")
    case .symbolicLink: .init(403, "The path is or leads through a symbolic link, which is never followed.")
    case .specialFile: .init(403, "The path is that of a device, a FIFO or a socket.")
    case .filePermissionDenied: .init(403, "The permissions of the file or folder don't allow this.")
    case .isAFolder: .init(409, "There is a folder of this name.")
    case .fileExists: .init(409, "There is a file or folder of this name already.")
    case .folderNotEmpty: .init(409, "The folder is not empty.")
    case .intoItself: .init(409, "A folder can't be moved into itself.")
    case .wrongOffset: .init(409, "The part doesn't begin where the upload has come to.")
    case .tooManyShares: .init(409, "The session has as many shares as it may have.")
    case .uploadExpired: .init(410, "The upload was not gone on with in time.")
    case .uploadBusy: .init(423, "Another part of the upload is being taken.")
    case .tooManyUploads: .init(429, "The session has as many unfinished uploads as it may have.")
    case .sharingDisabled: .init(403, "The operator of this server doesn't allow sharing.")
    case .gitSourceNotAllowed:
      .init(403, "Repositories of this place may not be brought in; the setting git.allowed-sources says which.")
    case .gitFailed: .init(422, "The repository could not be cloned; `detail` has what git says.")
    case .gitTimeout: .init(504, "Cloning took longer than allowed; nothing was kept.")
    case .gitUnavailable: .init(503, "git can't be started on this server.")
    case .tooManyClones: .init(503, "As many repositories as may be are being cloned.")
    case .tooManyArchives: .init(503, "As many archives as may be are being made.")
    case .quotaExceeded: .init(507, "The workspace would have or has become larger than allowed.")
    // Turns
    case .budgetExhausted: .init(402, "The conversation has cost as much as `max_budget_usd` allows.")
    case .permissionDenied: .init(403, "The turn came to nothing because a tool call was not permitted.")
    case .interrupted: .init(409, "The turn was stopped on request or by the end of the server.")
    case .cancelled: .init(409, "The message was taken out of the queue before its turn.")
    case .busy: .init(409, "The agent of the session has a turn in flight already.")
    case .killed: .init(410, "The session was stopped.")
    case .maxTurns: .init(422, "The agent has made as many steps as `max_turns` allows.")
    case .invalidOutputSchema: .init(422, "`output_schema` is no JSON Schema that the CLI accepts.")
    case .rateLimited: .init(429, "The model's API limits the rate of requests, or a quota is used up.")
    case .crashed: .init(502, "The CLI ended unexpectedly; `detail` has the end of its error output.")
    case .outOfMemory: .init(502, "The system ended the CLI for want of memory.")
    case .cliProtocolError: .init(502, "The CLI doesn't speak its protocol.")
    case .lineTooLong: .init(502, "The CLI printed a line longer than allowed.")
    case .notLoggedIn: .init(502, "The CLI has no credentials.")
    case .modelAuthFailed: .init(502, "The model's API refuses the credentials.")
    case .modelError: .init(502, "The model's API failed in another way.")
    case .conversationLost: .init(502, "The CLI has no memory of the conversation.")
    case .structuredOutputMissing: .init(502, "The turn ended without output that fits `output_schema`.")
    case .turnFailed: .init(502, "The CLI reported an error that is none of the others.")
    case .cliMissing: .init(503, "There is no CLI where the server looks for it.")
    case .cliNotExecutable: .init(503, "The CLI can't be executed.")
    case .cliIncompatible: .init(503, "The CLI is of a version or kind that can't be used.")
    case .startFailed: .init(503, "No process could be started for the session.")
    case .overloaded: .init(503, "The model's API is overloaded.")
    case .modelTimeout: .init(504, "The model's API did not answer in time.")
    case .stalled: .init(504, "The CLI was silent for longer than allowed.")
    case .turnTimeout: .init(504, "The turn took longer than allowed.")
    case .postResultHang: .init(504, "The model had finished, but the CLI never said so.")
    // The server
    case .internalError: .init(500, "The server failed in a way that it has no word for.")
    case .workspaceFailed: .init(500, "The directories of the session could not be used.")
    case .storeFailed: .init(500, "The store could not be used.")
    case .noBodyFile: .init(500, "The web server in front doesn't hand uploads over as files.")
    case .responderUnavailable: .init(502, "The responder behind nginx is not running.")
    case .shuttingDown: .init(503, "The server is about to stop; what was accepted is kept.")
    case .notReady: .init(503, "The server can't do its work; `checks` say what is wrong.")
    case .storeBusy: .init(503, "The store is busy.")
    case .tooManySockets: .init(503, "As many sockets are open as the server takes.")
    case .streamsExhausted: .init(503, "The server has as many streams open as it takes.")
    case .serviceUnavailable: .init(503, "The server is busy or not ready.")
    case .responderTimeout: .init(504, "The responder did not answer in time; what it had begun may go on.")
    case .diskFull: .init(507, "The disk is full, or nearly so. Unless a turn was stopped by it, nothing was changed.")
    }
  }

  public var status: HTTPResponse.Status { .registered(definition.status) }

  /// Whether it is nobody's fault and passes: bounds that hold, a restart, a model that is busy.
  var isPassing: Bool {
    switch self {
    case .shuttingDown, .notReady, .storeBusy, .tooManySockets, .streamsExhausted, .tooManyArchives, .tooManyClones,
      .quotaExceeded, .overloaded, .modelTimeout, .turnTimeout:
      true
    default: false
    }
  }
}

extension HTTPResponse.Status {
  private static let phrases: [Int: String] = [
    400: "Bad Request", 401: "Unauthorized", 402: "Payment Required", 403: "Forbidden", 404: "Not Found",
    405: "Method Not Allowed", 408: "Request Timeout", 409: "Conflict", 410: "Gone", 411: "Length Required",
    412: "Precondition Failed", 413: "Content Too Large", 414: "URI Too Long", 415: "Unsupported Media Type",
    416: "Range Not Satisfiable", 421: "Misdirected Request", 422: "Unprocessable Content", 423: "Locked",
    426: "Upgrade Required",
    429: "Too Many Requests", 431: "Request Header Fields Too Large", 460: "Checksum Mismatch",
    499: "Client Closed Request", 500: "Internal Server Error", 501: "Not Implemented", 502: "Bad Gateway",
    503: "Service Unavailable", 504: "Gateway Timeout", 505: "HTTP Version Not Supported",
    507: "Insufficient Storage",
  ]

  /// The status with its registered reason phrase.
  static func registered(_ code: Int) -> Self {
    Self(code: code, reasonPhrase: phrases[code] ?? "")
  }
}

extension ProblemCode {
  /// That of a limit of a key which was reached.
  init(_ limit: KeyLimit) {
    self =
      switch limit {
      case .sessions: .sessionsLimit
      case .runningTurns: .runningTurnsLimit
      case .queuedTurns: .queuedTurnsLimit
      case .streams: .streamsLimit
      case .turnsPerHour: .turnsPerHourLimit
      case .tokensPerDay: .tokensPerDayLimit
      case .usdPerDay: .usdPerDayLimit
      case .usdPerMonth: .usdPerMonthLimit
      case .diskBytes: .diskBytesLimit
      }
  }
}

import HTTPTypes
import JSONSupport
import Sessions
import Workspaces

extension ProblemCode {
  /// What may be wrong with a file that is to be read.
  static let ofReading: [ProblemCode] = [
    .fileNotFound, .symbolicLink, .specialFile, .filePermissionDenied, .invalidPath, .workspaceFailed,
  ]
  /// What may be wrong with a file that is to be changed.
  static let ofWriting: [ProblemCode] =
    ofReading + [.isAFolder, .fileExists, .preconditionFailed, .invalidCondition, .quotaExceeded, .diskBytesLimit]
}

extension Parameter {
  static let ifMatch = Parameter(
    "If-Match", .string("`*` or tags: only if the file is as one of them says.", pattern: tags),
    example: "\"674105f3-4b4\"")
  static let ifNoneMatch = Parameter(
    "If-None-Match", .string("`*`: only if there is no file yet.", pattern: tags), example: "*")
  /// An empty field is none.
  private static let tags = #"^(\*|(W/)?"[!#-~]*"( ?, ?(W/)?"[!#-~]*")*)?$"#
  static let entityTag = Parameter("ETag", .string("The tag of the file, or of what is shown of the folder."))
}

extension Schema {
  static let relativePath = Schema.string("A path below the workspace.", length: 1...4095, pattern: relativePattern)
  static let anyRelativePath = Schema.string(
    "The same; empty is the whole workspace.", length: 0...4095, pattern: "^$|\(relativePattern)")
  private static let relativePattern = "^[^/\\x00.][^/\\x00]*(/[^/\\x00.][^/\\x00]*)*$"
  /// For names that are no UTF-8.
  static let base64Path = Schema.string("The same as bytes in Base64.", format: "base64")

  /// An object that has one of the two in each pair, a path as a text or its bytes.
  static func object(ofPaths pairs: [(String, String)], _ fields: [Field]) -> Schema {
    var schema = object(nil, fields, others: .nothing)
    schema.keywords["allOf"] = .array(
      pairs.map { pair in
        [
          "anyOf": [
            ["required": [.string(pair.0)], "properties": [pair.0: ["type": "string"]], "additionalProperties": true],
            ["required": [.string(pair.1)], "properties": [pair.1: ["type": "string"]], "additionalProperties": true],
          ]
        ]
      })
    return schema
  }

  static let href = Schema.string("Where to get it.")
}

extension Operation {
  private static let folderAndFile = ["/sessions/{session_id}/files", "/sessions/{session_id}/files/{path}"]

  static let listingQuery = [
    Parameter("limit", .integer("Entries of a page of a folder.", in: 1...10_000), example: 100),
    Parameter(
      "cursor", .string("`next_cursor` of the page before.", length: 1...512, pattern: "^[df]([0-9a-f]{2})*$"),
      example: "f706c616e2e6d64"),
    Parameter("format", .choice(["json", "html"], "In place of `Accept`."), example: "json"),
    Parameter("download", .boolean("A file as an attachment."), example: true),
  ]

  static let fileAnswer = Answer(
    200, "The listing of a folder, or the bytes of a file.",
    .json(.reference("DirectoryListing"), example: Examples.listing), .page,
    Content("*/*", .anything()), headers: [.entityTag])

  static let partAnswer = Answer(206, "Ranges of a file.", Content("*/*", .anything()), headers: [.entityTag])
  static let unchangedAnswer = Answer(304, "The file or folder is as the tag says.")

  static let fileOperations: [Operation] =
    folderAndFile.enumerated().map { index, path in
      Operation(
        .get, path, index == 0 ? "getWorkspace" : "getFile", .files,
        "A folder is a page for people, or JSON with `Accept: application/json`. A file is sent by the web server, "
          + "with ranges and conditions.",
        query: listingQuery, answers: [fileAnswer, partAnswer, unchangedAnswer],
        problems: ProblemCode.ofReading + [.preconditionFailed, .rangeNotSatisfiable])
    } + [
      Operation(
        .put, "/sessions/{session_id}/files/{path}", "putFile", .files,
        "The body is the file. Folders on the way are made. It is there as a whole or not at all.",
        headers: [
          .ifMatch, .ifNoneMatch,
          Parameter(
            "Content-Digest", .string("Digests (RFC 9530) that the bytes must have."),
            example: "sha-256=:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=:"),
        ],
        body: Body(contents: [Content("application/octet-stream", .anything())], isRequired: true),
        answers: [
          Answer(201, "It is new.", headers: [.entityTag, Parameter("Location", .href)]),
          Answer(204, "It took the place of another.", headers: [.entityTag]),
        ],
        problems: ProblemCode.ofWriting + [
          .invalidDigest, .digestMismatch, .contentRange, .contentEncoding, .uploadTooLarge, .noBodyFile,
        ]),
      Operation(
        .delete, "/sessions/{session_id}/files/{path}", "deleteFile", .files,
        query: [Parameter("recursive", .boolean("A folder with all that is in it."), example: true)],
        headers: [.ifMatch, .ifNoneMatch],
        answers: [Answer(204, "It is gone.")],
        problems: ProblemCode.ofWriting + [.folderNotEmpty]),
    ]
    + folderAndFile.enumerated().map { index, path in
      Operation(
        .post, path, index == 0 ? "uploadToWorkspace" : "uploadToFolder", .files,
        "Each part with a filename becomes a file of the folder.",
        body: Body(
          contents: [
            Content(
              "multipart/form-data",
              .object(
                nil, [.optional("file", .string("A file with its filename; there may be several.", format: "binary"))],
                others: .nothing))
          ], isRequired: true),
        answers: [
          Answer(
            201, "The files.",
            .json(
              .object(
                nil,
                [
                  .required(
                    "files",
                    .array(
                      .object(
                        nil,
                        [
                          .required("path", .string()), .required("href", .href), .required("size", .integer()),
                          .required("etag", .string()), .required("created", .boolean("Whether it is new.")),
                        ])))
                ]),
              example: [
                "files": [
                  [
                    "path": "notes/plan.md", "size": 1204, "etag": "\"674105f3-4b4\"", "created": true,
                    "href": .string("/sessions/\(Examples.sessionID)/files/notes/plan.md"),
                  ]
                ]
              ]))
        ],
        problems: ProblemCode.ofWriting + ProblemCode.ofForms + [
          .unsupportedMediaType, .unknownField, .uploadTooLarge, .invalidPath,
        ])
    } + [
      Operation(
        .get, "/sessions/{session_id}/archive", "downloadArchive", .files,
        query: [
          Parameter("format", .choice(ArchiveFormat.self), example: "zip"),
          Parameter("path", .string("The folder; all of the workspace without it."), example: "notes"),
        ],
        answers: [
          Answer(
            200, "The archive.", Content("application/gzip", .anything()), Content("application/zip", .anything()))
        ],
        problems: ProblemCode.ofReading + [.tooManyArchives]),
      Operation(
        .post, "/sessions/{session_id}/archive", "uploadArchive", .files,
        "The body is a tar (also gz, xz, zst) or zip archive. All of it is unpacked, or nothing.",
        query: [Parameter("path", .string("The folder; the workspace itself without it."), example: "notes")],
        body: Body(
          contents: ["application/gzip", "application/x-tar", "application/zip"].map { Content($0, .anything()) },
          isRequired: true),
        answers: [
          Answer(
            201, "It is unpacked.",
            .json(
              .object(
                nil,
                [.required("path", .string()), .required("entries", .integer()), .required("bytes", .integer())]),
              example: ["path": "notes", "entries": 12, "bytes": 48_211]))
        ],
        problems: ProblemCode.ofWriting + ProblemCode.ofArchives),
      Operation(
        .post, "/sessions/{session_id}/folders", "makeFolder", .files,
        body: .json(
          .object(
            ofPaths: [("path", "path_base64")],
            [.optional("path", .relativePath.orNull), .optional("path_base64", .base64Path.orNull)]),
          example: ["path": "notes/drafts"]),
        answers: [200, 201].map { status in
          Answer(
            status, status == 200 ? "It was there." : "It is new.",
            .json(
              .object(
                nil,
                [.required("path", .string()), .required("href", .href), .required("type", .constant("directory"))]),
              example: [
                "path": "notes/drafts", "type": "directory",
                "href": .string("/sessions/\(Examples.sessionID)/files/notes/drafts/"),
              ]))
        },
        problems: ProblemCode.ofWriting),
      Operation(
        .post, "/sessions/{session_id}/move", "moveFile", .files,
        body: .json(
          .object(
            ofPaths: [("from", "from_base64"), ("to", "to_base64")],
            [
              .optional("from", .relativePath.orNull), .optional("from_base64", .base64Path.orNull),
              .optional("to", .relativePath.orNull), .optional("to_base64", .base64Path.orNull),
              .optional("overwrite", .boolean("Whether a file that is there may go.").orNull),
            ]), example: ["from": "notes/plan.md", "to": "notes/old/plan.md"]),
        answers: [
          Answer(
            200, "Where it is now.",
            .json(
              .object(nil, [.required("path", .string()), .required("href", .href)]),
              example: [
                "path": "notes/old/plan.md",
                "href": .string("/sessions/\(Examples.sessionID)/files/notes/old/plan.md"),
              ]))
        ],
        problems: ProblemCode.ofWriting + [.intoItself, .folderNotEmpty]),
      Operation(
        .get, "/sessions/{session_id}/usage", "getWorkspaceUsage", .files,
        answers: [
          Answer(
            200, "The space that the files take, and how much they may take.",
            .json(
              .object(
                nil,
                [
                  .required("bytes", .integer()), .required("entries", .integer("Files and folders.")),
                  .required(
                    "limits",
                    .object(
                      nil,
                      [
                        .required("bytes", .integer()), .required("entries", .integer()),
                        .required("upload_bytes", .integer("Of one file that is uploaded.")),
                      ])),
                ]),
              example: [
                "bytes": 48_211, "entries": 12,
                "limits": ["bytes": 10_737_418_240, "entries": 1_000_000, "upload_bytes": 10_737_418_240],
              ]))
        ]),
    ]

  private static let tusResumable = Parameter(
    "Tus-Resumable", .constant("1.0.0", "The version of the protocol."), isRequired: true, example: "1.0.0")
  private static let uploadExpires = Parameter("Upload-Expires", .string("When it goes if nothing comes."))
  private static let answered = Parameter("Tus-Resumable", .constant("1.0.0"), isRequired: true)
  private static let ofUploads: [ProblemCode] = [
    .tusVersion, .uploadExpired, .uploadBusy, .quotaExceeded, .diskBytesLimit,
  ]

  static let uploadOperations: [Operation] = [
    Operation(
      .options, "/sessions/{session_id}/uploads", "getUploadOptions", .uploads,
      answers: [
        Answer(
          204, "In the header fields.",
          headers: [
            answered, Parameter("Tus-Version", .string()), Parameter("Tus-Max-Size", .string()),
            Parameter("Tus-Extension", .string()), Parameter("Tus-Checksum-Algorithm", .string()),
          ])
      ]),
    Operation(
      .post, "/sessions/{session_id}/uploads", "createUpload", .uploads,
      "The protocol is tus 1.0 with creation, expiration, checksum and termination; its clients work unmodified.",
      headers: [
        tusResumable,
        Parameter(
          "Upload-Length", .string("Bytes of the file.", pattern: "^[0-9]{1,9}$"), isRequired: true, example: "1204"),
        Parameter(
          "Upload-Metadata",
          .string(
            "`path` (or `filename`, in the top folder) and its value in Base64.", pattern: "^filename [A-Za-z0-9]{4}$"),
          isRequired: true, example: "filename cGxh"),
      ],
      answers: [
        Answer(
          201, "It has begun.",
          headers: [answered, Parameter("Location", .string("The upload."), isRequired: true), uploadExpires],
          tells: [
            "upload_id": #"$response.header.Location#regex:/uploads/([0-9a-f-]+)$"#
          ])
      ],
      problems: ofUploads + [.invalidUpload, .uploadTooLarge, .tooManyUploads, .invalidPath]),
    Operation(
      .head, "/sessions/{session_id}/uploads/{upload_id}", "getUpload", .uploads, headers: [tusResumable],
      answers: [
        Answer(
          200, "In the header fields.",
          headers: [
            answered, Parameter("Upload-Offset", .string("Bytes that are here."), isRequired: true),
            Parameter("Upload-Length", .string(), isRequired: true), Parameter("Upload-Metadata", .string()),
            uploadExpires,
          ])
      ],
      problems: ofUploads),
    Operation(
      .patch, "/sessions/{session_id}/uploads/{upload_id}", "continueUpload", .uploads,
      "The file is there when its last byte has come.",
      headers: [
        tusResumable,
        Parameter(
          "Upload-Offset", .string("Where the body belongs.", pattern: "^[0-9]{1,9}$"), isRequired: true, example: "0"),
        Parameter("Upload-Checksum", .string("An algorithm and the checksum of the body in Base64.")),
      ],
      body: Body(contents: [Content("application/offset+octet-stream", .anything())], isRequired: true),
      answers: [
        Answer(
          204, "How far it has come.",
          headers: [answered, Parameter("Upload-Offset", .string(), isRequired: true), uploadExpires])
      ],
      problems: ofUploads + ProblemCode.ofWriting + [
        .invalidUpload, .unsupportedMediaType, .wrongOffset, .uploadTooLong, .checksumMismatch, .invalidDigest,
        .noBodyFile,
      ]),
    Operation(
      .delete, "/sessions/{session_id}/uploads/{upload_id}", "deleteUpload", .uploads, headers: [tusResumable],
      answers: [Answer(204, "It is gone.", headers: [answered])], problems: ofUploads),
  ]

  static let shareOperations: [Operation] = [
    Operation(
      .post, "/sessions/{session_id}/files/share", "createShare", .shares,
      "A form to the same path is uploaded into a folder of that name, and other methods mean a file or folder of that "
        + "name.",
      body: .json(
        .object(
          ofPaths: [("path", "path_base64")],
          [
            .optional("path", .anyRelativePath.orNull),
            .optional("path_base64", .base64Path.orNull),
            .optional("expires_in", .integer("Seconds; a day without it.", in: 1...2_592_000).orNull),
          ]), example: ["path": "notes", "expires_in": 3600]),
      answers: [
        Answer(
          201, "The share, with its link.", .json(.reference("Share"), example: Examples.share),
          tells: [
            "share_id": "$response.body#/id", "token": #"$response.body#/href#regex:^/shared/(.+)$"#,
          ])
      ],
      problems: ProblemCode.ofReading + ProblemCode.ofForms + [.tooManyShares, .sharingDisabled]),
    Operation(
      .get, "/sessions/{session_id}/shares", "listShares", .shares,
      answers: [
        Answer(
          200, "The shares.",
          .json(
            .object(nil, [.required("shares", .array(.reference("Share")))]), example: ["shares": [Examples.share]]))
      ]),
    Operation(
      .delete, "/sessions/{session_id}/shares/{share_id}", "deleteShare", .shares,
      answers: [Answer(204, "The link leads to nothing any more.")]),
    Operation(
      .get, "/shared/{token}", "getShare", .shares, query: listingQuery,
      answers: [fileAnswer, partAnswer, unchangedAnswer],
      problems: ProblemCode.ofReading + [.preconditionFailed, .rangeNotSatisfiable, .storeFailed, .storeBusy]),
    Operation(
      .get, "/shared/{token}/{path}", "getSharedFile", .shares, query: listingQuery,
      answers: [fileAnswer, partAnswer, unchangedAnswer],
      problems: ProblemCode.ofReading + [.preconditionFailed, .rangeNotSatisfiable, .storeFailed, .storeBusy]),
  ]
}

import JSONSupport
import Sessions

/// Things that the examples of several routes show. The tests hold every example against its schema.
enum Examples {
  static let sessionID = "194c9567-7bbb-42ed-ab16-52dfb17b7006"
  static let turnID = "02701bc6-d203-4f05-af2e-06e10348751f"
  static let approvalID = "7b0f2f9e-2a43-4f0f-8f43-0e1f6f4f0c11"
  static let uploadID = "c6f1b0de-3f0e-4c77-9f6a-6f1c9d2b8a54"
  static let shareID = "5e0c3a86-91f4-4a0e-8d5f-2b7c1f9e4d30"
  static let shareToken = "Xg3vT0pQd8kq1mZrWb6u"

  static let session: JSONValue = [
    "id": .string(sessionID), "name": "Numbers", "created_at": "2026-11-22T20:57:01.988328Z",
    "last_used": "2026-11-22T20:57:02.838284Z",
    "workspace": .string("/var/lib/claude-api/workspaces/\(sessionID)"),
  ]

  static let turn: JSONValue = [
    "id": .string(turnID), "session_id": .string(sessionID), "number": 2, "state": "completed", "position": nil,
    "prompt": "Which number?", "options": [:], "metadata": [:], "result": "7341", "structured_output": nil,
    "error": nil,
    "usage": [
      "input_tokens": 12, "output_tokens": 4, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 9210,
    ],
    "cost_usd": 0.0031, "model_turns": 1, "created_at": "2026-11-22T20:57:03.051123Z",
    "started_at": "2026-11-22T20:57:03.052034Z", "finished_at": "2026-11-22T20:57:03.926558Z", "duration_ms": 874,
  ]

  static let queuedTurn: JSONValue = [
    "id": .string(turnID), "session_id": .string(sessionID), "number": 3, "state": "queued", "position": 1,
    "prompt": "And now?", "options": [:], "metadata": [:], "result": nil, "structured_output": nil, "error": nil,
    "usage": nil, "cost_usd": nil, "model_turns": nil, "created_at": "2026-11-22T20:57:03.051123Z",
    "started_at": nil, "finished_at": nil, "duration_ms": nil,
  ]

  static let approval: JSONValue = [
    "id": .string(approvalID), "session_id": .string(sessionID), "turn_id": .string(turnID), "state": "pending",
    "tool_name": "Bash", "tool_use_id": "toolu_01", "input": ["command": "make test"],
    "created_at": "2026-11-22T20:57:03.051123Z", "expires_at": "2026-11-22T21:07:03.051123Z", "resolved_at": nil,
    "message": nil, "updated_input": nil, "remember": false,
  ]

  static let event: JSONValue = [
    "id": "evt_000000000017", "sequence": 17, "type": "agent.message", "session_id": .string(sessionID),
    "turn_id": .string(turnID), "processed_at": "2026-11-22T20:57:03.901000Z",
    "content": [["type": "text", "text": "7341"]], "message_id": "msg_01",
  ]

  static let listing: JSONValue = [
    "path": "notes", "type": "directory", "count": 2,
    "entries": [
      [
        "name": "drafts", "type": "directory", "size": nil, "modified": "2026-11-22T20:57:03.000000Z",
        "href": .string("/sessions/\(sessionID)/files/notes/drafts/"),
      ],
      [
        "name": "plan.md", "type": "file", "size": 1204, "modified": "2026-11-22T20:58:11.000000Z",
        "href": .string("/sessions/\(sessionID)/files/notes/plan.md"), "etag": "\"674105f3-4b4\"",
      ],
    ],
    "next_cursor": nil,
  ]

  static let keyUsage: JSONValue = [
    "key": "3f9a1c0b7d2e4f68", "name": "laptop", "role": "user", "network": nil,
    "at": "2026-11-22T20:57:03.051123Z",
    "limits": .object(
      Dictionary(
        uniqueKeysWithValues: KeyLimit.allCases.map { limit in
          let amounts: JSONValue = ["maximum": nil, "used": 0, "left": nil]
          return (limit.identifier, amounts)
        })),
  ]

  static let share: JSONValue = [
    "id": .string(shareID), "path": "notes", "created_at": "2026-11-22T20:57:03.000000Z",
    "expires_at": "2026-11-23T20:57:03.000000Z", "href": .string("/shared/\(shareToken)"),
  ]
}

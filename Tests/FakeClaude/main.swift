// A double of the Claude Code CLI: it speaks its protocol, answers at once, remembers the conversation in a
// file where the real one does, and misbehaves when told to. `FAKE_CLAUDE_START` tells it how to fail at its
// start, `FAKE_CLAUDE_VERSION` what to answer to --version; a prompt that begins with `fake:` how to behave in
// a turn (see `perform`).

import Glibc
import JSONSupport

func variable(_ name: String) -> String? {
  getenv(name).map { String(cString: $0) }
}

func emit(text: String, to descriptor: CInt = 1) {
  var text = text
  text.withUTF8 { bytes in
    var rest = UnsafeRawBufferPointer(bytes)
    while !rest.isEmpty {
      let count = write(descriptor, rest.baseAddress, rest.count)
      guard count > 0 else { exit(1) }
      rest = UnsafeRawBufferPointer(rebasing: rest[count...])
    }
  }
}

func emit(_ message: JSONValue) {
  emit(text: message.description + "\n")
}

func fail(_ code: Int32, _ text: String) -> Never {
  emit(text: text + "\n", to: 2)
  exit(code)
}

func sleepForever() -> Never {
  while true { pause() }
}

// MARK: the command line

func flag(_ name: String) -> String? {
  let prefix = "--\(name)="
  return CommandLine.arguments.first { $0.hasPrefix(prefix) }.map { String($0.dropFirst(prefix.count)) }
}

if CommandLine.arguments.contains("--version") {
  emit(text: (variable("FAKE_CLAUDE_VERSION") ?? "2.1.330 (Claude Code)") + "\n")
  exit(0)
}

let fault = (variable("FAKE_CLAUDE_START") ?? "").split(separator: " ", maxSplits: 2).map(String.init)
switch fault.first {
case "exit": fail(Int32(fault[1]) ?? 1, fault.count > 2 ? fault[2] : "")
case "kill": kill(getpid(), SIGKILL)
case "garbage":
  emit(text: "Welcome to something else!\n\u{1B}[31mred\u{1B}[0m\n[1,2\n")
  sleepForever()
case "half":
  emit(text: #"{"type":"system","subtype":"in"#)
  sleepForever()
case "silence": sleepForever()
default: break
}

let config = variable("CLAUDE_CONFIG_DIR") ?? "/nonexistent"
let project = config + "/projects/-workspace"
var sessionID = flag("session-id") ?? flag("resume") ?? ""
var model = flag("model") ?? "fake-model"
var permissionMode = flag("permission-mode") ?? "default"

// MARK: the transcript

func transcript(of id: String) -> String { "\(project)/\(id).jsonl" }

func readTranscript() -> [String] {
  guard let file = fopen(transcript(of: sessionID), "r") else { return [] }
  defer { fclose(file) }
  var prompts: [String] = []
  var line: UnsafeMutablePointer<CChar>?
  var capacity = 0
  while getline(&line, &capacity, file) > 0 {
    guard let line, let value = try? JSONValue(parsing: String(cString: line)) else { continue }
    if value["type"] == "user", let text = value["text"]?.stringValue { prompts.append(text) }
  }
  free(line)
  return prompts
}

func appendToTranscript(_ prompt: String) {
  mkdir(config + "/projects", 0o700)
  mkdir(project, 0o700)
  guard let file = fopen(transcript(of: sessionID), "a") else { fail(1, "can't write the transcript") }
  fputs(JSONValue.object(["type": "user", "text": .string(prompt)]).description + "\n", file)
  fclose(file)
}

if flag("session-id") != nil, access(transcript(of: sessionID), F_OK) == 0 {
  fail(1, "Error: Session ID \(sessionID) is already in use.")
}
if flag("resume") != nil, readTranscript().isEmpty {
  emit([
    "type": "result", "subtype": "error_during_execution", "is_error": true, "num_turns": 0,
    "errors": ["No conversation found with session ID: \(sessionID)"], "total_cost_usd": 0,
  ])
  exit(1)
}
if CommandLine.arguments.contains("--continue"), let directory = opendir(project) {
  while let entry = readdir(directory) {
    let name = withUnsafePointer(to: &entry.pointee.d_name) {
      $0.withMemoryRebound(to: CChar.self, capacity: 256) { String(cString: $0) }
    }
    if name.hasSuffix(".jsonl") { sessionID = String(name.dropLast(6)) }
  }
  closedir(directory)
}
var prompts = readTranscript()
var totalCost = 0.0

// MARK: the protocol

func readMessage() -> JSONValue? {
  guard let line = readLine() else { return nil }
  guard let value = try? JSONValue(parsing: line) else { fail(1, "Error parsing streaming input line") }
  return value
}

func respond(to request: JSONValue, error: String? = nil, _ response: JSONValue = [:]) {
  var body: [String: JSONValue] = ["request_id": request["request_id"] ?? nil]
  body["subtype"] = error == nil ? "success" : "error"
  if let error { body["error"] = .string(error) } else { body["response"] = response }
  emit(["type": "control_response", "response": .object(body)])
}

/// - Returns: whether it was an interrupt.
func handleControl(_ message: JSONValue) -> Bool {
  switch message["request"]?["subtype"]?.stringValue {
  case "initialize": respond(to: message)
  case "interrupt":
    respond(to: message)
    return true
  case "set_model":
    model = message["request"]?["model"]?.stringValue ?? "fake-model"
    respond(to: message, ["model": .string(model)])
  case "set_permission_mode":
    permissionMode = message["request"]?["mode"]?.stringValue ?? permissionMode
    respond(to: message, ["mode": .string(permissionMode)])
  default: respond(to: message, error: "Unsupported control request")
  }
  return false
}

func say(_ text: String) {
  emit([
    "type": "assistant", "session_id": .string(sessionID),
    "message": [
      "role": "assistant", "model": .string(model), "content": [["type": "text", "text": .string(text)]],
    ],
  ])
}

func finish(_ text: String, _ changes: [String: JSONValue] = [:]) {
  totalCost += 0.25
  var result: [String: JSONValue] = [
    "type": "result", "subtype": "success", "is_error": false, "num_turns": 1, "result": .string(text),
    "session_id": .string(sessionID), "total_cost_usd": .double(totalCost), "stop_reason": "end_turn",
    "terminal_reason": "completed", "usage": ["input_tokens": 10, "output_tokens": 5],
    "model_usage_since_last_result": [model: ["costUSD": 0.25]],
  ]
  result.merge(changes) { _, new in new }
  emit(.object(result))
}

func abort() {
  emit(["type": "user", "message": ["role": "user", "content": "[Request interrupted by user]"]])
  finish(
    "",
    [
      "is_error": true, "subtype": "error_during_execution", "terminal_reason": "aborted_streaming",
      "errors": ["[ede_diagnostic]"],
    ])
}

func spawnStray() -> pid_t {
  var pid = pid_t()
  var arguments: [UnsafeMutablePointer<CChar>?] = [strdup("setsid"), strdup("sleep"), strdup("600"), nil]
  var attributes = posix_spawnattr_t()
  posix_spawnattr_init(&attributes)
  let error = posix_spawn(&pid, "/usr/bin/setsid", nil, &attributes, &arguments, environ)
  return error == 0 ? pid : -1
}

/// Waits for messages; for ever, or until an interrupt if that is obeyed.
func hang(untilInterrupt: Bool) {
  while let message = readMessage() {
    if handleControl(message), untilInterrupt { return abort() }
  }
  if !untilInterrupt { sleepForever() }
  exit(0)
}

/// What the server's rehearsal wants to see: a tool call, the question for permission, its result.
func callTool(_ prompt: String) {
  let input = (try? JSONValue(parsing: prompt.dropFirst("[[tool Bash ".count).dropLast(2).utf8)) ?? [:]
  emit(["type": "stream_event", "event": ["type": "message_start", "message": ["id": "m1"]]])
  emit([
    "type": "assistant", "session_id": .string(sessionID),
    "message": [
      "role": "assistant", "model": .string(model),
      "content": [["type": "tool_use", "id": "t1", "name": "Bash", "input": input]],
    ],
  ])
  var text = "denied"
  if flag("permission-prompt-tool") != nil {
    emit([
      "type": "control_request", "request_id": "ask-1",
      "request": ["subtype": "can_use_tool", "tool_name": "Bash", "input": input, "tool_use_id": "t1"],
    ])
    while let message = readMessage() {
      if message["type"] == "control_response" {
        text = input["command"]?.stringValue ?? ""
        break
      }
      if handleControl(message) { return abort() }
    }
  }
  emit([
    "type": "user",
    "message": ["role": "user", "content": [["type": "tool_result", "tool_use_id": "t1", "content": .string(text)]]],
  ])
  finish(text)
}

func perform(_ prompt: String) {
  let words = prompt.dropFirst(5).split(separator: " ").map(String.init)
  let number = words.count > 1 ? Int(words[1]) ?? 0 : 0
  switch words.first {
  case "exit": fail(Int32(number), words.dropFirst(2).joined(separator: " "))
  case "kill": kill(getpid(), SIGKILL)
  case "garbage":
    emit(text: "this is no JSON\n\u{FFFD}\n{\"half\":\n\n")
    finish("after garbage")
  case "unknown":
    emit(["type": "from_the_future", "value": 1])
    finish("after the unknown")
  case "raw":
    // What a tool could write into the output of the CLI: the rest of the prompt, line by line.
    emit(text: prompt.dropFirst("fake:raw ".count) + "\n")
    finish("after the raw lines")
  case "half":
    emit(text: #"{"type":"assist"#)
    hang(untilInterrupt: false)
  case "hang": hang(untilInterrupt: true)
  case "partial":
    say("so far")
    emit([
      "type": "stream_event",
      "event": ["type": "content_block_delta", "delta": ["type": "text_delta", "text": "and a bit"]],
    ])
    hang(untilInterrupt: true)
  case "stubborn":
    signal(SIGTERM, SIG_IGN)
    signal(SIGINT, SIG_IGN)
    say("I will not stop")
    hang(untilInterrupt: false)
  case "stray":
    finish("\(spawnStray())")
  case "tool":
    // A tool that goes on although it was told to end.
    say("\(spawnStray())")
    hang(untilInterrupt: true)
  case "huge":
    emit(text: String(repeating: "x", count: number))
    emit(text: "\n")
    finish("after a huge line")
  case "unread":
    for index in 0..<number {
      emit(["type": "control_request", "request_id": .string("\(index)"), "request": ["subtype": "unknown"]])
    }
    sleepForever()
  case "say": finish(String(repeating: "y", count: number))
  case "speak":
    let size = words.count > 2 ? Int(words[2]) ?? 0 : 0
    for _ in 0..<number { say(String(repeating: "z", count: size)) }
    finish("spoken")
  case "count":
    for number in 1...max(1, number) {
      say("\(number)")
      usleep(2000)
    }
    finish("counted")
  case "delay":
    usleep(UInt32(number) * 1000)
    finish("after \(number) ms")
  case "noresult":
    say("all done")
    emit(["type": "stream_event", "event": ["type": "message_delta", "delta": ["stop_reason": "end_turn"]]])
    hang(untilInterrupt: false)
  case "ask":
    let request: JSONValue = [
      "type": "control_request", "request_id": "ask-1",
      "request": [
        "subtype": "can_use_tool", "tool_name": "Bash", "input": ["command": "rm x"], "tool_use_id": "t1",
      ],
    ]
    emit(request)
    while let message = readMessage() {
      if message["type"] == "control_response" {
        return finish(message["response"]?["response"]?.description ?? "")
      }
      if handleControl(message) {
        emit(["type": "control_cancel_request", "request_id": "ask-1"])
        return abort()
      }
    }
    exit(0)
  case "asks":
    // Several questions at once; the answer tells what was decided, in the order of the questions.
    for index in 1...max(1, number) {
      emit([
        "type": "control_request", "request_id": .string("ask-\(index)"),
        "request": [
          "subtype": "can_use_tool", "tool_name": "Bash", "input": ["command": .string("command \(index)")],
          "tool_use_id": .string("tool-\(index)"),
          "permission_suggestions": [
            [
              "type": "addRules", "behavior": "allow", "destination": "localSettings",
              "rules": [["toolName": "Bash", "ruleContent": .string("command \(index)")]],
            ]
          ],
        ],
      ])
    }
    var behaviors: [String: String] = [:]
    while behaviors.count < max(1, number), let message = readMessage() {
      if message["type"] == "control_response" {
        let id = message["response"]?["request_id"]?.stringValue ?? ""
        behaviors[id] = message["response"]?["response"]?["behavior"]?.stringValue
      } else if handleControl(message) {
        return abort()
      }
    }
    finish(behaviors.sorted { $0.key < $1.key }.map { "\($0.key)=\($0.value)" }.joined(separator: " "))
  case "error":
    finish(
      "API Error: \(number) scripted",
      ["is_error": true, "api_error_status": .int(Int64(number)), "terminal_reason": "api_error"])
  case "retry":
    emit([
      "type": "system", "subtype": "api_retry", "attempt": 1, "error_status": 429, "retry_delay_ms": 2300,
    ])
    finish(
      "API Error: 429", ["is_error": true, "api_error_status": 429, "terminal_reason": "api_error"])
  case "limited":
    emit([
      "type": "rate_limit_event", "session_id": .string(sessionID),
      "rate_limit_info": ["status": "rejected", "resetsAt": .int(Int64(time(nil) + number))],
    ])
    finish(
      "API Error: 429", ["is_error": true, "api_error_status": 429, "terminal_reason": "api_error"])
  case "chatter":
    while true {
      say("and on")
      usleep(50_000)
    }
  case "forbidden":
    finish(
      "",
      [
        "is_error": true, "subtype": "error_during_execution", "terminal_reason": "aborted_tools",
        "stopped_by_permission_check": true, "errors": ["[ede_diagnostic]"],
        "permission_denials": [["tool_name": "Bash", "tool_use_id": "t1", "tool_input": ["command": "rm x"]]],
      ])
  case "login":
    finish("Not logged in · Please run /login", ["is_error": true, "terminal_reason": "api_error"])
  case "subtype": finish("", ["is_error": true, "subtype": .string(words[1]), "errors": ["scripted"]])
  case "structured": finish("{}", ["structured_output": ["a": 1]])
  case "own":
    finish("of my own accord", ["origin": ["kind": "task-notification"]])
    finish("what was asked for")
  case "later":
    finish("now")
    finish("later", ["origin": ["kind": "task-notification"]])
  case "restless":
    finish("now")
    while true {
      say("and on")
      usleep(20_000)
    }
  case "forget":
    unlink(transcript(of: sessionID))
    finish("forgotten")
  case "rename":
    rename(transcript(of: sessionID), transcript(of: "00000000-0000-4000-8000-000000000000"))
    finish("renamed")
  case "empty":
    truncate(transcript(of: sessionID), 0)
    finish("emptied")
  case "settings":
    finish("\(model) \(permissionMode) \(getpid())")
  case "arguments": finish(JSONValue.array(CommandLine.arguments.map { .string($0) }).description)
  case "environment":
    var entries: [JSONValue] = []
    var pointer = environ
    while let entry = pointer.pointee {
      entries.append(.string(String(cString: entry)))
      pointer += 1
    }
    finish(JSONValue.array(entries).description)
  default: finish("unknown directive")
  }
}

while let message = readMessage() {
  switch message["type"]?.stringValue {
  case "control_request": _ = handleControl(message)
  case "user":
    guard let prompt = message["message"]?["content"]?.stringValue else { fail(1, "no prompt") }
    prompts.append(prompt)
    appendToTranscript(prompt)
    emit([
      "type": "system", "subtype": "init", "session_id": .string(sessionID), "model": .string(model),
      "permissionMode": .string(permissionMode), "claude_code_version": "2.1.330",
    ])
    if prompt.hasPrefix("fake:") {
      perform(prompt)
    } else if prompt.hasPrefix("[[tool Bash ") {
      callTool(prompt)
    } else {
      let text = "\(prompts.count): " + prompts.joined(separator: " | ")
      say(text)
      finish(text, flag("json-schema") == nil ? [:] : ["structured_output": [:]])
    }
  default: break
  }
}

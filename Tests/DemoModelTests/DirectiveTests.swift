import JSONSupport
import Testing

@testable import DemoModel

@Suite struct DirectiveTests {
  @Test func parsesEveryDirective() throws {
    let prompt = """
      Do it. [[tool Bash {"command":"echo ]] [[x]] \\"{\\""}]] [[tool Read]] [[say Hello, you]]
      [[thinking]] [[chunks 5 delay 100ms]] [[delay 2s]] [[error 429 retry-after 3]] [[error 529 times 2]]
      [[hang]] [[stall times 1]] [[cut]] [[usage in 100 out 50]] [[json {"a":[1,[2]]}]] [[then]]
      """
    #expect(
      try Directive.parse(prompt) == [
        .tool(name: "Bash", input: ["command": "echo ]] [[x]] \"{\""]), .tool(name: "Read", input: [:]),
        .say("Hello, you"), .thinking("Let me think about that."),
        .chunks(count: 5, delay: .milliseconds(100)), .delay(.seconds(2)),
        .error(ErrorDirective(status: 429, retryAfter: 3, times: nil)),
        .error(ErrorDirective(status: 529, retryAfter: nil, times: 2)), .hang(times: nil), .stall(times: 1),
        .cut(times: nil), .usage(input: 100, output: 50), .json(["a": [1, [2]]]), .then,
      ])
  }

  @Test(arguments: [
    "[[1,2],[3,4]]", "a [[link]] b", "[[", "]] [[", "[[[[", "toolbox [[toolbox x]]", "[ [say x]]",
  ])
  func leavesOrdinaryTextAlone(prompt: String) throws {
    #expect(try Directive.parse(prompt) == [])
  }

  @Test(arguments: [
    "[[tool]]", "[[tool Bash {]]", "[[tool Bash {\"a\":}]]", "[[error]]", "[[error 200]]", "[[error x]]",
    "[[error 429 retry-after]]", "[[error 429 maybe]]", "[[chunks]]", "[[chunks 0]]",
    "[[chunks 2 delay soon]]",
    "[[delay]]", "[[delay 5]]", "[[hang on]]", "[[cut times many]]", "[[usage 5]]", "[[json nope]]",
    "[[say hi",
  ])
  func refusesNonsense(prompt: String) {
    #expect(throws: DirectiveError.self) { try Directive.parse(prompt) }
  }

  @Test func splitsStepsAtThen() throws {
    let script = try Script(prompt: "[[tool A]] [[tool B]] [[then]] [[tool C]] [[then]] [[say done]]")
    #expect(script.step(after: 0).toolCalls.map(\.name) == ["A", "B"])
    #expect(script.step(after: 1).toolCalls.map(\.name) == ["C"])
    #expect(script.step(after: 2).say == "done")
    #expect(script.step(after: 3) == Step())
  }

  @Test func splitsTextEvenly() {
    #expect(EventStreamEncoder.pieces(of: "abcdefg", count: 3) == ["ab", "cd", "efg"])
    #expect(EventStreamEncoder.pieces(of: "ab", count: 5) == ["a", "b"])
    #expect(EventStreamEncoder.pieces(of: "", count: 5) == [""])
  }
}

@Suite struct MessagesRequestTests {
  private func request(_ messages: [JSONValue]) throws -> MessagesRequest {
    try MessagesRequest(["model": "m", "messages": .array(messages)])
  }

  @Test func ignoresWhatTheCLIAdds() throws {
    let request = try request([
      [
        "role": "user",
        "content": [
          ["type": "text", "text": "<system-reminder>\n[[hang]]\n</system-reminder>\n"],
          ["type": "text", "text": "one"],
        ],
      ],
      ["role": "system", "content": [["type": "text", "text": "environment"]]],
      ["role": "assistant", "content": [["type": "text", "text": "1"]]],
      ["role": "user", "content": [["type": "text", "text": "[Request interrupted by user]"]]],
      ["role": "user", "content": "two <system-reminder>x</system-reminder>"],
    ])
    #expect(request.prompts == ["one", "two"])
    #expect(request.answersInTurn == 0)
  }

  @Test func countsTheAnswersOfTheTurn() throws {
    let request = try request([
      ["role": "user", "content": "go"],
      ["role": "assistant", "content": [["type": "tool_use", "id": "a", "name": "A", "input": [:]]]],
      [
        "role": "user",
        "content": [
          ["type": "tool_result", "tool_use_id": "a", "content": "out"],
          ["type": "tool_result", "tool_use_id": "b", "content": [["type": "text", "text": "put"]]],
          ["type": "text", "text": "<system-reminder>x</system-reminder>"],
        ],
      ],
    ])
    #expect(request.prompts == ["go"])
    #expect(request.answersInTurn == 1)
    #expect(request.toolResultsInTurn == ["out", "put"])
    let reply = Reply(to: request, step: Step(), serial: 1)
    #expect(reply.message["content"]?[0]?["text"]?.stringValue == "The tool said:\nout\nput")
  }

  @Test(arguments: [
    "[]", "{}", #"{"model":"m"}"#, #"{"model":"m","messages":[]}"#,
    #"{"model":"m","messages":[{"role":"x"}]}"#,
  ])
  func refusesNonsense(body: String) throws {
    let value = try JSONValue(parsing: body)
    #expect(throws: RequestError.self) { try MessagesRequest(value) }
  }
}

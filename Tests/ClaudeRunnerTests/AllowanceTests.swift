import Foundation
import JSONSupport
import Testing

@testable import ClaudeRunner

/// What a turn may spend, as the CLI is told it. Each turn of the fake CLI costs 25 cents.
@Suite struct AllowanceTests {
  private struct Outcome {
    let budget: String?
    let isNewProcess: Bool
  }

  private func run(
    _ fixture: Fixture, _ session: ClaudeSession, allowance: Double?, limit: Double? = nil
  ) async throws -> Outcome {
    var options = ClaudeOptions()
    options.maxBudgetUSD = limit
    let result = try await fixture.runner.run(
      ClaudeTurn(session: session, options: options, prompt: "fake:arguments", allowanceUSD: allowance))
    let arguments = try JSONValue(parsing: result.text.utf8).arrayValue?.compactMap(\.stringValue) ?? []
    let budget = arguments.first { $0.hasPrefix("--max-budget-usd=") }?.split(separator: "=").last
    return Outcome(budget: budget.map(String.init), isNewProcess: result.startedProcess)
  }

  @Test func aProcessServesAsLongAsItsBoundFits() async throws {
    let fixture = try Fixture()
    let session = try fixture.session()
    var outcome = try await run(fixture, session, allowance: 2)
    #expect(outcome.budget == "2.0" && outcome.isNewProcess)
    // 1.75 are left of it.
    outcome = try await run(fixture, session, allowance: 1.75)
    #expect(outcome.budget == "2.0" && !outcome.isNewProcess)
    outcome = try await run(fixture, session, allowance: 2.9)
    #expect(outcome.budget == "2.0" && !outcome.isNewProcess)
    // 1.25 are left of it, which is less than half of that.
    outcome = try await run(fixture, session, allowance: 2.6)
    #expect(outcome.isNewProcess && outcome.budget == "2.6")
    // It must not spend more than that.
    outcome = try await run(fixture, session, allowance: 1)
    #expect(outcome.isNewProcess && outcome.budget == "1.0")
    outcome = try await run(fixture, session, allowance: nil)
    #expect(outcome.isNewProcess && outcome.budget == nil)
    outcome = try await run(fixture, session, allowance: nil)
    #expect(!outcome.isNewProcess)
    #expect(try await fixture.end() == [])
  }

  @Test func theTighterBoundHolds() async throws {
    let fixture = try Fixture()
    let session = try fixture.session()
    var outcome = try await run(fixture, session, allowance: 5, limit: 0.8)
    #expect(outcome.budget == "0.8")
    outcome = try await run(fixture, session, allowance: 4.75, limit: 0.8)
    #expect(outcome.budget == "0.8" && !outcome.isNewProcess)
    outcome = try await run(fixture, session, allowance: 0.1, limit: 0.8)
    #expect(outcome.budget == "0.1" && outcome.isNewProcess)
    #expect(try await fixture.end() == [])
  }

  @Test func whatTheConversationHasCostIsAdded() async throws {
    let fixture = try Fixture()
    let session = try fixture.session()
    _ = try await run(fixture, session, allowance: nil)
    await fixture.runner.stop(session: session.id)
    let transcript = session.configDirectory + "/projects/-workspace/\(session.id).jsonl"
    let file = try #require(FileHandle(forWritingAtPath: transcript))
    try file.seekToEnd()
    try file.write(
      contentsOf: Data(
        """
        {"type":"cost-state","sessionId":"x","totalCostUSD":7}
        {"type":"cost-state","sessionId":"x","totalCostUSD":0.5}
        {"type":"user","text":"{\\"type\\":\\"cost-state\\",\\"totalCostUSD\\":9}"}

        """.utf8))
    try file.close()
    #expect(try await run(fixture, session, allowance: 1).budget == "1.5")
    #expect(try await fixture.end() == [])
  }
}

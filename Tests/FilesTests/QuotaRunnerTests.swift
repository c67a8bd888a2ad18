import Foundation
import JSONSupport
import Sessions
import Synchronization
import TestSupport
import Testing
import Workspaces

/// Fills the workspace and goes on until it is interrupted.
private final class GreedyRunner: TurnRunner {
  private let stream: AsyncStream<Void>
  private let end: AsyncStream<Void>.Continuation

  init() { (stream, end) = AsyncStream.makeStream() }

  func run(
    _ request: TurnRequest, onMessage: @escaping @Sendable (JSONValue) async -> Void
  ) async throws(TurnRunFailure) -> TurnResult {
    if request.turn.prompt == "fill" {
      let isMade = FileManager.default.createFile(
        atPath: request.session.workspace + "/filled", contents: Data(repeating: 1, count: 2_000_000))
      #expect(isMade)
    } else {
      return TurnResult(text: "done")
    }
    for await _ in stream {}
    throw TurnRunFailure(
      TurnFailure(code: "interrupted", detail: "Interrupted."), isInterruption: true, partialText: "so far")
  }

  func interrupt(_ sessionID: UUID) async { end.finish() }
  func answerPermission(_ requestID: String, of sessionID: UUID, _ answer: PermissionAnswer) async -> Bool { false }
  func stop(_ sessionID: UUID) async { end.finish() }
}

@Suite struct QuotaRunnerTests {
  @Test func aTurnThatFillsTheDiskIsStopped() async throws {
    try await withTemporaryDirectory { directory in
      var limits = WorkspaceLimits()
      limits.bytes = 1_000_000
      let workspaces = try Workspaces(root: directory + "/w", configurationRoot: directory + "/c", limits: limits)
      let runner = QuotaRunner(GreedyRunner(), workspaces: workspaces, interval: .milliseconds(20))
      let session = Session(id: UUID(), name: "x", createdAt: .now(), workspace: "")
      try await workspaces.create(session.id)
      let real = Session(
        id: session.id, name: "x", createdAt: .now(), workspace: workspaces.workspacePath(of: session.id))
      func request(_ prompt: String) -> TurnRequest {
        TurnRequest(
          session: real,
          turn: Turn(
            id: UUID(), sessionID: real.id, number: 1, prompt: prompt, state: .running, createdAt: .now()),
          configurationDirectory: "")
      }
      let result = try await runner.run(request("talk")) { _ in }
      #expect(result.text == "done")
      let failure = try await #require(throws: TurnRunFailure.self) {
        _ = try await runner.run(request("fill")) { _ in }
      }
      #expect(failure.failure.code == "quota_exceeded")
      #expect(failure.partialText == "so far" && !failure.isInterruption)
    }
  }
}

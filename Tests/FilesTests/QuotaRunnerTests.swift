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
    guard request.turn.prompt != "talk" else { return TurnResult(text: "done") }
    let place = request.turn.prompt == "workspace" ? request.session.workspace : request.configurationDirectory
    let isMade = FileManager.default.createFile(
      atPath: place + "/filled", contents: Data(repeating: 1, count: 2_000_000))
    #expect(isMade)
    for await _ in stream {}
    throw TurnRunFailure(
      TurnFailure(code: "interrupted", detail: "Interrupted."), isInterruption: true, partialText: "so far")
  }

  func interrupt(_ sessionID: UUID) async { end.finish() }
  func answerPermission(_ requestID: String, of sessionID: UUID, _ answer: PermissionAnswer) async -> Bool { false }
  func stop(_ sessionID: UUID) async { end.finish() }
}

@Suite struct QuotaRunnerTests {
  @Test(arguments: ["workspace", "home directory"])
  func aTurnThatFillsTheDiskIsStopped(_ place: String) async throws {
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
          configurationDirectory: workspaces.configurationPath(of: session.id))
      }
      let result = try await runner.run(request("talk")) { _ in }
      #expect(result.text == "done")
      let failure = try await #require(throws: TurnRunFailure.self) {
        _ = try await runner.run(request(place)) { _ in }
      }
      #expect(failure.failure.code == "quota_exceeded" && failure.failure.status == 507)
      #expect(failure.failure.detail.contains(place))
      #expect(failure.partialText == "so far" && !failure.isInterruption)
    }
  }
}

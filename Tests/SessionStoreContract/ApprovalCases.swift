internal import Foundation
internal import Sessions
internal import Testing

let approvalCases: [ContractCase] = [
  ContractCase("an approval is kept and decided once", anApprovalIsKeptAndDecidedOnce),
  ContractCase("only a running turn of the same session can ask", onlyARunningTurnOfTheSameSessionCanAsk),
  ContractCase(
    "the end of a turn makes its pending approvals void", theEndOfATurnMakesItsPendingApprovalsVoid),
]

@Sendable private func anApprovalIsKeptAndDecidedOnce(_ store: any SessionStore) async throws {
  let session = try await store.addSession()
  let turn = try await store.addRunningTurn(session)
  let approvals = [makeApproval(turn), makeApproval(turn), makeApproval(turn)]
  for approval in approvals {
    #expect(try await store.addApproval(approval, events: makeEvents("ask")).count == 1)
  }
  #expect(try await store.approval(approvals[1].id) == approvals[1])
  #expect(try await store.approvals(of: session.id, after: nil, limit: 100, states: nil).items == approvals)
  await expect(.alreadyExists("Approval \(approvals[0].id.lowercaseString)")) {
    try await store.addApproval(approvals[0], events: makeEvents("ask"))
  }

  let allow = ApprovalDecision(
    state: .allowed, resolvedAt: time(7), message: "ok \u{0}", updatedInput: #"{"command":"pwd"}"#,
    remember: true)
  var expected = approvals[1]
  expected.state = .allowed
  expected.resolvedAt = time(7)
  expected.message = "ok \u{0}"
  expected.updatedInput = #"{"command":"pwd"}"#
  expected.remember = true
  let resolution = try await store.resolveApproval(approvals[1].id, allow, events: makeEvents("yes"))
  guard case .resolved(expected, let events) = resolution else { throw Unexpected("\(resolution)") }
  #expect(events.map(\.sequence) == [4])
  let late = try await store.resolveApproval(
    approvals[1].id, ApprovalDecision(state: .denied, resolvedAt: time(8)), events: makeEvents("no"))
  #expect(late == .alreadyResolved(expected))
  #expect(try await store.approval(approvals[1].id) == expected)
  #expect(try await store.lastSequence(of: session.id) == 4)
  let pending = try await store.approvals(of: session.id, after: nil, limit: 100, states: [.pending]).items
  #expect(pending == [approvals[0], approvals[2]])
  #expect(
    try await store.approvals(of: session.id, after: nil, limit: 100, states: [.allowed, .denied]).items == [expected])
}

@Sendable private func onlyARunningTurnOfTheSameSessionCanAsk(_ store: any SessionStore) async throws {
  let session = try await store.addSession()
  let other = try await store.addSession()
  let turn = try await store.addTurn(session)
  await expect(.conflict(.turnState(.queued))) {
    try await store.addApproval(makeApproval(turn), events: makeEvents("a"))
  }
  let unknown = UUID()
  let nobody = Turn(
    id: unknown, sessionID: session.id, number: 9, prompt: "", state: .running, createdAt: time(0))
  await expect(.turnNotFound(unknown)) { try await store.addApproval(makeApproval(nobody), events: []) }
  let elsewhere = Turn(
    id: turn.id, sessionID: other.id, number: 1, prompt: "", state: .running, createdAt: time(0))
  await expect(.turnNotFound(turn.id)) { try await store.addApproval(makeApproval(elsewhere), events: []) }
  #expect(try await store.log(session).isEmpty)
}

@Sendable private func theEndOfATurnMakesItsPendingApprovalsVoid(_ store: any SessionStore) async throws {
  let session = try await store.addSession()
  let turn = try await store.addRunningTurn(session)
  let approvals = [makeApproval(turn), makeApproval(turn)]
  for approval in approvals { _ = try await store.addApproval(approval, events: []) }
  _ = try await store.resolveApproval(
    approvals[0].id, ApprovalDecision(state: .denied, resolvedAt: time(6)), events: [])
  let change = try await store.finishTurn(turn.id, TurnOutcome(state: .interrupted, finishedAt: time(9)))
  var expected = approvals[1]
  expected.state = .void
  expected.resolvedAt = time(9)
  #expect(change.voidedApprovals == [expected])
  #expect(try await store.approval(approvals[1].id) == expected)
  #expect(try await store.approval(approvals[0].id).state == .denied)
}

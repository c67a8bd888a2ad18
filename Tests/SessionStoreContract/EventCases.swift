internal import Foundation
internal import Sessions
internal import Testing

let eventCases: [ContractCase] = [
  ContractCase(
    "events are numbered from 1 without a gap, each session for itself",
    eventsAreNumberedFrom1WithoutAGapEachSessionForItself),
  ContractCase(
    "events are read after a number, up to a limit, by type", eventsAreReadAfterANumberUpToALimitByType),
  ContractCase("a payload of a megabyte comes back", aPayloadOfAMegabyteComesBack),
  ContractCase("a page ends with its limit, or with a megabyte", aPageEndsWithItsLimitOrWithAMegabyte),
]

@Sendable private func eventsAreNumberedFrom1WithoutAGapEachSessionForItself(_ store: any SessionStore)
  async throws
{
  let sessions = [try await store.addSession(), try await store.addSession()]
  #expect(try await store.lastSequence(of: sessions[0].id) == 0)
  let turn = UUID()
  let first = try await store.appendEvents(makeEvents("a", "b", turn: turn), to: sessions[0].id)
  let other = try await store.appendEvents(makeEvents("c"), to: sessions[1].id)
  let second = try await store.appendEvents(makeEvents("d"), to: sessions[0].id)
  #expect(try await store.appendEvents([], to: sessions[0].id).isEmpty)
  #expect(first.map(\.sequence) == [1, 2])
  #expect(other.map(\.sequence) == [1])
  #expect(second.map(\.sequence) == [3])
  #expect(first[0].turnID == turn)
  #expect(second[0].turnID == nil)
  #expect(first[0].processedAt == time(1))
  #expect(first[1].payload == #"{"type":"b"}"#)
  #expect(try await store.log(sessions[0]) == first + second)
  #expect(try await store.log(sessions[1]) == other)
  #expect(try await store.lastSequence(of: sessions[0].id) == 3)
}

@Sendable private func eventsAreReadAfterANumberUpToALimitByType(_ store: any SessionStore) async throws {
  let session = try await store.addSession()
  let events = try await store.appendEvents(
    (1...100).map { NewEvent(type: $0 % 10 == 0 ? "ten" : "one", processedAt: time($0)) }, to: session.id)
  func read(_ after: Int64, _ limit: Int, _ types: Set<String>? = nil) async throws -> [Event] {
    try await store.events(of: session.id, after: after, limit: limit, types: types).items
  }
  #expect(try await read(0, 1000) == events)
  #expect(try await read(40, 20) == Array(events[40..<60]))
  #expect(try await read(99, 20) == [events[99]])
  #expect(try await read(100, 20).isEmpty)
  #expect(try await read(.max, 20).isEmpty)
  #expect(try await read(-5, 1) == [events[0]])
  #expect(try await read(0, 0).isEmpty)
  #expect(try await read(0, -1).isEmpty)
  #expect(try await read(0, 1000, ["ten"]).map(\.sequence) == Array(stride(from: 10, through: 100, by: 10)))
  #expect(try await read(10, 2, ["ten", "\"odd", "x"]).map(\.sequence) == [20, 30])
  #expect(try await read(0, 1000, ["one", "ten"]) == events)
  #expect(try await read(0, 1000, []).isEmpty)
}

@Sendable private func aPayloadOfAMegabyteComesBack(_ store: any SessionStore) async throws {
  let session = try await store.addSession()
  let payload = #"{"text":""# + String(repeating: "é\\u0000", count: 130_000) + #""}"#
  let events = try await store.appendEvents(
    [NewEvent(type: "agent.message", processedAt: time(1), payload: payload)], to: session.id)
  #expect(try await store.log(session) == events)
  #expect(events[0].payload == payload)
}

/// However many large ones there are, and whatever is asked for.
@Sendable private func aPageEndsWithItsLimitOrWithAMegabyte(_ store: any SessionStore) async throws {
  let session = try await store.addSession()
  func event(_ type: String, _ bytes: Int) -> NewEvent {
    let text = String(repeating: "x", count: bytes - 10)
    return NewEvent(type: type, processedAt: time(1), payload: #"{"text":"\#(text)"}"#)
  }
  let (large, small) = (event("large", 600 << 10), event("small", 100))
  let events = try await store.appendEvents(
    [small, small, large, large, small, event("huge", 3 << 20)], to: session.id)
  func read(_ after: Int64, _ limit: Int, _ types: Set<String>? = nil) async throws -> ([Int64], Bool) {
    let page = try await store.events(of: session.id, after: after, limit: limit, types: types)
    return (page.items.map(\.sequence), page.hasMore)
  }
  #expect(try await read(0, 2) == ([1, 2], true))
  #expect(try await read(0, 10) == ([1, 2, 3, 4], true))
  #expect(try await read(4, 10) == ([5, 6], false))
  #expect(try await read(5, 10) == ([6], false))
  #expect(try await read(5, 1) == ([6], false))
  #expect(try await read(6, 10) == ([], false))
  #expect(try await read(0, 10, ["large"]) == ([3, 4], false))
  #expect(try await read(0, 10, ["huge"]) == ([6], false))
  #expect(try await read(0, 3, ["small"]) == ([1, 2, 5], false))
  #expect(try await store.log(session) == events)

  let prompt = String(repeating: "p", count: 700 << 10)
  var turns: [Turn] = []
  for _ in 0..<3 { turns.append(try await store.addTurn(session, prompt)) }
  let page = try await store.turns(of: session.id, after: 0, limit: 10, states: nil)
  #expect(page.items == Array(turns.prefix(2)) && page.hasMore)
  let last = try await store.turns(of: session.id, after: 2, limit: 1, states: nil)
  #expect(last.items == [turns[2]] && !last.hasMore)

  let running = try await store.startTurn(turns[0].id, at: time(2)).turn
  var approvals: [Approval] = []
  for index in 0..<4 {
    let text = String(repeating: "x", count: index == 1 ? 2 << 20 : 10)
    var approval = makeApproval(running)
    approval = Approval(
      id: approval.id, sessionID: session.id, turnID: running.id, toolName: "Bash", toolUseID: "t",
      input: #"{"a":"\#(text)"}"#, cliRequestID: "r", createdAt: time(5), expiresAt: time(6))
    _ = try await store.addApproval(approval, events: [])
    approvals.append(approval)
  }
  let questions = try await store.approvals(of: session.id, after: nil, limit: 10, states: [.pending])
  #expect(questions.items == Array(approvals.prefix(2)) && questions.hasMore)
  let next = try await store.approvals(of: session.id, after: approvals[1].id, limit: 1, states: nil)
  #expect(next.items == [approvals[2]] && next.hasMore)
  let end = try await store.approvals(of: session.id, after: approvals[2].id, limit: 1, states: nil)
  #expect(end.items == [approvals[3]] && !end.hasMore)
  let other = try await store.addSession()
  await expect(.approvalNotFound(approvals[0].id)) {
    try await store.approvals(of: other.id, after: approvals[0].id, limit: 1, states: nil)
  }
}

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
    try await store.events(of: session.id, after: after, limit: limit, types: types)
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

public import JSONSupport
import Logging
import Workspaces

#if canImport(FoundationEssentials)
  public import FoundationEssentials
#else
  public import Foundation
#endif

/// Changes to a session. What is nil stays as it is.
public struct SessionChange: Hashable, Sendable {
  public var name: String?
  /// Takes the place of what there was.
  public var metadata: [String: JSONValue]?
  /// Options by what a client gave for them; null goes back to the server's default.
  public var options: [SessionOption: JSONValue] = [:]
  /// Forgets the rules that were made of decisions on approvals.
  public var forgetsRemembered = false

  public init() {}
}

extension SessionService {
  // MARK: Interrupt

  /// Stops the running turn of a session, its tools included; messages that wait run after it.
  ///
  /// Waits for the end of the turn, but not longer than `patience`, and returns it as it is then: `interrupted` with
  /// what the agent had said as its result, or with another end that came first.
  ///
  /// - Throws: `nothingRuns`.
  public func interrupt(_ id: UUID, patience: Duration = .seconds(10)) async throws -> Turn {
    // Who looks at the turns may see one running that this service still waits to hear of from the store.
    let end = ContinuousClock.now + patience
    while let work = work[id], work.running == nil, work.queue.isEmpty, .now < end,
      await Self.pause(.milliseconds(5))
    {}
    guard let turn = work[id]?.running else {
      _ = try await session(id)
      throw SessionServiceError.nothingRuns
    }
    if work[id]?.interruption == nil { work[id]?.interruption = Task { await self.stop(turn) } }
    return try await outcome(of: turn, within: patience)
  }

  private func stop(_ turn: Turn) async {
    let id = turn.sessionID
    do throws(SessionStoreError) {
      let event = NewEvent("user.interrupt", turn: turn.id, at: .now())
      hub.publish(try await store.appendEvents([event], to: id))
    } catch {
      logger.warning("An interrupt could not be written to the log", metadata: turn.logMetadata(with: error))
    }
    // More than once, as the turn may not have reached the runner yet.
    while work[id]?.running?.id == turn.id {
      await runner.interrupt(id)
      do { try await Task.sleep(for: .milliseconds(100)) } catch { return }
    }
  }

  // MARK: Approvals

  /// A page of the approvals of a session in the order in which the agent asked.
  public func approvals(
    of id: UUID, after: UUID? = nil, limit: Int = 200, states: Set<Approval.State>? = nil
  ) async throws(SessionServiceError) -> StorePage<Approval> {
    try await fromStore { () throws(SessionStoreError) in
      try await self.store.approvals(of: id, after: after, limit: limit, states: states)
    }
  }

  public func approval(_ id: UUID, of session: UUID) async throws(SessionServiceError) -> Approval {
    do throws(SessionStoreError) {
      let approval = try await store.approval(id)
      if approval.sessionID == session { return approval }
    } catch {
      guard case .approvalNotFound = error else { throw SessionServiceError(error) }
    }
    // Which of the two is missing makes a difference to the client.
    _ = try await self.session(session)
    throw .approvalNotFound
  }

  /// Decides a pending approval.
  ///
  /// - Throws: `approvalResolved` if it isn't pending any more.
  public func decide(
    _ id: UUID, of session: UUID, _ verdict: ApprovalVerdict
  ) async throws(SessionServiceError) -> Approval {
    let approval = try await approval(id, of: session)
    let resolution: ApprovalResolution
    let rules: [String]
    do throws(SessionStoreError) {
      (resolution, rules) = try await approvalDesk.decide(approval, verdict)
    } catch {
      throw SessionServiceError(error)
    }
    switch resolution {
    case .alreadyResolved(let earlier): throw .approvalResolved(earlier)
    case .resolved(let approval, _):
      if verdict.remember { await remember(rules, verdict.decision, session) }
      return approval
    }
  }

  private func remember(_ rules: [String], _ decision: ApprovalVerdict.Decision, _ id: UUID) async {
    do throws(SessionServiceError) {
      _ = try await change(id) { session in
        var options = SessionOptions(stored: session.options)
        options.remembered.add(rules, decision)
        return (SessionUpdate(options: options.stored), [])
      }
    } catch {
      // It holds for the rest of the turn; after that the agent asks again.
      logger.warning(
        "A decision could not be remembered",
        metadata: ["session": "\(id.lowercaseString)", "error": "\(error)"])
    }
  }

  // MARK: Options

  /// Changes a session. Options hold from the next turn on.
  ///
  /// - Throws: ``SessionServiceError`` or ``SessionOptionError``; then nothing was changed.
  public func update(_ id: UUID, _ change: SessionChange) async throws -> Session {
    var checked = SessionOptions()
    for (option, value) in change.options { try checked.set(option, value) }
    return try await self.change(id) { [checked] session in
      var options = SessionOptions(stored: session.options)
      for option in change.options.keys {
        if let value = checked[option], !value.isNull {
          options.replace(option, value)
        } else {
          options.clear(option)
        }
      }
      if change.forgetsRemembered { options.remembered = SessionOptions.Remembered() }
      var update = SessionUpdate(name: change.name)
      var payload: [String: JSONValue] = [:]
      if let name = change.name { payload["name"] = .string(name) }
      if let metadata = change.metadata {
        update.metadata = JSONValue.object(metadata).description
        payload["metadata"] = .object(metadata)
      }
      if !change.options.isEmpty || change.forgetsRemembered {
        update.options = options.stored
        payload["options"] = .object(options.shown)
      }
      if payload.isEmpty { return (SessionUpdate(), []) }
      return (update, [NewEvent("session.updated", turn: nil, at: .now(), .object(payload))])
    }
  }

  /// Makes a change that depends on what there is. The changes of a session come one after the other.
  private func change(
    _ id: UUID, _ make: @escaping @Sendable (Session) -> (SessionUpdate, [NewEvent])
  ) async throws(SessionServiceError) -> Session {
    let earlier = changes[id]
    let task = Task { () -> Result<Session, SessionServiceError> in
      await earlier?.value
      do throws(SessionStoreError) {
        let (update, events) = make(try await self.store.session(id))
        let changed = try await self.store.updateSession(id, update, events: events)
        self.hub.publish(changed.events)
        // Read again by whoever needs it: what was returned may be older than the last message's time.
        self.cache.remove(id)
        return .success(changed.session)
      } catch {
        return .failure(SessionServiceError(error))
      }
    }
    let mine = Task { _ = await task.value }
    changes[id] = mine
    let result = await task.value
    if changes[id] == mine { changes[id] = nil }
    return try result.get()
  }

  // MARK: Fork

  /// Creates a session that begins with the conversation and the workspace of another one, as they are now, and goes
  /// on independently of it.
  ///
  /// Options and metadata are copied, the turns are not; the log begins with `session.forked` and what was said last.
  /// While the copy is made, messages to the other session wait.
  ///
  /// - Throws: `sessionBusy` if the other session has unfinished turns.
  public func fork(
    _ id: UUID, name: String? = nil, owner: String? = nil, idempotency: IdempotencyClaim? = nil
  ) async throws(SessionServiceError) -> CreatedSession {
    if let idempotency, let earlier = try await earlierSession(idempotency, .now()) { return earlier }
    return try await held(id) { () async throws(SessionServiceError) -> CreatedSession in
      try await self.makeFork(id, name: name, owner: owner, idempotency)
    }
  }

  private func makeFork(
    _ id: UUID, name: String?, owner: String?, _ idempotency: IdempotencyClaim?
  ) async throws(SessionServiceError) -> CreatedSession {
    let source = try await session(id)
    // What its agents were held to, they and what they left in the workspace are held to in the fork.
    let network = try await fromStore { () throws(SessionStoreError) in
      try await self.limits.network(of: source, sender: nil)
    }
    let forkID = UUID()
    return try await FilesChange.make(to: forkID, of: owner, room) { change async throws(SessionServiceError) in
      try await self.makeFork(of: source, forkID, name, owner, network, idempotency, change)
    }
  }

  private func makeFork(
    of source: Session, _ forkID: UUID, _ name: String?, _ owner: String?, _ network: AgentNetwork?,
    _ idempotency: IdempotencyClaim?, _ change: FilesChange
  ) async throws(SessionServiceError) -> CreatedSession {
    let id = source.id
    let fork = Session(
      id: forkID, name: name ?? "Session \(forkID.lowercaseString.prefix(8))", createdAt: .now(),
      workspace: workspaces.workspacePath(of: forkID), owner: owner, parentID: id, options: source.options,
      metadata: source.metadata, hasConversation: source.hasConversation,
      network: network == .modelOnly ? .modelOnly : nil)
    do throws(SessionServiceError) {
      var size: Int64 = 0
      try await onDisk {
        let outside = try await self.workspaces.usageOutside(of: id)
        size = try await self.workspaces.usage(of: id).bytes + outside.home.bytes
      }
      try await change.take(size)
      try await onDisk {
        try await self.workspaces.create(forkID)
        try await self.workspaces.copy(id, to: forkID)
      }
      let events = try await conversation(of: id)
      // Half of what it held would be there if it was deleted meanwhile.
      _ = try await fromStore { () throws(SessionStoreError) in try await self.store.session(id) }
      let generation = cache.generation
      let admission = try await fromStore { () throws(SessionStoreError) in
        let accounts = try await self.limits.accounts(owner: owner, sender: owner)
        return try await self.withRoom(for: accounts) { () throws(SessionStoreError) in
          try await self.store.createSession(
            fork, firstTurn: nil, events: events, idempotency: idempotency, accounts: accounts)
        }
      }
      switch admission {
      case .created(let created, _, let events):
        cache.insert(created, readAt: generation)
        hub.publish(events)
        return CreatedSession(session: created, turn: nil, isReplay: false)
      case .replayed(let session, _):
        await removeDirectories(forkID)
        return CreatedSession(session: session, turn: nil, isReplay: true)
      case .replayedButDeleted: throw .sessionDeleted
      case .mismatch: throw .idempotencyMismatch
      }
    } catch {
      await removeDirectories(forkID)
      // Its files vanished because it did.
      _ = try await fromStore { () throws(SessionStoreError) in try await self.store.session(id) }
      throw error
    }
  }

  /// What a fork's log begins with: where it comes from, and the last that was said.
  private func conversation(of id: UUID) async throws(SessionServiceError) -> [NewEvent] {
    let limit = 1000
    let bytes = 8 << 20
    var copied: [Event] = []
    var size = 0
    var isCut = false
    var last: Int64 = 0
    while true {
      let page = try await events(of: id, after: last, limit: 500, types: EventLog.conversationTypes)
      for event in page.items {
        copied.append(event)
        size += event.payload.utf8.count
      }
      while copied.count > limit || (size > bytes && copied.count > 1) {
        size -= copied.removeFirst().payload.utf8.count
        isCut = true
      }
      guard page.hasMore, let end = page.items.last else { break }
      last = end.sequence
    }
    let origin = NewEvent(
      "session.forked", turn: nil, at: .now(),
      [
        "parent_session_id": .string(id.lowercaseString), "parent_sequence": .int(try await lastSequence(of: id)),
        "copied_events": .int(Int64(copied.count)), "truncated": .bool(isCut),
      ])
    return [origin]
      + copied.map { NewEvent(type: $0.type, turnID: nil, processedAt: $0.processedAt, payload: $0.payload) }
  }

  /// Keeps a session at rest while `body` runs: messages are accepted and wait.
  ///
  /// - Throws: `sessionBusy` if it isn't at rest.
  private func held<T: Sendable>(
    _ id: UUID, _ body: () async throws(SessionServiceError) -> T
  ) async throws(SessionServiceError) -> T {
    guard work[id] == nil, heldSessions.insert(id).inserted else { throw .sessionBusy }
    defer {
      heldSessions.remove(id)
      if let waiting = work[id] {
        if waiting.queue.isEmpty || isDraining {
          work[id] = nil
        } else {
          work[id]?.task = Task { await self.workOff(id) }
        }
      }
    }
    return try await body()
  }
}

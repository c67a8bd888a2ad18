import ClaudeAPI
import ClaudeRunner
import Foundation
import HTTPTypes
import Monitoring
import NIOPosix
import SQLiteStore
import Sessions
import Synchronization

/// Looks at the running server for its operators: is it alive, can it work, how does it do.
final class Monitor: ServerStatus {
  private let metrics: ServerMetrics
  private let runner: ClaudeRunner
  private let service: SessionService
  private let store: SQLiteSessionStore
  private let log: LogWriter
  private let gateway: ModelGateway
  private let databasePath: String
  /// The state's and the workspaces'.
  private let directories: [String]
  private let minimumFreeBytes: Int
  private let isDraining = Atomic(false)
  /// What the CLI was found not to do.
  private let rehearsalDefect = Mutex<String?>(nil)
  private let looks: Looks
  private let startTime = Date()

  init(
    metrics: ServerMetrics, runner: ClaudeRunner, service: SessionService, store: SQLiteSessionStore, log: LogWriter,
    gateway: ModelGateway, databasePath: String, directories: [String], minimumFreeBytes: Int
  ) {
    self.metrics = metrics
    self.runner = runner
    self.service = service
    self.store = store
    self.log = log
    self.gateway = gateway
    self.databasePath = databasePath
    self.directories = directories
    self.minimumFreeBytes = minimumFreeBytes
    looks = Looks()
  }

  func beginDraining() { isDraining.store(true, ordering: .relaxed) }

  /// Takes what came of the CLI's rehearsal: the code of its failure, or nil if there is nothing against it.
  func rehearsed(_ failure: ClaudeFailure.Code?) {
    rehearsalDefect.withLock { $0 = failure.map { "The Claude Code CLI can't be used (\($0.rawValue))." } }
  }

  func answered(_ method: HTTPRequest.Method, _ route: String?, status: Int, after duration: Duration) {
    metrics.answered(method, route, status, duration)
  }

  func reported(problem code: ProblemCode) { metrics.problems[code.rawValue].add() }

  // MARK: Ready

  func readiness() async -> [ReadinessCheck] {
    var checks = await looks.current { await self.look() }
    checks.append(
      ReadinessCheck("draining", defect: isDraining.load(ordering: .relaxed) ? "The server is about to stop." : nil))
    return checks
  }

  private func look() async -> [ReadinessCheck] {
    let rehearsalDefect = rehearsalDefect.withLock { $0 }
    async let cli = Looks.defect(within: .seconds(5)) { [runner] in
      do throws(ClaudeFailure) {
        _ = try await runner.probe()
        return rehearsalDefect
      } catch {
        return "The Claude Code CLI can't be used (\(error.code.rawValue))."
      }
    }
    async let store = Looks.defect(within: .seconds(5)) { [store] in
      do throws(SessionStoreError) {
        try await store.checkWritable()
        return nil
      } catch {
        return error.isDiskFull ? "The disk is full." : "The store can't be written."
      }
    }
    async let disk = Looks.defect(within: .seconds(5)) { [directories, minimumFreeBytes] in
      try await NIOThreadPool.singleton.runIfActive {
        for directory in directories {
          guard let free = FileFigures.freeBytes(of: directory) else { return "The disk can't be looked at." }
          if free < minimumFreeBytes { return "There is too little room on the disk." }
        }
        return nil
      }
    }
    async let way = Looks.defect(within: .seconds(5)) { [gateway] in
      gateway.isListening ? nil : "nginx doesn't answer on the model's socket."
    }
    return [
      ReadinessCheck("cli", defect: await cli), ReadinessCheck("store", defect: await store),
      ReadinessCheck("disk", defect: await disk), ReadinessCheck("model_gateway", defect: await way),
    ]
  }

  /// The last look, for those who ask again soon: the route is open to everybody, and a look isn't cheap.
  private actor Looks {
    private static let age = Duration.seconds(1)
    /// A CLI that doesn't work is started for each look.
    private static let ageOfDefects = Duration.seconds(3)
    private var last: (time: ContinuousClock.Instant, checks: [ReadinessCheck])?
    private var underWay: Task<[ReadinessCheck], Never>?

    func current(_ look: @escaping @Sendable () async -> [ReadinessCheck]) async -> [ReadinessCheck] {
      if let last {
        let isWell = last.checks.allSatisfy { $0.defect == nil }
        if .now - last.time < (isWell ? Self.age : Self.ageOfDefects) { return last.checks }
      }
      if let underWay { return await underWay.value }
      let task = Task { await look() }
      underWay = task
      let checks = await task.value
      underWay = nil
      last = (.now, checks)
      return checks
    }

    /// What is wrong; being late is, too. A look that is late goes on and is forgotten.
    static func defect(
      within patience: Duration, _ look: @escaping @Sendable () async throws -> String?
    ) async -> String? {
      let (answers, answer) = AsyncStream.makeStream(of: String?.self, bufferingPolicy: .bufferingOldest(1))
      let looking = Task {
        do { answer.yield(try await look()) } catch { answer.yield("It could not be looked at.") }
        answer.finish()
      }
      let timer = Task {
        do { try await Task.sleep(for: patience) } catch { return }
        answer.yield("There was no answer in time.")
        answer.finish()
      }
      defer {
        looking.cancel()
        timer.cancel()
      }
      for await defect in answers { return defect }
      return "It could not be looked at."
    }
  }

  // MARK: Metrics

  /// What is known of the system at one moment.
  private struct Figures: Sendable {
    var own = ProcessFigures()
    var children = (count: 0, residentBytes: 0)
    /// Nil where it could not be found out.
    var freeBytes: [Int?] = []
    var storeBytes: Int?
  }

  func metrics(byKey: Bool) async -> String {
    let pool = await runner.statistics
    let load = await service.load
    let figures = await figures()
    await metrics.gateway.catchUp()
    var text = Exposition()
    text.add(
      .gauge, "claude_api_build_info", "The version that runs; always 1.", [.init(1, ["version": Server.version])])
    addProcess(figures, to: &text)
    addRequests(to: &text)
    addTurns(load, to: &text)
    addUse(byKey: byKey, to: &text)
    addGateway(byKey: byKey, to: &text)
    addPool(pool, figures, to: &text)
    text.add(
      .gauge, "claude_api_event_streams", "Streams of events that are open, by transport.",
      StreamTransport.allCases.map {
        .init(Double(service.streams.count(over: $0)), ["transport": $0.rawValue])
      })
    text.add(
      histogram: "claude_api_reactor_lag_seconds", "How long a job waited for the thread that serves requests.",
      metrics.reactorLag)
    text.add(
      histogram: "claude_api_store_duration_seconds", "How long calls of the store took, waiting included.",
      metrics.storeCalls.map { .init($1.snapshot, ["call": "\($0)"]) })
    text.add(
      .gauge, "claude_api_store_bytes", "The size of the database file.",
      figures.storeBytes.map { [.init(Double($0))] } ?? [])
    text.add(
      .gauge, "claude_api_disk_free_bytes", "Room on the file systems of the state and of the workspaces.",
      zip(["state", "workspaces"], figures.freeBytes).compactMap { name, bytes in
        bytes.map { .init(Double($0), ["directory": name]) }
      })
    text.add(
      .counter, "claude_api_log_lines_dropped_total", "Lines that were not logged because nobody took them.",
      Double(log.dropped))
    return text.text
  }

  private func addProcess(_ figures: Figures, to text: inout Exposition) {
    let own = figures.own
    text.add(
      .gauge, "process_start_time_seconds", "When the responder started, in seconds since 1970.",
      startTime.timeIntervalSince1970)
    text.add(.counter, "process_cpu_seconds_total", "Processor time of the responder.", own.processorSeconds)
    text.add(
      .gauge, "process_resident_memory_bytes", "Memory of the responder.", Double(own.residentBytes))
    text.add(.gauge, "process_open_fds", "Open descriptors of the responder.", Double(own.openDescriptors))
    text.add(.gauge, "process_max_fds", "Descriptors that it may have.", Double(own.maximumDescriptors))
    text.add(.gauge, "process_threads", "Threads of the responder.", Double(own.threads))
  }

  private func addRequests(to text: inout Exposition) {
    text.add(
      .counter, "claude_api_http_requests_total", "Requests that were answered, by route and status.",
      metrics.requests.all.flatMap { route, requests in
        requests.statuses.all.map { status, counter in
          .init(
            counter.value,
            ["method": route.method, "route": Self.template(route.route), "status": String(status)])
        }
      })
    text.add(
      histogram: "claude_api_http_request_duration_seconds",
      "How long requests took until the head of their answer was ready.",
      metrics.requests.all.map { route, requests in
        .init(requests.durations.snapshot, ["method": route.method, "route": Self.template(route.route)])
      })
    text.add(
      .counter, "claude_api_problems_total", "Problem documents that were sent, by their code.",
      metrics.problems.all.map { .init($1.value, ["code": $0]) })
  }

  /// The router's word for the rest of a path is the table's again.
  private static func template(_ route: String) -> String { route.replacing("**", with: "{path}") }

  private func addTurns(_ load: (running: Int, queued: Int), to text: inout Exposition) {
    text.add(
      .counter, "claude_api_turns_total", "Turns that have ended, by how.",
      metrics.turns.all.map { .init($1.value, ["outcome": $0]) })
    text.add(
      .counter, "claude_api_turn_failures_total", "Turns that have not completed, by the code of the reason.",
      metrics.turnFailures.all.map { .init($1.value, ["code": $0]) })
    text.add(.gauge, "claude_api_turns_running", "Turns that run.", Double(load.running))
    text.add(.gauge, "claude_api_turns_queued", "Turns that wait behind another one.", Double(load.queued))
    text.add(
      .counter, "claude_api_approvals_refused_total",
      "Questions for permission that were denied because too many of the turn waited.", metrics.refusedApprovals.value)
    text.add(
      histogram: "claude_api_turn_queue_seconds", "From a message's acceptance to the start of its turn.",
      metrics.queueWaits)
    text.add(
      histogram: "claude_api_turn_first_event_seconds", "From the start of a turn to the first word of the agent.",
      metrics.firstWords)
    text.add(
      histogram: "claude_api_turn_duration_seconds", "From the start of a turn to its end.", metrics.turnDurations)
  }

  /// The use by API key; without a right to see keys, of all together.
  private func addUse(byKey: Bool, to text: inout Exposition) {
    let uses = metrics.uses.all
    let tokens: [Exposition.Sample<Double>]
    let dollars: [Exposition.Sample<Double>]
    if byKey {
      tokens = uses.flatMap { key, use in
        zip(ServerMetrics.Use.kinds, use.tokens).map { .init($1.value, ["key": key, "kind": $0]) }
      }
      dollars = uses.map { .init($1.dollars.value, ["key": $0]) }
    } else {
      tokens = ServerMetrics.Use.kinds.enumerated().map { index, kind in
        .init(uses.reduce(0) { $0 + $1.value.tokens[index].value }, ["key": "all", "kind": kind])
      }
      dollars = [.init(uses.reduce(0) { $0 + $1.value.dollars.value }, ["key": "all"])]
    }
    text.add(.counter, "claude_api_tokens_total", "Tokens of ended turns, by API key and kind.", tokens)
    text.add(.counter, "claude_api_cost_usd_total", "US dollars of ended turns at list price, by API key.", dollars)
  }

  /// The same by nginx's count, of requests as they end.
  private func addGateway(byKey: Bool, to text: inout Exposition) {
    let uses = metrics.gateway.uses.all
    var tokens: [Exposition.Sample<Double>] = []
    var dollars: [Exposition.Sample<Double>] = []
    for (key, uses) in byKey ? uses.map({ ($0.key, [$0.value]) }) : [("all", uses.map(\.value))] {
      for (index, kind) in ServerMetrics.Use.kinds.enumerated() {
        tokens.append(.init(uses.reduce(0) { $0 + $1.tokens[index].value }, ["key": key, "kind": kind]))
      }
      dollars.append(.init(uses.reduce(0) { $0 + $1.dollars.value }, ["key": key]))
    }
    text.add(
      .counter, "claude_api_gateway_tokens_total",
      "Tokens that nginx has counted on the way to the model, by the API key that owns the session, and kind.", tokens)
    text.add(
      .counter, "claude_api_gateway_cost_usd_total",
      "US dollars of those at list price, without models that have no price.", dollars)
    text.add(
      .counter, "claude_api_gateway_unpriced_tokens_total", "Tokens of models that have no price, by model.",
      metrics.gateway.unpriced.all.map { .init($1.value, ["model": $0]) })
    text.add(
      .counter, "claude_api_gateway_disagreements_total",
      "Comparisons in which the tokens of nginx and of the CLI were not the same.",
      metrics.gateway.disagreements.value)
    let connections = gateway.statistics
    text.add(
      .gauge, "claude_api_model_connections", "Connections of agents to the model that are open.",
      Double(connections.open))
    text.add(
      .counter, "claude_api_model_connections_bounded_total",
      "How often an agent had as many of them as it may have, so that further ones had to wait.",
      Double(connections.bounded))
    text.add(
      .counter, "claude_api_model_connections_failed_total", "Connections of agents that nginx did not take.",
      Double(connections.failed))
  }

  private func addPool(_ pool: ClaudeRunnerStatistics, _ figures: Figures, to text: inout Exposition) {
    let idle = max(0, pool.live - pool.working - pool.starting)
    text.add(
      .gauge, "claude_api_cli_processes", "Processes of the CLI, by what they do.",
      [
        .init(Double(pool.starting), ["state": "starting"]), .init(Double(pool.working), ["state": "working"]),
        .init(Double(idle), ["state": "idle"]),
      ])
    text.add(
      .gauge, "claude_api_cli_waiting_turns", "Turns that wait until a process of the CLI may start.",
      Double(pool.waiting))
    text.add(.counter, "claude_api_cli_starts_total", "Processes of the CLI that were started.", Double(pool.started))
    text.add(
      .counter, "claude_api_cli_evictions_total", "Processes of the CLI that ended for want of use or room.",
      Double(pool.evicted))
    text.add(
      .gauge, "claude_api_child_processes", "All processes below the responder, tools of agents included.",
      Double(figures.children.count))
    text.add(
      .gauge, "claude_api_child_resident_memory_bytes", "Memory of all processes below the responder.",
      Double(figures.children.residentBytes))
  }

  private func figures() async -> Figures {
    let read = { @Sendable [directories, databasePath] in
      var figures = Figures()
      figures.own = ProcessFigures.ofThisProcess()
      figures.children = ProcessFigures.ofDescendants()
      figures.freeBytes = directories.map { FileFigures.freeBytes(of: $0) }
      figures.storeBytes = FileFigures.size(of: databasePath)
      return figures
    }
    do {
      return try await NIOThreadPool.singleton.runIfActive { read() }
    } catch {
      // The pool ends with the process; then nobody scrapes any more.
      return Figures()
    }
  }
}

extension SessionStoreError {
  fileprivate var isDiskFull: Bool { if case .diskFull = self { true } else { false } }
}

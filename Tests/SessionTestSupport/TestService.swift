import Logging
public import Sessions
import TestSupport
import Workspaces

/// Runs `body` with a started service whose directories are its own, and ends it afterwards.
public func withService<Value>(
  runner: any TurnRunner = ScriptedRunner(), store: any SessionStore = InMemorySessionStore(),
  hub: EventHub = EventHub(), limits: KeyLimitPolicy = KeyLimitPolicy(),
  configure: (inout SessionServiceConfiguration) -> Void = { _ in },
  _ body: (SessionService) async throws -> Value
) async throws -> Value {
  try await withTemporaryDirectory { path in
    var configuration = SessionServiceConfiguration()
    configure(&configuration)
    let service = SessionService(
      store: store, workspaces: try Workspaces(root: path + "/w", configurationRoot: path + "/c"), runner: runner,
      hub: hub, limits: limits, configuration: configuration,
      logger: Logger(label: "test") { _ in SwiftLogNoOpLogHandler() })
    try await service.start()
    do {
      let value = try await body(service)
      await service.shutdown()
      return value
    } catch {
      await service.shutdown()
      throw error
    }
  }
}

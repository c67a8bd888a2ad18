import ServiceLifecycle

/// Runs a service once something else is ready.
struct AfterStart<Inner: Service>: Service {
  private let inner: Inner
  private let start: Start

  /// What is waited for, by one.
  final class Start: Sendable {
    private let stream: AsyncStream<Void>
    private let continuation: AsyncStream<Void>.Continuation

    init() {
      (stream, continuation) = AsyncStream.makeStream()
    }

    func announce() { continuation.finish() }

    func wait() async {
      for await _ in stream {}
    }
  }

  init(_ inner: Inner, _ start: Start) {
    self.inner = inner
    self.start = start
  }

  func run() async throws {
    let isStarted = await cancelWhenGracefulShutdown {
      await start.wait()
      return !Task.isCancelled
    }
    if isStarted { try await inner.run() }
  }
}

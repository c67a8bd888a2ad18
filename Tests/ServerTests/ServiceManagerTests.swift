import Foundation
import TestSupport
import Testing

@testable import claude_api_server

/// What a service manager hands over, as far as it can be told without one.
@Suite struct ServiceManagerTests {
  private func failure(_ environment: [String: String]) -> String? {
    do {
      _ = try ServiceManager(environment: environment, processID: 7)
      return nil
    } catch {
      return "\(error)"
    }
  }

  @Test func withoutAServiceManagerThereIsNothing() throws {
    let manager = try ServiceManager(environment: [:], processID: 7)
    #expect(manager.sockets.isEmpty)
    #expect(manager.watchdogTimeout == nil)
    try manager.tell(.ready)
    // What is meant for another process.
    let other = try ServiceManager(
      environment: ["LISTEN_PID": "8", "LISTEN_FDS": "1", "WATCHDOG_PID": "8", "WATCHDOG_USEC": "1000000"],
      processID: 7)
    #expect(other.sockets.isEmpty)
    #expect(other.watchdogTimeout == nil)
    let mine = try ServiceManager(environment: ["WATCHDOG_PID": "7", "WATCHDOG_USEC": "1500000"], processID: 7)
    #expect(mine.watchdogTimeout == .milliseconds(1500))
  }

  @Test func socketsThatCannotBeToldApartAreRefused() {
    #expect(failure(["LISTEN_PID": "7", "LISTEN_FDS": "none"])?.contains("LISTEN_FDS") == true)
    #expect(failure(["LISTEN_PID": "7", "LISTEN_FDS": "2", "LISTEN_FDNAMES": "a"])?.contains("LISTEN_FDNAMES") == true)
    #expect(failure(["LISTEN_PID": "7", "LISTEN_FDS": "1", "LISTEN_FDNAMES": "http"])?.contains("named http") == true)
  }

  @Test func anUnreachableServiceManagerIsAnError() throws {
    let manager = try ServiceManager(environment: ["NOTIFY_SOCKET": "/nonexistent/socket"], processID: 7)
    #expect(throws: ServiceManager.Failure.self) { try manager.tell(.ready) }
  }

  /// One that was killed may have left the state to a child that is just being started.
  @Test func theStateIsWaitedForOnlyForAWhile() async throws {
    try await withTemporaryDirectory { directory in
      let holder = open(directory + "/lock", O_RDWR | O_CREAT | O_CLOEXEC, 0o600)
      try #require(holder >= 0 && flock(holder, LOCK_EX | LOCK_NB) == 0)
      await #expect(throws: StateLock.Failure.self) {
        try await StateLock(directory, patience: .milliseconds(30))
      }
      async let lock = StateLock(directory, patience: .seconds(60))
      try await Task.sleep(for: .milliseconds(50))
      close(holder)
      _ = try await lock
    }
  }
}

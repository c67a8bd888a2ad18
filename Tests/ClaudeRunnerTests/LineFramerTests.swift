import NIOCore
import Testing

@testable import ClaudeRunner

@Suite struct LineFramerTests {
  @Test func framesLinesHoweverTheyAreCut() throws {
    let bytes = Array("one\n\ntwo\nthree".utf8)
    for size in 1...bytes.count {
      var framer = LineFramer(limit: 5)
      var lines: [String] = []
      for start in stride(from: 0, to: bytes.count, by: size) {
        framer.append(ByteBuffer(bytes: bytes[start..<min(start + size, bytes.count)]))
        while let line = try framer.next() { lines.append(String(buffer: line)) }
      }
      #expect(lines == ["one", "", "two"])
      #expect(framer.hasPartialLine)
    }
  }

  @Test func boundsALine() throws {
    var whole = LineFramer(limit: 3)
    whole.append(ByteBuffer(string: "123\n1234\n"))
    #expect(try whole.next() == ByteBuffer(string: "123"))
    #expect(throws: LineFramer.LineTooLong.self) { try whole.next() }
    var partial = LineFramer(limit: 3)
    partial.append(ByteBuffer(string: "12"))
    #expect(try partial.next() == nil)
    partial.append(ByteBuffer(string: "34"))
    #expect(throws: LineFramer.LineTooLong.self) { try partial.next() }
  }
}

@Suite struct FairSemaphoreTests {
  private actor Order {
    private(set) var served: [String] = []

    func append(_ owner: String) { served.append(owner) }
  }

  @Test func servesOwnersInTurns() async throws {
    let semaphore = FairSemaphore(permits: 0)
    let order = Order()
    var tasks: [Task<Void, Never>] = []
    for (index, owner) in ["a", "a", "a", "b", "c", "a", "b"].enumerated() {
      let task = Task { () -> Void in
        _ = await semaphore.acquire(for: owner)
        await order.append(owner)
      }
      tasks.append(task)
      while semaphore.waiterCount == index { try await Task.sleep(for: .milliseconds(1)) }
    }
    for count in 1...7 {
      semaphore.release()
      while await order.served.count < count { try await Task.sleep(for: .milliseconds(1)) }
    }
    let served = await order.served
    #expect(served == ["a", "b", "c", "a", "b", "a", "a"])
    for task in tasks { await task.value }
  }

  @Test func givesPermitsInOrder() async {
    let semaphore = FairSemaphore(permits: 1)
    #expect(await semaphore.acquire())
    let first = Task { await semaphore.acquire() }
    while semaphore.waiterCount < 1 { await Task.yield() }
    let second = Task { await semaphore.acquire() }
    while semaphore.waiterCount < 2 { await Task.yield() }
    first.cancel()
    #expect(await first.value == false)
    semaphore.release()
    #expect(await second.value)
    semaphore.release()
    #expect(await semaphore.acquire())
  }

  @Test func refusesACancelledTask() async {
    let semaphore = FairSemaphore(permits: 0)
    let task = Task {
      while !Task.isCancelled { await Task.yield() }
      return await semaphore.acquire()
    }
    task.cancel()
    #expect(await task.value == false)
    #expect(semaphore.waiterCount == 0)
  }
}

import NIOCore

/// Runs the actor of a process, and what is made of its output, on the event loop that reads the output: from a line to
/// its end nobody else has to wake up.
///
/// What is handed a line may hold up this event loop for a moment, and with it the output of a part of the other
/// processes, but nothing else.
final class ProcessExecutor: SerialExecutor, TaskExecutor {
  let eventLoop: any EventLoop

  init(_ eventLoop: any EventLoop) {
    self.eventLoop = eventLoop
  }

  func enqueue(_ job: consuming ExecutorJob) {
    let job = UnownedJob(job)
    eventLoop.execute {
      job.runSynchronously(isolatedTo: self.asUnownedSerialExecutor(), taskExecutor: self.asUnownedTaskExecutor())
    }
  }

  func asUnownedSerialExecutor() -> UnownedSerialExecutor { UnownedSerialExecutor(ordinary: self) }

  func checkIsolated() { eventLoop.preconditionInEventLoop() }

  func isIsolatingCurrentContext() -> Bool? { eventLoop.inEventLoop }
}

import CLinux
import Glibc
import HeapModule
import Synchronization

/// One thread that waits for descriptors with epoll and runs the tasks of the requests in between.
///
/// It is the executor of the connections (which are actors), and by ``ReactorTaskExecutor`` that of the tasks that
/// answer their requests, so a request that needs nothing from elsewhere is read, answered and written without a
/// change of thread. Nothing on it may block.
///
/// `@unchecked`: `pending` is the only state that other threads touch, under its lock; everything below
/// "of the reactor's thread" is touched by `run()` and by code that has asserted to be on that thread.
final class Reactor: SerialExecutor, @unchecked Sendable {
  /// Told by the reactor, on its thread, that a descriptor is ready.
  protocol Handler: AnyObject, Sendable {
    func descriptorReady(_ events: UInt32)
  }

  struct Registration: Hashable, Sendable {
    fileprivate let descriptor: CInt
    fileprivate let generation: UInt32

    fileprivate var token: UInt64 { UInt64(generation) << 32 | UInt64(UInt32(bitPattern: descriptor)) }
  }

  struct TimerID: Hashable, Sendable {
    fileprivate let number: UInt64
  }

  private struct Timer: Comparable {
    let deadline: ContinuousClock.Instant
    let id: TimerID
    let action: @Sendable () -> Void

    static func < (a: Timer, b: Timer) -> Bool { a.deadline < b.deadline }
    static func == (a: Timer, b: Timer) -> Bool { a.id == b.id }
  }

  /// A piece of work, and the task executor that took it; nil stands for the work of an actor.
  fileprivate struct Job {
    let job: UnownedJob
    let taskExecutor: UnownedTaskExecutor?
  }

  private struct Pending {
    var jobs: [Job] = []
    /// Whether the wake-up descriptor was signalled since the reactor last looked.
    var isSignalled = false
    var isStopping = false
  }

  private let epoll: CInt
  private let wakeUp: CInt
  private let pending = Mutex(Pending())

  // Of the reactor's thread.
  private var jobs: [Job] = []
  private var actionsAfterReading: [() -> Void] = []
  private var actionsAfterRound: [() -> Void] = []
  private var handlers: [(generation: UInt32, handler: any Handler)?] = []
  private var generation: UInt32 = 0
  private var timers = Heap<Timer>()
  private var cancelledTimers: Set<TimerID> = []
  private var lastTimer: UInt64 = 0
  private var isStopping = false

  private let threadID = Atomic<UInt>(0)

  private static let wakeUpToken = UInt64.max
  /// Jobs that may run before the descriptors are looked at again, so that a busy handler can't starve them.
  private static let jobsPerRound = 256

  init() throws(FastCGIServerError) {
    epoll = clinux_epoll_create()
    guard epoll >= 0 else { throw .system(operation: "epoll_create1", errno: errno) }
    wakeUp = clinux_eventfd()
    guard wakeUp >= 0 else {
      let code = errno
      close(epoll)
      throw .system(operation: "eventfd", errno: code)
    }
    guard clinux_epoll_add_input(epoll, wakeUp, Self.wakeUpToken) == 0 else {
      let code = errno
      close(epoll)
      close(wakeUp)
      throw .system(operation: "epoll_ctl", errno: code)
    }
  }

  deinit {
    close(epoll)
    close(wakeUp)
  }

  // MARK: Executor

  func enqueue(_ job: consuming ExecutorJob) {
    enqueue(Job(job: UnownedJob(job), taskExecutor: nil))
  }

  fileprivate func enqueue(_ job: Job) {
    if isOnThread {
      jobs.append(job)
      return
    }
    let mustSignal = pending.withLock { pending in
      pending.jobs.append(job)
      defer { pending.isSignalled = true }
      return !pending.isSignalled
    }
    if mustSignal { clinux_eventfd_signal(wakeUp) }
  }

  func asUnownedSerialExecutor() -> UnownedSerialExecutor { UnownedSerialExecutor(ordinary: self) }

  func checkIsolated() {
    precondition(isOnThread, "this code belongs to the reactor's thread")
  }

  func isIsolatingCurrentContext() -> Bool? { isOnThread }

  var isOnThread: Bool { threadID.load(ordering: .relaxed) == UInt(pthread_self()) }

  // MARK: Thread

  /// Starts the thread; it ends after `stop()`.
  func start() throws(FastCGIServerError) {
    let context = Unmanaged.passRetained(self)
    var thread = pthread_t()
    let code = pthread_create(
      &thread, nil,
      { argument in
        guard let argument else { return nil }
        let reactor = Unmanaged<Reactor>.fromOpaque(argument).takeRetainedValue()
        clinux_name_thread("fastcgi")
        reactor.run()
        return nil
      }, context.toOpaque())
    guard code == 0 else {
      context.release()
      throw .system(operation: "pthread_create", errno: code)
    }
    pthread_detach(thread)
  }

  /// Ends the thread once all jobs that are queued have run.
  func stop() {
    pending.withLock { $0.isStopping = true }
    clinux_eventfd_signal(wakeUp)
  }

  private func run() {
    threadID.store(UInt(pthread_self()), ordering: .relaxed)
    let executor = asUnownedSerialExecutor()
    var ready = [clinux_ready](repeating: clinux_ready(), count: 256)
    var batch: [Job] = []
    while true {
      var budget = Self.jobsPerRound
      while !jobs.isEmpty, budget > 0 {
        swap(&jobs, &batch)
        for job in batch {
          if let taskExecutor = job.taskExecutor {
            job.job.runSynchronously(on: taskExecutor)
          } else {
            job.job.runSynchronously(on: executor)
          }
        }
        budget -= batch.count
        batch.removeAll(keepingCapacity: true)
      }
      let isIdle = jobs.isEmpty && actionsAfterRound.isEmpty
      let count = clinux_epoll_wait(epoll, &ready, CInt(ready.count), isIdle ? timeout() : 0)
      // Only a closed or foreign descriptor can make this fail, which is a defect of this file.
      precondition(count >= 0, "epoll_wait failed: \(errno)")
      for report in ready.prefix(Int(count)) {
        if report.token == Self.wakeUpToken {
          takePending()
        } else {
          deliver(report)
        }
      }
      for action in exchange(&actionsAfterReading, with: []) { action() }
      for action in exchange(&actionsAfterRound, with: []) { action() }
      fireTimers()
      if isStopping, jobs.isEmpty, actionsAfterRound.isEmpty { return }
    }
  }

  /// Runs `action` on the reactor's thread when all descriptors that are ready now have been read.
  ///
  /// With each read the kernel tells the peer that it may write, which wakes a web server up for nothing; if all is read
  /// at once, it is woken up once.
  func afterReading(_ action: @escaping () -> Void) {
    checkIsolated()
    actionsAfterReading.append(action)
  }

  /// Runs `action` on the reactor's thread when all that has been read has been worked on.
  func afterRound(_ action: @escaping () -> Void) {
    checkIsolated()
    actionsAfterRound.append(action)
  }

  private func takePending() {
    clinux_eventfd_clear(wakeUp)
    pending.withLock { pending in
      jobs.append(contentsOf: pending.jobs)
      pending.jobs.removeAll(keepingCapacity: true)
      pending.isSignalled = false
      isStopping = pending.isStopping
    }
  }

  private func deliver(_ report: clinux_ready) {
    let descriptor = Int(UInt32(truncatingIfNeeded: report.token))
    // A descriptor that was closed in this round, and maybe given out again, has another generation by now.
    guard descriptor < handlers.count, let entry = handlers[descriptor],
      entry.generation == UInt32(report.token >> 32)
    else { return }
    entry.handler.descriptorReady(report.events)
  }

  // MARK: Descriptors

  /// Reports each change of `descriptor` to readable, and hang-ups, to `handler`.
  func addEdgeTriggered(_ descriptor: CInt, handler: any Handler) throws(FastCGIServerError) -> Registration {
    try add(descriptor, handler) { clinux_epoll_add_edge(epoll, descriptor, $0) }
  }

  /// Reports to `handler` as long as there is input on `descriptor`.
  func addInput(_ descriptor: CInt, handler: any Handler) throws(FastCGIServerError) -> Registration {
    try add(descriptor, handler) { clinux_epoll_add_input(epoll, descriptor, $0) }
  }

  private func add(
    _ descriptor: CInt, _ handler: any Handler, _ register: (UInt64) -> CInt
  ) throws(FastCGIServerError) -> Registration {
    checkIsolated()
    generation &+= 1
    // The all-ones generation with the all-ones descriptor would be the wake-up's token.
    if generation == UInt32.max { generation = 1 }
    let registration = Registration(descriptor: descriptor, generation: generation)
    guard register(registration.token) == 0 else { throw .system(operation: "epoll_ctl", errno: errno) }
    let index = Int(descriptor)
    if index >= handlers.count {
      handlers.append(contentsOf: repeatElement(nil, count: index + 1 - handlers.count))
    }
    handlers[index] = (generation, handler)
    return registration
  }

  /// Has a registration by `addEdgeTriggered` report room for output, too, or no more. Reports are wanted only while
  /// something is unsent: otherwise each answer that the peer takes would be one.
  func setOutput(_ registration: Registration, enabled: Bool) {
    checkIsolated()
    let code = clinux_epoll_set_edge_output(epoll, registration.descriptor, registration.token, enabled ? 1 : 0)
    precondition(code == 0, "epoll_ctl failed: \(errno)")
  }

  /// Turns the reports of a registration by `addInput` off or on.
  func setInput(_ registration: Registration, enabled: Bool) {
    checkIsolated()
    let code = clinux_epoll_set_input(epoll, registration.descriptor, registration.token, enabled ? 1 : 0)
    precondition(code == 0, "epoll_ctl failed: \(errno)")
  }

  /// To be called before the descriptor is closed.
  func remove(_ registration: Registration) {
    checkIsolated()
    let index = Int(registration.descriptor)
    guard index < handlers.count, handlers[index]?.generation == registration.generation else { return }
    handlers[index] = nil
    _ = clinux_epoll_remove(epoll, registration.descriptor)
  }

  // MARK: Timers

  /// Runs `action` on the reactor's thread after `delay`, unless it is cancelled before.
  func schedule(after delay: Duration, _ action: @escaping @Sendable () -> Void) -> TimerID {
    checkIsolated()
    lastTimer += 1
    let id = TimerID(number: lastTimer)
    timers.insert(Timer(deadline: .now + delay, id: id, action: action))
    return id
  }

  func cancel(_ timer: TimerID) {
    checkIsolated()
    cancelledTimers.insert(timer)
    // Cancelled timers normally leave when they are due; many short-lived ones must not pile up until then.
    if cancelledTimers.count > 64, cancelledTimers.count * 2 > timers.count {
      timers = Heap(timers.unordered.filter { !cancelledTimers.contains($0.id) })
      cancelledTimers.removeAll(keepingCapacity: true)
    }
  }

  private func timeout() -> CInt {
    guard let next = timers.min else { return -1 }
    let wait = next.deadline - .now
    guard wait > .zero else { return 0 }
    // Rounded up, so that the timer is due when the wait ends.
    let milliseconds = wait.components.seconds * 1000 + wait.components.attoseconds / 1_000_000_000_000_000 + 1
    return CInt(clamping: milliseconds)
  }

  private func fireTimers() {
    guard let first = timers.min else { return }
    let now = ContinuousClock.now
    guard first.deadline <= now else { return }
    while let next = timers.min, next.deadline <= now {
      timers.removeMin()
      if cancelledTimers.remove(next.id) == nil { next.action() }
    }
  }
}

/// The reactor as the preferred executor of tasks.
///
/// Apart from the reactor because what runs for an actor and what runs for none are different things to the runtime:
/// as long as a task is in no actor's code, its calls from one function to the next don't pass through the queue.
final class ReactorTaskExecutor: TaskExecutor {
  private let reactor: Reactor

  init(_ reactor: Reactor) { self.reactor = reactor }

  func enqueue(_ job: consuming ExecutorJob) {
    reactor.enqueue(Reactor.Job(job: UnownedJob(job), taskExecutor: asUnownedTaskExecutor()))
  }
}

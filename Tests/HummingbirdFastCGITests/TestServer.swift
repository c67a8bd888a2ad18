import Glibc
import Hummingbird
import HummingbirdFastCGI
import Logging
import ServiceLifecycle
import TestSupport

typealias TestRouter = Router<BasicFastCGIRequestContext>

/// A running server on a socket in a directory of its own.
struct TestServer: Sendable {
  let path: String
  let log: LogRecorder
  private let group: ServiceGroup

  func client() throws -> RawClient { try RawClient(path: path) }

  func triggerGracefulShutdown() async { await group.triggerGracefulShutdown() }

  /// Serves while `body` runs, then shuts down gracefully and waits for the end.
  static func run<T>(
    configure: (inout FastCGIServerConfiguration) -> Void = { _ in },
    address: FastCGIServerConfiguration.Address? = nil,
    routes: (TestRouter) -> Void = standardRoutes,
    immediateResponder: @escaping ImmediateResponder = { _, _, _ in nil },
    _ body: (TestServer) async throws -> T
  ) async throws -> T {
    let directory = try makeDirectory()
    defer { removeDirectory(directory) }
    let path = directory + "/s"
    var configuration = FastCGIServerConfiguration(address: address ?? .unixSocket(path: path))
    configure(&configuration)
    let router = TestRouter(context: BasicFastCGIRequestContext.self)
    routes(router)
    let log = LogRecorder()
    let logger = Logger(label: "test") { _ in log }
    let (listening, signal) = AsyncStream.makeStream(of: Void.self)
    let server = FastCGIServer(
      responder: router.buildResponder(), immediateResponder: immediateResponder, configuration: configuration,
      logger: logger,
      onListening: { signal.finish() })
    let group = ServiceGroup(services: [server], logger: Logger(label: "group") { _ in SwiftLogNoOpLogHandler() })
    return try await withThrowingTaskGroup(of: Void.self) { tasks in
      tasks.addTask {
        defer { signal.finish() }
        try await group.run()
      }
      for await _ in listening {}
      let result = try await body(TestServer(path: path, log: log, group: group))
      await group.triggerGracefulShutdown()
      try await tasks.waitForAll()
      return result
    }
  }

  static func standardRoutes(_ router: TestRouter) {
    router.get("/hello") { request, _ in "Hello \(request.uri.queryParameters["name"] ?? "you")" }
    router.post("/echo") { request, _ in
      Response(status: .ok, body: ResponseBody(byteBuffer: try await request.body.collect(upTo: .max)))
    }
    router.post("/ignore") { _, _ in "ignored" }
    router.get("/size/{bytes}") { _, context in
      let count = context.parameters.get("bytes", as: Int.self) ?? 0
      return Response(status: .ok, body: ResponseBody(byteBuffer: ByteBuffer(repeating: 0x61, count: count)))
    }
    router.get("/fields") { request, context in
      request.headers.map { "\($0.name.canonicalName)=\($0.value)" }.joined(separator: "\n")
        + "\naddress=\(context.parametersOfServer["REMOTE_ADDR"] ?? "none")"
    }
  }
}

func makeDirectory() throws -> String {
  var template = Array("/tmp/fcgi-test-XXXXXX".utf8CString)
  guard mkdtemp(&template) != nil else { throw FastCGIServerError.system(operation: "mkdtemp", errno: errno) }
  return String(decoding: template.dropLast().map { UInt8(bitPattern: $0) }, as: UTF8.self)
}

/// Removes a directory of sockets and lock files.
func removeDirectory(_ path: String) {
  guard let directory = opendir(path) else { return }
  while let entry = readdir(directory) {
    let name = withUnsafePointer(to: &entry.pointee.d_name) {
      $0.withMemoryRebound(to: CChar.self, capacity: 256) { String(cString: $0) }
    }
    if name != ".", name != ".." { unlink(path + "/" + name) }
  }
  closedir(directory)
  rmdir(path)
}

/// Something that happens once, which a test waits for.
final class Event: Sendable {
  private let stream: AsyncStream<Void>
  private let continuation: AsyncStream<Void>.Continuation

  init() {
    (stream, continuation) = AsyncStream.makeStream()
  }

  func happen() { continuation.finish() }
  func wait() async { for await _ in stream {} }
}

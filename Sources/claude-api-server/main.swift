import Hummingbird
import HummingbirdFastCGI
import Logging
import ServiceLifecycle
import UnixSignals

let logger = Logger(label: "t")
let router = Router(context: BasicFastCGIRequestContext.self)
router.get("/hello/{id}") { _, c in "Hello \(c.parameters.get("id") ?? "")\n" }
router.post("/echo") { r, c in
  let b = try await r.body.collect(upTo: 64 << 20)
  return Response(status: .ok, body: .init(byteBuffer: b))
}
router.get("/stream") { _, _ in
  Response(status: .ok, headers: [.contentType: "text/event-stream"], body: ResponseBody { w in
    for i in 0..<5 { try await w.write(ByteBuffer(string: "data: \(i)\n\n")); try await Task.sleep(for: .milliseconds(200)) }
    try await w.finish(nil)
  })
}
let server = FastCGIServer(responder: router.buildResponder(), configuration: .init(address: .unixSocket(path: "/tmp/t.sock", mode: 0o666)), logger: logger)
try await ServiceGroup(services: [server], gracefulShutdownSignals: [.sigterm, .sigint], logger: logger).run()

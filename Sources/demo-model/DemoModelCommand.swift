import ArgumentParser
import DemoModel
import Foundation
import Logging
import ServiceLifecycle
import UnixSignals

@main
struct DemoModelCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "demo-model",
    abstract: "A scripted stand-in for the Messages API on 127.0.0.1, to try things without a key.",
    discussion: """
      Without directives it reports what it was told. Directives in the latest prompt:

        [[say TEXT]]                      answer exactly TEXT
        [[tool NAME {json}]]              call a tool; several are parallel calls
        [[then]]                          what follows is for the turn's next request
        [[json {...}]]                    structured output
        [[thinking TEXT]]                 think first
        [[chunks N delay 100ms]]          answer in N pieces, with pauses
        [[delay 2s]]                      wait before answering
        [[usage in 100 out 50]]           report these tokens
        [[error STATUS retry-after S times N]]
                                          fail (400...599), N times or always
        [[hang times N]]                  never answer
        [[stall times N]]                 start to answer and fall silent
        [[cut times N]]                   break the connection in the middle
      """)

  @Option(help: "The port; 0 lets the system choose. It is printed as `listening on 127.0.0.1:PORT`.")
  var port: Int = 0

  @Option(help: "A file to write the port to, once connections are accepted.")
  var portFile: String?

  func validate() throws {
    guard (0...65535).contains(port) else { throw ValidationError("--port must be from 0 to 65535.") }
  }

  func run() async throws {
    var logger = Logger(label: "demo-model", factory: { StreamLogHandler.standardError(label: $0) })
    logger.logLevel = .warning
    let portFile = portFile
    let application = DemoModelServer().application(port: port, logger: logger) { port in
      FileHandle.standardOutput.write(Data("listening on 127.0.0.1:\(port)\n".utf8))
      guard let portFile else { return }
      do {
        try Data("\(port)\n".utf8).write(to: URL(filePath: portFile), options: .atomic)
      } catch {
        FileHandle.standardError.write(Data("demo-model: can't write \(portFile): \(error)\n".utf8))
      }
    }
    var configuration = ServiceGroupConfiguration(
      services: [application], gracefulShutdownSignals: [.sigterm, .sigint], logger: logger)
    // A hanging answer would hold up the shutdown for as long as its client has patience.
    configuration.maximumGracefulShutdownDuration = .seconds(1)
    let group = ServiceGroup(configuration: configuration)
    try await group.run()
  }
}

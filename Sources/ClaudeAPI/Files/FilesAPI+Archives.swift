import HTTPTypes
import Hummingbird
import HummingbirdFastCGI
import NIOCore
import Sessions
import Synchronization
import Workspaces

#if canImport(FoundationEssentials)
  import FoundationEssentials
#else
  import Foundation
#endif

/// A bounded number of places; one is taken until its holder is gone. No key has more than half of them, so that one that
/// is in no hurry leaves some to the others.
final class Places: Sendable {
  final class Place: Sendable {
    private let places: Places
    private let key: String?

    fileprivate init(_ places: Places, _ key: String?) {
      self.places = places
      self.key = key
    }

    deinit {
      places.taken.withLock { taken in
        let rest = (taken[key] ?? 0) - 1
        taken[key] = rest > 0 ? rest : nil
      }
    }
  }

  private let count: Int
  /// By the keys that have them.
  private let taken = Mutex<[String?: Int]>([:])

  init(_ count: Int) { self.count = count }

  /// - Parameter key: who is to have it; nil where there are no keys.
  func take(for key: String?) -> Place? {
    let isTaken = taken.withLock { taken in
      let own = taken[key] ?? 0
      guard taken.values.reduce(0, +) < count, key == nil || own < max(1, count / 2) else { return false }
      taken[key] = own + 1
      return true
    }
    return isTaken ? Place(self, key) : nil
  }
}

extension FilesAPI {
  func addArchiveRoutes(to router: Router<API.Context>, _ routes: inout RouteTable) {
    routes.add(
      .get, "/sessions/{session_id}/archive", "Download a folder as an archive", for: .read, to: router, getArchive)
    routes.add(
      .post, "/sessions/{session_id}/archive", "Unpack an archive into a folder", for: .change, to: router, postArchive)
  }

  private func getArchive(_ request: Request, _ context: API.Context) async throws -> Response {
    let id = try await session(context)
    let query = try QueryFields(request, known: ["format", "path"])
    let format = try query.choice("format", ArchiveFormat.self) ?? .tarGzip
    let path = try Self.path(query)
    guard let place = archivePlaces.take(for: Principal.current?.keyID) else {
      throw Problem(
        .tooManyArchives, "As many archives as may be are being made; try again later.",
        retryAfter: 5)
    }
    let stream = try await workspaces.archive(path, of: id, as: format)
    // What is wrong from the start is still told by the status.
    let first = try await stream.next()
    let folder = path.isRoot ? Array((service.cachedSession(id)?.name ?? "files").utf8)[...] : path.name
    return Response(
      status: .ok,
      headers: [
        .contentType: format == .zip ? "application/zip" : "application/gzip",
        .contentDisposition: ContentDisposition.text("attachment", name: folder + ".\(format.rawValue)".utf8),
        .cacheControl: "private, no-cache",
        .xContentTypeOptions: "nosniff",
      ],
      body: ResponseBody { writer in
        // Taken until the last piece is out or the client is gone.
        let held = place
        var next = first
        while let piece = next {
          try await writer.write(ByteBuffer(bytes: piece))
          next = try await stream.next()
        }
        try await writer.finish(nil)
        withExtendedLifetime(held) {}
      })
  }

  /// The parameter `path`, whose escapes are decoded to bytes and not to text.
  private static func path(_ query: QueryFields) throws(Problem) -> RelativePath {
    guard let escaped = query.escaped("path") else { return .root }
    do throws(RelativePath.Malformation) {
      return try RelativePath(percentEncoded: escaped.utf8)
    } catch {
      throw Problem(error)
    }
  }

  private func postArchive(_ request: Request, _ context: API.Context) async throws -> Response {
    let id = try await session(context)
    let path = try Self.path(try QueryFields(request, known: ["path"]))
    let body = try body(context)
    let (archive, changes) = try await service.changeFiles(of: id) { change in
      // Not even beside the workspaces, as long as there is no room at all.
      try await change.take(0)
      let archive = try await workspaces.unpack(body)
      try await change.take(archive.usage.bytes)
      return (archive, try await workspaces.install(archive, at: path, of: id))
    }
    await service.workspaceLog.record(changes, by: id, isTree: true)
    var json = JSONWriter()
    json.object { json in
      json.field("path", path.displayText)
      json.field("entries", archive.usage.entries)
      json.field("bytes", archive.usage.bytes)
    }
    return API.json(json.finish(), status: .created)
  }
}

import Glibc
import Synchronization

/// The keys of a store, remembered until somebody changes them, so that a request costs no look-up, and one with an id
/// that doesn't exist takes no longer than one with a wrong secret.
///
/// Each change, also by the command line beside a running server, replaces a file; whoever sees another file than
/// before asks the store again. A change therefore holds with the first request after it.
public final class WatchedKeyStore: KeyStore {
  private struct Stamp: Equatable {
    var inode: UInt64 = 0
    var seconds = 0
    var nanoseconds = 0
  }

  private struct Memory {
    let stamp: Stamp
    let keys: [String: APIKey]
  }

  private let store: any KeyStore
  private let path: String
  private let memory = Mutex<Memory?>(nil)

  /// - Parameter stateDirectory: an existing directory that all who change the keys have in common.
  public init(_ store: any KeyStore, stateDirectory: String) {
    self.store = store
    path = stateDirectory + "/keys.changed"
  }

  public func lookUpKey(_ id: String?) async throws(SessionStoreError) -> APIKeyLookup {
    // Taken before the store is asked: what changes in between is found by the next request.
    let stamp = stamp()
    if let known = known(id, stamp) { return known }
    let keys = Dictionary(uniqueKeysWithValues: try await store.keys().map { ($0.id, $0) })
    memory.withLock { $0 = Memory(stamp: stamp, keys: keys) }
    return Self.lookUp(id, keys)
  }

  public func lookUpKnownKey(_ id: String?) -> APIKeyLookup? { known(id, stamp()) }

  private func known(_ id: String?, _ stamp: Stamp) -> APIKeyLookup? {
    memory.withLock { $0?.stamp == stamp ? $0 : nil }.map { Self.lookUp(id, $0.keys) }
  }

  private static func lookUp(_ id: String?, _ keys: [String: APIKey]) -> APIKeyLookup {
    APIKeyLookup(key: id.flatMap { keys[$0] }, hasKeys: !keys.isEmpty)
  }

  public func keys() async throws(SessionStoreError) -> [APIKey] { try await store.keys() }

  public func addKey(_ key: APIKey) async throws(SessionStoreError) {
    try await store.addKey(key)
    try announceChange()
  }

  public func replaceKeyDigest(_ id: String, with digest: [UInt8]) async throws(SessionStoreError) -> APIKey? {
    let key = try await store.replaceKeyDigest(id, with: digest)
    try announceChange()
    return key
  }

  public func setKeyLimits(_ id: String, to limits: KeyLimits) async throws(SessionStoreError) -> APIKey? {
    let key = try await store.setKeyLimits(id, to: limits)
    try announceChange()
    return key
  }

  public func setKeyNetwork(_ id: String, to network: AgentNetwork?) async throws(SessionStoreError) -> APIKey? {
    let key = try await store.setKeyNetwork(id, to: network)
    try announceChange()
    return key
  }

  public func revokeKey(_ id: String, at now: Timestamp) async throws(SessionStoreError) -> Bool {
    let isFound = try await store.revokeKey(id, at: now)
    try announceChange()
    return isFound
  }

  private func stamp() -> Stamp {
    var status = stat()
    guard stat(path, &status) == 0 else { return Stamp() }
    return Stamp(
      inode: UInt64(status.st_ino), seconds: status.st_mtim.tv_sec, nanoseconds: status.st_mtim.tv_nsec)
  }

  private func announceChange() throws(SessionStoreError) {
    // Renamed over the old one, which makes another file each time.
    let new = "\(path).\(getpid())"
    let descriptor = open(new, O_WRONLY | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0o600)
    guard descriptor >= 0, close(descriptor) == 0, rename(new, path) == 0 else {
      throw .io("the change of the keys is stored but could not be announced: \(String(cString: strerror(errno)))")
    }
  }
}

/// A dictionary that forgets what it has had longest when it would hold more than some.
struct BoundedDictionary<Key: Hashable & Sendable, Value: Sendable>: Sendable {
  private let limit: Int
  private(set) var contents: [Key: Value] = [:]
  /// The keys, oldest first.
  private var order: [Key] = []

  init(limit: Int) {
    self.limit = limit
  }

  var count: Int { contents.count }

  subscript(key: Key) -> Value? { contents[key] }

  /// - Returns: what was forgotten for it.
  @discardableResult
  mutating func set(_ key: Key, _ value: Value) -> (key: Key, value: Value)? {
    guard contents.updateValue(value, forKey: key) == nil else { return nil }
    order.append(key)
    guard order.count > limit else { return nil }
    let oldest = order.removeFirst()
    return contents.removeValue(forKey: oldest).map { (oldest, $0) }
  }

  /// Changes a value in its place, if it is there.
  mutating func change(_ key: Key, _ body: (inout Value) -> Void) {
    guard var value = contents.removeValue(forKey: key) else { return }
    body(&value)
    contents[key] = value
  }

  mutating func remove(_ key: Key) -> Value? {
    guard let value = contents.removeValue(forKey: key) else { return nil }
    order.removeAll { $0 == key }
    return value
  }

  /// All of it, oldest first; then it is empty.
  mutating func removeAll() -> [(key: Key, value: Value)] {
    defer {
      contents = [:]
      order = []
    }
    return order.compactMap { key in contents[key].map { (key, $0) } }
  }
}

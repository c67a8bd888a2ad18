/// What is read from a store in pages.
public protocol StorePageElement: Hashable, Sendable {
  /// Bytes of its texts, which may be large.
  var textBytes: Int { get }
}

/// A part of a list that is read from a store in its order: as many as were asked for, but one that begins when the
/// texts before it take 1 MiB or more isn't in it, unless it is the first.
public struct StorePage<Element: StorePageElement>: Hashable, Sendable {
  public private(set) var items: [Element] = []
  /// Whether the list goes on after these.
  public private(set) var hasMore = false
  private let limit: Int
  private var bytes = 0

  private static var maximumBytes: Int { 1 << 20 }

  /// An empty page, to be filled.
  ///
  /// - Parameter limit: how many it takes at most; with less than 1 it stays empty.
  public init(limit: Int) {
    self.limit = limit
  }

  /// Whether the next one goes into the page; if not, it is noted that there is one.
  public mutating func hasRoom() -> Bool {
    hasMore = items.count >= limit || (bytes >= Self.maximumBytes)
    return !hasMore
  }

  public mutating func append(_ element: Element) {
    items.append(element)
    bytes += element.textBytes
  }
}

extension Event: StorePageElement {
  public var textBytes: Int { payload.utf8.count }
}

extension Turn: StorePageElement {
  public var textBytes: Int {
    prompt.utf8.count + options.utf8.count + (result?.utf8.count ?? 0) + (structuredOutput?.utf8.count ?? 0)
  }
}

extension Approval: StorePageElement {
  public var textBytes: Int { input.utf8.count + (updatedInput?.utf8.count ?? 0) + (message?.utf8.count ?? 0) }
}

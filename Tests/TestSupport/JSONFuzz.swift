public import JSONSupport

/// Made-up changes to JSON values, which stay JSON.
public enum JSONFuzz {
  /// The value with one to four values inside it changed, taken away or added.
  public static func changed(_ value: JSONValue, _ random: inout SplitMix64) -> JSONValue {
    (0..<random.number(1...4)).reduce(value) { value, _ in changedOnce(value, &random) }
  }

  private static func changedOnce(_ value: JSONValue, _ random: inout SplitMix64) -> JSONValue {
    if random.one(in: 5) { return any(&random) }
    switch value {
    case .object(var members) where !members.isEmpty:
      let name = random.pick(members.keys.sorted())
      switch random.number(0...5) {
      case 0: members[name] = nil
      case 1: members[random.pick(["type", "id", "", "message", name + "x"])] = any(&random)
      default: members[name] = changedOnce(members[name] ?? nil, &random)
      }
      return .object(members)
    case .array(var elements) where !elements.isEmpty:
      let index = random.number(0...(elements.count - 1))
      switch random.number(0...5) {
      case 0: elements.remove(at: index)
      case 1: elements.insert(any(&random), at: index)
      case 2: elements += elements
      default: elements[index] = changedOnce(elements[index], &random)
      }
      return .array(elements)
    default: return any(&random)
    }
  }

  private static func any(_ random: inout SplitMix64) -> JSONValue {
    switch random.number(0...9) {
    case 0: nil
    case 1: .bool(random.one(in: 2))
    case 2: .int(random.pick([0, -1, 1, .max, .min, 1 << 53]))
    case 3: .double(random.pick([0.5, -0.5, 1e300, -1e300, .leastNonzeroMagnitude]))
    case 4: .array([])
    case 5: .object([:])
    case 6: .array([any(&random), any(&random)])
    case 7: .object([random.pick(["type", "text", "id", "content"]): any(&random)])
    case 8: .string(String(decoding: random.bytes(0...20), as: UTF8.self))
    default: .string(random.pick(["", "text", "tool_use", "mcp__a__b", "\u{0}\u{1f}\"\\", "assistant"]))
    }
  }
}

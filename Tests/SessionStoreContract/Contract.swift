public import Sessions
public import Testing

/// What every `SessionStore` must do. Each case is given an empty store of its own.
public struct ContractCase: Sendable, CustomTestStringConvertible {
  let name: String
  public let run: @Sendable (any SessionStore) async throws -> Void

  init(_ name: String, _ run: @escaping @Sendable (any SessionStore) async throws -> Void) {
    self.name = name
    self.run = run
  }

  public var testDescription: String { name }

  public static let all: [ContractCase] =
    sessionCases + turnCases + eventCases + approvalCases + idempotencyCases + recoveryCases + raceCases
    + operationCases + limitCases
}

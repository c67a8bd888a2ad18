import SessionStoreContract
import Sessions
import Testing

@Suite struct InMemorySessionStoreTests {
  @Test(arguments: ContractCase.all)
  func contract(_ contract: ContractCase) async throws {
    try await contract.run(InMemorySessionStore())
  }
}

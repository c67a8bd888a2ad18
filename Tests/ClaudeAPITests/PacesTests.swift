import Testing

@testable import ClaudeAPI

@Suite struct PacesTests {
  @Test func whatIsOverTheRateWaitsInOrder() {
    let paces = Paces(rate: 10, burst: 3)
    let start = ContinuousClock.now
    let delays = (0..<5).map { _ in paces.delay(of: "a", at: start) }
    #expect(delays == [nil, nil, nil, .milliseconds(100), .milliseconds(200)])
    #expect(paces.delay(of: "b", at: start) == nil)
    // What it has waited for is paid, and a pause gives no more than the burst.
    #expect(paces.delay(of: "a", at: start + .milliseconds(200)) == .milliseconds(100))
    #expect((0..<4).map { _ in paces.delay(of: "a", at: start + .seconds(60)) } == [nil, nil, nil, .milliseconds(100)])
  }

  @Test func whatIsLargerThanTheBurstIsWaitedForByTheNext() {
    let paces = Paces(rate: 100, burst: 100)
    let start = ContinuousClock.now
    #expect(paces.delay(of: "a", for: 1000, at: start) == nil)
    #expect(paces.delay(of: "a", for: 10, at: start) == .seconds(9.1))
    paces.giveBack(10, of: "a")
    // One that is large waits until all is there that can be.
    #expect(paces.delay(of: "a", for: 1000, at: start + .seconds(5)) == .seconds(5))
  }

  @Test func manySendersAreForgottenWhenTheyHavePaid() {
    let paces = Paces(rate: 1, burst: 1)
    let start = ContinuousClock.now
    for number in 0..<2000 { #expect(paces.delay(of: "\(number)", at: start + .seconds(number)) == nil) }
    #expect(paces.delay(of: "debtor", for: 5000, at: start + .seconds(2000)) == nil)
    for number in 2001..<4500 { #expect(paces.delay(of: "\(number)", at: start + .seconds(number)) == nil) }
    #expect(paces.delay(of: "debtor", at: start + .seconds(4500)) == .seconds(2500))
  }
}

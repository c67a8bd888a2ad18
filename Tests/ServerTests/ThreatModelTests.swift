import Foundation
import TestSupport
import Testing

/// nginx/THREATS.md claims nothing that no test stands for.
@Suite struct ThreatModelTests {
  /// The functions of each suite in the tests, by the suite's name.
  private func suites() throws -> [String: Set<String>] {
    var suites: [String: Set<String>] = [:]
    let files = try FileManager.default.subpathsOfDirectory(atPath: repositoryRoot + "/Tests")
    for file in files where file.hasSuffix(".swift") {
      var suite: String?
      var isTest = false
      for line in text(of: repositoryRoot + "/Tests/" + file).split(separator: "\n") {
        if let match = line.firstMatch(of: #/^(?:@Suite(?:\(.*\))? )?(?:final )?(?:struct|class|actor) (\w+)/#) {
          suite = String(match.1)
        }
        if line.contains("@Test") { isTest = true }
        if isTest, let suite, let match = line.firstMatch(of: #/\bfunc (\w+)/#) {
          suites[suite, default: []].insert(String(match.1))
          isTest = false
        }
      }
    }
    return suites
  }

  @Test func everyClaimNamesATestThatExists() throws {
    let document = text(of: repositoryRoot + "/nginx/THREATS.md")
    let suites = try suites()
    #expect(suites["ThreatModelTests"] == ["everyClaimNamesATestThatExists"])
    var claims = 0
    for line in document.split(separator: "\n") where line.hasPrefix("| ") {
      let cells = line.split(separator: "|").map { $0.trimmingCharacters(in: .whitespaces) }
      guard cells.count == 3, !["Attack", "---"].contains(cells[0]) else { continue }
      claims += 1
      let named = cells[2].matches(of: #/`(\w+)\.(\w+)`/#)
      #expect(!named.isEmpty, "no test is named for: \(cells[0])")
      for match in named {
        #expect(suites[String(match.1)]?.contains(String(match.2)) == true, "\(match.0) doesn't exist")
      }
    }
    #expect(claims > 30)
  }
}

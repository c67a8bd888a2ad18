import Monitoring
import TestSupport
import Testing

@Suite struct MetricsTests {
  @Test func countersGrowAndNothingElse() {
    let counter = Counter()
    counter.add()
    counter.add(0.25)
    for amount in [-1, Double.nan, Double.infinity, -Double.infinity, 0] { counter.add(amount) }
    #expect(counter.value == 1.25)
  }

  @Test func whatManyThreadsRecordIsAllThere() async {
    let counter = Counter()
    let histogram = Histogram([1, 2, 3])
    let family = Family<Int, Counter>(limit: 5, overflow: -1) { Counter() }
    await withTaskGroup { group in
      for _ in 0..<8 {
        group.addTask {
          for number in 0..<10_000 {
            counter.add(0.5)
            histogram.record(Double(number % 4) + 0.5)
            family[number % 8].add()
          }
        }
      }
    }
    #expect(counter.value == 40_000)
    let snapshot = histogram.snapshot
    #expect(snapshot.cumulated == [20_000, 40_000, 60_000] && snapshot.count == 80_000)
    #expect(snapshot.sum == 160_000)
    #expect(family.all.reduce(0) { $0 + $1.value.value } == 80_000)
  }

  @Test func aHistogramCountsAValueOnItsBoundBelowIt() {
    let histogram = Histogram([0.1, 1])
    for value in [0.1, 0.10001, 1, 2, Double.nan, Double.infinity] { histogram.record(value) }
    histogram.record(Duration.milliseconds(1500))
    let snapshot = histogram.snapshot
    #expect(snapshot.cumulated == [1, 3] && snapshot.count == 5)
    #expect(abs(snapshot.sum - 4.70001) < 1e-9)
  }

  /// Whatever comes, there are never more than so many.
  @Test func whatIsOverTheLimitIsCountedTogether() {
    let family = Family<String, Counter>(limit: 3, overflow: "other") { Counter() }
    for number in 0..<1000 { family["\(number)"].add() }
    family["1"].add()
    let counts = Dictionary(uniqueKeysWithValues: family.all.map { ($0.key, $0.value.value) })
    #expect(counts == ["0": 1, "1": 2, "2": 1, "other": 997])
  }

  @Test func theTextIsExactlyThatOfTheFormat() {
    var text = Exposition()
    text.add(.gauge, "a_bytes", "How \\ many\nof them.", 5)
    text.add(
      .counter, "b_total", "B.",
      [.init(0.5, ["key": "a\"b\\c\nd", "kind": "x"]), .init(1e20, ["key": "ä", "kind": "y"])])
    let histogram = Histogram([0.005, 1])
    histogram.record(0.001)
    histogram.record(7)
    text.add(histogram: "c_seconds", "C.", histogram)
    text.add(.gauge, "d", "None.", [])
    #expect(
      text.text == #"""
        # HELP a_bytes How \\ many\nof them.
        # TYPE a_bytes gauge
        a_bytes 5
        # HELP b_total B.
        # TYPE b_total counter
        b_total{key="a\"b\\c\nd",kind="x"} 0.5
        b_total{key="ä",kind="y"} 1e+20
        # HELP c_seconds C.
        # TYPE c_seconds histogram
        c_seconds_bucket{le="0.005"} 1
        c_seconds_bucket{le="1"} 1
        c_seconds_bucket{le="+Inf"} 2
        c_seconds_sum 7.001
        c_seconds_count 2
        # HELP d None.
        # TYPE d gauge

        """#)
  }

  @Test func theTextCanBeReadWhateverTheLabelsHold() throws {
    try Fuzz.rounds(500) { random, seed in
      let values = Set((0..<20).map { _ in String(decoding: random.bytes(0...12), as: UTF8.self) })
      var text = Exposition()
      text.add(.gauge, "a", "A.", values.map { .init(Double($0.utf8.count), ["x": $0]) })
      let read = try PrometheusText(text.text)
      #expect(Set(read.samples.compactMap { $0.labels["x"] }) == values, "\(seed)")
    }
  }

  /// The reader that other tests rely on finds what is wrong.
  @Test(arguments: [
    "a 1", "# HELP a A.\n# TYPE a gauge\na 1", "# TYPE a gauge\na 1\n", "# HELP a A.\n# TYPE a counter\na 1\n",
    "# HELP a A.\n# TYPE a gauge\na 1\na 2\n", "# HELP a A.\n# TYPE a gauge\na{x=\"1\" 1\n",
    "# HELP a A.\n# TYPE a gauge\na{x=\"\\x\"} 1\n", "# HELP a A.\n# TYPE a gauge\nb 1\n",
    "# HELP a A.\n# TYPE a gauge\na  1\n", "# HELP a A.\n# TYPE a gauge\n\n", "# HELP a-b A.\n# TYPE a-b gauge\n",
    "# HELP a A.\n# TYPE a histogram\na_bucket{le=\"1\"} 2\na_bucket{le=\"+Inf\"} 1\na_sum 1\na_count 1\n",
    "# HELP a A.\n# TYPE a histogram\na_bucket{le=\"1\"} 1\na_sum 1\na_count 1\n",
    "# HELP a A.\n# TYPE a histogram\na_sum 1\na_count 1\n",
  ])
  func theReaderIsStrict(_ text: String) {
    #expect(throws: PrometheusText.Malformed.self) { try PrometheusText(text) }
  }
}

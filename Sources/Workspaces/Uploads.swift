/// Uploads that go on over several requests.
enum Uploads {
  /// Their directory inside the staging directory.
  static let directory = "uploads"
}

import HTTPTypes
import JSONSupport
import Sessions
import Workspaces

#if canImport(FoundationEssentials)
  import FoundationEssentials
#else
  import Foundation
#endif

/// Sessions that begin with a git repository.
extension API {
  /// The field `git`.
  static func repository(_ fields: BodyFields) throws(Problem) -> GitSource? {
    guard let object = try fields.object("git") else { return nil }
    let members = try BodyFields(object, known: ["branch", "depth", "url"], inside: "git")
    guard let text = try members.string("url") else { throw members.invalid("url", "is missing") }
    guard let url = GitURL(text) else {
      throw members.invalid(
        "url", "must be the address of a repository, such as https://example.org/team/project.git, without a password")
    }
    let branch = try members.string("branch")
    if let branch, !GitSource.isReference(branch) {
      throw members.invalid("branch", "must be the name of a branch or tag")
    }
    let depth = try members.integer("depth")
    if let depth, !(1...1_000_000).contains(depth) {
      throw members.invalid("depth", "must be from 1 to 1000000 commits")
    }
    return GitSource(url: url, reference: branch, depth: depth.map { Int($0) })
  }
}

extension FilesAPI {
  /// Clones a repository into the workspace of a new session.
  func bringIn(_ source: GitSource, for session: UUID, _ change: FilesChange) async throws {
    guard let place = clonePlaces.take(for: Principal.current?.keyID) else {
      throw Problem(
        .tooManyClones, "As many repositories as may be are being cloned; try again later.",
        retryAfter: 10)
    }
    try await change.take(0)
    let tree = try await workspaces.clone(source, configuration.git)
    try await change.take(tree.usage.bytes)
    try await workspaces.install(tree, at: .root, of: session)
    withExtendedLifetime(place) {}
  }
}

extension Problem {
  init(_ error: GitError) {
    switch error {
    case .notAllowed:
      self.init(
        .gitSourceNotAllowed,
        "Repositories of this place may not be brought in; the operator allows places by git.allowed-sources.")
    case .failed(let text):
      self.init(.gitFailed, "The repository could not be cloned: \(text)")
    case .timedOut(let limit):
      self.init(
        .gitTimeout, "Cloning took longer than \(limit.components.seconds) s. Nothing was kept.")
    case .unavailable:
      self.init(.gitUnavailable, "git can't be started on this server.")
    }
  }
}

import Testing
import Workspaces

@Suite struct GitURLTests {
  private static let allowed = [
    "https://github.com/example", "ssh://git@example.org:2222/team/", "file:///srv/git", "https://[2001:db8::1]/",
  ].compactMap { GitURL($0) }

  @Test(arguments: [
    ("https://github.com/example/project.git", true), ("https://github.com/example", true),
    ("HTTPS://GitHub.com:443/example/x", true), ("https://github.com/example-evil/x", false),
    ("https://github.com/Example/x", false), ("https://github.com.evil.org/example/x", false),
    ("https://github.com:444/example/x", false), ("http://github.com/example/x", false),
    ("https://evil.org/github.com/example", false), ("ssh://git@example.org:2222/team/x", true),
    ("ssh://git@example.org/team/x", false), ("ssh://root@example.org:2222/team/x", false),
    ("ssh://example.org:2222/team/x", false), ("file:///srv/git/x", true), ("file:///srv/gitx", false),
    ("file:///srv", false), ("https://[2001:DB8::1]/x", true), ("https://[2001:db8::2]/x", false),
  ])
  func whatIsBelow(text: String, isAllowed: Bool) throws {
    let url = try #require(GitURL(text))
    #expect(Self.allowed.contains { url.isWithin($0) } == isAllowed)
  }

  @Test(arguments: [
    "", "github.com/example", "git@github.com:example/x", "git://github.com/example/x", "ext::sh -c x",
    "https://user:password@github.com/example/x", "https://user@github.com/example/x", "https:///example/x",
    "https://github.com/example/../other", "https://github.com/example/./x", "https://github.com/example//x",
    "https://github.com/example/%2e%2e/x", "https://github.com/example/x?y", "https://github.com/example/x#y",
    "https://github.com\\@evil.org/x", "https://github.com@evil.org/example/x", "https://-oProxyCommand=x/y",
    "ssh://-oProxyCommand=x/y", "ssh://-x@host/y", "https://github.com:0/x", "https://github.com:443x/x",
    "https://github.com:/x", "https://github.com:00443/x", "https://github.com./example/x", "file://host/srv/git/x",
    "https://github.com/example/x\n", "https://github.com/exa mple", "https://github.com/\u{fc}", "https://[::1/x",
    "https://[x]/y", "https://a:b:c/x", "https://git hub.com/x", "https://github.com/x\0", "ftp://github.com/x",
  ])
  func whatIsNone(text: String) {
    #expect(GitURL(text) == nil)
  }

  @Test func names() {
    for name in ["main", "feature/x-1", "v1.0", "a_b", "release+2", "user@x"] { #expect(GitSource.isReference(name)) }
    for name in [
      "", "-x", "--upload-pack=x", "a..b", "a/", "/a", "a//b", ".a", "a/.b", "a.lock", "a b", "a~1", "a^", "a:b", "a?",
      "a*", "a[", "a\\", "a\n", "a.", String(repeating: "a", count: 201),
    ] { #expect(!GitSource.isReference(name), "\(name)") }
  }
}

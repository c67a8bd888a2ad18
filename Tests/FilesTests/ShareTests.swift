import Foundation
import Sessions
import TestSupport
import Testing
import Workspaces

@Suite struct ShareTests {
  private struct Made: Decodable {
    let id: String
    let href: String
    let path: String
    let expires_at: String
  }

  @Test func aLinkShowsWhatWasSharedAndNothingElse() async throws {
    try await FilesServer.run { server in
      try server.write("shown", to: "pub/sub/f.txt")
      try server.write("hidden", to: "private.txt")
      symlink("../private.txt", server.workspace + "/pub/link")
      let response = try await server.json("POST", server.base + "/files/share", #"{"path":"pub","expires_in":600}"#)
      #expect(response.status == 201)
      let made = try response.decode(Made.self)
      #expect(try await server.send("GET", made.href + "/sub/f.txt").text == "shown")
      let listing = try await server.send("GET", made.href + "?format=json").decode(Listing.self)
      #expect(listing.entries.map(\.name) == ["sub", "link"])
      #expect(listing.entries.first?.href == made.href + "/sub/")
      let page = try await server.send("GET", made.href + "/sub/").text
      #expect(!page.contains(server.session.id.uuidString.lowercased()) && page.contains("href=\"\(made.href)/\""))
      for path in ["/../private.txt", "/%2e%2e/private.txt", "/..%2fprivate.txt", "/link", "/private.txt", "//etc"] {
        let response = try await server.send("GET", made.href + path)
        #expect(response.status >= 400 && !response.text.contains("hidden"), "\(path)")
      }
      #expect(try await server.send("PUT", made.href + "/new", text: "x").status == 405)
      #expect(try await server.send("DELETE", made.href + "/sub/f.txt").status == 405)

      for index in [8, 30, 40, 60, 95] {
        var token = Array(made.href.utf8)
        token[8 + index % 88] = token[8 + index % 88] == 0x41 ? 0x42 : 0x41
        let forged = try await server.send("GET", String(decoding: token, as: UTF8.self))
        #expect(forged.problemCode == "share_not_found")
      }
      #expect(try await server.send("GET", "/shared/x").status == 404)
      #expect(try await server.send("DELETE", "\(server.base)/shares/\(made.id)").status == 204)
      #expect(try await server.send("GET", made.href).problemCode == "share_not_found")
      #expect(try await server.send("DELETE", "\(server.base)/shares/\(made.id)").status == 404)
    }
  }

  @Test func aFileAndBadRequests() async throws {
    try await FilesServer.run { server in
      try server.write("shown", to: "f.txt")
      let made = try await server.json("POST", server.base + "/files/share", #"{"path":"f.txt"}"#).decode(Made.self)
      let file = try await server.send("GET", made.href)
      #expect(file.text == "shown" && file["content-disposition"] == ["inline; filename=\"f.txt\""])
      #expect(try await server.send("GET", made.href + "/x").status == 404)
      let list = try await server.send("GET", server.base + "/shares")
      #expect(list.status == 200 && list.text.contains(made.href))
      for (body, status) in [
        (#"{"path":"none"}"#, 404), (#"{"path":"../x"}"#, 400), (#"{"path":"f.txt","expires_in":0}"#, 422),
        (#"{"path":"f.txt","expires_in":99999999}"#, 422), (#"{}"#, 422),
      ] {
        #expect(try await server.json("POST", server.base + "/files/share", body).status == status, "\(body)")
      }
      // One that is over.
      let short = try await server.workspaces.share(.init("f.txt".utf8), of: server.session.id, for: .zero)
      let token = try await server.workspaces.token(of: short)
      #expect(try await server.send("GET", "/shared/" + token).status == 404)
      try await server.service.delete(server.session.id)
      #expect(try await server.send("GET", made.href).status == 404)
    }
  }

  /// The path of the route may be that of a file or folder, too.
  @Test func aFolderOfTheNameOfTheRoute() async throws {
    try await FilesServer.run { server in
      let route = server.base + "/files/share"
      let form = multipart([("f", "in.txt", "uploaded")])
      #expect(try await server.send("POST", route, form.fields, form.body).status == 201)
      #expect(server.read("share/in.txt") == "uploaded")
      #expect(try await server.send("GET", route + "/in.txt").text == "uploaded")
      let listing = try await server.send("GET", route + "/?format=json").decode(Listing.self)
      #expect(listing.entries.map(\.name) == ["in.txt"])
      let made = try await server.json("POST", route, #"{"path":"share"}"#)
      #expect(made.status == 201)
      #expect(try await server.send("GET", made.decode(Made.self).href + "/in.txt").text == "uploaded")
      // Below the folder there is no such route.
      #expect(try await server.json("POST", route + "/", #"{"path":"share"}"#).problemCode == "unsupported_media_type")
      #expect(
        try await server.json("POST", route + "/share", #"{"path":"share"}"#).problemCode == "unsupported_media_type")
      #expect(try await server.send("DELETE", route + "?recursive=1").status == 204)

      #expect(try await server.send("PUT", route, text: "a file").status == 201)
      #expect(try await server.send("GET", route).text == "a file")
      let file = try await server.json("POST", route, #"{"path":"share"}"#).decode(Made.self)
      #expect(try await server.send("GET", file.href).text == "a file")
      #expect(try await server.send("DELETE", route).status == 204)
      #expect(try await server.json("POST", route, #"{"path":"share"}"#).problemCode == "file_not_found")
    }
  }

  @Test func bodiesThatAreNone() async throws {
    try await FilesServer.run { server in
      let route = server.base + "/files/share"
      for (type, body, code) in [
        ("text/plain", "{}", "unsupported_media_type"), ("application/json", "", "invalid_json"),
        ("application/json", "{", "invalid_json"), ("application/json", #"{"path":"x","z":1}"#, "unknown_field"),
        ("application/json", String(repeating: " ", count: 70_000), "content_too_large"),
        ("multipart/form-data", "x", "unsupported_media_type"),
      ] {
        let response = try await server.send("POST", route, ["Content-Type": type], text: body)
        #expect(response.problemCode == code, "\(type) \(body.prefix(20)): \(response.text)")
      }
      #expect(try await server.send("POST", server.base + "/shares", text: "{}").problemCode == "method_not_allowed")
    }
  }
}

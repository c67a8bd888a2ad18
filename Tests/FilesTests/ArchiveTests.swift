import Foundation
import Sessions
import TestSupport
import Testing
import Workspaces

@Suite struct ArchiveTests {
  /// Runs a program in a directory and fails with its output.
  private func tool(_ arguments: [String], in directory: String) async throws {
    let log = directory + "/.tool.log"
    let exit = try await run(["env", "-C", directory] + arguments, output: log)
    #expect(exit == .status(0), "\(arguments): \(text(of: log))")
    unlink(log)
  }

  @Test(arguments: ["tar.gz", "zip"])
  func aTreeGoesAndComesBack(format: String) async throws {
    try await FilesServer.run { server in
      try server.write("one", to: "a/one.txt")
      try server.write("ümlaut", to: "ü/日本.txt")
      try server.write("#!/bin/sh\n", to: "run.sh")
      chmod(server.workspace + "/run.sh", 0o755)
      mkdir(server.workspace + "/empty", 0o755)
      symlink("a/one.txt", server.workspace + "/link")
      symlink("/etc/passwd", server.workspace + "/far")
      let large = pattern(400_000)
      try Data(large).write(to: URL(fileURLWithPath: server.workspace + "/large.bin"))

      let response = try await server.send("GET", server.base + "/archive?format=" + format)
      #expect(response.status == 200)
      #expect(response["content-disposition"] == ["attachment; filename=\"Test.\(format)\""])
      let again = try await server.send("GET", server.base + "/archive?format=" + format)
      #expect(again.body == response.body)

      let out = server.directory + "/out"
      mkdir(out, 0o755)
      try Data(response.body).write(to: URL(fileURLWithPath: out + "/archive"))
      try await tool(
        ["python3", "-c", Self.extraction, "archive"], in: out)
      #expect(text(of: out + "/a/one.txt") == "one" && text(of: out + "/ü/日本.txt") == "ümlaut")
      #expect(FileManager.default.contents(atPath: out + "/large.bin") == Data(large))
      #expect(FileManager.default.fileExists(atPath: out + "/empty"))
      if format == "tar.gz" {
        #expect(try FileManager.default.destinationOfSymbolicLink(atPath: out + "/link") == "a/one.txt")
        #expect(try FileManager.default.destinationOfSymbolicLink(atPath: out + "/far") == "/etc/passwd")
        #expect(access(out + "/run.sh", X_OK) == 0)
      }
      let part = try await server.send("GET", server.base + "/archive?format=\(format)&path=%C3%BC")
      #expect(part["content-disposition"].first?.contains("filename*=UTF-8''%C3%BC.\(format)") == true)
      #expect(try await server.send("GET", server.base + "/archive?path=none").status == 404)
      #expect(try await server.send("GET", server.base + "/archive?path=far").status == 403)
      #expect(try await server.send("GET", server.base + "/archive?format=rar").status == 400)

      unlink(server.workspace + "/far")
      let clean = try await server.send("GET", server.base + "/archive?format=" + format).body
      let imported = try await server.send("POST", server.base + "/archive?path=back", [:], clean)
      #expect(imported.status == 201, "\(imported.text)")
      #expect(server.read("back/ü/日本.txt") == "ümlaut" && server.read("back/a/one.txt") == "one")
      #expect(try FileManager.default.destinationOfSymbolicLink(atPath: server.workspace + "/back/link") == "a/one.txt")
      #expect(access(server.workspace + "/back/run.sh", X_OK) == 0)
      let round = try await server.send("POST", server.base + "/archive?path=back", [:], clean)
      #expect(round.status == 409 && round.problemCode == "file_exists")
      #expect(try server.staged.isEmpty)
    }
  }

  private static let extraction = """
    import sys, zipfile, tarfile
    path = sys.argv[1]
    if zipfile.is_zipfile(path): zipfile.ZipFile(path).extractall('.')
    else: tarfile.open(path).extractall('.')
    """

  @Test func aSessionFromAnArchive() async throws {
    try await FilesServer.run { server in
      let source = server.directory + "/source"
      mkdir(source, 0o755)
      try Data("hello".utf8).write(to: URL(fileURLWithPath: source + "/f.txt"))
      try await tool(["tar", "-cJf", "../a.tar.xz", "f.txt"], in: source)
      let archive = Array(try Data(contentsOf: URL(fileURLWithPath: server.directory + "/a.tar.xz")))
      let form = multipart([
        ("session_name", nil, Array("From archive".utf8)), ("initial_prompt", nil, Array("Look".utf8)),
        ("archive", "a.tar.xz", archive),
      ])
      let response = try await server.send("POST", "/sessions", form.fields, form.body)
      #expect(response.status == 200, "\(response.text)")
      struct Answer: Decodable {
        struct Session: Decodable {
          let name: String
          let workspace: String
        }
        let session: Session
        let initial_response: String?
      }
      let answer = try response.decode(Answer.self)
      #expect(answer.session.name == "From archive" && answer.initial_response == "You said: Look")
      #expect(text(of: answer.session.workspace + "/f.txt") == "hello")

      let plain = try await server.json("POST", "/sessions", #"{"session_name":"Plain"}"#)
      #expect(plain.status == 200)
      let before = try FileManager.default.contentsOfDirectory(atPath: server.directory + "/workspaces").count
      let bad = multipart([("session_name", nil, Array("x".utf8)), ("archive", "a", Array("no archive".utf8))])
      #expect(try await server.send("POST", "/sessions", bad.fields, bad.body).problemCode == "invalid_archive")
      #expect(
        try FileManager.default.contentsOfDirectory(atPath: server.directory + "/workspaces").count == before)
      #expect(try server.staged.isEmpty)
    }
  }

  @Test func hostileArchives() async throws {
    var limits = WorkspaceLimits()
    limits.bytes = 5_000_000
    limits.entries = 500
    try await FilesServer.run(limits: limits) { server in
      let decoy = server.directory + "/decoy"
      mkdir(decoy, 0o755)
      let out = server.directory + "/made"
      mkdir(out, 0o755)
      try await tool(["python3", "-c", Self.hostile, decoy], in: out)
      let names = try FileManager.default.contentsOfDirectory(atPath: out).filter { !$0.hasPrefix(".") }.sorted()
      #expect(names.count >= 14)
      for name in names {
        let body = Array(try Data(contentsOf: URL(fileURLWithPath: out + "/" + name)))
        let response = try await server.send("POST", server.base + "/archive", [:], body)
        let wanted =
          name.hasPrefix("bomb") ? "quota_exceeded" : name.hasPrefix("bad") ? "invalid_archive" : "unsafe_archive"
        #expect(response.problemCode == wanted, "\(name): \(response.status) \(response.text)")
        #expect(try FileManager.default.contentsOfDirectory(atPath: server.workspace).isEmpty, "\(name)")
        #expect(try server.staged.isEmpty, "\(name)")
      }
      #expect(try FileManager.default.contentsOfDirectory(atPath: decoy).isEmpty)
    }
  }

  private static let hostile = """
    import binascii, gzip, io, lzma, struct, sys, tarfile, zipfile
    decoy = sys.argv[1]
    def tar(name, *entries, mode='w'):
        with tarfile.open(name, mode) as archive:
            for path, kind, target, data in entries:
                info = tarfile.TarInfo(path)
                info.type = kind
                info.linkname = target
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    F, L, H, D = tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE
    tar('up', ('../x', F, '', b'x'))
    tar('up-inside', ('a/../../x', F, '', b'x'))
    tar('absolute', (decoy + '/x', F, '', b'x'))
    tar('device', ('null', tarfile.CHRTYPE, '', b''))
    tar('fifo', ('fifo', tarfile.FIFOTYPE, '', b''))
    tar('link-absolute', ('l', L, decoy, b''))
    tar('link-up', ('l', L, '../decoy', b''))
    tar('link-behind', ('a', D, '', b''), ('a/b', L, '..', b''), ('l', L, 'a/b/../x', b''))
    tar('through-link', ('d', D, '', b''), ('l', L, 'd', b''), ('l/x', F, '', b'x'))
    tar('link-swapped', ('d', D, '', b''), ('d2', L, 'd', b''), ('d2', D, '', b''), ('d2/x', F, '', b'x'))
    tar('hard-up', ('h', H, '../../decoy/x', b''))
    tar('hard-absolute', ('h', H, decoy + '/x', b''))
    tar('hard-to-link', ('d', F, '', b'x'), ('l', L, 'd', b''), ('h', H, 'l', b''))
    tar('bomb-gz', ('zeros', F, '', bytes(50_000_000)), mode='w:gz')
    tar('bomb-count', *[(f'f{n}', F, '', b'') for n in range(600)], mode='w:gz')
    # Each entry needs hundreds of folders that are no entries.
    tar('bomb-folders', *[(f'{n}/' + 'd/' * 300 + 'f', F, '', b'') for n in range(2)], mode='w:gz')
    # Those that ask for 4 GiB of memory, or have it asked for in many layers.
    tar('plain', ('f', F, '', b'x'))
    plain = open('plain', 'rb').read()
    packed = bytearray(lzma.compress(plain))
    header = 12
    size = (packed[header] + 1) * 4
    assert packed[header + 2:header + 4] == bytes([0x21, 1])
    packed[header + 4] = 40
    packed[header + size - 4:header + size] = struct.pack('<I', binascii.crc32(packed[header:header + size - 4]))
    open('bad-xz-memory', 'wb').write(packed)
    open('bad-layers', 'wb').write(gzip.compress(gzip.compress(plain)))
    open('bad-xz-layers', 'wb').write(lzma.compress(gzip.compress(plain)))
    with zipfile.ZipFile('bad-zip-lzma', 'w', zipfile.ZIP_LZMA) as archive:
        archive.writestr('f', 'x')
    import os
    os.unlink('plain')
    with zipfile.ZipFile('bomb-zip', 'w', zipfile.ZIP_DEFLATED) as archive:
        archive.writestr('zeros', bytes(50_000_000))
    with zipfile.ZipFile('zip-up', 'w') as archive:
        archive.writestr('../x', 'x')
    open('bad-garbage', 'wb').write(b'this is no archive' * 100)
    open('bad-cut', 'wb').write(open('bomb-zip', 'rb').read()[:-40][:2000])
    """
}

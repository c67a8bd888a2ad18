/// What a file is sent as, by the ending of its name.
struct MediaType {
  let text: String
  /// Whether a browser shows it by itself. Everything is sent with a policy under which nothing in it can run.
  let isInline: Bool

  init(forName name: some Collection<UInt8>) {
    let text = String(decoding: name, as: UTF8.self).lowercased()
    let ending = text.lastIndex(of: ".").map { text[text.index(after: $0)...] } ?? ""
    if let type = Self.types[ending] {
      let isText = type.hasPrefix("text/") || Self.textual.contains(type)
      self.text = isText ? type + "; charset=utf-8" : type
      isInline = isText || ["image/", "audio/", "video/"].contains { type.hasPrefix($0) }
    } else if Self.textNames.contains(text) || Self.textEndings.contains(ending) {
      self.text = "text/plain; charset=utf-8"
      isInline = true
    } else {
      self.text = "application/octet-stream"
      isInline = false
    }
  }

  private static let textual: Set<String> = ["application/json", "application/xml", "application/yaml"]

  private static let textNames: Set<String> = [
    "changelog", "dockerfile", "gemfile", "justfile", "license", "makefile", "notice", "procfile", "rakefile", "readme",
    ".dockerignore", ".editorconfig", ".gitattributes", ".gitignore", ".gitmodules",
  ]

  /// Sources and settings, which people want to read and no program needs to know.
  private static let textEndings: Set<Substring> = [
    "adoc", "asm", "awk", "bash", "bat", "bib", "c", "cc", "cfg", "clj", "cmake", "conf", "cpp", "cs", "cxx", "d",
    "dart", "diff", "el", "elm", "env", "erl", "ex", "exs", "f90", "fish", "fs", "go", "gradle", "graphql", "groovy",
    "h", "hh", "hpp", "hs", "ini", "java", "jl", "kt", "kts", "less", "lisp", "lock", "log", "lua", "m", "mm", "ml",
    "nim", "nix", "org", "out", "pas", "patch", "php", "pl", "pm", "proto", "ps1", "py", "r", "rb", "rs", "rst", "s",
    "scala", "scss", "sh", "sql", "srt", "swift", "tcl", "tex", "tf", "toml", "ts", "tsv", "tsx", "txt", "vb", "vim",
    "vue", "zig", "zsh",
  ]

  private static let types: [Substring: String] = [
    "7z": "application/x-7z-compressed", "aac": "audio/aac", "apng": "image/apng", "avif": "image/avif",
    "bmp": "image/bmp", "bz2": "application/x-bzip2", "css": "text/css", "csv": "text/csv",
    "docx": "application/vnd.openxmlformats-officedocument.wordprocessingml.document",
    "epub": "application/epub+zip", "flac": "audio/flac", "gif": "image/gif", "gz": "application/gzip",
    "htm": "text/html", "html": "text/html", "ico": "image/x-icon", "ics": "text/calendar",
    "ipynb": "application/json", "jpeg": "image/jpeg", "jpg": "image/jpeg", "js": "text/javascript",
    "json": "application/json", "jsonl": "text/plain", "jsx": "text/plain", "m4a": "audio/mp4",
    "markdown": "text/markdown", "md": "text/markdown", "mjs": "text/javascript", "mov": "video/quicktime",
    "mp3": "audio/mpeg", "mp4": "video/mp4", "odp": "application/vnd.oasis.opendocument.presentation",
    "ods": "application/vnd.oasis.opendocument.spreadsheet", "odt": "application/vnd.oasis.opendocument.text",
    "oga": "audio/ogg", "ogg": "audio/ogg", "ogv": "video/ogg", "opus": "audio/ogg", "otf": "font/otf",
    "pdf": "application/pdf", "png": "image/png",
    "pptx": "application/vnd.openxmlformats-officedocument.presentationml.presentation",
    "sqlite": "application/vnd.sqlite3", "svg": "image/svg+xml", "svgz": "application/gzip",
    "tar": "application/x-tar", "tgz": "application/gzip", "tif": "image/tiff", "tiff": "image/tiff",
    "ttf": "font/ttf", "wasm": "application/wasm", "wav": "audio/wav", "weba": "audio/webm", "webm": "video/webm",
    "webp": "image/webp", "woff": "font/woff", "woff2": "font/woff2", "xhtml": "application/xhtml+xml",
    "xlsx": "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet", "xml": "application/xml",
    "xz": "application/x-xz", "yaml": "application/yaml", "yml": "application/yaml", "zip": "application/zip",
    "zst": "application/zstd",
  ]
}

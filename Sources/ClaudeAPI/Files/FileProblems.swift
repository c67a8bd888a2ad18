import Workspaces

extension Problem {
  init(_ error: FileError) {
    switch error {
    case .notFound, .notADirectory:
      self.init(.fileNotFound, "There is no such file or folder in this session.")
    case .isADirectory:
      self.init(.isAFolder, "There is a folder of this name.")
    case .symbolicLink:
      self.init(.symbolicLink, "The path is or leads through a symbolic link, which is never followed.")
    case .special:
      self.init(.specialFile, "This is a device, a FIFO or a socket and has no content to send.")
    case .exists:
      self.init(.fileExists, "There is a file or folder of this name already.")
    case .directoryNotEmpty:
      self.init(.folderNotEmpty, "The folder is not empty, or is being filled; add ?recursive=true to delete it all.")
    case .nameTooLong:
      self.init(.invalidPath, "The path is longer than the file system allows.")
    case .permissionDenied:
      self.init(.filePermissionDenied, "The permissions of the file or folder don't allow this.")
    case .intoItself:
      self.init(.intoItself, "A folder can't be moved into itself.")
    case .conditionFailed:
      self.init(.preconditionFailed, "The file is not as If-Match or If-None-Match demands.")
    case .digestMismatch:
      self.init(.digestMismatch, "The bytes that arrived don't have the digest that was sent with them.")
    case .uploadTooLarge(let limit):
      self.init(.uploadTooLarge, "A file may have at most \(limit) bytes.")
    case .quotaExceeded(.bytes, let limit):
      self.init(
        .quotaExceeded, "The files of this session would take more than \(limit) bytes.")
    case .quotaExceeded(.entries, let limit):
      self.init(
        .quotaExceeded, "This session would have more than \(limit) files and folders.")
    case .diskFull:
      self.init(.diskFull, "The disk is full. Nothing was changed.")
    case .invalidArchive:
      self.init(
        .invalidArchive, "This is no whole tar or zip archive, or its packing is not known.")
    case .unsafeArchive:
      self.init(
        .unsafeArchive,
        "The archive has an entry that would lie or lead outside, or that is no file, folder or link. Nothing was kept."
      )
    case .system:
      self.init(.workspaceFailed, "The files of the session could not be used.")
    }
  }

  init(_ malformation: RelativePath.Malformation) {
    let detail =
      switch malformation {
      case .badEscape: "A % in the path is not followed by two hexadecimal digits."
      case .nul: "The path must not hold NUL."
      case .emptyComponent: "The path must not have an empty component (//)."
      case .dotComponent: "The path must not have a component . or .. ."
      case .tooLong: "A name may have at most 255 bytes, and a path at most 4095."
      }
    self.init(.invalidPath, detail)
  }
}

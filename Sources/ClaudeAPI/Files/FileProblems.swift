import HTTPTypes
import Workspaces

extension HTTPResponse.Status {
  static let insufficientStorage = HTTPResponse.Status(code: 507, reasonPhrase: "Insufficient Storage")
}

extension Problem {
  init(_ error: FileError) {
    switch error {
    case .notFound, .notADirectory:
      self.init(.notFound, "file_not_found", "There is no such file or folder in this session.")
    case .isADirectory:
      self.init(.conflict, "is_a_folder", "There is a folder of this name.")
    case .symbolicLink:
      self.init(.forbidden, "symbolic_link", "The path is or leads through a symbolic link, which is never followed.")
    case .special:
      self.init(.forbidden, "special_file", "This is a device, a FIFO or a socket and has no content to send.")
    case .exists:
      self.init(.conflict, "file_exists", "There is a file or folder of this name already.")
    case .directoryNotEmpty:
      self.init(.conflict, "folder_not_empty", "The folder is not empty; add ?recursive=true to delete it all.")
    case .nameTooLong:
      self.init(.badRequest, "invalid_path", "The path is longer than the file system allows.")
    case .permissionDenied:
      self.init(.forbidden, "permission_denied", "The permissions of the file or folder don't allow this.")
    case .intoItself:
      self.init(.conflict, "into_itself", "A folder can't be moved into itself.")
    case .conditionFailed:
      self.init(.preconditionFailed, "precondition_failed", "The file is not as If-Match or If-None-Match demands.")
    case .digestMismatch:
      self.init(.badRequest, "digest_mismatch", "The bytes that arrived don't have the digest that was sent with them.")
    case .uploadTooLarge(let limit):
      self.init(.contentTooLarge, "upload_too_large", "A file may have at most \(limit) bytes.")
    case .quotaExceeded(.bytes, let limit):
      self.init(
        .insufficientStorage, "quota_exceeded", "The files of this session would take more than \(limit) bytes.")
    case .quotaExceeded(.entries, let limit):
      self.init(
        .insufficientStorage, "quota_exceeded", "This session would have more than \(limit) files and folders.")
    case .diskFull:
      self.init(.insufficientStorage, "disk_full", "The disk is full. Nothing was changed.")
    case .invalidArchive:
      self.init(
        .unprocessableContent, "invalid_archive", "This is no whole tar or zip archive, or its packing is not known.")
    case .unsafeArchive:
      self.init(
        .unprocessableContent, "unsafe_archive",
        "The archive has an entry that would lie or lead outside, or that is no file, folder or link. Nothing was kept."
      )
    case .system:
      self.init(.internalServerError, "workspace_failed", "The files of the session could not be used.")
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
    self.init(.badRequest, "invalid_path", detail)
  }
}

import Sessions

extension JSONWriter {
  /// The members of a session's object.
  mutating func members(_ session: Session) {
    field("id", session.id.lowercaseString)
    field("name", session.name)
    field("created_at", session.createdAt.description)
    field("last_used", session.lastUsed.description)
    field("workspace", session.workspace)
  }
}

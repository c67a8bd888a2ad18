/// One complete JSON value as text, which the store keeps as it is and never looks into.
///
/// The caller vouches that it is valid JSON; in particular it has no raw NUL, which JSON forbids.
public typealias JSONText = String

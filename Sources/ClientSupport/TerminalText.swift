/// Text from elsewhere, made safe to write to a terminal.
///
/// Line ends and tabs stay. Other control characters are shown as symbols, so that they can't move the
/// cursor, set the title or answer in the user's name; those that change the direction of the text are
/// replaced, so that it can't be shown in another order than it has.
package func terminalSafe(_ text: String) -> String {
  var result = String.UnicodeScalarView()
  var previous: Unicode.Scalar?
  for scalar in text.unicodeScalars {
    switch scalar.value {
    case 0x0a where previous?.value == 0x0d:
      result.removeLast()
      result.append(scalar)
    case 0x09, 0x0a: result.append(scalar)
    case 0..<0x20: result.append(Unicode.Scalar(0x2400 + scalar.value) ?? "\u{fffd}")
    case 0x7f: result.append("\u{2421}")
    case 0x80..<0xa0, 0x202a...0x202e, 0x2066...0x2069: result.append("\u{fffd}")
    default: result.append(scalar)
    }
    previous = scalar
  }
  return String(result)
}

/// How many columns a character takes on a terminal. Control characters are not asked for.
func columns(of character: Character) -> Int {
  var width = 0
  for scalar in character.unicodeScalars {
    // The emoji variant of a character that is text by default.
    if scalar.value == 0xfe0f, character.unicodeScalars.first?.properties.isEmoji == true { return 2 }
    width = max(width, columns(of: scalar))
  }
  return width
}

private func columns(of scalar: Unicode.Scalar) -> Int {
  if scalar.value < 0x300 { return scalar.value == 0xad ? 0 : 1 }
  switch scalar.properties.generalCategory {
  case .nonspacingMark, .enclosingMark, .format: return 0
  default: break
  }
  if scalar.properties.isEmojiPresentation { return 2 }
  // East Asian Width W and F, in whole blocks.
  switch scalar.value {
  case 0x1100...0x115f, 0x2e80...0x303e, 0x3041...0x33ff, 0x3400...0x4dbf, 0x4e00...0x9fff, 0xa000...0xa4cf,
    0xa960...0xa97f, 0xac00...0xd7a3, 0xf900...0xfaff, 0xfe10...0xfe19, 0xfe30...0xfe6f, 0xff01...0xff60,
    0xffe0...0xffe6, 0x17000...0x18cff, 0x1b000...0x1b2ff, 0x20000...0x3fffd:
    return 2
  default: return 1
  }
}

#if canImport(Glibc)
  internal import Glibc
#elseif canImport(Musl)
  internal import Musl
#else
  internal import Darwin
#endif

/// A moment in UTC as microseconds since 1970-01-01T00:00:00Z, without leap seconds.
///
/// Values are held to the years 0000 to 9999, the range of RFC 3339; what lies outside is moved to the nearest
/// end. The text form is always `2026-01-31T23:59:59.000001Z`: six fraction digits and `Z`, 27 bytes, so that
/// the order of the texts is the order of the moments.
public struct Timestamp: Hashable, Comparable, Sendable {
  /// Microseconds since 1970 UTC; negative before it.
  public let microseconds: Int64

  /// The first microsecond of the year 0000.
  public static let min = Timestamp(unchecked: -62_167_219_200_000_000)
  /// The last microsecond of the year 9999.
  public static let max = Timestamp(unchecked: 253_402_300_799_999_999)

  private init(unchecked microseconds: Int64) {
    self.microseconds = microseconds
  }

  public init(microseconds: Int64) {
    self.microseconds = Swift.min(Swift.max(microseconds, Self.min.microseconds), Self.max.microseconds)
  }

  /// The wall clock of the machine. It can step backwards when the clock is set.
  public static func now() -> Timestamp {
    var time = timespec()
    // CLOCK_REALTIME with a valid pointer has no failure case.
    _ = clock_gettime(CLOCK_REALTIME, &time)
    return Timestamp(microseconds: Int64(time.tv_sec) * 1_000_000 + Int64(time.tv_nsec) / 1000)
  }

  public static func < (left: Timestamp, right: Timestamp) -> Bool {
    left.microseconds < right.microseconds
  }

  /// The moment that lies `duration` later, to the microsecond, towards zero; ends at `min` and `max`.
  public func advanced(by duration: Duration) -> Timestamp {
    let (seconds, attoseconds) = duration.components
    let (whole, overflow) = seconds.multipliedReportingOverflow(by: 1_000_000)
    if overflow { return seconds < 0 ? .min : .max }
    let (delta, deltaOverflow) = whole.addingReportingOverflow(attoseconds / 1_000_000_000_000)
    if deltaOverflow { return seconds < 0 ? .min : .max }
    let (sum, sumOverflow) = microseconds.addingReportingOverflow(delta)
    if sumOverflow { return delta < 0 ? .min : .max }
    return Timestamp(microseconds: sum)
  }

  /// The time from `earlier` to this moment; negative if `earlier` is later.
  public func duration(since earlier: Timestamp) -> Duration {
    .microseconds(microseconds - earlier.microseconds)
  }
}

extension Timestamp: CustomStringConvertible {
  /// RFC 3339 in UTC: `YYYY-MM-DDThh:mm:ss.ffffffZ`.
  public var description: String {
    String(unsafeUninitializedCapacity: 27) { buffer in
      write(to: buffer)
      return 27
    }
  }

  private func write(to buffer: UnsafeMutableBufferPointer<UInt8>) {
    let (days, ofDay) = Self.dividingFloor(microseconds, by: 86_400_000_000)
    let date = CivilDate(daysSince1970: days)
    let (seconds, fraction) = ofDay.quotientAndRemainder(dividingBy: 1_000_000)
    func put(_ value: Int64, digits: Int, at start: Int) {
      var rest = value
      for index in stride(from: start + digits - 1, through: start, by: -1) {
        buffer[index] = UInt8(truncatingIfNeeded: 48 + rest % 10)
        rest /= 10
      }
    }
    put(date.year, digits: 4, at: 0)
    put(date.month, digits: 2, at: 5)
    put(date.day, digits: 2, at: 8)
    put(seconds / 3600, digits: 2, at: 11)
    put(seconds / 60 % 60, digits: 2, at: 14)
    put(seconds % 60, digits: 2, at: 17)
    put(fraction, digits: 6, at: 20)
    buffer[4] = UInt8(ascii: "-")
    buffer[7] = UInt8(ascii: "-")
    buffer[10] = UInt8(ascii: "T")
    buffer[13] = UInt8(ascii: ":")
    buffer[16] = UInt8(ascii: ":")
    buffer[19] = UInt8(ascii: ".")
    buffer[26] = UInt8(ascii: "Z")
  }

  private static func dividingFloor(_ value: Int64, by divisor: Int64) -> (Int64, Int64) {
    let (quotient, remainder) = value.quotientAndRemainder(dividingBy: divisor)
    return remainder < 0 ? (quotient - 1, remainder + divisor) : (quotient, remainder)
  }
}

extension Timestamp: LosslessStringConvertible {
  /// Parses RFC 3339: `2026-01-31T23:59:59Z`, with an optional fraction and `Z` or an offset like `+02:00`.
  ///
  /// Digits after the sixth of the fraction are dropped. Nil for anything else: dates that don't exist, the
  /// leap second `:60`, a missing offset, a moment outside the years 0000 to 9999.
  public init?(_ text: String) {
    var text = text
    guard let microseconds = text.withUTF8({ Self.parse($0) }) else { return nil }
    self.init(unchecked: microseconds)
  }

  private static func parse(_ bytes: UnsafeBufferPointer<UInt8>) -> Int64? {
    guard bytes.count >= 20 else { return nil }
    func number(_ start: Int, _ count: Int) -> Int64? {
      guard start + count <= bytes.count else { return nil }
      var value: Int64 = 0
      for index in start..<start + count {
        guard let digit = digit(bytes[index]) else { return nil }
        value = value * 10 + digit
      }
      return value
    }
    guard bytes[4] == UInt8(ascii: "-"), bytes[7] == UInt8(ascii: "-"),
      bytes[10] | 0x20 == UInt8(ascii: "t"),
      bytes[13] == UInt8(ascii: ":"), bytes[16] == UInt8(ascii: ":"),
      let year = number(0, 4), let month = number(5, 2), let day = number(8, 2),
      let hour = number(11, 2), let minute = number(14, 2), let second = number(17, 2),
      hour < 24, minute < 60, second < 60,
      let days = CivilDate.days(year: year, month: month, day: day)
    else { return nil }

    var index = 19
    var fraction: Int64 = 0
    if bytes[index] == UInt8(ascii: ".") {
      index += 1
      var count = 0
      while index < bytes.count, let digit = digit(bytes[index]) {
        if count < 6 { fraction = fraction * 10 + digit }
        count += 1
        index += 1
      }
      guard count > 0 else { return nil }
      while count < 6 {
        fraction *= 10
        count += 1
      }
    }

    guard index < bytes.count else { return nil }
    var offset: Int64 = 0
    switch bytes[index] {
    case UInt8(ascii: "Z"), UInt8(ascii: "z"):
      guard index + 1 == bytes.count else { return nil }
    case UInt8(ascii: "+"), UInt8(ascii: "-"):
      guard index + 6 == bytes.count, bytes[index + 3] == UInt8(ascii: ":"),
        let hours = number(index + 1, 2), let minutes = number(index + 4, 2), hours < 24, minutes < 60
      else { return nil }
      offset = (hours * 60 + minutes) * 60 * (bytes[index] == UInt8(ascii: "+") ? 1 : -1)
    default:
      return nil
    }
    let seconds = days * 86400 + hour * 3600 + minute * 60 + second - offset
    let microseconds = seconds * 1_000_000 + fraction
    guard (min.microseconds...max.microseconds).contains(microseconds) else { return nil }
    return microseconds
  }

  private static func digit(_ byte: UInt8) -> Int64? {
    let value = byte &- UInt8(ascii: "0")
    return value < 10 ? Int64(value) : nil
  }
}

extension Timestamp: Codable {
  public init(from decoder: any Decoder) throws {
    let container = try decoder.singleValueContainer()
    guard let value = Timestamp(try container.decode(String.self)) else {
      throw DecodingError.dataCorruptedError(in: container, debugDescription: "not an RFC 3339 date and time")
    }
    self = value
  }

  public func encode(to encoder: any Encoder) throws {
    var container = encoder.singleValueContainer()
    try container.encode(description)
  }
}

/// A day of the proleptic Gregorian calendar.
///
/// The arithmetic counts years from March, so that the leap day is the last day of a year, and in eras of 400
/// years (146,097 days), after which the calendar repeats.
private struct CivilDate {
  let year: Int64
  let month: Int64
  let day: Int64

  /// - Parameter daysSince1970: not earlier than year 0, which `Timestamp` sees to.
  init(daysSince1970: Int64) {
    let shifted = daysSince1970 + Self.daysTo1970 + 146_097
    let era = shifted / 146_097 - 1
    let dayOfEra = shifted % 146_097
    let yearOfEra = (dayOfEra - dayOfEra / 1460 + dayOfEra / 36524 - dayOfEra / 146_096) / 365
    let dayOfYear = dayOfEra - (365 * yearOfEra + yearOfEra / 4 - yearOfEra / 100)
    let monthFromMarch = (5 * dayOfYear + 2) / 153
    day = dayOfYear - (153 * monthFromMarch + 2) / 5 + 1
    month = monthFromMarch < 10 ? monthFromMarch + 3 : monthFromMarch - 9
    year = yearOfEra + era * 400 + (month <= 2 ? 1 : 0)
  }

  /// Days from 0000-03-01 to 1970-01-01.
  private static let daysTo1970: Int64 = 719_468

  /// Days since 1970-01-01, or nil when there is no such date. The year is 0 to 9999.
  static func days(year: Int64, month: Int64, day: Int64) -> Int64? {
    guard (1...12).contains(month), day >= 1, day <= length(ofMonth: month, year: year) else { return nil }
    // One era is added and taken off again to keep January and February of year 0 positive.
    let marchYear = year + 400 - (month <= 2 ? 1 : 0)
    let era = marchYear / 400
    let yearOfEra = marchYear % 400
    let monthFromMarch = month > 2 ? month - 3 : month + 9
    let dayOfYear = (153 * monthFromMarch + 2) / 5 + day - 1
    let dayOfEra = yearOfEra * 365 + yearOfEra / 4 - yearOfEra / 100 + dayOfYear
    return (era - 1) * 146_097 + dayOfEra - daysTo1970
  }

  private static func length(ofMonth month: Int64, year: Int64) -> Int64 {
    switch month {
    case 4, 6, 9, 11: 30
    case 2: year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) ? 29 : 28
    default: 31
    }
  }
}

import Glibc

extension ClaudeRunnerConfiguration {
  /// As many processes as fit the physical memory at 200 MB each, at least 2.
  public static func processesFittingMemory() -> Int {
    let bytes = sysconf(Int32(_SC_PHYS_PAGES)) * sysconf(Int32(_SC_PAGESIZE))
    return max(2, bytes / 200_000_000)
  }

  /// Half of the processors, at least 1: what starts keeps a processor busy, and the other half is for what runs.
  public static func halfOfTheProcessors() -> Int { max(1, sysconf(Int32(_SC_NPROCESSORS_ONLN)) / 2) }

  /// Three quarters of the processors, one at least.
  public static func threeQuartersOfTheProcessors() -> Int { max(1, sysconf(Int32(_SC_NPROCESSORS_ONLN)) * 3 / 4) }
}

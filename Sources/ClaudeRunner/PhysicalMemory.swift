import Glibc

extension ClaudeRunnerConfiguration {
  /// As many processes as fit the physical memory at 200 MB each, at least 2.
  public static func processesFittingMemory() -> Int {
    let bytes = sysconf(Int32(_SC_PHYS_PAGES)) * sysconf(Int32(_SC_PAGESIZE))
    return max(2, bytes / 200_000_000)
  }
}

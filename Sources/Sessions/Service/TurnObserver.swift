/// Is told of turns as they go, to count them. A call is made in the middle of the work and must return at once.
public protocol TurnObserver: Sendable {
  /// A turn has left its queue.
  ///
  /// - Parameter waited: since it was accepted.
  func turnStarted(_ turn: Turn, waited: Duration)

  /// The agent has said its first word in a turn.
  ///
  /// - Parameter elapsed: since the turn left its queue.
  func turnSpoke(_ turn: Turn, after elapsed: Duration)

  /// A turn asks for more permissions than may wait at one time; one was denied for that.
  func approvalRefused(_ turn: Turn)

  /// A turn has ended, in whatever way, and its end is in the store.
  func turnEnded(_ turn: Turn)
}

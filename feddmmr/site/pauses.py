"""How long to wait until the next look for something: long, if it has been waited for long."""

LATE = 0.15  # of the time waited so far


class Pauses:
    """Pauses between looks, from the shortest to the longest; a wait begins anew with `begin`."""

    def __init__(self, shortest: float, longest: float) -> None:
        """In seconds."""
        self._shortest, self._longest = shortest, longest
        self._since = 0.0

    def begin(self, now: float) -> None:
        """A wait begins."""
        self._since = now

    def next(self, now: float) -> float:
        """Seconds until the next look."""
        return min(max(LATE * (now - self._since), self._shortest), self._longest)

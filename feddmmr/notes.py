"""Lines for the reader beside the result: on stderr, so that results can be piped."""

import sys


def note(line: str) -> None:
    """Print one line on stderr at once."""
    print(line, file=sys.stderr, flush=True)

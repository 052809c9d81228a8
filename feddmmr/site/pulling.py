"""How a site fetches what is still on its way to where it is fetched from.

Flower tells of a message before its parts have arrived. Who asks for one too early asks again after
a second, then after 2, 4, up to 10: here after 0.05 s, then after twice that, up to 0.25 s.
"""

from functools import partial

from flwr.supercore.inflatable.inflatable_utils import (
    pull_and_inflate_object_from_tree,
    pull_objects,
)

_FIRST, _LONGEST = 0.05, 0.25  # seconds

# Tries are not counted: as with Flower, what has not come after two hours is given up.
pull_soon = partial(
    pull_objects, initial_backoff=_FIRST, backoff_cap=_LONGEST, max_tries_per_object=None
)
inflate_soon = partial(
    pull_and_inflate_object_from_tree,
    initial_backoff=_FIRST,
    backoff_cap=_LONGEST,
    max_tries_per_object=None,
)

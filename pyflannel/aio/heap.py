"""What work with very many objects does so that the garbage collector does not stop the loop."""

from __future__ import annotations

import gc


def pass_over() -> None:
    """Has later collections pass over all objects that there are now.

    For objects without cycles, which are gone with their last reference: a full collection looks at
    each of them all the same, a quarter of a second with a million. What is young and dead is
    collected first, for it would stay.
    """
    gc.collect(1)
    gc.freeze()

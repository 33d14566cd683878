"""Answer at once, from the cache, where the Hugging Face Hub cannot be reached.

Its client repeats each failed request for half a minute, and a model has several files.
"""

import contextlib
import functools
import time
from collections.abc import Iterator

from huggingface_hub import constants, get_session


_SECONDS_TO_CONNECT = 3
_SECONDS_REMEMBERED = 60


@contextlib.contextmanager
def offline_if_unreachable() -> Iterator[None]:
    """Use only the cache of the Hub's client during the block, as with `HF_HUB_OFFLINE`, if the Hub is unreachable."""
    if constants.HF_HUB_OFFLINE or _is_reachable(constants.ENDPOINT, int(time.monotonic() / _SECONDS_REMEMBERED)):
        yield
        return
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = False


@functools.lru_cache(maxsize=1)
def _is_reachable(endpoint: str, _minute: int) -> bool:
    """Whether anything answers at the address, remembered until the next minute."""
    try:
        get_session().head(endpoint, timeout=_SECONDS_TO_CONNECT)
    except Exception:  # those of the client's HTTP library, which differs between its versions
        return False
    return True

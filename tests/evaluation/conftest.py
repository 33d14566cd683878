import copy
from collections.abc import Callable
from typing import Any

import pytest


@pytest.fixture
def gather_with(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Returns a function that stands in for other processes: `gather_object` returns their objects, too.

    Each argument runs what one of the other processes does, gathering included.
    """

    def arrange(*processes: Callable[[], object]) -> None:
        sent: list[list[list[Any]]] = []
        for process in processes:
            calls: list[list[Any]] = []

            def record(objects: list[Any], calls: list[list[Any]] = calls) -> list[Any]:
                calls.append(copy.deepcopy(objects))
                return objects

            monkeypatch.setattr("accelerate.utils.gather_object", record)
            process()
            sent.append(calls)
        rounds = iter(zip(*sent, strict=True))
        monkeypatch.setattr("accelerate.utils.gather_object", lambda objects: sum(next(rounds), start=objects))

    return arrange

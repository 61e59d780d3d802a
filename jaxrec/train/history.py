"""What a run went through, epoch by epoch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class History:
    """One record an epoch: "epoch", "loss" (mean over steps), "seconds", and the figures of `validate` where it ran.

    The first epoch's seconds include compilation. `jaxrec.plotting.learning_curves` draws it.

    >>> history = History().append({"epoch": 1, "loss": 0.7}).append({"epoch": 2, "loss": 0.6, "ndcg@10": 0.1})
    >>> history.column("ndcg@10")
    ([2], [0.1])
    """

    records: tuple[Mapping[str, float], ...] = ()

    def append(self, record: Mapping[str, float]) -> History:
        """A history with one record more."""
        return History((*self.records, dict(record)))

    @property
    def names(self) -> list[str]:
        """Names of all figures but "epoch", in order of appearance."""
        return list(dict.fromkeys(name for record in self.records for name in record if name != "epoch"))

    def column(self, name: str) -> tuple[list[int], list[float]]:
        """Epochs and values of one figure, where it was recorded.

        Raises:
            ValueError: for a name that no record has.
        """
        if name not in self.names:
            raise ValueError(f"the history has no {name!r}; it has {self.names}")
        kept = [record for record in self.records if name in record]
        return [int(record["epoch"]) for record in kept], [record[name] for record in kept]

    def to_dataframe(self) -> Any:
        """A pandas DataFrame with the epoch as index and a column for each figure."""
        import pandas as pd

        return pd.DataFrame(self.records, columns=["epoch", *self.names]).set_index("epoch")

    def __repr__(self) -> str:
        if not self.records:
            return "History(no epochs yet)"
        last = ", ".join(f"{name} {value:.4g}" for name, value in self.records[-1].items() if name != "epoch")
        return f"History({len(self.records)} epochs; last: {last})"

"""Whether a stream of observations has changed, in a way that stays honest when somebody looks after every one of them.

Where nothing has changed, those before (the test images) and those of now could have come in any order. Then the rank of
each new one among all that came before it and itself, with ties broken at random, is uniform between 0 and 1 and
independent of the ranks before (conformal prediction; Vovk, Gammerman & Shafer 2005, chapter 8; Vovk 2021, "Testing
randomness online", Statistical Science 36(4)). Somebody bets 1 on ranks that are not uniform: no strategy is expected to win,
and the chance that its capital ever reaches 1/α is at most α (Ville's inequality). No distribution is assumed, and that the
test images are few costs power only.

The capital is spread over fixed bets (more high ranks, more low ones, more at both ends, more in the middle), one that
learns which tenths are frequent, and over beginnings, so that a change after a long quiet time is not paid for by what was
lost before.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

_TILTS = np.array([-1.0, -0.7, -0.3, 0.3, 0.7, 1.0])  # of the density 1 + c·(2p − 1)
_BENDS = np.array([-0.5, 0.5, 1.0])  # of the density 1 + c·(12(p − 1/2)² − 1)
_TENTHS = 10
_BETS = len(_TILTS) + len(_BENDS) + 1
EVERY = 256  # observations between two beginnings
_MOST = 64  # beginnings that are still followed; the poorest is given up, and its capital with it


class ChangeTest:
    """One statistic that falls into bins.

    Args:
        counts: how often each bin was seen in what it is compared with; zeros to compare with its own beginning.
        random: breaks ties.
    """

    def __init__(self, counts: Sequence[int], random: np.random.Generator) -> None:
        self._pool = np.array(counts, np.int64)
        self._random = random
        self._logs = np.empty((0, _BETS))
        self._tenths = np.empty((0, _TENTHS))
        self._waiting = 1.0  # the capital of beginnings that are still to come
        self.observed = 0
        self.best = 0.0  # the highest logarithm so far
        self.evidence = 0.0  # the natural logarithm of the capital now

    def observe(self, found: int) -> float:
        """Take a value's bin; the natural logarithm of the capital after it."""
        if self.observed % EVERY == 0:
            self._begin(self.observed // EVERY + 1)
        self.observed += 1
        self._pool[found] += 1
        above = int(self._pool[found + 1 :].sum())
        rank = (above + self._random.random() * int(self._pool[found])) / int(self._pool.sum())
        self._bet(rank)
        logs = np.concatenate([self._logs.ravel(), [math.log(self._waiting)]])
        self.evidence = float(np.logaddexp.reduce(logs))
        self.best = max(self.best, self.evidence)
        return self.evidence

    def _begin(self, number: int) -> None:
        """The ``number``-th beginning has 1 / (number · (number + 1)) of all."""
        share = 1 / (number * (number + 1))
        self._waiting = 1 / (number + 1)
        if len(self._logs) == _MOST:
            poorest = int(np.logaddexp.reduce(self._logs, axis=1).argmin())
            self._logs = np.delete(self._logs, poorest, axis=0)
            self._tenths = np.delete(self._tenths, poorest, axis=0)
        self._logs = np.vstack([self._logs, np.full(_BETS, math.log(share / _BETS))])
        self._tenths = np.vstack([self._tenths, np.zeros(_TENTHS)])

    def _bet(self, rank: float) -> None:
        fixed = np.concatenate([_TILTS * (2 * rank - 1), _BENDS * (12 * (rank - 0.5) ** 2 - 1)])
        with np.errstate(divide="ignore"):  # the boldest lose everything at an end
            self._logs[:, :-1] += np.log1p(np.maximum(fixed, -1))
        tenth = min(int(rank * _TENTHS), _TENTHS - 1)
        seen = self._tenths[:, tenth]
        self._logs[:, -1] += np.log(_TENTHS * (seen + 1) / (self._tenths.sum(axis=1) + _TENTHS))
        self._tenths[:, tenth] += 1

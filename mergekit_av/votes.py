"""Which level each record prefers, counted."""

import math

import numpy as np


def votes(scores: np.ndarray) -> np.ndarray:
    """How many records prefer each level, from scores (…, records, levels) to counts (…, levels).

    A record whose highest score is at k levels counts 1/k for each of them.
    """
    highest = scores == scores.max(axis=-1, keepdims=True)
    # Whole numbers of this part of a vote: thirds added up as decimals would differ from one another.
    part = math.lcm(*range(1, scores.shape[-1] + 1))
    return (highest * (part // highest.sum(axis=-1, keepdims=True))).sum(axis=-2) / part

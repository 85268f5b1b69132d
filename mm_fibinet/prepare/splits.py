"""Which rows are for training, for validation and for the test.

Rows of one moment stay together: by time, those that share the moment of a cut are all behind it, so that nothing in
train is as late as anything in valid; leave_last_out takes a user's last moment, which a list of impressions may be.
"""

import numpy as np

TRAIN, VALID, TEST = range(3)
LEAST_MOMENTS = 3  # of a user that leave_last_out takes rows from: one for each split


def by_time(time: np.ndarray, valid: float, test: float) -> np.ndarray:
    """The last rows in time are the test, those before them valid.

    Args:
        time: int64 [n], in any order.
        valid, test: shares of the rows; a split has more where many rows share its first moment.

    Returns:
        uint8 [n].
    """
    n = len(time)
    places = [min(int(n * (1 - test - valid)), n - 1), min(int(n * (1 - test)), n - 1)]
    valid_from, test_from = np.partition(time, places)[places]
    return (time >= valid_from).astype(np.uint8) + (time >= test_from)


def leave_last_out(user: np.ndarray, time: np.ndarray) -> np.ndarray:
    """Each user's last moment is the test's, the one before it valid's; users of fewer moments are in train alone.

    Args:
        user: int32 [n].
        time: int64 [n]; rows are sorted by user, then by time.

    Returns:
        uint8 [n].
    """
    starts = group_starts(user)
    moment = np.cumsum(group_starts(user, time))  # its number, counted over all users
    first, last = moment[starts], moment[np.append(np.flatnonzero(starts)[1:], len(user)) - 1]
    rank = np.cumsum(starts) - 1
    to_come = last[rank] - moment
    enough = (last - first + 1 >= LEAST_MOMENTS)[rank]
    return np.where(enough & (to_come < 2), TEST - to_come, TRAIN).astype(np.uint8)


def at_random(n: int, valid: float, test: float, rng: np.random.Generator) -> np.ndarray:
    """Each row by chance: uint8 [n]."""
    return np.searchsorted([1 - valid - test, 1 - test], rng.random(n), side="right").astype(np.uint8)


def group_starts(*columns: np.ndarray) -> np.ndarray:
    """Where a row differs from the one before it in any of these columns: bool [n]; the first row does."""
    starts = np.zeros(len(columns[0]), dtype=bool)
    starts[:1] = True
    for column in columns:
        starts[1:] |= column[1:] != column[:-1]
    return starts

"""The moments of training at which parameters are kept for validation to choose from."""


def snapshot_moments(total: int, count: int) -> tuple[int, ...]:
    """Return evenly spaced moments of training, ascending, the last at its end.

    Args:
        total: steps or epochs of the training, 1 or more.
        count: number of moments, 1 or more; with fewer steps than that, each step is one.

    Returns:
        For each moment the number of steps before it, from 1 to `total`.

    Example:
        >>> from jaxalign.mrm.snapshots import snapshot_moments
        >>> snapshot_moments(20, 3), snapshot_moments(2, 5)
        ((7, 13, 20), (1, 2))
    """
    count = min(count, total)
    return tuple(round(total * (place + 1) / count) for place in range(count))

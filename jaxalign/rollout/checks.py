"""Settings under which the KL of sampled completions can be estimated."""

import numpy as np

from jaxalign.errors import InputError
from jaxalign.models.sampling import Sampling


def check_untruncated(settings: Sampling) -> None:
    """Refuse settings that cut tokens off, under which the KL to the reference is infinite.

    Raises:
        InputError: top-k, top-p, temperature 0, or several temperatures.
    """
    plain = settings.top_k is None and np.ndim(settings.top_p) == 0 and settings.top_p == 1
    if not plain or np.ndim(settings.temperature) or not np.asarray(settings.temperature) > 0:
        raise InputError(
            f"settings: found temperature {settings.temperature}, top_k {settings.top_k} and top_p "
            f"{settings.top_p}; expected one temperature above 0 and nothing cut off: KL to the "
            "reference would be infinite."
        )

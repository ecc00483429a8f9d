"""Where answers are drawn. A new engine is one file here and one line below."""

import jaxalign.serve.engines.local
import jaxalign.serve.engines.upstream  # noqa: F401, registers itself
from jaxalign.serve.engines.registry import (
    ENGINES,
    AnswerEngine,
    Call,
    make_engine,
    register_engine,
)

__all__ = ["ENGINES", "AnswerEngine", "Call", "make_engine", "register_engine"]

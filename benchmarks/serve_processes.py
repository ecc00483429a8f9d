"""The other processes of `python -m benchmarks serve`: an upstream, an empty proxy, wide rewards.

python -m benchmarks.serve_processes upstream MODEL ...
python -m benchmarks.serve_processes proxy URL
python -m benchmarks.serve_processes wide URL DATABASE
"""

import asyncio
import hashlib
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import jax.numpy as jnp
import numpy as np

from benchmarks.loop_http import answering
from jaxalign.mrm import Prior
from jaxalign.rewards import RewardIds

if TYPE_CHECKING:
    from fastapi import FastAPI

WIDTH = 128
DRAWS = [
    f"Answer {number}: sleep at the same hours, and keep the room dark. " * (1 + number % 3)
    for number in range(8)
]


def wide_ids() -> RewardIds:
    """The identity of rewards of 128 directions."""
    return RewardIds(tuple(f"direction {number}" for number in range(WIDTH)), "f" * 64)


async def upstream(*models: str) -> None:
    """Answer every prompt with the same draws at once, whichever of some models is named."""
    async with answering(lambda _: DRAWS, models) as address:
        print(address, flush=True)
        await asyncio.Event().wait()


async def proxy(url: str) -> None:
    """Pass chats on and do nothing else: FastAPI, httpx and uvicorn as the service has them."""
    import httpx
    from fastapi import FastAPI, Request, Response

    client = httpx.AsyncClient(base_url=url, limits=httpx.Limits(max_keepalive_connections=64))
    app = FastAPI()

    @app.post("/v1/chat/completions", response_model=None)
    async def chat(request: Request) -> Response:
        found = await client.post("/chat/completions", json=await request.json())
        return Response(found.content, found.status_code, media_type="application/json")

    await _serve(app)


async def wide(url: str, database: str) -> None:
    """Run the service with rewards of 128 directions, which a hash of the text stands for."""
    from jaxalign.serve import EngineConfig, ServeConfig, create_app, open_service
    from jaxalign.serve.reward_space import RewardSpace

    def read(prompts: Sequence[object], texts: Sequence[str]) -> np.ndarray:
        seeds = [int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) for text in texts]
        rows = [np.random.default_rng(seed).standard_normal(WIDTH) for seed in seeds]
        return np.stack(rows) / np.sqrt(WIDTH)

    config = ServeConfig(engine=EngineConfig("openai", url=url), database=database)
    service = await open_service(config)
    prior = Prior(jnp.zeros(WIDTH), jnp.eye(WIDTH))
    service.space = RewardSpace(wide_ids(), False, prior, read, "a benchmark")
    await _serve(create_app(service))


async def _serve(app: "FastAPI") -> None:
    import uvicorn

    from jaxalign.serve._run import bind

    with bind("127.0.0.1", 0) as listener:
        print(f"http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
        settings = uvicorn.Config(app, log_config=None, access_log=False)
        await uvicorn.Server(settings).serve(sockets=[listener])


if __name__ == "__main__":
    name, *words = sys.argv[1:]
    asyncio.run({"upstream": upstream, "proxy": proxy, "wide": wide}[name](*words))

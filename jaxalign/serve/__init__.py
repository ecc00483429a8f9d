"""The service: answers in the OpenAI protocol, by a taste that it learns from feedback."""

from jaxalign.serve._run import open_service, serve
from jaxalign.serve.app import create_app
from jaxalign.serve.config import EngineConfig, RequestLimits, ServeConfig

__all__ = ["EngineConfig", "RequestLimits", "ServeConfig", "create_app", "open_service", "serve"]

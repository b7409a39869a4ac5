"""Models behind Ollama's API, through the official client."""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any

import httpx
import ollama

from tinyllm.errors import ModelError
from tinyllm.message import checked_text
from tinyllm.models.base import ModelRequest, ModelResponse

#: Statuses that say "later" rather than "never".
_RECOVERABLE_STATUSES = frozenset({408, 425, 429})
_KEY_HEADER = "Idempotency-Key"
#: The official client takes no headers per call; the request hook below reads the key of the call it serves.
_key: ContextVar[str | None] = ContextVar("idempotency_key", default=None)


class OllamaClient:
    """Asks models on one or several Ollama hosts.

    `host` is a base URL (default: `OLLAMA_HOST`, else localhost); `hosts` names the hosts of models that
    live elsewhere. No timeouts of its own: the step's limits bound every call. `transport` is handed to
    httpx. Close it with `aclose()`, or use it as an async context manager.
    """

    def __init__(
        self,
        host: str | None = None,
        *,
        hosts: Mapping[str, str] | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._default_host = host
        self._hosts = dict(hosts or {})
        # With a transport of our own no proxy of the environment may come between.
        self._options: dict[str, Any] = {} if transport is None else {"transport": transport, "trust_env": False}
        self._clients: dict[str | None, ollama.AsyncClient] = {}

    async def complete(self, request: ModelRequest) -> ModelResponse:
        """One answer from `/api/chat`. Raises ModelError; not recoverable where asking again cannot help."""
        token = _key.set(request.idempotency_key)
        try:
            answer = await self._client(request.model).chat(
                model=request.model,
                messages=_messages(request),
                options=_options(request),
                format=None if request.response_schema is None else dict(request.response_schema),
            )
            text = checked_text(answer.message.content or "")
        except ollama.ResponseError as error:
            raise _refused(request.model, error) from error
        except ConnectionError as error:
            # The official client's own words here are two lines about where to download it.
            raise ModelError(f"{request.model}: cannot connect to its Ollama host") from error
        except Exception as error:
            # The official client stumbles over JSON of another shape with TypeError, AttributeError and more.
            raise ModelError(f"{request.model}: {type(error).__name__}: {error}") from error
        finally:
            _key.reset(token)
        return ModelResponse(
            text=text,
            model=request.model,
            tokens_in=max(0, answer.prompt_eval_count or 0),
            tokens_out=max(0, answer.eval_count or 0),
        )

    async def aclose(self) -> None:
        """Close every connection. Closing twice does nothing."""
        clients, self._clients = self._clients, {}
        for client in clients.values():
            await client.close()  # type: ignore[no-untyped-call]

    async def __aenter__(self) -> OllamaClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def _client(self, model: str) -> ollama.AsyncClient:
        host = self._hosts.get(model, self._default_host)
        if host not in self._clients:
            hooks = {"request": [_name_the_step]}
            self._clients[host] = ollama.AsyncClient(host, event_hooks=hooks, **self._options)
        return self._clients[host]


async def _name_the_step(request: httpx.Request) -> None:
    key = _key.get()
    if key is not None:
        request.headers[_KEY_HEADER] = key


def _messages(request: ModelRequest) -> list[dict[str, str]]:
    system = [] if request.system is None else [{"role": "system", "content": request.system}]
    return [*system, {"role": "user", "content": request.prompt}]


def _options(request: ModelRequest) -> dict[str, Any]:
    options = {"temperature": request.temperature, "num_predict": request.max_tokens}
    return {name: value for name, value in options.items() if value is not None}


def _refused(model: str, error: ollama.ResponseError) -> ModelError:
    status = error.status_code
    hint = f"; try `ollama pull {model}`" if status == 404 else ""
    recoverable = status >= 500 or status in _RECOVERABLE_STATUSES
    text = f"{model}: the server answered {status}: {error.error}{hint}"
    return ModelError(text, details={"status": status}, recoverable=recoverable)

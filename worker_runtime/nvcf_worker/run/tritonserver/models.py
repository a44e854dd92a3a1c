"""Load and unload models by Triton's HTTP extension for model repositories."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from typing import Any
from urllib.parse import quote

import aiohttp

from nvcf_worker.errors import NotReady
from nvcf_worker.run.tritonserver.settings import ModelChoice, load_parameters, with_version

log = logging.getLogger("nvcf_worker")

UNLOAD_SECONDS = 10.0
CHECK_SECONDS = 5.0
_MOST_TEXT = 4000


class Models:
    """The models of one server. `loaded` are those that this worker has loaded."""

    def __init__(self, base: str, wanted: tuple[ModelChoice, ...], load_seconds: float) -> None:
        self._base = base
        self._wanted = wanted
        self._load_seconds = load_seconds
        self._served: tuple[ModelChoice, ...] = ()
        self.loaded: set[str] = set()

    async def load(self) -> None:
        """Load the models that are not ready, all at once, and return when they are ready.

        Raises NotReady with the model's name and Triton's reason, or when `load_seconds` are over.
        """
        try:
            async with (
                asyncio.timeout(self._load_seconds),
                aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None)) as session,
            ):
                wanted = self._wanted or await self._all(session)
                await _all_or_first_error(self._load(session, each) for each in wanted)
                self._served = wanted
        except TimeoutError:
            names = ", ".join(each.name for each in self._wanted) or "the models"
            raise NotReady(f"Triton has not loaded {names} within {self._load_seconds:g} s") from None

    async def missing(self) -> str | None:
        """Return the name of a model that `load` has made ready and that is not ready now, or None.

        None also when the server does not answer: whether it is healthy is found out elsewhere.
        """
        timeout = aiohttp.ClientTimeout(total=CHECK_SECONDS)
        try:
            async with aiohttp.ClientSession(timeout=timeout) as session:
                for each in self._served:
                    if not await self._is_ready(session, _model_path(each.name), each.version):
                        return each.name
        except (aiohttp.ClientError, TimeoutError):
            pass
        return None

    async def unload(self) -> None:
        """Unload what `load` has loaded, within UNLOAD_SECONDS; a server that is gone has unloaded it."""
        names, self.loaded = sorted(self.loaded), set()
        timeout = aiohttp.ClientTimeout(total=UNLOAD_SECONDS)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            unloading = (self._call(session, "POST", _control(name, "unload"), {}) for name in names)
            for name, done in zip(
                names, await asyncio.gather(*unloading, return_exceptions=True), strict=True
            ):
                if isinstance(done, BaseException):
                    log.warning("model %s may still be loaded: %s", name, str(done) or type(done).__name__)

    async def _all(self, session: aiohttp.ClientSession) -> tuple[ModelChoice, ...]:
        status, found = await self._call(session, "POST", "/v2/repository/index", {})
        names = {str(each["name"]) for each in found} if status == 200 and isinstance(found, list) else set()
        if not names:
            raise NotReady(f"the model repository has no models: {_reason(found)}")
        return tuple(ModelChoice(name) for name in sorted(names))

    async def _load(self, session: aiohttp.ClientSession, choice: ModelChoice) -> None:
        path = _model_path(choice.name)
        known = choice.config is None or choice.name in self.loaded
        if known and await self._is_ready(session, path, choice.version):
            return
        await self._load_once(session, choice)
        if choice.version is not None and not await self._is_ready(session, path, choice.version):
            # The version policy, "the latest" unless the model says otherwise, has chosen another one.
            status, config = await self._call(session, "GET", f"{path}/config", None)
            if status != 200:
                raise NotReady(f"Triton cannot load model {choice.name!r}: {_reason(config)}")
            await self._load_once(session, replace(choice, config=with_version(config, choice.version)))
        if not await self._is_ready(session, path, choice.version):
            which = f" version {choice.version}" if choice.version else ""
            raise NotReady(f"Triton has loaded model {choice.name!r}, but{which} is not ready")
        log.info("model %s is ready", choice.name)

    async def _load_once(self, session: aiohttp.ClientSession, choice: ModelChoice) -> None:
        body = load_parameters(choice)
        status, answer = await self._call(session, "POST", _control(choice.name, "load"), body)
        if status != 200:
            raise NotReady(f"Triton cannot load model {choice.name!r}: {_reason(answer)}")
        self.loaded.add(choice.name)

    async def _is_ready(self, session: aiohttp.ClientSession, path: str, version: str | None) -> bool:
        place = f"{path}/versions/{version}/ready" if version else f"{path}/ready"
        return (await self._call(session, "GET", place, None))[0] == 200

    async def _call(
        self, session: aiohttp.ClientSession, method: str, path: str, body: Any
    ) -> tuple[int, Any]:
        async with session.request(method, self._base + path, json=body) as response:
            try:
                return response.status, await response.json(content_type=None)
            except ValueError:
                return response.status, await response.text(errors="replace")


async def _all_or_first_error(work: Any) -> None:
    """Run all; the first error cancels the others and is raised."""
    try:
        async with asyncio.TaskGroup() as group:
            for each in work:
                group.create_task(each)
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None


def _model_path(name: str) -> str:
    return f"/v2/models/{quote(name, safe='')}"


def _control(name: str, action: str) -> str:
    return f"/v2/repository/models/{quote(name, safe='')}/{action}"


def _reason(answer: Any) -> str:
    text = answer.get("error") if isinstance(answer, dict) else answer
    return str(text or "no reason is given").strip()[:_MOST_TEXT]

"""What handlers get beside the request itself: progress, assets, the output directory."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nvcf_worker.exchange.exchange import Conversation
from nvcf_worker.exchange.files import Asset, RequestFiles
from nvcf_worker.function.function_headers import NamedFiles


class RequestExtras:
    """Of one request in work. `carries_files`: whether files and progress in the output directory are looked
    at, which is compatibility mode."""

    __slots__ = ("_carries_files", "_conversation", "_files", "_loop")

    def __init__(
        self,
        files: RequestFiles,
        conversation: Conversation,
        loop: asyncio.AbstractEventLoop,
        *,
        carries_files: bool,
    ) -> None:
        self._files = files
        self._conversation = conversation
        self._loop = loop
        self._carries_files = carries_files

    @property
    def files(self) -> RequestFiles:
        """The request's directories."""
        return self._files

    @property
    def carries_files(self) -> bool:
        """Whether the output directory is looked at, so that the function is told of it."""
        return self._carries_files

    @property
    def assets(self) -> Mapping[str, Asset]:
        """Downloaded assets by id."""
        return self._files.assets

    @property
    def output_dir(self) -> Path:
        """The output directory; made by the first use."""
        return self._files.output_dir

    def named_files(self) -> NamedFiles | None:
        """The directories as the headers name them; an output directory that is named exists."""
        output = str(self._files.output_dir) if self._carries_files else ""
        if not output and not self._files.assets:
            return None
        return NamedFiles(str(self._files.asset_dir), tuple(self._files.assets), output)

    def progress(self, percent: float, partial: Any) -> None:
        """Report progress, from any thread."""
        if isinstance(percent, bool) or not isinstance(percent, int | float):
            raise TypeError(f"percent is {percent!r}; it must be a number from 0 to 100")
        try:
            on_loop = asyncio.get_running_loop() is self._loop
        except RuntimeError:
            on_loop = False
        if on_loop:
            self._conversation.progress(percent, partial)
        else:
            self._loop.call_soon_threadsafe(self._conversation.progress, percent, partial)

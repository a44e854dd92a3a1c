"""Progress, assets and output directory of a request in a child process."""

from __future__ import annotations

import functools
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from nvcf_worker.exchange.files import RequestFiles, check_percent
from nvcf_worker.function.headers import NamedFiles
from nvcf_worker.function.request import Asset
from nvcf_worker.run.processes.frames import Frame
from nvcf_worker.run.processes.packing import FilePlaces


class ChildContext:
    """The RequestContext in a child process.

    The worker fetches, uploads and removes the files, which both processes share; progress is sent to it.
    """

    def __init__(self, places: FilePlaces, request_id: str, tell: Callable[[Frame, bytes], None]) -> None:
        self._places = places
        self._request_id = request_id
        self._tell = tell

    @functools.cached_property
    def _files(self) -> RequestFiles:
        places = self._places
        return RequestFiles(Path(places.asset_base), Path(places.output_base), self._request_id)

    @property
    def assets(self) -> Mapping[str, Asset]:
        """Downloaded assets by id."""
        return self._places.assets

    @property
    def output_dir(self) -> Path:
        """The output directory; made by the first use."""
        told = self._files.output_made
        made = self._files.output_dir
        if not told:
            self._tell(Frame.OUTPUT, b"")
        return made

    def named_files(self) -> NamedFiles | None:
        """The directories as the headers name them."""
        output = str(self.output_dir) if self._places.carries_files else ""
        if not output and not self._places.assets:
            return None
        return NamedFiles(str(self._files.asset_dir), tuple(self._places.assets), output)

    def progress(self, percent: float, partial: Any) -> None:
        """Report progress, from any thread. Raises what pickle raises for a partial that JSON cannot say."""
        check_percent(percent)
        self._tell(Frame.PROGRESS, pickle.dumps((percent, partial)))

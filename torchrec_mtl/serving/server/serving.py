"""The model that is served now, and how another takes its place without a request being lost."""

from __future__ import annotations

import asyncio
import logging
import time
from concurrent.futures import ThreadPoolExecutor

from torchrec_mtl.serving.server.limits import Limits
from torchrec_mtl.serving.server.model import Model, Sources, load_model
from torchrec_mtl.serving.server.monitoring import Monitor

LOG = logging.getLogger("torchrec_mtl.serve")


class BusyError(Exception):
    """A reload is under way."""


class RefusedError(Exception):
    """A model cannot be served, and why; the one before goes on."""


class Serving:
    """What requests are answered with: each takes ``model`` once, and keeps it until its answer.

    Args:
        sources: of the model, as the command names them.
        model: of these.
        limits: of requests.
        monitor: told of every reload.

    Attributes:
        sources: of the current model.
        model: the current one.
        stopping: the server takes leave; /health says so.
        refused: why the last reload failed; None where it did not.
        started: when, of ``time.monotonic``.
    """

    def __init__(self, sources: Sources, model: Model, limits: Limits, monitor: Monitor) -> None:
        self.sources = self._named = sources
        self.model = model
        self.limits = limits
        self.monitor = monitor
        self.stopping = False
        self.refused: str | None = None
        self.started = time.monotonic()
        self._lock = asyncio.Lock()
        self._signalled = False
        self._loader = ThreadPoolExecutor(1, "load")  # beside the workers, which go on answering
        monitor.serve(model)

    async def reload(self, sources: Sources | None = None) -> Model:
        """Load a model, try it, and serve it from then on.

        Args:
            sources: of the model; by default where the current one came from, links followed anew.

        Raises:
            BusyError: another reload is under way.
            RefusedError: the new model cannot be served; the old one goes on.
        """
        if self._lock.locked():
            raise BusyError("a reload is under way")
        return await self._reload(sources or self.sources)

    async def reload_on_signal(self) -> None:
        """Load what the command names, whatever a request has named since; what fails is logged.

        It waits for a reload that is under way.
        """
        if self._signalled:
            return  # that one has not begun, and will see what is there now
        self._signalled = True
        try:
            await self._reload(None)
        except RefusedError:
            return

    async def _reload(self, sources: Sources | None) -> Model:
        async with self._lock:
            if sources is None:
                self._signalled, sources = False, self._named
            loop = asyncio.get_running_loop()
            try:
                model = await loop.run_in_executor(self._loader, load_model, sources, self.limits)
            except Exception as error:
                self.refused = str(error)
                self.monitor.reloads.labels("refused").inc()
                LOG.error("reload of %s refused, step %d goes on: %s", sources.bundle, self.model.step, error)
                raise RefusedError(str(error)) from error
            self._take(model, sources)
            return model

    def close(self) -> None:
        """Take no more models."""
        self._loader.shutdown(wait=False, cancel_futures=True)

    def _take(self, model: Model, sources: Sources) -> None:
        before = self.model.predictor
        self.model, self.sources, self.refused = model, sources, None
        self.monitor.serve(model)
        self.monitor.reloads.labels("loaded").inc()
        LOG.info("serving %s, step %d", model.folder, model.step)
        now = model.predictor
        for what, old, new in (
            ("tasks", before.tasks, now.tasks),
            ("columns", tuple(c.name for c in before.columns), tuple(c.name for c in now.columns)),
        ):
            if old != new:
                LOG.warning("the %s are now %s; were %s", what, ", ".join(new), ", ".join(old))

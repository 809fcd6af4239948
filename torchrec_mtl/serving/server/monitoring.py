"""What /metrics tells, in the text format of Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from torchrec_mtl.serving.server.model import Model

_SECONDS = (0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Monitor:
    """Counts of one server; each has its own registry, so that several may live in one process."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.requests = Counter(
            "torchrec_mtl_requests", "Requests by path and status.", ("path", "status"), registry=registry
        )
        self.seconds = Histogram(
            "torchrec_mtl_request_seconds",
            "From a request's first byte to the last of its answer.",
            ("path",),
            buckets=_SECONDS,
            registry=registry,
        )
        self.rows = Counter("torchrec_mtl_rows_scored", "Candidates that were scored.", registry=registry)
        self.found = Counter("torchrec_mtl_items_found", "Items that searches returned.", registry=registry)
        self.inside = Gauge("torchrec_mtl_requests_inside", "Worked on or waiting, at this moment.", registry=registry)
        self.reading = Gauge(
            "torchrec_mtl_requests_reading", "Whose body is on its way, at this moment.", registry=registry
        )
        self.reloads = Counter(
            "torchrec_mtl_reloads", "Reloads by result: loaded or refused.", ("result",), registry=registry
        )
        for result in ("loaded", "refused"):
            self.reloads.labels(result)
        self._bundle = Gauge(
            "torchrec_mtl_bundle_info",
            "The bundle that is served.",
            ("run", "step", "head", "version"),
            registry=registry,
        )
        self._loaded = Gauge(
            "torchrec_mtl_bundle_loaded_timestamp_seconds", "When it was loaded, since 1970.", registry=registry
        )

    def serve(self, model: Model) -> None:
        """Tell which bundle is served from now on."""
        about = model.predictor.about
        self._bundle.clear()
        version = about.versions.get("torchrec_mtl", "")
        self._bundle.labels(about.run, str(about.step), about.head, version).set(1)
        self._loaded.set(model.loaded)

    def text(self) -> bytes:
        """Return all of it."""
        return generate_latest(self._registry)

"""The figures of the server, in Prometheus' text form."""

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest


class Metrics:
    """The figures of one server. No name of a memory and no text is among them."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self.requests = Counter("deltamem_requests", "Requests for a reply.", ["outcome"], registry=registry)
        self.prompt_tokens = Counter("deltamem_prompt_tokens", "Tokens read before replies.", registry=registry)
        self.reply_tokens = Counter("deltamem_reply_tokens", "Tokens generated.", registry=registry)
        self._active = Gauge("deltamem_active_replies", "Replies that are being generated.", registry=registry)
        self._waiting = Gauge("deltamem_waiting_requests", "Requests that wait.", registry=registry)
        self._memories = Gauge(
            "deltamem_memory_bytes", "Bytes of the memories in RAM, keys and values included.", registry=registry
        )

        self._unsaved = Gauge(
            "deltamem_unsaved_memories", "Memories with turns that are not on disk.", registry=registry
        )

    def text(self, active: int, waiting: int, memory_bytes: int, unsaved: int) -> str:
        """All figures."""
        self._active.set(active)
        self._waiting.set(waiting)
        self._memories.set(memory_bytes)
        self._unsaved.set(unsaved)
        return generate_latest(self._registry).decode()

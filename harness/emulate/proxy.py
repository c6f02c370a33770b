"""A fault proxy: a TCP relay on 127.0.0.1 between client and board that cuts, stalls, slows, loses or stays silent.

    with FaultProxy(board.port) as proxy:
        proxy.faults.bytes_per_s = 12.5e6
        SshTransport(dataclasses.replace(board, port=proxy.port))

One thread with an event loop serves all connections. Faults may be changed from any thread while bytes flow.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
import threading
import time
from collections.abc import Coroutine
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

CHUNK = 1 << 14
WAITING_CHUNKS = 256
TICK_SECONDS = 0.01
BURST_SECONDS = 0.02
RESET = struct.pack("ii", 1, 0)


@dataclass
class Faults:
    """What happens to the bytes.

    `cut_after_bytes`: after so many bytes from the client, counted over all connections, every connection is cut, once.
    `cut_after_s`: each connection is cut at this age. `stalled`: nothing moves, nothing is closed. `delay_s`: each way.
    `bytes_per_s`: bandwidth each way, shared by all connections. `loss`: chance of each chunk to be lost, which resets
    its connection (TCP itself repeats what a network loses; what is left over is a connection that dies).
    `silent`: new connections are accepted and hear nothing, not even a banner. `refused`: they are closed at once.
    """

    cut_after_bytes: int | None = None
    cut_after_s: float | None = None
    stalled: bool = False
    delay_s: float = 0.0
    bytes_per_s: float | None = None
    loss: float = 0.0
    silent: bool = False
    refused: bool = False


class _Bucket:
    """A token bucket: when may the next bytes go?"""

    def __init__(self) -> None:
        self._free_at = 0.0

    async def take(self, size: int, bytes_per_s: float | None) -> None:
        if bytes_per_s is None:
            return
        self._free_at = max(self._free_at, time.monotonic() - BURST_SECONDS) + size / bytes_per_s
        wait = self._free_at - time.monotonic()
        if wait > 0:
            await asyncio.sleep(wait)


class FaultProxy:
    """Listens on `port` of 127.0.0.1 and relays to `target_port` of `target_host`.

    `connections` counts what was accepted, `up_bytes` and `down_bytes` what was relayed. `close` ends the thread.
    """

    def __init__(
        self, target_port: int, target_host: str = "127.0.0.1", faults: Faults | None = None, seed: int = 0
    ) -> None:
        self.target = (target_host, target_port)
        self.faults = faults or Faults()
        self.connections = 0
        self.up_bytes = 0
        self.down_bytes = 0
        self._random = random.Random(seed)
        self._buckets = (_Bucket(), _Bucket())
        self._writers: set[asyncio.StreamWriter] = set()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port = int(self._listener.getsockname()[1])
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name=f"fault-proxy-{self.port}", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def cut(self) -> None:
        """Reset every connection that there is, now; new ones are served."""
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._cut)

    def close(self) -> None:
        """Cut everything, stop to listen and end the thread; may be called twice."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._listener.close()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._serve, sock=self._listener))
        try:
            self._loop.run_forever()
        finally:
            server.close()
            self._cut()
            for task in asyncio.all_tasks(self._loop):
                task.cancel()
            self._loop.run_until_complete(_settle(self._loop))
            self._loop.close()

    def _cut(self) -> None:
        for writer in list(self._writers):
            _reset(writer)
        self._writers.clear()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._writers.add(writer)
        ends = [writer]
        try:
            if self.faults.refused:
                return
            while self.faults.silent and not writer.is_closing():
                await asyncio.sleep(TICK_SECONDS)
            board_reader, board_writer = await asyncio.open_connection(*self.target)
            ends.append(board_writer)
            self._writers.add(board_writer)
            limit = self.faults.cut_after_s
            age = self._loop.call_later(limit, self._reset_all, ends) if limit is not None else None
            try:
                await _both(
                    self._relay(reader, board_writer, upward=True, ends=ends),
                    self._relay(board_reader, writer, upward=False, ends=ends),
                )
            finally:
                if age is not None:
                    age.cancel()
        except (OSError, asyncio.CancelledError):
            pass  # an end that is gone ends the other one; `close` ends both
        finally:
            for end in ends:
                self._writers.discard(end)
                end.close()

    def _reset_all(self, ends: list[asyncio.StreamWriter]) -> None:
        for end in ends:
            _reset(end)

    async def _relay(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, upward: bool, ends: list[asyncio.StreamWriter]
    ) -> None:
        """One direction; chunks wait in a queue, so that a delay does not limit the bandwidth."""
        queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(WAITING_CHUNKS)

        async def receive() -> None:
            while data := await reader.read(CHUNK):
                await queue.put((time.monotonic() + self.faults.delay_s, data))
            await queue.put((0.0, b""))

        async def send() -> None:
            while True:
                due, data = await queue.get()
                if not data:
                    if writer.can_write_eof():
                        writer.write_eof()
                    return
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                await self._buckets[upward].take(len(data), self.faults.bytes_per_s)
                while self.faults.stalled:
                    await asyncio.sleep(TICK_SECONDS)
                if self.faults.loss and self._random.random() < self.faults.loss:
                    self._reset_all(ends)
                    return
                writer.write(data)
                await writer.drain()
                self._count(len(data), upward)

        await _both(receive(), send())

    def _count(self, size: int, upward: bool) -> None:
        if not upward:
            self.down_bytes += size
            return
        self.up_bytes += size
        left = self.faults.cut_after_bytes
        if left is not None:
            self.faults.cut_after_bytes = left - size if left > size else None
            if left <= size:
                self._cut()


async def _both(first: Coroutine[Any, Any, None], second: Coroutine[Any, Any, None]) -> None:
    """Run two coroutines; the first that fails cancels the other."""
    tasks = [asyncio.ensure_future(first), asyncio.ensure_future(second)]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close with RST: the other end sees a connection that died, not one that ended."""
    raw = writer.get_extra_info("socket")
    if raw is not None:
        with contextlib.suppress(OSError):
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    writer.transport.abort()


async def _settle(loop: asyncio.AbstractEventLoop) -> None:
    """Let cancelled tasks end."""
    others = [task for task in asyncio.all_tasks(loop) if task is not asyncio.current_task()]
    await asyncio.gather(*others, return_exceptions=True)

"""A reverse proxy that ends TLS and keeps what it passes on: what SuperNodes really send."""

import asyncio
import ssl
import threading
import time
from contextlib import suppress
from pathlib import Path


class RecordingProxy:
    """Passes connections on to a SuperLink, with the SuperLink's own certificate."""

    def __init__(self, superlink: str, keys: Path) -> None:
        self.host, _, self.port = superlink.partition(":")
        self.sent: list[tuple[float, int, bytes]] = []  # when, by which connection, what
        self._inward = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self._inward.load_cert_chain(keys / "superlink/server.crt", keys / "superlink/server.key")
        self._outward = ssl.create_default_context(cafile=str(keys / "ca.crt"))
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        listening = asyncio.start_server(self._pass_on, "127.0.0.1", 0, ssl=self._inward)
        server = asyncio.run_coroutine_threadsafe(listening, self._loop).result(10)
        self.address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"

    def between(self, start: float, end: float) -> bytes:
        """All that was sent in that time (`time.monotonic`), connection by connection."""
        chunks = [chunk for chunk in self.sent if start <= chunk[0] < end]
        chunks.sort(key=lambda chunk: chunk[1])  # stable: each connection in its own order
        return b"".join(data for _, _, data in chunks)

    def close(self) -> None:
        """Serve no more."""
        self._loop.call_soon_threadsafe(self._loop.stop)

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            back, forth = await asyncio.open_connection(
                self.host, int(self.port), ssl=self._outward, server_hostname="localhost"
            )
        except OSError:  # the SuperLink is gone: so is the connection
            writer.close()
            return
        await asyncio.gather(self._pump(reader, forth, True), self._pump(back, writer, False))

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, keep: bool
    ) -> None:
        connection = id(writer)
        with suppress(ConnectionError, ssl.SSLError):  # either side may be killed
            while data := await reader.read(1 << 16):
                if keep:
                    self.sent.append((time.monotonic(), connection, data))
                writer.write(data)
                await writer.drain()
        writer.close()

"""A server in a process of its own, and what tests send to it."""

import contextlib
import io
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import numpy as np
from PIL import Image

SIDE_PX = 16
COLORS = {"red": (220, 10, 10), "green": (10, 220, 10), "blue": (10, 10, 220)}


def flat(name, image_format="PNG", size=(30, 20), **options):
    file = io.BytesIO()
    Image.new("RGB", size, COLORS[name]).save(file, image_format, **options)
    return file.getvalue()


def pixels(name):
    return np.full((SIDE_PX, SIDE_PX, 3), COLORS[name], np.uint8)


def until(condition, seconds=20.0):
    """Wait for something to become true; machines that test are slow at times."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.01)


class Server:
    """``tellapart serve`` as a user starts it; changes to the limits stand in for long waits, ``before`` for what breaks."""

    def __init__(self, *arguments, limits="", before="", env=None):
        program = (
            "from tellapart.serving import settings, run\n"
            "from tellapart.cli import main\n"
            f"changed = lambda: settings.Limits({limits})\n"
            "settings.Settings.__dataclass_fields__['limits'].default_factory = changed\n"
            "original = settings.Settings\n"
            "settings.Settings = lambda **values: original(**{'limits': changed(), **values})\n"
            f"{before}\n"
            "main()"
        )
        self.process = subprocess.Popen(
            [sys.executable, "-c", program, "serve", "--port", "0", *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=env,
        )
        self.log = []
        self._reader = threading.Thread(target=lambda: self.log.extend(self.process.stderr), daemon=True)
        self._reader.start()
        line = self.process.stdout.readline()
        found = re.search(r"http://(\S+?):(\d+)/(\S*)", line)
        if not found:
            self.process.wait(10)
            self._reader.join(5)
            raise RuntimeError(f"no server: {line} {''.join(self.log)}")
        self.link, self.host, self.port = found[0], found[1], int(found[2])
        self.url = f"http://127.0.0.1:{self.port}"

    def client(self, **options):
        return httpx.Client(base_url=self.url, timeout=20, **options)

    def decoders(self):
        """Process numbers of its decoders."""
        tasks = Path(f"/proc/{self.process.pid}/task").iterdir()
        return [int(child) for task in tasks for child in (task / "children").read_text().split()]

    def memory_mib(self):
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024

    def talk(self, *parts, pause=0.0, seconds=8.0):
        """Send bytes as they are, one part after another, and read until the server closes or says nothing for a while."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=seconds) as line:
            answer = b""
            with contextlib.suppress(ConnectionError):
                for part in parts:
                    line.sendall(part)
                    time.sleep(pause)
            with contextlib.suppress(ConnectionError, TimeoutError):
                while data := line.recv(65536):
                    answer += data
        return answer

    def has_queue(self, n):
        """Whether so many images are taken in and not answered."""
        with self.client() as client:
            return f"tellapart_queue_images {n}.0" in client.get("/metrics").text

    def outcomes(self):
        """Number of requests by outcome."""
        with self.client() as client:
            text = client.get("/metrics").text
        found = {}
        for outcome, count in re.findall(r'tellapart_requests_total{outcome="([^"]+)",route="[^"]*"} (\S+)', text):
            found[outcome] = found.get(outcome, 0) + int(float(count))
        return found

    def end(self, number=signal.SIGTERM):
        """Ask it to end; its exit status."""
        self.process.send_signal(number)
        return self.wait()

    def wait(self):
        status = self.process.wait(20)
        self._reader.join(5)
        return status

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                self.process.kill()
            self.process.wait()


def write_model(path: Path, model_file):
    """As training does: under another name first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_bytes(model_file.onnx_bytes)
    part.replace(path)
    return path

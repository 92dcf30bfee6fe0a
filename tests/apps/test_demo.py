"""`maskwright demo` as a process of its own: many people at once, memory, the way out; and what it refuses."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import small_deep_mac
from PIL import Image

from exported_by_hand import save_exported
from maskwright.apps.page.local_server import listen
from maskwright.cli import main
from maskwright.models.hub import save_pretrained

MEGABYTE = 2**20


class Demo:
    """The running command."""

    def __init__(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "maskwright", "demo", "--port", "0", *arguments]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        line = self.process.stdout.readline() if self.process.stdout else ""
        found = re.search(r"http://\S+/", line)
        if found is None:
            raise AssertionError(self.process.communicate()[1])
        self.address = found[0]

    def end(self, number: int = signal.SIGINT) -> tuple[int, str]:
        os.kill(self.process.pid, number)
        return self.process.wait(timeout=600), self.process.communicate()[1]

    def memory(self) -> int:
        """Bytes of the process that are in memory."""
        pages = Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")


@contextmanager
def demo(*arguments: str) -> Iterator[Demo]:
    running = Demo(*arguments)
    try:
        yield running
    finally:
        running.process.kill()
        running.process.communicate()


def customer(running: Demo) -> httpx.Client:
    """Each request comes on a new connection: on a busy machine the server may just have closed one that was idle."""
    limits = httpx.Limits(max_keepalive_connections=0)
    return httpx.Client(base_url=running.address, timeout=600, limits=limits)


def picture(seed: int, width: int, height: int) -> bytes:
    """Bright blobs on a dark ground, others for each seed."""
    random = np.random.default_rng(seed)
    small = random.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    stream = BytesIO()
    Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC).save(stream, "JPEG")
    return stream.getvalue()


class Person:
    """Someone with a picture and boxes of their own, and the answers that they had when nobody else asked."""

    def __init__(self, client: httpx.Client, number: int, size: tuple[int, int]) -> None:
        self.client, self.content = client, picture(number, *size)
        self.random = np.random.default_rng(number)
        self.key = self.send()
        low = self.random.uniform(0, 0.4, (4, 2)) * size
        self.boxes = np.concatenate([low, low + self.random.uniform(0.2, 0.5, (4, 2)) * size], axis=1).tolist()
        self.answers = [self.ask([box]) for box in self.boxes]

    def send(self) -> str:
        headers = {"Content-Type": "application/octet-stream"}
        answer = self.client.post("api/pictures", content=self.content, headers=headers)
        answer.raise_for_status()
        return answer.json()["picture"]

    def ask(self, boxes: list[Any]) -> Any:
        answer = self.client.post("api/boxes", json={"picture": self.key, "boxes": boxes})
        answer.raise_for_status()
        return answer.json()

    def check_again(self, times: int) -> int:
        """Ask for known answers; how many came and were the same."""
        rows = self.random.integers(len(self.boxes), size=times).tolist()
        return sum(self.ask([self.boxes[row]]) == self.answers[row] for row in rows)


def ask_at_once(people: list[Person], times: int) -> None:
    """Each of the people asks so many times; all are answered, each with an answer of their own."""
    with ThreadPoolExecutor(len(people)) as threads:
        assert sum(threads.map(lambda person: person.check_again(times), people)) == times * len(people)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read as Linux tells it")
def test_100_requests_of_8_people_at_once(tmp_path: Path):
    save_pretrained(small_deep_mac.build(mask_head="resnet4"), tmp_path / "small")
    with demo("--device", "cpu", "--model", str(tmp_path / "small")) as running:
        with customer(running) as client:
            people = [Person(client, number, (1200, 800)) for number in range(8)]
            before = running.memory()
            ask_at_once(people, 13)
        # If each request left the pixels of its picture behind, it would be three hundred.
        assert running.memory() - before < 100 * MEGABYTE
        code, told = running.end()
        assert (code, "Traceback" in told) == (130, False)


@pytest.mark.slow
def test_memory_stays_as_it_is(tmp_path: Path):
    save_pretrained(
        small_deep_mac.build(image_size=128, second_look_below=128.0, second_look_size=64), tmp_path / "small"
    )
    with demo("--device", "cpu", "--model", str(tmp_path / "small")) as running, customer(running) as client:
        size = (600, 400)
        for number in range(64):  # so many are kept
            Person(client, 100 + number, size)
        people = [Person(client, number, size) for number in range(10)]  # more than have features in memory
        memory = []
        for turn in range(5):
            ask_at_once(people, 10)
            for number in range(10):
                Person(client, 1000 + 10 * turn + number, size)
            memory.append(running.memory())
        # In each turn some 100 pictures of 0.7 MB are read and encoded again, and ten new ones come.
        assert max(memory) - memory[0] < 30 * MEGABYTE


def test_other_machines_are_let_in_with_a_word(tmp_path: Path):
    save_exported(tmp_path / "light.onnx")
    with demo("--device", "cpu", "--model", str(tmp_path / "light.onnx"), "--host", "0.0.0.0") as running:
        port = running.address.rpartition(":")[2]
        assert httpx.get(f"http://127.0.0.1:{port}").status_code == 200
        code, told = running.end(signal.SIGTERM)
    assert code == 143
    assert "--host 0.0.0.0: everyone who can reach this address can use the page" in told


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model", "nothing"], "nothing"),
        (["--model", ","], "--model: expected at least one model"),
        (["--max-boxes", "0"], "--max-boxes: expected more than 0"),
        (["--max-megapixels=-1"], "--max-megapixels: expected more than 0"),
        (["--port", "99999"], "--port: expected 0..65535"),
        (["--host", "no.such.host.invalid"], "--host no.such.host.invalid with --port 7863 cannot be used"),
    ],
)
def test_what_cannot_be(arguments: list[str], words: str, capsys):
    assert main(["demo", *arguments]) == 2
    told = capsys.readouterr().err
    assert words in told
    assert told.count("\n") == 1


def test_a_port_in_use(capsys):
    with listen(0) as taken:
        port = taken.getsockname()[1]
        assert main(["demo", "--port", str(port)]) == 2
    assert f"--port {port} cannot be used" in capsys.readouterr().err

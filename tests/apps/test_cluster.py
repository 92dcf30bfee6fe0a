"""`maskwright complete --engine ray`: what a Ray cluster makes is what one process makes, whatever is killed."""

from __future__ import annotations

import json
import os
import pickle
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import maskwright
from exported_by_hand import save_exported
from maskwright.apps.cluster import _Actor, check_address
from maskwright.apps.completion.pictures import CompletionSettings, PictureCompleter, software
from maskwright.apps.processes import result_of
from maskwright.apps.provenance import MaskSource
from maskwright.cli import main
from maskwright.errors import UserError
from maskwright.models.hub import from_pretrained, model_hash
from maskwright.predictor import Predictor

COMMAND = ["complete", "boxes.json", "--images", "images", "--device", "cpu", "--model", "light.onnx"]
RAY = [*COMMAND, "--engine", "ray", "--processes", "2", "--out", "done.json"]
TORCH = ["--model", "weights"]  # where actors may start late
JOURNAL = Path("done.json.journal")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAY_DEFAULT_OBJECT_STORE_MAX_MEMORY_BYTES", "200000000")
    monkeypatch.setenv("RAY_worker_niceness", "0")  # or they never begin on a busy machine
    save_exported(Path("light.onnx"))
    torch.manual_seed(0)
    size = {"image_size": 32, "mask_size": 8, "width": 0.1}
    model = maskwright.DeepMAC(backbone="resnet18_fpn", mask_head="resnet4", box_frame="pixel", **size)
    maskwright.save_pretrained(model, "weights")


def make_data(count: int) -> None:
    """Pictures with two boxes each, one of them broken."""
    rng = np.random.default_rng(0)
    Path("images").mkdir()
    images = [{"id": row, "file_name": f"{row}.png", "height": 24, "width": 32} for row in range(count)]
    for image in images:
        Image.fromarray(rng.integers(0, 255, (24, 32, 3), dtype=np.uint8)).save(f"images/{image['file_name']}")
    Path("images/2.png").write_bytes(b"no picture")
    corners = rng.uniform(0, 14, (2 * count, 2)).round(2).tolist()
    boxes = [{"id": n, "image_id": n // 2, "category_id": 1, "bbox": [x, y, 9, 9]} for n, (x, y) in enumerate(corners)]
    content = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "thing"}]}
    Path("boxes.json").write_text(json.dumps(content))


def start(*options: str) -> subprocess.Popen[str]:
    """The command in a session of its own, to which all belongs that Ray starts for it."""
    command = [sys.executable, "-m", "maskwright", *RAY, *options]
    return subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def wait_for(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 900  # a busy machine starts a cluster late
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def results() -> int:
    return JOURNAL.read_bytes().count(b"\n") - 1 if JOURNAL.exists() else 0


def members(session: int) -> dict[int, str]:
    """The processes of a session that still run, and their command lines."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            state, _, _, its_session = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
            if int(its_session) == session and state != "Z":
                found[int(entry.name)] = (entry / "cmdline").read_text()
        except (OSError, ValueError):
            pass
    return found


def actors(sessions: list[int]) -> list[int]:
    """The processes of sessions that make masks."""
    return [pid for session in sessions for pid, line in members(session).items() if "ray::MapWorker" in line]


@pytest.mark.slow
def test_two_actors_give_the_file_of_one_process_and_say_nothing_more():
    make_data(6)
    assert main([*COMMAND, *TORCH, "--out", "whole.json"]) == 3
    running = start(*TORCH)
    _, said = running.communicate(timeout=600)
    assert running.returncode == 3, said
    assert Path("done.json").read_bytes() == Path("whole.json").read_bytes()
    assert all(line.startswith("failed: ") for line in said.splitlines()), said
    assert not JOURNAL.exists()
    wait_for(lambda: not members(running.pid))


linux = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="no list of processes there")


@linux
@pytest.mark.slow
def test_a_killed_actor_costs_time_only():
    make_data(2000)
    assert main([*COMMAND, "--out", "whole.json"]) == 3
    running = start()
    for done in (20, 80):
        wait_for(lambda done=done: results() > done)
        os.kill(actors([running.pid])[0], signal.SIGKILL)
    _, said = running.communicate(timeout=600)
    assert running.returncode == 3, said
    assert Path("done.json").read_bytes() == Path("whole.json").read_bytes()


@linux
@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -9), (signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_after_a_killed_driver_the_same_command_goes_on_without_ray(number: signal.Signals, code: int):
    make_data(2000)
    assert main([*COMMAND, "--out", "whole.json"]) == 3
    running = start()
    wait_for(lambda: results() > 20)
    os.kill(running.pid, number)
    _, said = running.communicate(timeout=600)
    assert running.returncode == code
    assert "Traceback" not in said
    assert ("the same command goes on from there" in said) == (number != signal.SIGKILL)
    wait_for(lambda: not members(running.pid))  # of a killed one Ray's agents end after a minute or two
    before = results()
    assert 20 < before < 2000
    assert main([*COMMAND, "--out", "done.json"]) == 3
    assert Path("done.json").read_bytes() == Path("whole.json").read_bytes()


def kill_session(session: int) -> None:
    with suppress(ProcessLookupError):
        for pid in members(session):
            os.kill(pid, signal.SIGKILL)


class TwoNodes:
    """A Ray cluster as docs/cluster.md starts it, of two nodes that are processes of this machine.

    Each node has one processor, and is a session of its own.
    """

    def __init__(self, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{free.getsockname()[1]}"
        port = self.address.rpartition(":")[2]
        first = ["--head", "--port", port, "--include-dashboard=false", "--temp-dir", str(folder)]
        self.nodes: list[subprocess.Popen[bytes]] = []
        try:
            self._start(folder / "first.log", first)
            self.add_node(folder / "second.log")
        except BaseException:
            self.stop()
            raise

    def add_node(self, log: Path) -> None:
        self._start(log, ["--address", self.address])

    def _start(self, log: Path, options: list[str]) -> None:
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", *options, "--num-cpus", "1", "--block"]
        with log.open("wb") as said:
            node = subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT, start_new_session=True)
        self.nodes.append(node)
        wait_for(lambda: b"Ray runtime started" in log.read_bytes() or node.poll() is not None)
        assert node.poll() is None, log.read_text()

    def actors(self) -> list[int]:
        return actors([node.pid for node in self.nodes])

    def stop(self) -> None:
        for node in reversed(self.nodes):
            kill_session(node.pid)
            node.wait()


@pytest.fixture
def two_nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[TwoNodes]:
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
    folder = Path(tempfile.mkdtemp(prefix="ray"))  # short: paths of sockets have at most 107 bytes
    cluster = TwoNodes(folder)
    yield cluster
    cluster.stop()
    shutil.rmtree(folder, ignore_errors=True)


@linux
@pytest.mark.slow
def test_two_nodes_give_the_file_of_one_process(two_nodes: TwoNodes):
    make_data(60)
    assert main([*COMMAND, *TORCH, "--out", "whole.json"]) == 3
    running = start("--address", two_nodes.address, *TORCH)
    wait_for(lambda: results() > 8 or running.poll() is not None)
    used = [actors([node.pid]) != [] for node in two_nodes.nodes]
    _, said = running.communicate(timeout=600)
    assert running.returncode == 3, said
    assert used == [True, True]
    assert Path("done.json").read_bytes() == Path("whole.json").read_bytes()
    assert all(node.poll() is None for node in two_nodes.nodes)  # the cluster stays


@linux
@pytest.mark.slow
def test_a_lost_node_costs_time_only(two_nodes: TwoNodes):
    make_data(2000)
    assert main([*COMMAND, "--out", "whole.json"]) == 3
    running = start("--address", two_nodes.address)
    wait_for(lambda: results() > 20)
    kill_session(two_nodes.nodes[1].pid)
    _, said = running.communicate(timeout=900)
    assert running.returncode == 3, said
    assert Path("done.json").read_bytes() == Path("whole.json").read_bytes()


@linux
@pytest.mark.slow
def test_a_cluster_refuses_a_command_without_its_token_which_says_so(
    two_nodes: TwoNodes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    make_data(3)
    for name, value in (("RAY_AUTH_TOKEN", secrets.token_hex(32)), ("RAY_AUTH_TOKEN", ""), ("RAY_AUTH_MODE", "")):
        monkeypatch.setenv("HOME", str(tmp_path))  # where Ray looks for one, too
        monkeypatch.setenv(name, value)
        _, said = start("--address", two_nodes.address).communicate(timeout=600)
        assert said.startswith(f"maskwright: error: there is no Ray cluster at {two_nodes.address} that")
        assert "set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH" in said
        assert len(said.splitlines()) == 1


KILLS = int(os.environ.get("MASKWRIGHT_RAY_KILLS", "50"))


@linux
@pytest.mark.slow
def test_kills_at_random_moments_lose_nothing(two_nodes: TwoNodes):
    """Actors, commands and, twice, the second node are killed, each while pictures are on their way."""
    make_data(100 * KILLS)
    assert main([*COMMAND, "--out", "whole.json"]) == 3
    moments = random.Random(0)
    running = start("--address", two_nodes.address)
    for kill in range(KILLS):
        seen, before = results(), JOURNAL.read_bytes() if JOURNAL.exists() else b""
        wait_for(lambda seen=seen, command=running: results() > seen or command.poll() is not None)
        time.sleep(moments.uniform(0, 0.1))
        if kill % 5 == 4:
            assert running.poll() is None, f"it ended before {kill} kills"
            os.kill(running.pid, signal.SIGKILL)
            running.communicate(timeout=60)
            assert JOURNAL.read_bytes().startswith(before)
            running = start("--address", two_nodes.address)
        elif kill % 25 == 12:
            kill_session(two_nodes.nodes.pop().pid)
            two_nodes.add_node(Path(f"node{kill}.log"))
        else:
            wait_for(lambda command=running: two_nodes.actors() or command.poll() is not None)
            assert running.poll() is None, f"it ended before {kill} kills"
            os.kill(moments.choice(two_nodes.actors()), signal.SIGKILL)
    _, said = running.communicate(timeout=1800)
    assert running.returncode == 3, said
    assert Path("done.json").read_bytes() == Path("whole.json").read_bytes()
    assert not JOURNAL.exists()


@pytest.mark.slow
def test_where_there_is_no_cluster_one_sentence_says_so(capsys: pytest.CaptureFixture[str]):
    make_data(3)
    assert main([*RAY, "--address", "auto"]) == 2
    said = capsys.readouterr().err
    assert "there is no Ray cluster at auto that this machine belongs to" in said
    assert not JOURNAL.exists()


@pytest.mark.slow
def test_a_cluster_of_the_command_leaves_no_token_in_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    make_data(3)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    running = start()
    _, said = running.communicate(timeout=600)
    assert running.returncode == 3, said
    assert not (tmp_path / "home" / ".ray").exists()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--engine", "spark"], "engine must be one of processes, ray, but got 'spark'"),
        (["--address", "auto"], "expected --engine ray with it"),
    ],
)
def test_options_that_do_not_fit(options: list[str], told: str, capsys: pytest.CaptureFixture[str]):
    make_data(3)
    assert main([*COMMAND, "--out", "done.json", *options]) == 2
    assert told in capsys.readouterr().err


@pytest.fixture
def closed_port() -> Iterator[int]:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        yield closed.getsockname()[1]


@pytest.mark.parametrize(
    "address", ["nowhere.invalid", "nowhere.invalid:1", "127.0.0.1", "127.0.0.1:{}", "127.0.0.1:x"]
)
def test_an_address_where_nothing_listens_is_refused_before_any_work(
    address: str, closed_port: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("maskwright.apps.cluster.PORT", closed_port)
    address = address.format(closed_port)
    assert main([*RAY, "--address", address]) == 2  # though boxes.json is not there either
    said = capsys.readouterr().err
    assert said.startswith(f"maskwright: error: --address {address}: no Ray cluster can be reached there (")
    assert len(said.splitlines()) == 1


def test_an_address_where_something_listens_is_taken(monkeypatch: pytest.MonkeyPatch):
    with socket.create_server(("127.0.0.1", 0)) as head:
        port = head.getsockname()[1]
        check_address(f"127.0.0.1:{port}")
        monkeypatch.setattr("maskwright.apps.cluster.PORT", port)
        check_address("127.0.0.1")


@dataclass(frozen=True)
class Picture:
    path: Path


@pytest.fixture
def settings() -> CompletionSettings:
    weights = model_hash(from_pretrained("weights"))
    source = MaskSource("weights", weights, maskwright.__version__)
    return CompletionSettings("boxes.json", [-1], source, software(), "cpu", "float32", False, "auto", False)


def ask(settings: CompletionSettings, path: Path) -> object:
    """What a worker answers that has these settings from its caller."""
    actor = _Actor(PictureCompleter(settings, Predictor(from_pretrained("weights"))), str(Path.cwd()))
    row = actor({"number": 0, "job": pickle.dumps(Picture(path))})
    return result_of(pickle.loads(row["answer"]))


def test_a_machine_that_does_not_see_the_pictures_stops_the_run(settings: CompletionSettings):
    with pytest.raises(UserError, match=r"on machine .*: the picture gone\.png is not there, but it is where"):
        ask(settings, Path("gone.png"))


def test_a_machine_with_other_weights_or_other_software_stops_the_run(settings: CompletionSettings):
    other_weights = replace(settings.made_by, weights="0123")
    for change in ({"made_by": other_weights}, {"software": "maskwright 9.9"}):
        with pytest.raises(UserError, match=r"on machine .*expected (0123|maskwright 9\.9), as where the command was"):
            ask(replace(settings, **change), Path("boxes.json"))


def test_a_checkout_that_differs_by_one_line_is_other_software(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("maskwright.__file__", str(tmp_path / "package" / "__init__.py"))
    (tmp_path / "package" / "nn").mkdir(parents=True)
    (tmp_path / "package" / "nn" / "one.py").write_text("x = 1\n")
    before = software()
    assert before == software()
    (tmp_path / "package" / "nn" / "one.py").write_text("x = 2\n")
    assert before != software()


def test_a_machine_without_the_precision_stops_the_run(settings: CompletionSettings, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("maskwright.predictor._has_fast_bfloat16", lambda _: False)
    with pytest.raises(UserError, match=r"on machine .*: cpu has no fast bfloat16.*give --precision float32"):
        ask(replace(settings, precision="bfloat16"), Path("boxes.json"))

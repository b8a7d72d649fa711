"""The published teachers come once, whole and unchanged, or not at all and with what to do."""

import http.server
import os
import pickle
import signal
import subprocess
import sys
import threading
from io import BytesIO

import numpy as np
import pytest
import torch

from ttm_lab.course import paper, teachers
from ttm_lab.course.teachers import fetch_teacher
from ttm_lab.files import downloads_folder
from ttm_lab.models import create_model, load_weights

TRAIN = "ttm-lab train-teacher --model {} --data cifar100"


def published(name="resnet8", classes=100, seed=1, **more):
    """The bytes of a checkpoint as RepDistiller's training code writes it after epoch 240."""
    network = create_model(name, classes, seed=seed)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    network(torch.ones(2, 3, 32, 32)).sum().backward()
    optimizer.step()
    optimizer.param_groups[0]["lr"] = 0.05 * (0.1 ** np.float64(3))
    buffer = BytesIO()
    state = {
        **{"epoch": 240, "model": network.state_dict(), "accuracy": torch.tensor([72.3])},
        **{"optimizer": optimizer.state_dict(), **more},
    }
    torch.save(state, buffer, _use_new_zipfile_serialization=False)  # torch's format of 2019
    with pytest.raises(pickle.UnpicklingError):  # the NumPy number makes it a real one
        torch.load(BytesIO(buffer.getvalue()), weights_only=True)
    return buffer.getvalue()


def serve(body, status=200, length=None):
    """What answers with ``body``; ``length`` is the Content-Length, "unsaid" for none at all."""

    def answer(handler):
        handler.send_response(status)
        if length != "unsaid":
            handler.send_header("Content-Length", str(length or len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    return answer


class Host:
    """A web server on this machine that remembers what it was asked."""

    def __init__(self):
        host = self
        self.requests, self.answer = [], None

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                host.requests.append(self.path)
                host.answer(self)

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        self.thread.start()

    def address(self, name):
        return f"http://127.0.0.1:{self.server.server_port}/{name}_vanilla/ckpt_epoch_240.pth"

    def stop(self):
        if self.thread.is_alive():
            self.server.shutdown()
            self.thread.join()
            self.server.server_close()


@pytest.fixture
def host(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    host = Host()
    for name in ("resnet8", "resnet14", "wrn_16_1"):
        monkeypatch.setitem(teachers.ADDRESSES, name, host.address(name))
    yield host
    host.stop()


@pytest.fixture(scope="module")
def checkpoint():
    return published()


def place(folder, name="resnet8"):
    return folder / f"{name}_vanilla" / "ckpt_epoch_240.pth"


def files(folder):
    return sorted(p.name for p in folder.rglob("*") if p.is_file() and p.name != ".lock")


def assert_nothing_came(folder, host, error, name="resnet8"):
    assert files(folder) == []
    for part in (host.address(name), str(place(folder, name)), TRAIN.format(name)):
        assert part in str(error.value)


def test_the_first_download_is_whole(tmp_path, host, checkpoint):
    host.answer = serve(checkpoint)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    path = fetch_teacher("resnet8", tmp_path)
    assert torch.equal(torch.get_rng_state(), before)  # a download changes no training after it
    assert path == place(tmp_path)
    assert path.read_bytes() == checkpoint
    assert files(tmp_path) == ["ckpt_epoch_240.pth"]
    found = load_weights(create_model("resnet8", 100), path).state_dict()
    wanted = torch.load(BytesIO(checkpoint), weights_only=False)["model"]
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)


def test_a_second_call_asks_nobody(tmp_path, host, checkpoint):
    host.answer = serve(checkpoint)
    first = fetch_teacher("resnet8", tmp_path)
    assert host.requests == ["/resnet8_vanilla/ckpt_epoch_240.pth"]
    host.stop()
    assert fetch_teacher("resnet8", tmp_path) == first
    assert len(host.requests) == 1


def test_a_body_of_unsaid_length_comes_too(tmp_path, host, checkpoint):
    host.answer = serve(checkpoint, length="unsaid")
    assert fetch_teacher("resnet8", tmp_path).read_bytes() == checkpoint


@pytest.mark.parametrize("progress", [True, False])
def test_progress_is_shown_unless_unwanted(tmp_path, host, checkpoint, capsys, progress):
    host.answer = serve(checkpoint)
    fetch_teacher("resnet8", tmp_path, progress=progress)
    shown = capsys.readouterr().err
    assert ("100%" in shown) is progress
    assert progress or not shown


def test_the_papers_spelling_is_the_same_teacher(tmp_path, host):
    host.answer = serve(published("wrn_16_1"))
    path = fetch_teacher("wrn-16-1", tmp_path)
    assert path == place(tmp_path, "wrn_16_1")
    assert fetch_teacher("wrn_16_1", tmp_path) == path
    assert len(host.requests) == 1


def test_big_data_goes_where_the_environment_says(tmp_path, monkeypatch, host, checkpoint):
    host.answer = serve(checkpoint)
    monkeypatch.setenv("TTM_LAB_DATA", str(tmp_path / "big"))
    assert fetch_teacher("resnet8") == place(tmp_path / "big" / "teachers")
    monkeypatch.delenv("TTM_LAB_DATA")
    for folder in ("notebooks", "ttm_lab", "notebooks/deeper"):
        (tmp_path / "checkout" / folder).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "checkout" / "notebooks" / "deeper")
    assert downloads_folder() == tmp_path / "checkout" / "data" / "downloads"
    assert fetch_teacher("resnet8") == place(downloads_folder() / "teachers")


def test_every_teacher_of_the_papers_cifar_table_has_an_address():
    table = paper.hyperparameters()
    rows = table[table["dataset"] == "CIFAR-100"]
    named = {name.replace("-", "_") for name in rows["teacher"].dropna()}
    assert named == set(teachers.ADDRESSES)


@pytest.mark.parametrize("name", ["resnet20", "torchvision/resnet50", "no such network"])
def test_an_unknown_teacher_is_named_with_the_known_ones(tmp_path, name):
    with pytest.raises(ValueError, match="no published teacher is known") as error:
        fetch_teacher(name, tmp_path / "never")
    for part in (name, "wrn_40_2", "resnet32x4", "ResNet50", TRAIN.format(name)):
        assert part in str(error.value)
    assert not (tmp_path / "never").exists()


def test_a_file_put_there_by_hand_is_taken(tmp_path, host, checkpoint):
    path = place(tmp_path)
    path.parent.mkdir()
    path.write_bytes(checkpoint)
    assert fetch_teacher("resnet8", tmp_path) == path
    assert host.requests == []


def test_a_wrong_file_put_there_by_hand_is_named_and_left(tmp_path, host, checkpoint):
    path = place(tmp_path)
    path.parent.mkdir()
    path.write_bytes(published("resnet14"))
    with pytest.raises(ValueError, match=r"ckpt_epoch_240\.pth does not fit ResNet"):
        fetch_teacher("resnet8", tmp_path)
    assert files(tmp_path) == ["ckpt_epoch_240.pth"]
    assert host.requests == []
    path.unlink()
    host.answer = serve(checkpoint)
    assert fetch_teacher("resnet8", tmp_path).read_bytes() == checkpoint


@pytest.mark.parametrize("status", [403, 404, 500])
def test_an_address_that_is_gone(tmp_path, host, status):
    host.answer = serve(b"gone", status=status)
    with pytest.raises(ConnectionError, match=f"HTTP Error {status}") as error:
        fetch_teacher("resnet8", tmp_path)
    assert_nothing_came(tmp_path, host, error)


def test_a_closed_port(tmp_path, host):
    host.stop()
    with pytest.raises(ConnectionError, match="cannot fetch the teacher resnet8") as error:
        fetch_teacher("resnet8", tmp_path)
    assert_nothing_came(tmp_path, host, error)


@pytest.mark.parametrize("kept", [0, 1000, -1])
@pytest.mark.parametrize("length", ["said", "unsaid"])
def test_a_body_that_ends_too_early(tmp_path, host, checkpoint, kept, length):
    host.answer = serve(checkpoint[:kept], length=length if length == "unsaid" else len(checkpoint))
    with pytest.raises(ValueError, match=r"gives no teacher resnet8 .*not a whole file") as error:
        fetch_teacher("resnet8", tmp_path)
    assert_nothing_came(tmp_path, host, error)


def test_chunks_that_end_too_early(tmp_path, host, checkpoint):
    def answer(handler):
        handler.protocol_version = "HTTP/1.1"
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        handler.wfile.write(b"%x\r\n" % len(checkpoint) + checkpoint[:1000])
        handler.close_connection = True

    host.answer = answer
    with pytest.raises(ConnectionError, match="IncompleteRead") as error:
        fetch_teacher("resnet8", tmp_path)
    assert_nothing_came(tmp_path, host, error)


def test_a_web_page_at_the_end_of_a_redirection(tmp_path, host):
    def answer(handler):
        if handler.path.endswith(".pth"):
            handler.send_response(302)
            handler.send_header("Location", "/moved.html")
        else:
            handler.send_response(200)
            handler.send_header("Content-Type", "text/html")
        handler.end_headers()
        handler.wfile.write(b"<!DOCTYPE html><title>We have moved</title>")

    host.answer = answer
    with pytest.raises(ValueError, match=r"gives no teacher resnet8 .*not a whole file") as error:
        fetch_teacher("resnet8", tmp_path)
    assert host.requests[-1] == "/moved.html"
    assert_nothing_came(tmp_path, host, error)


@pytest.mark.parametrize(
    ("other", "classes", "words"),
    [("resnet14", 100, "unexpected"), ("resnet8", 10, r"file \(10, 64\), model \(100, 64\)")],
)
def test_the_weights_of_another_network(tmp_path, host, other, classes, words):
    host.answer = serve(published(other, classes))
    with pytest.raises(ValueError, match=words) as error:
        fetch_teacher("resnet8", tmp_path)
    assert_nothing_came(tmp_path, host, error)


class Hostile:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (self.marker,)


def test_a_file_that_would_run_code_is_refused_unrun(tmp_path, host):
    marker = tmp_path / "ran"
    body = published(epoch=Hostile(str(marker)))
    torch.load(BytesIO(body), weights_only=False)
    marker.rmdir()  # so it does run where nobody looks
    host.answer = serve(body)
    with pytest.raises(ValueError, match="is refused: it asks for") as error:
        fetch_teacher("resnet8", tmp_path / "teachers")
    assert not marker.exists()
    assert_nothing_came(tmp_path / "teachers", host, error)


@pytest.mark.skipif(os.name == "nt", reason="Windows has neither signal")
@pytest.mark.parametrize("ending", ["SIGINT", "SIGKILL"])
def test_a_stopped_download_leaves_nothing_that_counts(tmp_path, host, checkpoint, ending):
    halfway, end = threading.Event(), threading.Event()

    def answer(handler):
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(checkpoint)))
        handler.end_headers()
        handler.wfile.write(checkpoint[: len(checkpoint) // 2])
        handler.wfile.flush()
        halfway.set()
        end.wait(100)

    host.answer = answer
    program = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from ttm_lab.course import teachers\n"
        "teachers.ADDRESSES['resnet8'] = sys.argv[1]\n"
        "teachers.fetch_teacher('resnet8', sys.argv[2])"
    )
    command = [sys.executable, "-c", program, host.address("resnet8"), str(tmp_path)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        assert halfway.wait(100)
        process.send_signal(getattr(signal, ending))
        assert process.wait(100) != 0
    finally:
        process.kill()
        end.set()
    assert not place(tmp_path).exists()
    if ending == "SIGINT":
        assert files(tmp_path) == []
    host.answer = serve(checkpoint)
    assert fetch_teacher("resnet8", tmp_path).read_bytes() == checkpoint
    assert place(tmp_path).is_file()


def run_at_once(tasks):
    results, start = [None] * len(tasks), threading.Barrier(len(tasks))

    def work(index, task):
        start.wait(60)
        try:
            results[index] = task()
        except BaseException as error:
            results[index] = error

    threads = [threading.Thread(target=work, args=pair) for pair in enumerate(tasks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_callers_at_once_share_one_download(tmp_path, host, checkpoint):
    second = threading.Event()

    def answer(handler):  # holds the first answer back until there is another request, if any
        second.set() if len(host.requests) > 1 else second.wait(0.3)
        serve(checkpoint)(handler)

    host.answer = answer
    results = run_at_once([lambda: fetch_teacher("resnet8", tmp_path, progress=False)] * 4)
    assert results == [place(tmp_path)] * 4
    assert len(host.requests) == 1
    assert place(tmp_path).read_bytes() == checkpoint

from __future__ import annotations

import json
import logging
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any, cast
from unittest.mock import Mock

import pytest
from PIL import Image

from edgediffusion.engines.errors import EngineError, UsageError
from edgediffusion.runtime import GeneratedImage, Run, run_command, worker
from edgediffusion.runtime.cli import main
from edgediffusion.runtime.jobs import parse_line
from edgediffusion.runtime.journal import Job, Journal
from edgediffusion.runtime.metadata import read_parameters
from edgediffusion.runtime.monitor import Monitor
from edgediffusion.runtime.worker import Source, Stop

from .conftest import FUNCTIONS, Opened, names

Capture = pytest.CaptureFixture[str]
pytestmark = pytest.mark.usefixtures("folder")
ONE, TWO = '{"prompt": "a car", "num_inference_steps": 2}', '{"prompt": "an apple", "num_images": 2, "width": 24}'


def run(bundle: str, *options: str, source: str = "jobs.jsonl", out: str = "out") -> int:
    Path(out).mkdir(exist_ok=True)
    return main(["run", source, "-o", out, "--bundle", bundle, *options])


def jobs(*lines: str, file: str = "jobs.jsonl") -> None:
    Path(file).write_text("".join(f"{line}\n" for line in lines))


def journal(out: str = "out") -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(out, "journal.jsonl").read_text().splitlines()]


def states(out: str = "out") -> list[tuple[int, str]]:
    return [(record["line"], record["state"]) for record in journal(out)]


def drawn(opened: Opened) -> int:
    return sum(name == "vae_decoder" for name, _ in opened.calls)


def pictures(out: str = "out") -> list[str]:
    return sorted(path.name for path in Path(out).glob("*.png"))


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> list[BaseException]:
    """What the UNet raises, one in each call, until they are used up."""
    errors: list[BaseException] = []
    unet = FUNCTIONS["unet"]

    def fail_or_draw(feeds: Any) -> Any:
        if errors:
            raise errors.pop(0)
        return unet(feeds)

    monkeypatch.setitem(FUNCTIONS, "unet", fail_or_draw)
    return errors


def slow_down(seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    unet = FUNCTIONS["unet"]

    def slowly(feeds: Any) -> Any:
        time.sleep(seconds)
        return unet(feeds)

    monkeypatch.setitem(FUNCTIONS, "unet", slowly)


def test_a_file_of_jobs(bundle: str, opened: Opened, capsys: Capture) -> None:
    jobs(ONE, "", TWO)
    assert run(bundle) == 0
    out, err = capsys.readouterr()
    assert out == "out/jobs-1.png\nout/jobs-3-1.png\nout/jobs-3-2.png\n"
    assert [line.split(" ")[1] for line in err.splitlines()] == ["info"] * 4
    assert read_parameters(Path("out/jobs-3-2.png")).width == 24
    assert states() == [(1, "started"), (1, "done"), (3, "started"), (3, "done")]
    opened.calls.clear()
    Path("out/jobs-1.png").unlink()  # fetched by whoever ordered it
    assert run(bundle) == 0
    assert drawn(opened) == 0


def test_a_line_that_is_wrong_stops_no_other(bundle: str, capsys: Capture) -> None:
    jobs("nonsense", '{"promt": "x"}', '{"prompt": "x", "width": 7}', ONE)
    assert run(bundle) == 1
    assert pictures() == ["jobs-4.png"]
    reasons = {record["line"]: record["reason"] for record in journal() if record["state"] == "failed"}
    assert reasons[1].startswith("jobs.jsonl, line 1: cannot be read")
    assert "unknown key 'promt'" in reasons[2]
    assert "width 7" in reasons[3]
    capsys.readouterr()
    assert run(bundle) == 1  # they are still not done, and are not tried again
    assert len(journal()) == 8
    jobs("nonsense", ONE, '{"prompt": "x", "width": 7}', ONE)  # a line that was mended is another job
    assert run(bundle) == 1
    assert pictures() == ["jobs-2.png", "jobs-4.png"]


def test_altered_weights_are_told_before_a_job_is_begun(bundle: str, capsys: Capture) -> None:
    weights = Path(bundle, "unet", "diffusion_pytorch_model.safetensors")
    weights.write_bytes(weights.read_bytes()[::-1])
    jobs(ONE)
    assert run(bundle) == 2
    assert "altered, SHA-256" in capsys.readouterr().err
    assert (journal(), pictures()) == ([], [])


def test_retries_keep_the_reason(bundle: str, failing: list[BaseException], capsys: Capture) -> None:
    jobs(ONE, ONE)
    failing += [EngineError("a first reason"), ZeroDivisionError("a second")]
    assert run(bundle) == 0
    assert [(r["state"], r["reason"]) for r in journal() if "reason" in r] == [
        ("retry", "a first reason"),
        ("retry", "a second"),
    ]
    assert states()[-4:] == [(1, "started"), (1, "done"), (2, "started"), (2, "done")]
    assert "unexpected error" in capsys.readouterr().err


def test_a_job_is_given_up(bundle: str, failing: list[BaseException]) -> None:
    jobs(ONE, TWO)
    failing += [EngineError("no")] * 2
    assert run(bundle, "--retries", "0") == 1
    assert states() == [(1, "started"), (1, "failed"), (2, "started"), (2, "failed")]
    failing += [EngineError("no")] * 3
    assert run(bundle, "--retries", "2", out="second") == 0
    assert [state for _, state in states("second")].count("retry") == 3


def test_what_goes_wrong_before_a_job_is_drawn_stops_no_other(
    bundle: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def parse(path: Path, number: int, text: str) -> dict[str, Any]:
        return {"prompt": 1 / 0} if "a bug" in text else parse_line(path, number, text)

    monkeypatch.setattr(worker, "parse_line", parse)
    jobs('{"prompt": "a bug"}', ONE)
    assert run(bundle, "--retries", "0") == 1
    assert states() == [(1, "started"), (1, "failed"), (2, "started"), (2, "done")]
    assert "unexpected error" in capsys.readouterr().err


def test_a_name_that_another_picture_has_is_not_tried_again(bundle: str) -> None:
    jobs("a car", file="jobs.txt")
    assert run(bundle, source="jobs.txt") == 0
    jobs("an apple", file="jobs.txt")
    assert run(bundle, source="jobs.txt") == 1
    assert states()[2:] == [(1, "started"), (1, "failed")]
    assert journal()[-1]["reason"] == (
        "out/jobs-1.png: another picture, with prompt 'a car', where the job has 'an apple'; "
        "name another --output, or take that picture away"
    )


def test_nobody_reads_the_names_of_the_pictures(bundle: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The picture was drawn: the job is given back, not failed, and found to be done at the next start."""

    def print_line(line: str) -> None:
        raise BrokenPipeError(32, "Broken pipe")

    jobs(ONE, TWO)
    with monkeypatch.context() as closed:
        closed.setattr(worker, "print_line", print_line)
        closed.setattr(os, "dup2", lambda *descriptors: None)
        assert run(bundle, "--retries", "0") == 141
    assert states() == [(1, "started"), (1, "returned")]
    assert run(bundle, "--retries", "0") == 0


def test_a_job_that_kills_the_process_is_given_up(bundle: str, opened: Opened) -> None:
    jobs(ONE, TWO)
    Path("out").mkdir()
    for _ in range(2):
        log = Journal(Path("out/journal.jsonl"))
        log.write("started", Job(Path("jobs.jsonl"), 1, ONE))
        log.close()
    assert run(bundle, "--retries", "1") == 1
    assert states()[2:] == [(1, "failed"), (2, "started"), (2, "done")]
    assert journal()[2]["reason"] == "the process ended while it was drawn, 2 times"


def test_a_power_cut_costs_the_picture_in_flight(bundle: str, opened: Opened) -> None:
    """The journal's last line is torn, a picture is half written, another is there without its line."""
    jobs(TWO)
    assert run(bundle) == 0
    path = Path("out/journal.jsonl")
    path.write_bytes(path.read_bytes()[:-30])
    Path("out/jobs-1-2.png").rename("out/.edgediffusion-0123456789abcdef.png")
    first = Path("out/jobs-1-1.png").read_bytes()
    opened.calls.clear()
    assert run(bundle) == 0
    assert drawn(opened) == 1
    assert states() == [(1, "started"), (1, "started"), (1, "done")]
    assert Path("out/jobs-1-1.png").read_bytes() == first
    assert pictures() == ["jobs-1-1.png", "jobs-1-2.png"]
    assert not list(Path("out").glob(".edgediffusion-*"))


@pytest.mark.parametrize(("part", "other"), [('"started"', '"sTarted"'), ('"jobs.jsonl"', "[]"), ("{", "[" * 100_000)])
def test_a_damaged_journal(part: str, other: str, bundle: str, capsys: Capture) -> None:
    jobs(ONE)
    assert run(bundle) == 0
    path = Path("out/journal.jsonl")
    path.write_text(path.read_text().replace(part, other))
    capsys.readouterr()
    assert run(bundle) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert "out/journal.jsonl, line 1: damaged (" in line
    assert "take that line away, or the file" in line


def test_a_timeout(bundle: str, monkeypatch: pytest.MonkeyPatch) -> None:
    slow_down(0.06, monkeypatch)
    jobs('{"prompt": "a car", "num_inference_steps": 50}', '{"prompt": "a car", "num_inference_steps": 1}')
    assert run(bundle, "--timeout", "0.2", "--retries", "1") == 1
    assert states() == [
        (1, "started"),
        (1, "retry"),
        (2, "started"),
        (2, "done"),
        (1, "started"),
        (1, "failed"),
    ]
    assert journal()[-1]["reason"].startswith("timeout of 0.2 s (cancelled after ")


def test_a_step_that_never_comes_back(bundle: str, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    statuses: list[int] = []
    monkeypatch.setattr(os, "_exit", statuses.append)
    slow_down(0.2, monkeypatch)
    jobs('{"prompt": "a car", "num_inference_steps": 1}')
    run(bundle, "--timeout", "0.05", "--retries", "0")
    assert statuses == [75]
    assert "a step does not come back" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_gives_the_job_back(
    number: int, bundle: str, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    unet, calls = FUNCTIONS["unet"], []

    def stopped(feeds: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            os.kill(os.getpid(), number)
        return unet(feeds)

    monkeypatch.setitem(FUNCTIONS, "unet", stopped)
    jobs('{"prompt": "a car", "num_inference_steps": 20}', ONE)
    before = signal.getsignal(signal.SIGTERM)
    assert run(bundle, "--retries", "0") == (0 if number == signal.SIGTERM else 130)
    assert signal.getsignal(signal.SIGTERM) == before
    assert states() == [(1, "started"), (1, "returned")]
    assert pictures() == []
    assert run(bundle, "--retries", "0") == 0
    assert pictures() == ["jobs-1.png", "jobs-2.png"]


def test_a_second_signal_while_the_first_is_handled() -> None:
    stop, cancelled = Stop(), list[int]()

    class Asked:
        def cancel(self) -> None:
            cancelled.append(1)
            stop.ask()

    with stop.cancelling(cast(Run, Asked())):
        stop.ask()
    assert stop.asked
    assert len(cancelled) == 1


def test_a_full_disk_gives_the_job_back(bundle: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    def save(self: GeneratedImage, path: str | Path) -> None:
        raise OSError(28, "No space left on device")

    jobs(ONE, TWO)
    with monkeypatch.context() as full:
        full.setattr(GeneratedImage, "save", save)
        assert run(bundle, "--retries", "0") == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith("jobs-1.png cannot be written: No space left on device")
    assert run(bundle, "--retries", "0") == 0
    assert pictures() == ["jobs-1.png", "jobs-2-1.png", "jobs-2-2.png"]


def test_a_journal_with_half_a_line_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log, job = Journal(tmp_path / "journal.jsonl"), Job(Path("jobs.jsonl"), 1, ONE)
    log.write("started", job)
    write = log._file.write
    with monkeypatch.context() as full:
        full.setattr(log, "_file", Mock(write=lambda content: write(content[:9])))
        with pytest.raises(UsageError, match=r"journal\.jsonl: cannot be written: No space left on device"):
            log.write("done", job)
    log.close()
    again = Journal(tmp_path / "journal.jsonl")
    assert (again.attempts(job), again.is_over(job)) == (1, False)
    again.close()


def test_a_watched_folder(bundle: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that grows is not read until it has stopped; lines that are added are drawn."""
    monkeypatch.setattr(run_command, "LOOK", 0.02)
    Path("in").mkdir()
    Path("in/notes.md").write_text("no jobs")

    def user() -> None:
        jobs(ONE, file="in/a.jsonl")
        wait_for("out/a-1.png")
        with Path("in/a.jsonl").open("a") as file:
            file.write(f"{TWO}\n")
        Path("in/b.txt").write_bytes(b"\xff")
        jobs("a rocket", file="in/c.txt")
        wait_for("out/c-1.png", "out/a-2-2.png")
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=user)
    thread.start()
    assert run(bundle, "--watch", source="in") == 0
    thread.join()
    assert pictures() == ["a-1.png", "a-2-1.png", "a-2-2.png", "c-1.png"]
    err = capsys.readouterr().err
    assert err.count("a file of jobs cannot be read") == 1
    assert "info waiting" in err


def test_that_it_waits_is_said_once(bundle: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[float] = []

    def sleep(seconds: float) -> None:
        looks.append(seconds)
        if len(looks) == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(time, "sleep", sleep)
    Path("in").mkdir()
    assert run(bundle, "--watch", source="in") == 0
    assert looks == [run_command.LOOK] * 5
    assert capsys.readouterr().err.count("info waiting") == 1


def wait_for(*paths: str) -> None:
    until = time.monotonic() + 10
    while not all(Path(path).exists() for path in paths) and time.monotonic() < until:
        time.sleep(0.01)


def test_a_folder_without_watching(bundle: str) -> None:
    Path("in").mkdir()
    jobs(ONE, file="in/a.jsonl")
    jobs("a rocket", file="in/b.txt")
    Path("in/.hidden.txt").write_text("a car")
    assert run(bundle, source="in") == 0
    assert pictures() == ["a-1.png", "b-1.png"]


def test_status_and_metrics(bundle: str, failing: list[BaseException]) -> None:
    pytest.importorskip("prometheus_client", reason="an extra")
    jobs(ONE, TWO, "nonsense")
    failing.append(EngineError("no"))
    assert run(bundle, "--status", "status.json", "--metrics", "run.prom") == 1
    status = json.loads(Path("status.json").read_text())
    assert {name: status[name] for name in ("state", "done", "retry", "failed", "pictures", "queue", "job")} == {
        "state": "stopped",
        "done": 2,
        "retry": 1,
        "failed": 1,
        "pictures": 3,
        "queue": 0,
        "job": None,
    }
    assert status["last_error"]["job"] == "jobs.jsonl:3"
    lines = Path("run.prom").read_text().splitlines()
    for line in (
        'edgediffusion_jobs_total{state="done"} 2.0',
        'edgediffusion_jobs_total{state="retry"} 1.0',
        'edgediffusion_jobs_total{state="failed"} 1.0',
        'edgediffusion_errors_total{kind="EngineError"} 1.0',
        "edgediffusion_pictures_total 3.0",
        "edgediffusion_job_seconds_count 4.0",
        "edgediffusion_step_seconds_count 22.0",
    ):
        assert line in lines
    assert names(Path()) == ["jobs.jsonl", "out", "run.prom", "status.json"]


def test_what_waits_and_what_is_held() -> None:
    pytest.importorskip("prometheus_client", reason="an extra")
    Monitor(Path(), Path("status.json"), Path("run.prom")).is_now("drawing", Job(Path("jobs.jsonl"), 2, ONE), 3)
    status = json.loads(Path("status.json").read_text())
    assert (status["state"], status["job"], status["queue"]) == ("drawing", "jobs.jsonl:2", 3)
    metrics = dict(line.rsplit(" ", 1) for line in Path("run.prom").read_text().splitlines() if line[0] != "#")
    assert metrics["edgediffusion_queue_jobs"] == "3.0"
    assert float(metrics["edgediffusion_resident_memory_bytes"]) > 1 << 20
    assert status["resident_memory"] > 1 << 20


def test_metrics_without_their_library(bundle: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "prometheus_client", None)
    jobs(ONE)
    assert run(bundle, "--metrics", "run.prom") == 2
    assert "--metrics needs prometheus-client; pip install 'edgediffusion[metrics]'" in capsys.readouterr().err


def test_a_status_that_cannot_be_written_costs_no_picture(bundle: str, capsys: Capture) -> None:
    jobs(ONE)
    Path("status.json").mkdir()
    assert run(bundle, "--status", "status.json") == 0
    assert "warning status or metrics cannot be written" in capsys.readouterr().err
    assert pictures() == ["jobs-1.png"]


@pytest.mark.filterwarnings("always::edgediffusion.runtime.ImageConverted")
def test_warnings_are_logged(bundle: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("L", (16, 16)).save("start.png")
    jobs('{"prompt": "a car", "image": "start.png", "num_inference_steps": 2}')
    logger = logging.getLogger("edgediffusion")
    monkeypatch.setattr(logger, "level", logging.ERROR)  # that of a program that calls `main`
    assert run(bundle) == 0
    assert " warning image converted from L to RGB" in capsys.readouterr().err
    assert logger.level == logging.ERROR


def test_logs_as_json(bundle: str, failing: list[BaseException], capsys: Capture) -> None:
    jobs(ONE)
    failing += [ZeroDivisionError("a\nbug"), MemoryError()]
    assert run(bundle, "--log-json") == 0
    records = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [(r["level"], r["event"]) for r in records] == [
        ("info", "loading"),
        ("error", "unexpected error"),
        ("warning", "retry"),
        ("warning", "retry"),
        ("info", "done"),
        ("info", "stopped"),
    ]
    assert "ZeroDivisionError" in records[1]["traceback"]
    assert (records[2]["reason"], records[3]["reason"]) == ("a bug", "MemoryError")
    assert records[4]["job"] == "jobs.jsonl:1"
    assert not logging.getLogger("edgediffusion").handlers


def test_one_at_a_time_in_a_folder(bundle: str, capsys: Capture) -> None:
    jobs(ONE)
    Path("out").mkdir()
    with run_command._alone(Path("out")):
        assert run(bundle) == 2
    assert "--output out: another edgediffusion run is at work there; name another" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("none.jsonl", "none.jsonl: there is no such file or folder"),
        ("jobs.jsonl --watch", "jobs.jsonl: there is no such folder to watch"),
        ("jobs.jsonl -o none", "--output none: there is no such folder; make it first"),
        ("jobs.jsonl --status no/s.json", "--status no/s.json: there is no folder no; make it first"),
        ("jobs.jsonl --timeout 0", "'0', wanted a number of seconds above 0"),
        ("jobs.jsonl --timeout soon", "'soon', wanted a number of seconds above 0"),
        ("jobs.jsonl --retries -1", "'-1', wanted 0 or more"),
        ("jobs.jsonl --retries x", "'x', wanted 0 or more"),
        ("jobs.jsonl --max-memory 0", "'0', wanted a number of MiB"),
    ],
)
def test_bad_arguments_are_one_line(options: str, message: str, capsys: Capture) -> None:
    jobs(ONE)
    assert main(["run", *options.split()]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_a_folder_that_cannot_be_locked(monkeypatch: pytest.MonkeyPatch) -> None:
    import filelock

    def acquire(self: object, timeout: float) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(filelock.FileLock, "acquire", acquire)
    with (
        pytest.raises(UsageError, match=r"--output \.: cannot be written: Read-only file system"),
        run_command._alone(Path()),
    ):
        pass


def test_jobs_are_read_again_when_their_file_changes() -> None:
    jobs(ONE)
    source = Source(Path(), watched=True)
    assert [len(list(source.jobs())) for _ in range(3)] == [0, 1, 1]
    jobs(ONE, TWO)
    assert [len(list(source.jobs())) for _ in range(2)] == [0, 2]


def test_what_cannot_be_read_is_said_once(bundle: str, capsys: Capture) -> None:
    Path("in").mkdir()
    Path("in/gone.txt").symlink_to("nowhere")
    jobs(ONE, file="in/jobs.jsonl")
    assert run(bundle, source="in") == 1
    assert capsys.readouterr().err.count("a file of jobs cannot be read") == 1
    assert pictures() == ["jobs-1.png"]


def test_a_line_ends_where_an_editor_ends_it(bundle: str) -> None:
    jobs('{"prompt": "a\u2028car", "num_inference_steps": 1}', ONE)
    assert run(bundle) == 0
    assert pictures() == ["jobs-1.png", "jobs-2.png"]


def test_low_memory(bundle: str, opened: Opened) -> None:
    jobs(ONE, ONE)
    assert run(bundle, "--low-memory") == 0
    assert opened.names.count("unet") == 2


def test_warm(bundle: str, opened: Opened, capsys: Capture) -> None:
    assert main(["warm", "--bundle", bundle, "--num-images", "3"]) == 0
    assert capsys.readouterr().out.startswith("opened in ")
    assert {"text_encoder", "unet", "vae_decoder"} <= {name for name, _ in opened.calls}
    (sample,) = (feeds["sample"] for name, feeds in opened.calls if name == "unet")
    assert len(sample) == 2 * 3

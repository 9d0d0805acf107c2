"""The log, TensorBoard and the progress bar."""

from __future__ import annotations

import json
import math

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from medgen.errors import OutputError
from medgen.training.journal import Journal


def write(out, steps, **options):
    done = steps[0] - 1
    with Journal(
        out / "log.jsonl", step=done, images=done * 8, total=80, progress=False
    ) as journal:
        for step in steps:
            journal.write(step, step * 8, loss=1 / step, by_time=[0.5, None], **options)
        journal.sync()


def test_lines_after_the_resumed_step_are_cut(tmp_path):
    write(tmp_path, range(1, 7))
    whole = (tmp_path / "log.jsonl").read_text()
    write(tmp_path, range(4, 7))
    assert (tmp_path / "log.jsonl").read_text() == whole
    lines = [json.loads(line) for line in whole.splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert lines[1] == {"step": 2, "images": 16, "loss": 0.5, "by_time": [0.5, None]}


@pytest.mark.parametrize("torn", ['{"step": 4, "im', '{"step": 4}', "[]\n", "{}\n", "\n"])
def test_torn_line_is_cut(tmp_path, torn):
    write(tmp_path, range(1, 4))
    good = (tmp_path / "log.jsonl").read_text()
    (tmp_path / "log.jsonl").write_text(good + torn)
    write(tmp_path, range(4, 5))
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    assert "\n".join(lines[:3]) + "\n" == good
    assert json.loads(lines[3])["step"] == 4
    assert len(lines) == 4


def test_numbers_that_json_lacks_become_null(tmp_path):
    write(tmp_path, [1], norm=math.inf, other=math.nan)
    line = json.loads((tmp_path / "log.jsonl").read_text())
    assert line["norm"] is line["other"] is None


def test_tensorboard_forgets_what_a_killed_run_wrote(tmp_path):
    write(tmp_path, range(1, 7))
    write(tmp_path, range(4, 6))
    events = EventAccumulator(str(tmp_path / "tensorboard"), purge_orphaned_data=True)
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == [8, 16, 24, 32, 40]
    assert [event.value for event in events.Scalars("by_time/0")] == [0.5] * 5


def test_bar_is_on_stderr(tmp_path, capsys):
    with Journal(tmp_path / "log.jsonl", step=0, images=0, total=16, title="a title") as journal:
        journal.write(1, 8, loss=0.25)
        journal.write(2, 16, loss=0.125)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "a title" in shown.err
    assert "16/16 images, loss 0.1250" in shown.err


def test_full_disk(tmp_path):
    with Journal(tmp_path / "log.jsonl", step=0, images=0, total=8, progress=False) as journal:
        journal._file.close()
        journal._file = open("/dev/full", "wb", buffering=0)  # noqa: SIM115
        with pytest.raises(OutputError, match=r"log\.jsonl: No space left .*free some space"):
            journal.write(1, 8, loss=1.0)

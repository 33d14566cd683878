import json
import os

from modeling_detr.watching.log_follower import LogFollower


def line(step):
    return json.dumps({"kind": "step", "step": step}) + "\n"


def steps(follower):
    return [entry["step"] for entry in follower.entries()]


def test_a_log_that_appears_later_is_read_as_it_grows(tmp_path):
    log = tmp_path / "run" / "log.jsonl"
    follower = LogFollower(log)
    assert follower.entries() == []
    assert follower.modified is None
    log.parent.mkdir()
    log.write_text(line(1) + line(2)[:9])
    assert steps(follower) == [1]  # not the line that is being written
    with log.open("a") as file:
        file.write(line(2)[9:] + line(3))
    assert steps(follower) == [1, 2, 3]
    assert follower.modified == log.stat().st_mtime


def test_a_log_that_was_replaced_or_cut_is_read_again(tmp_path):
    log = tmp_path / "log.jsonl"
    log.write_text(line(1) + line(2) + line(3))
    follower = LogFollower(log)
    assert steps(follower) == [1, 2, 3]
    (tmp_path / "new").write_text(line(1) + line(2) + line(4) + line(5))  # as a resumed run does
    (tmp_path / "new").replace(log)
    assert steps(follower) == [1, 2, 4, 5]
    os.truncate(log, len(line(1)))
    assert steps(follower) == [1]
    log.unlink()
    assert steps(follower) == []


def test_lines_that_are_no_entries_are_skipped(tmp_path):
    log = tmp_path / "log.jsonl"
    log.write_bytes(b"\0\0\xff\n[1]\n" + b"[" * 100_000 + b"\n" + line(7).encode())
    assert steps(LogFollower(log)) == [7]


def test_a_pipe_in_place_of_the_log_does_not_block(tmp_path):
    os.mkfifo(tmp_path / "log.jsonl")
    assert LogFollower(tmp_path / "log.jsonl").entries() == []

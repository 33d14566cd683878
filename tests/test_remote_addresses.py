import sys

import pytest

from modeling_detr.remote_addresses import (
    arguments_without_credentials,
    credentials_of,
    is_remote,
    remember_credentials,
    remembered_credentials,
    without_credentials,
)


@pytest.mark.parametrize(
    ("text", "plain", "credentials"),
    [
        ("https://user:pass@host:80/data", "https://host:80/data", ("user", "pass")),
        ("s3://KEY:a/b+c@d@bucket/coco", "s3://bucket/coco", ("KEY", "a/b+c@d")),
        ("--data=https://token@host/data", "--data=https://host/data", ("token", "")),
        ("https://host/data@2", "https://host/data@2", None),
        ("me@home:data", "me@home:data", None),
    ],
)
def test_credentials_are_taken_out_and_remembered(text, plain, credentials, monkeypatch):
    monkeypatch.setenv("_DETR_STORE_CREDENTIALS", "{}")
    assert without_credentials(text) == plain
    assert credentials_of(plain.removeprefix("--data=")) == credentials


def test_paths_are_not_addresses():
    assert is_remote("s3://bucket")
    assert not any(map(is_remote, ["coco", "/data/coco", "owner/name", "shapes?size=64", "C:/data"]))


def test_another_process_can_take_over_the_credentials(monkeypatch):
    monkeypatch.setenv("_DETR_STORE_CREDENTIALS", "{}")
    without_credentials("https://user:pass@host/data")
    known = remembered_credentials()
    monkeypatch.setenv("_DETR_STORE_CREDENTIALS", "{}")
    without_credentials("s3://a:b@bucket")
    remember_credentials(known)
    assert credentials_of("https://host/x") == ("user", "pass")
    assert credentials_of("s3://bucket/x") == ("a", "b")


def test_libraries_that_note_the_command_see_no_password(monkeypatch):
    monkeypatch.setenv("_DETR_STORE_CREDENTIALS", "{}")
    monkeypatch.setattr(sys, "argv", ["detr", "train", "--data=https://user:pass@host/data"])
    with arguments_without_credentials():
        assert sys.argv == ["detr", "train", "--data=https://host/data"]
    assert sys.argv[2] == "--data=https://user:pass@host/data"

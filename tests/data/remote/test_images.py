import os
from pathlib import Path

import pytest
from store_server import serving

from modeling_detr.data.remote import store
from modeling_detr.data.remote.images import RemoteImages, cached_file, make_room
from modeling_detr.errors_detr import DatasetError, DatasetNotFoundError, StoreError


CONTENT = bytes(range(256)) * 40


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setenv("DETR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(store, "FIRST_PAUSE", 0.01)
    (tmp_path / "served").mkdir()
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / "served" / name).write_bytes(CONTENT)
    with serving(tmp_path / "served") as server:
        yield server


def reader_of(server, tmp_path, name="first") -> RemoteImages:
    return RemoteImages(server.url, str(tmp_path / "tree"), str(tmp_path / "cache/remote" / name / "images"))


def test_an_image_is_requested_once(server, tmp_path):
    reader = reader_of(server, tmp_path)
    for path in (f"{server.url}/a.jpg", f"{tmp_path}/tree/a.jpg"):
        assert reader(path).read() == CONTENT
    assert server.requests["/a.jpg"] == 1


def test_a_damaged_copy_is_replaced(server, tmp_path):
    reader = reader_of(server, tmp_path)
    reader(f"{server.url}/a.jpg")
    file = cached_file(reader.cache, "a.jpg")
    file.write_bytes(file.read_bytes()[:-10])
    assert reader(f"{server.url}/a.jpg").read() == CONTENT
    assert server.requests["/a.jpg"] == 2


def test_a_transfer_that_breaks_off_is_repeated_and_never_kept_in_part(server, tmp_path):
    reader = reader_of(server, tmp_path)
    server.broken = 2
    assert reader(f"{server.url}/a.jpg").read() == CONTENT
    server.broken = store.ATTEMPTS
    with pytest.raises(StoreError, match=r"b.jpg: the store does not answer \(5 attempts"):
        reader(f"{server.url}/b.jpg")
    assert not cached_file(reader.cache, "b.jpg").exists()


@pytest.mark.parametrize("content", [b"", b"<html>log in</html>", b"\xff\xd8\xff\xe0 cut", b"\x89PNG cut"])
def test_a_page_or_a_cut_image_is_not_kept(content, server, tmp_path):
    (tmp_path / "served/a.jpg").write_bytes(content)  # of a server that sends no length, it is the whole answer
    reader = reader_of(server, tmp_path)
    assert reader(f"{server.url}/a.jpg").read() == content
    (tmp_path / "served/a.jpg").write_bytes(CONTENT)
    assert reader(f"{server.url}/a.jpg").read() == CONTENT


def test_a_full_cache_keeps_what_it_has(server, tmp_path, monkeypatch):
    monkeypatch.setenv("DETR_CACHE_GB", str(1.5 * len(CONTENT) / 1e9))
    reader = reader_of(server, tmp_path)
    for name in ("a.jpg", "b.jpg", "a.jpg", "b.jpg"):
        assert reader(f"{server.url}/{name}").read() == CONTENT
    assert (server.requests["/a.jpg"], server.requests["/b.jpg"]) == (1, 2)


def test_images_of_other_datasets_make_room_the_oldest_first(server, tmp_path, monkeypatch):
    readers = [reader_of(server, tmp_path, name) for name in ("old", "new", "own")]
    for age, reader in enumerate(readers):
        reader(f"{server.url}/a.jpg")
        os.utime(Path(reader.cache).parent, (age, age))
    monkeypatch.setenv("DETR_CACHE_GB", str(3 * len(CONTENT) / 1e9))
    make_room(readers[2].cache)
    assert [Path(reader.cache).exists() for reader in readers] == [False, True, True]


def test_the_size_of_the_cache_must_be_a_number(monkeypatch):
    monkeypatch.setenv("DETR_CACHE_GB", "much")
    with pytest.raises(DatasetError, match="DETR_CACHE_GB: got 'much' in the environment"):
        make_room("nowhere")


def test_an_image_that_is_gone_is_not_a_dead_store(server, tmp_path):
    with pytest.raises(DatasetNotFoundError, match=r"c.jpg: no such file"):
        reader_of(server, tmp_path)(f"{server.url}/c.jpg")
    assert server.requests["/c.jpg"] == 1

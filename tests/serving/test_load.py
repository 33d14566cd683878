"""Many requests: throughput and times beside those of single ones, and the memory of the server.

Prints its figures: pytest -s tests/serving/test_load.py
"""

import http.client
import re
import statistics
import threading
import time
from contextlib import contextmanager

import pytest
from launched_runs import start_prepared, wait_for_line
from served import jpeg


CLIENTS = 8
PICTURES = [jpeg(seed=seed) for seed in range(8)]


@contextmanager
def serving(model, *options):
    arguments = [model, "--port", "0", "--device", "cpu", *options]
    process = start_prepared(model.parent / "printed.txt", *arguments, command="serve")
    try:
        port = int(re.search(r":(\d+)/ ", wait_for_line(process, 0))[1])
        while ask(port, "/health")[0] != 200:
            time.sleep(0.1)
        yield port
    finally:
        process.terminate()
        assert process.wait(60) == 0


def ask(port, path, body=None, connection=None):
    own = connection or http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    own.request("GET" if body is None else "POST", path, body)
    answer = own.getresponse()
    content = answer.read()
    if connection is None:
        own.close()
    return answer.status, content


def send_many(port, clients, each):
    """Requests from several clients at a time, each on one connection.

    Returns the seconds of each, requests a second, and the server's CPU seconds per request.
    """
    seconds = []
    cpu = number_in_metrics(port, "process_cpu_seconds_total")

    def send(client):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        for number in range(each):
            started = time.perf_counter()
            status, content = ask(port, "/predict", PICTURES[(client + number) % len(PICTURES)], connection)
            seconds.append(time.perf_counter() - started)
            assert (status, b'"detections"' in content) == (200, True)
        connection.close()

    begun = time.perf_counter()
    threads = [threading.Thread(target=send, args=(client,)) for client in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    rate = len(seconds) / (time.perf_counter() - begun)
    assert len(seconds) == clients * each
    return seconds, rate, (number_in_metrics(port, "process_cpu_seconds_total") - cpu) / len(seconds)


def number_in_metrics(port, name):
    return float(re.search(rf"^{name} (\S+)$", ask(port, "/metrics")[1].decode(), flags=re.MULTILINE)[1])


def annoy(port):
    """What a bad day brings: no images, clients that go away in the middle and before the answer."""
    assert ask(port, "/predict", b"no image")[0] == 422
    assert ask(port, "/predict", PICTURES[0][:3000])[0] == 422
    for sent in (PICTURES[0][:2000], PICTURES[0]):
        gone = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        gone.putrequest("POST", "/predict")
        gone.putheader("Content-Length", str(len(PICTURES[0])))
        gone.endheaders()
        gone.send(sent)
        gone.close()


def shown(seconds, rate, cpu):
    cut = statistics.quantiles(seconds, n=100)
    times = f"p50 {1000 * cut[49]:.0f} ms, p99 {1000 * cut[98]:.0f} ms, {1000 * cpu:.1f} ms of CPU each"
    return f"{rate:.0f} requests a second, {times}"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_many_clients_get_more_than_one_and_memory_does_not_grow(model_folder):
    with serving(model_folder, "--queue_size", "256") as port:
        send_many(port, CLIENTS, 40)  # what is allocated once
        single = send_many(port, 1, 150)
        images, batches = (
            number_in_metrics(port, "detr_batch_images_sum"),
            number_in_metrics(port, "detr_batch_images_count"),
        )
        many = send_many(port, CLIENTS, 60)
        per_batch = (number_in_metrics(port, "detr_batch_images_sum") - images) / (
            number_in_metrics(port, "detr_batch_images_count") - batches
        )
        before = number_in_metrics(port, "process_resident_memory_bytes")
        for _ in range(15):
            send_many(port, CLIENTS, 25)
            annoy(port)
        after = number_in_metrics(port, "process_resident_memory_bytes")
        assert number_in_metrics(port, "detr_queue_images") == 0
    print(f"\none client      {shown(*single)}")
    print(f"{CLIENTS} clients       {shown(*many)}, {per_batch:.1f} images in a batch")
    print(f"3,000 requests  {(after - before) / 1e6:+.1f} MB of {after / 1e6:.0f} MB")
    assert many[1] > 1.1 * single[1]
    assert many[2] < single[2]
    assert per_batch > 2
    assert after - before < 20e6

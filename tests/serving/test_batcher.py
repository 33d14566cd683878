"""Which images are computed together."""

import asyncio
import contextlib

import pytest
from served import held_detector, jpeg, served, wait_until

from modeling_detr.predicting.score_rules import ScoreRules
from modeling_detr.serving.batcher import Batcher
from modeling_detr.serving.images import SentImage, prepare_image
from modeling_detr.serving.metrics import Metrics


WIDE, TALL = (120, 90), (90, 120)


@pytest.fixture
def detector(tiny_detector):
    return held_detector(tiny_detector(num_labels=2, id2label={0: "disc", 1: "star"}))


def prepared(detector, size=WIDE, seed=0):
    return prepare_image(SentImage("image", jpeg(*size, seed)), detector.processor, 10**6)


def rules(detector, threshold=0.0, classes=None):
    names = detector.model.config.class_names
    return ScoreRules.of("model", names, threshold=threshold, classes=classes)


@contextlib.asynccontextmanager
async def running(detector, batch_size=8, wait=0.05):
    batcher = Batcher(detector, batch_size, wait, Metrics())
    task = asyncio.create_task(batcher.run())
    try:
        yield batcher
    finally:
        task.cancel()
        detector.gate.set()
        batcher.close()


def test_images_of_one_size_that_arrive_together_are_computed_together(detector):
    async def compute():
        async with running(detector) as batcher:
            images = [prepared(detector, size, seed) for seed, size in enumerate([WIDE, TALL, WIDE, WIDE, TALL])]
            return await asyncio.gather(*(batcher.compute(image, rules(detector)) for image in images))

    found = asyncio.run(compute())
    assert detector.batches == [[(90, 120)] * 3, [(120, 90)] * 2]
    for seed, (size, one) in enumerate(zip([WIDE, TALL, WIDE, WIDE, TALL], found, strict=True)):
        alone = detector(jpeg(*size, seed), threshold=0).to_dict()
        assert one.prediction.size == size[::-1]
        assert [each["label"] for each in one.prediction.to_dict()["detections"]] == [
            each["label"] for each in alone["detections"]
        ]
        assert one.prediction.scores.tolist() == pytest.approx(
            [each["score"] for each in alone["detections"]], abs=1e-5
        )


def test_a_full_batch_does_not_wait(detector):
    async def compute():
        async with running(detector, batch_size=2, wait=60) as batcher:
            image = prepared(detector)
            await asyncio.gather(*(batcher.compute(image, rules(detector)) for _ in range(4)))

    asyncio.run(asyncio.wait_for(compute(), 30))
    assert [len(batch) for batch in detector.batches] == [2, 2]


def test_requests_with_different_thresholds_and_classes_share_a_batch(detector):
    async def compute():
        async with running(detector) as batcher:
            image = prepared(detector)
            asked = [rules(detector), rules(detector, 1.0), rules(detector, 0.0, ["star"]), rules(detector, 0, [])]
            return await asyncio.gather(*(batcher.compute(image, one) for one in asked))

    everything, nothing, stars, none = (one.prediction for one in asyncio.run(compute()))
    assert len(detector.batches) == 1
    assert (len(everything.names), nothing.names, none.names) == (7, [], [])
    assert stars.names == [name for name in everything.names if name == "star"]


def test_an_image_that_fails_costs_itself_only(detector):
    async def compute():
        async with running(detector) as batcher:
            good, bad = prepared(detector), prepared(detector)
            bad = bad._replace(inputs={**bad.inputs, "pixel_values": bad.inputs["pixel_values"].to("meta")})
            jobs = (batcher.compute(image, rules(detector)) for image in (good, bad, good))
            return await asyncio.gather(*jobs, return_exceptions=True)

    first, failed, last = asyncio.run(compute())
    assert isinstance(failed, Exception)
    assert len(first.prediction.names) == len(last.prediction.names) == 7


def test_what_nobody_waits_for_is_not_computed(detector):
    async def compute():
        async with running(detector, wait=0) as batcher:
            detector.gate.clear()
            first = asyncio.create_task(batcher.compute(prepared(detector), rules(detector)))
            await asyncio.to_thread(detector.started.wait, 30)
            second = asyncio.create_task(batcher.compute(prepared(detector), rules(detector)))
            third = asyncio.create_task(batcher.compute(prepared(detector, TALL), rules(detector)))
            await asyncio.sleep(0.01)
            second.cancel()
            detector.gate.set()
            await asyncio.gather(first, third)

    asyncio.run(compute())
    assert detector.batches == [[(90, 120)], [(120, 90)]]


def test_requests_of_several_clients_are_computed_together(detector):
    with served(detector) as running_server:
        detector.gate.clear()
        first = running_server.later("/predict", jpeg())
        wait_until(detector.started.is_set)
        others = [running_server.later("/predict", jpeg(seed=seed)) for seed in range(4)]
        wait_until(lambda: running_server.queued() == 5)
        detector.gate.set()
        assert [answer()[0] for answer in (first, *others)] == [200] * 5
    assert [len(batch) for batch in detector.batches] == [1, 4]

"""What a client is answered."""

import base64
import gzip
import io
import json
import struct
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from served import TOKEN, held_detector, jpeg, served, wait_until

from modeling_detr import DetrTorchvisionImageProcessor
from modeling_detr.deployment.export import export_detector
from modeling_detr.predicting import Detector
from modeling_detr.serving.images import SentImage, prepare_image
from modeling_detr.serving.limits import Limits


NAMES = {0: "disc", 1: "star"}
SMALL = Limits(max_bytes=200_000, max_pixels=20_000, max_images=3, queue_size=8, timeout=20.0)


@pytest.fixture(scope="module")
def detector(tiny_detector):
    return held_detector(tiny_detector(num_labels=2, id2label=NAMES))


@pytest.fixture(scope="module")
def server(detector):
    with served(detector, limits=SMALL) as running:
        yield running


def form(*files, **fields):
    """A form's headers and body."""
    parts = [
        f'--limit\r\nContent-Disposition: form-data; name="image"; filename="{number}.jpg"\r\n\r\n'.encode() + content
        for number, content in enumerate(files)
    ]
    parts += [
        f'--limit\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}'.encode()
        for name, value in fields.items()
    ]
    return {
        "headers": {"Content-Type": "multipart/form-data; boundary=limit"},
        "body": b"\r\n".join([*parts, b"--limit--\r\n"]),
    }


def as_json(**values):
    values = {
        name: [base64.b64encode(one).decode() if isinstance(one, bytes) else one for one in value]
        if name == "images"
        else value
        for name, value in values.items()
    }
    return {"headers": {"Content-Type": "application/json"}, "body": json.dumps(values).encode()}


def expected(detector, *images, **options):
    return [detector(image, **options).to_dict() for image in images]


def test_bytes_forms_and_json_are_answered_as_the_detector_predicts(server, detector):
    images = jpeg(seed=1), jpeg(100, 100, seed=2)
    status, headers, content = server.request("/predict?threshold=0", images[0])
    assert (status, headers["content-type"], content["model"]) == (200, "application/json", "the_model")
    assert content["predictions"] == expected(detector, images[0], threshold=0)
    assert len(content["predictions"][0]["detections"]) == 7
    assert content["seconds"].keys() == {"receive", "prepare", "wait", "model"}
    both = expected(detector, *images, threshold=0)
    assert server.request(**form(*images, threshold="0"))[2]["predictions"] == both
    assert server.request(**as_json(images=images, threshold=0))[2]["predictions"] == both
    one = "data:image/jpeg;base64," + base64.b64encode(images[1]).decode()
    body = json.dumps({"images": one, "threshold": 0})
    answer = server.request("/predict", body, {"Content-Type": "application/json"})
    assert answer[2]["predictions"] == both[1:]


def test_json_is_known_by_its_first_byte(server, detector):
    body = as_json(images=[jpeg()], threshold=0)["body"]
    for headers in ({}, {"Content-Type": "application/x-www-form-urlencoded"}, {"Content-Type": "text/plain"}):
        status, _, content = server.request("/predict", body, headers)
        assert (status, content.get("predictions")) == (200, expected(detector, jpeg(), threshold=0))


def test_curls_own_type_for_a_body_is_an_image(server):
    status, _, content = server.request("/predict", jpeg(), {"Content-Type": "application/x-www-form-urlencoded"})
    assert (status, len(content["predictions"])) == (200, 1)


@pytest.mark.parametrize(
    ("query", "options"),
    [
        ("?classes=star&threshold=0", {"classes": ["star"], "threshold": 0}),
        ("?classes=star,disc&threshold=0.24", {"threshold": 0.24}),
        ("?classes=%22star%22,%22disc%22&threshold=0.24", {"threshold": 0.24}),  # quotes, for names with commas
        ("", {}),
    ],
)
def test_the_address_can_choose_what_counts(server, detector, query, options):
    assert server.request(f"/predict{query}", jpeg())[2]["predictions"] == expected(detector, jpeg(), **options)


def test_the_body_can_choose_what_counts_and_goes_before_the_address(server, detector):
    by_class = {"": 0.9, "star": 0.0}
    _, _, content = server.request("/predict?threshold=0.5", **as_json(images=[jpeg()], threshold=by_class))
    assert content["predictions"] == expected(detector, jpeg(), threshold=by_class)
    _, _, content = server.request("/predict?classes=star&threshold=0", **form(jpeg(), classes="disc", threshold="0"))
    assert content["predictions"] == expected(detector, jpeg(), threshold=0, classes=["disc"])


def test_an_image_is_turned_upright(server):
    image = Image.new("RGB", (100, 60))
    image.getexif()[0x0112] = 6
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", exif=image.getexif())
    (prediction,) = server.request("/predict", buffer.getvalue())[2]["predictions"]
    assert (prediction["height"], prediction["width"]) == (100, 60)


def bomb(width, height):
    """A PNG whose header announces a size, and which has hardly any pixels."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")


def progressive(scans, after=b""):
    """A progressive JPEG whose last scan is repeated."""
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64)).save(buffer, "JPEG", progressive=True)
    content = buffer.getvalue()
    last = content[content.rindex(b"\xff\xda") : -2]
    return content[:-2] + last * scans + content[-2:] + after


def test_a_line_of_pixels_is_not_longer_for_the_model_than_other_images(server, detector):
    buffer = io.BytesIO()
    Image.new("RGB", (20_000, 1)).save(buffer, "PNG")
    prepared = prepare_image(SentImage("image", buffer.getvalue()), detector.processor, 20_000)
    assert prepared.inputs["pixel_values"].shape == (1, 3, 1, 96)
    (prediction,) = server.request("/predict", buffer.getvalue())[2]["predictions"]
    assert (prediction["height"], prediction["width"]) == (1, 20_000)


def test_a_file_that_ends_with_other_data_as_those_of_phones_is_no_jpeg_of_many_scans(server):
    assert server.request("/predict", progressive(20, b"\xff\xda" * 1000))[0] == 200
    assert server.request("/predict", jpeg(seed=3) + progressive(500))[0] == 200


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n"


@pytest.mark.parametrize(
    ("request_", "status", "message"),
    [
        ({"body": jpeg()[:3000]}, 422, "the image: cannot be decoded (image file is truncated"),
        ({"body": b"\xff\xd8\xff" + b"x" * 50}, 422, "the image: is not an image (53 bytes); send a JPEG, PNG"),
        ({"body": EPS}, 422, "the image: is not an image"),
        ({"body": b"", "method": "POST"}, 422, "the request: has no body; send the bytes of an image"),
        ({"body": bomb(400, 300)}, 413, "the image: 400x300 pixels (width x height), more than the limit of 20,000;"),
        ({"body": bomb(60000, 60000)}, 413, "the image: has an implausible number of pixels"),
        (
            {"body": progressive(500)},
            413,
            "the image: has more than 100 scans, which take too long to decode; save it",
        ),
        ({"body": b"x" * 200_001}, 413, "the request: has a body of more than 200,000 bytes; send less"),
        ({"body": iter([b"x" * 1000] * 201)}, 413, "the request: has a body of more than 200,000 bytes"),
        (form(*[jpeg(20, 20)] * 4), 413, "the request: has 4 images, more than the limit of 3; send several"),
        (form(jpeg(), b"no image"), 422, "image 2 (1.jpg): is not an image (8 bytes)"),
        (form(), 422, "the form: has no files; send an image: curl -F image=@photo.jpg."),
        (
            form(jpeg(), other="x"),
            422,
            "the form: has a field 'other', which is no file; expected files (curl -F image=@FILE)",
        ),
        ({**form(), "body": b"nothing"}, 422, "the form: cannot be read (Invalid multipart data)"),
        ({**form(), "headers": {"Content-Type": "multipart/form-data"}}, 422, "the form: cannot be read (Missing b"),
        (as_json(images=[]), 422, "images: is empty; send at least one image as Base64."),
        (as_json(images=["!"]), 422, "image 1: is not Base64"),
        (
            as_json(images=[jpeg()], threshhold=0.5),
            422,
            "threshhold: is not valid JSON for this address (Extra inputs",
        ),
        ({**as_json(), "body": b"[" * 50_000}, 422, "the request: is not valid JSON for this address"),
        (as_json(images=[jpeg()], threshold=[0.5]), 422, "threshold: is not valid JSON for this address"),
        (as_json(images=[jpeg()], threshold=1.5), 422, "threshold: got '1.5'; expected a score from 0 to 1, or best."),
        (as_json(images=[jpeg()], threshold={"sta": 0.5}), 422, "the_model: has no class 'sta'; did you mean 'star'?"),
        ({"path": "/predict?threshold=nan", "body": jpeg()}, 422, "threshold: got 'nan'; expected a score"),
        (
            {"path": "/predict?classes=dics", "body": jpeg()},
            422,
            "the_model: has no class 'dics'; did you mean 'disc'?",
        ),
        (
            {"path": "/predict?treshold=0.1", "body": jpeg()},
            422,
            "treshold: is no option of this address; expected threshold, classes.",
        ),
        (
            {"body": gzip.compress(jpeg()), "headers": {"Content-Encoding": "gzip"}},
            415,
            "the request: has the Content-Encoding 'gzip', which is not supported; send the bytes without it.",
        ),
        ({"path": "/predict"}, 405, "GET /predict: Method Not Allowed; use POST."),
        ({"path": "/%1b[31m"}, 404, r"GET /\u001b[31m: Not Found"),
    ],
)
def test_what_is_wrong_is_said(server, request_, status, message):
    got, _, content = server.request(**request_)
    assert (got, content["error"]["status"]) == (status, status)
    assert message in content["error"]["message"]
    assert server.queued() == 0


def test_best_thresholds_of_a_model_without_any_are_an_error(tiny_detector, model_folder):
    detector = held_detector(tiny_detector(num_labels=2, id2label=NAMES), source=str(model_folder))
    with served(detector, limits=SMALL) as running:
        status, _, content = running.request("/predict?threshold=best", jpeg())
        assert (status, content["error"]["status"]) == (422, 422)
        assert "has no thresholds.json" in content["error"]["message"]
        assert running.queued() == 0


def test_nobody_waits_for_thresholds_that_are_looked_for_on_the_hub(tiny_detector, monkeypatch):
    asked, found = threading.Event(), threading.Event()

    def slow(*_, **__):
        asked.set()
        assert found.wait(30)

    monkeypatch.setattr("modeling_detr.saved_thresholds.cached_file", slow)
    detector = held_detector(tiny_detector(num_labels=2, id2label=NAMES), source="somebody/slow_model")
    with served(detector, limits=SMALL) as running, ThreadPoolExecutor(1) as pool:
        best = pool.submit(running.request, "/predict?threshold=best", jpeg())
        assert asked.wait(30)
        assert running.request("/predict", jpeg())[0] == 200
        assert not best.done()
        found.set()
        status, _, content = best.result(30)
    assert (status, content["error"]["message"].split(";")[0]) == (422, "somebody/slow_model: has no thresholds.json")


def test_a_model_that_fails_is_an_error_and_the_next_request_is_answered(server, detector, monkeypatch):
    def fail(*_):
        raise RuntimeError("no such kernel")

    with monkeypatch.context() as patch:
        patch.setattr(detector, "predict_batch", fail)
        status, _, content = server.request("/predict", jpeg())
    assert (status, content["error"]["message"]) == (
        500,
        "the model: failed (no such kernel); the log of the server has the traceback.",
    )
    assert server.request("/predict", jpeg())[0] == 200


def test_the_metrics_count_requests_images_and_batches(detector):
    with served(detector) as running:
        running.request(**form(*[jpeg()] * 3))
        running.request("/predict", b"no image")
        running.request("/nothing")
        _, headers, text = running.request("/metrics")
    assert headers["content-type"].startswith("text/plain; version=")
    for line in (
        'detr_requests_total{path="/predict",status="200"} 1.0',
        'detr_requests_total{path="/predict",status="422"} 1.0',
        'detr_requests_total{path="other",status="404"} 1.0',
        "detr_images_total 3.0",
        "detr_predict_seconds_count 1.0",
        "detr_batch_images_sum 3.0",
        "detr_queue_images 0.0",
    ):
        assert line in text.splitlines()
    assert "process_resident_memory_bytes" in text


def test_it_is_ready_once_the_model_has_predicted(tiny_detector):
    detector = held_detector(tiny_detector())
    detector.gate.clear()
    with served(detector, wait_for_ready=False) as running:
        assert running.request("/health")[::2] == (503, {"status": "starting"})
        early = running.later("/predict", jpeg())
        detector.gate.set()
        assert early()[0] == 200
        assert running.request("/health")[::2] == (200, {"status": "ready"})


def test_the_size_of_the_first_image_can_be_chosen(tiny_detector):
    detector = held_detector(tiny_detector())
    with served(detector, wait_for_ready=False, warm_up_size=(300, 500)) as running:
        wait_until(lambda: running.service.is_ready)
        assert detector.batches == [[(300, 500)]]


def test_the_model_describes_itself(server):
    assert server.request("/model")[2] == {
        "model": "the_model",
        "task": "detection",
        "classes": ["disc", "star"],
        "device": "cpu",
        "dtype": "float32",
    }


def test_masks_are_answered(tiny_segmenter):
    detector = held_detector(tiny_segmenter(1, num_labels=2, id2label=NAMES))
    with served(detector) as running:
        _, _, content = running.request("/predict", jpeg())
    assert content["predictions"] == expected(detector, jpeg())
    found = coco_mask.decode([one["segmentation"] for one in content["predictions"][0]["detections"]])
    assert np.array_equal(found.transpose(2, 0, 1).astype(bool), detector(jpeg()).masks.numpy())


def test_segments_are_answered_with_their_pixels(tiny_segmenter, monkeypatch):
    detector = held_detector(tiny_segmenter(1, num_labels=2, id2label=NAMES, stuff_labels=[1]))
    segmentation = torch.zeros(90, 120, dtype=torch.int64)
    segmentation[:45], segmentation[45:, 60:] = 1, 2
    infos = [{"id": 1, "label_id": 1, "score": 0.9}, {"id": 2, "label_id": 0, "score": 0.9}]
    result = {"segmentation": segmentation, "segments_info": infos}
    monkeypatch.setattr(detector, "predict_batch", lambda inputs, sizes, rules: [result for _ in sizes])
    with served(detector) as running:
        _, _, content = running.request("/predict", jpeg())
    segments = content["predictions"][0]["segments"]
    assert [(one["id"], one["name"], one["area"]) for one in segments] == [(1, "star", 5400), (2, "disc", 2700)]
    for one in segments:
        assert np.array_equal(coco_mask.decode(one["segmentation"]) == 1, segmentation.numpy() == one["id"])


# The schema


def test_the_schema_has_the_three_forms_of_a_body_and_all_errors(server):
    schema = server.request("/openapi.json")[2]
    predict = schema["paths"]["/predict"]["post"]
    assert predict["requestBody"]["content"].keys() == {"image/*", "multipart/form-data", "application/json"}
    assert predict["responses"].keys() == {"200", "401", "408", "413", "415", "422", "500", "503"}
    assert schema["paths"].keys() == {"/predict", "/model", "/health", "/metrics"}


def test_the_description_loads_nothing_from_elsewhere(server):
    _, _, page = server.request("/docs")
    assert "https://" not in page
    for file in ("swagger-ui-bundle.js", "swagger-ui.css"):
        assert f"/static-offline-docs/{file}" in page
        assert server.request(f"/static-offline-docs/{file}")[0] == 200
    assert server.request("/static-offline-docs/../core.py")[0] == 404


# Who may ask


def test_with_a_token_only_those_who_have_it_are_answered(detector):
    with served(detector, TOKEN) as running:
        for sent in (
            {},
            {"Authorization": "Bearer no"},
            {"Authorization": TOKEN},
            {"Authorization": f"Bearer {TOKEN}x"},
        ):
            for path, body in (("/predict", jpeg()), ("/metrics", None), ("/model", None)):
                status, _, content = running.request(path, body, sent)
                assert (status, content["error"]["message"]) == (
                    401,
                    "Authorization: has no valid token; send 'Authorization: Bearer TOKEN'.",
                )
        known = {"Authorization": f"Bearer {TOKEN}", "Host": "anything.example"}
        assert running.request("/predict", jpeg(), known)[0] == 200
        assert running.request("/metrics", None, known)[0] == 200
        assert [running.request(path)[0] for path in ("/", "/health", "/docs", "/openapi.json")] == [200] * 4
        assert "the_model" not in running.request("/")[2] + str(running.request("/openapi.json")[2])


def test_without_a_token_other_pages_and_hosts_are_refused(server):
    port = server.port
    for host in ("evil.example", f"evil.example:{port}", "127.0.0.1.evil.example", "[::1", ""):
        assert server.request("/predict", jpeg(), {"Host": host})[0] == 421
    for origin in ("https://evil.example", "null", f"http://localhost:{port + 1}"):
        assert server.request("/predict", jpeg(), {"Origin": origin})[0] == 403
    for host in (f"localhost:{port}", f"[::1]:{port}", "127.0.0.1", f"127.8.8.8:{port}"):
        assert server.request("/predict", jpeg(), {"Host": host, "Origin": f"http://{host}"})[0] == 200


@pytest.mark.parametrize("token", [None, TOKEN])
def test_pages_that_are_allowed_are_answered_and_others_are_not(detector, token):
    page, other = "http://localhost:3000", "http://localhost:3001"
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    known = {} if token is None else {"Authorization": f"Bearer {token}"}
    with served(detector, token, origins=[page]) as running:
        status, headers, _ = running.request("/predict", None, {"Origin": page, **asked}, "OPTIONS")
        assert (status, headers["access-control-allow-origin"]) == (200, page)
        assert "authorization" in headers["access-control-allow-headers"].lower()
        status, headers, _ = running.request("/predict", jpeg(), {"Origin": page, **known})
        assert (status, headers["access-control-allow-origin"]) == (200, page)
        status, headers, _ = running.request("/predict", None, {"Origin": other, **asked}, "OPTIONS")
        assert (status, "access-control-allow-origin" in headers) == (400, False)
        status, headers, content = running.request("/predict", jpeg(), {"Origin": other, **known})
        assert "access-control-allow-origin" not in headers
        if token is None:
            assert (status, "--allowed_origins http://localhost:3001" in content["error"]["message"]) == (403, True)
        else:
            assert running.request("/predict", jpeg(), {"Origin": page})[0] == 401


@pytest.mark.slow
def test_an_exported_model_is_served(tiny_detector, tmp_path):
    pytest.importorskip("onnxruntime")
    processor = DetrTorchvisionImageProcessor(size={"shortest_edge": 64, "longest_edge": 96})
    folder = tmp_path / "exported"
    export_detector(tiny_detector(num_labels=2, id2label=NAMES), processor, folder, to="onnx", fixed_size=(64, 96))
    detector = Detector.from_pretrained(folder)
    with served(detector) as running:
        _, _, content = running.request("/predict?threshold=0", jpeg())
    assert content["predictions"] == expected(detector, jpeg(), threshold=0)

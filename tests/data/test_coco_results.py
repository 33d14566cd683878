import json

import numpy as np
import pytest

from modeling_detr.data.coco_results import match_images, read_results
from modeling_detr.errors_detr import FileContentError, FileMissingError, PredictionError
from modeling_detr.structures_detr import AnnotationTable, DetectionIndex, ImageRecord


ROW = {"image_id": 3, "category_id": 1, "bbox": [10, 20, 5.5, 4], "score": 0.75}


def written(tmp_path, content):
    path = tmp_path / "predictions.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_boxes_become_corners_and_ids_stay_as_they_are(tmp_path):
    rows = read_results(written(tmp_path, [ROW, {**ROW, "image_id": "b", "score": 1, "area": 3}]))
    assert rows.boxes_xyxy.tolist() == [[10, 20, 15.5, 24]] * 2
    assert rows.image_ids == [3, "b"]
    assert rows.scores.tolist() == [0.75, 1.0]
    assert rows.category_ids.tolist() == [1, 1]
    assert rows.file_names is None
    assert not rows.have_masks


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "is an empty list: it has no predictions"),
        ({"images": [], "annotations": [], "categories": []}, "is a COCO dataset, expected COCO's results format"),
        ({"results": []}, "contains a dict with the keys results, expected COCO's results format"),
        (7, "contains a int, expected"),
        ([{"image": "a.jpg", "detections": []}], "is the list of `detr predict`, expected COCO's results"),
        ([{"image_id": 1, "segments_info": []}], "has panoptic segments, expected"),
        ([ROW, 5], "row 2 of 2: is a int, expected an object"),
        ([ROW, {k: v for k, v in ROW.items() if k != "score"}], "row 2 of 2: has no score; it has image_id"),
        (
            [ROW, {"image_id": 1, "category_id": 1, "score": 1, "segmentation": {}}],
            "row 2 of 2: has a mask but no bbox",
        ),
        ([{**ROW, "bbox": [1, 2, 3]}], r"row 1 of 1: bbox is \[1, 2, 3\], expected four numbers"),
        ([{**ROW, "bbox": ["1", "2", "3", "4"]}], "row 1 of 1: bbox is"),
        ([ROW, {**ROW, "bbox": [1, 2, 3, 10**400]}], "row 2 of 2: bbox is"),
        ([{**ROW, "score": None}], "row 1 of 1: score is None, expected a number"),
        ([{**ROW, "category_id": "cat"}], "row 1 of 1: category_id is 'cat', expected an integer"),
        ([ROW, {**ROW, "category_id": 1.5}], "row 2 of 2: category_id is 1.5, expected an integer"),
        ([{**ROW, "image_id": [1]}], r"row 1 of 1: image_id is \[1\], expected an integer or a text"),
    ],
)
def test_other_files_are_errors_that_name_the_row(tmp_path, content, message):
    with pytest.raises(PredictionError, match=message):
        read_results(written(tmp_path, content))


def test_infinite_categories_are_an_error(tmp_path):
    row = json.dumps(ROW).replace('"category_id": 1', '"category_id": Infinity')
    with pytest.raises(PredictionError, match="category_id is inf"):
        read_results(written(tmp_path, f"[{row}]"))


def test_a_file_that_is_missing_or_cut_off_is_an_error(tmp_path):
    with pytest.raises(FileMissingError):
        read_results(tmp_path / "none.json")
    with pytest.raises(FileContentError, match="not valid JSON"):
        read_results(written(tmp_path, json.dumps([ROW])[:-4]))


def test_many_rows_are_read_quickly(tmp_path):
    rows = read_results(written(tmp_path, "[" + ", ".join([json.dumps(ROW)] * 50_000) + "]"))
    assert len(rows) == 50_000


def index_of(*images):
    records = tuple(ImageRecord(image_id, path, 10, 10) for image_id, path in images)
    return DetectionIndex("data", records, (), AnnotationTable.concatenate([]))


def matched(index, tmp_path, *rows):
    return match_images(read_results(written(tmp_path, [{**ROW, **row} for row in rows])), index).tolist()


def test_images_are_found_by_id_also_if_written_as_text(tmp_path):
    index = index_of((7, "a/0009.jpg"), (9, "a/0007.jpg"))
    assert matched(index, tmp_path, {"image_id": 9}, {"image_id": "7"}, {"image_id": 8}) == [1, 0, -1]


def test_images_are_found_by_file_name_if_this_finds_more(tmp_path):
    index = index_of((1, "a/0007.jpg"), (2, "a/0008.jpg"), (3, "b/cat.jpg"))
    assert matched(index, tmp_path, {"image_id": 7}, {"image_id": 8}, {"image_id": 1}) == [0, 1, -1]
    assert matched(index, tmp_path, {"image_id": "cat"}, {"image_id": "0007"}, {"image_id": "cat.jpg"}) == [2, 0, 2]
    assert matched(index, tmp_path, {"image_id": 1}, {"image_id": 2}) == [0, 1]


def test_file_names_of_the_rows_come_first_and_shared_names_find_nothing(tmp_path):
    index = index_of((1, "a/x.jpg"), (2, "b/x.jpg"), (3, "b/y.jpg"))
    assert matched(index, tmp_path, {"image_id": 1, "file_name": "y.jpg"}, {"image_id": 1, "file_name": "x.jpg"}) == [
        2,
        -1,
    ]
    assert np.array(matched(index, tmp_path, {"image_id": 1, "file_name": "a/x.jpg"})).tolist() == [0]

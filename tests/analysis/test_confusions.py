from modeling_detr.analysis.confusions import NOTHING, Confusion, confusions


BOX, FAR = (10.0, 10.0, 50.0, 50.0), (60.0, 60.0, 90.0, 90.0)


def test_classes_are_confused_with_each_other_and_with_nothing(hand_made):
    objects = [(0, 0, BOX), (1, 0, BOX), (2, 1, BOX)]
    detections = [(0, 1, BOX, 0.9), (1, 1, BOX, 0.9), (2, 1, FAR, 0.9), (2, 1, BOX, 0.3)]
    found = confusions(hand_made(objects, detections, num_images=3))
    assert found.matrix == [[0, 2, 0], [0, 0, 1], [0, 1, 0]]
    assert found.pairs[0] == Confusion("cat", "dog", 2)
    assert {*found.pairs[1:]} == {("dog", NOTHING, 1), (NOTHING, "dog", 1)}

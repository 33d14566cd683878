import pytest

from modeling_detr.watching.signs import find_signs


def steps(losses, wait=0.01):
    return [
        {"kind": "step", "step": 10 * number, "loss": loss, "loader_wait": wait}
        for number, loss in enumerate(losses, start=1)
    ]


def test_a_loss_that_falls_is_no_sign():
    assert find_signs(steps([100 - number for number in range(60)])) == []
    assert find_signs([]) == []


def test_a_loss_that_stands_still_is_one():
    (sign,) = find_signs(steps([90.0 - number for number in range(40)] + [30.0, 30.2] * 30))
    assert sign.startswith("The loss has stood still since step 610: 30.1 on average, then 30.1.")
    assert find_signs(steps([5.0] * 39)) == []  # too early to say


def test_a_best_evaluation_in_that_time_counts_as_progress():
    entries = steps([5.0] * 60)
    epochs = [{"kind": "epoch", "step": step, "ap": ap} for step, ap in ((100, 0.2), (500, 0.3))]
    assert find_signs([*entries, *epochs]) == []
    epochs[1]["ap"] = 0.1
    assert len(find_signs([*entries, *epochs])) == 1


def test_in_a_long_run_the_time_is_a_share_of_it():
    slowly = [10.0 - 0.0015 * number for number in range(4_000)]  # 0.6 % in 40 entries
    assert find_signs(steps(slowly)) == []


@pytest.mark.parametrize(("wait", "count"), [(0.1, 0), (0.45, 1)])
def test_waiting_for_data_is_a_sign(wait, count):
    signs = find_signs(steps([9.0 - number for number in range(9)] + [0.1], wait))
    assert len(signs) == count
    assert all(sign.startswith("Training waits for images in 45% of the time.") for sign in signs)


def test_numbers_that_were_not_finite_are_left_out():
    assert find_signs(steps([None] * 60, None)) == []

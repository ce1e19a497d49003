"""How long a suggested training is: by the data where there is time, else by the time."""

import pytest

from detseg.curation.inspection.advise_training import Machine, Speed, Workload, advise_training, duration

PROCESSOR = Machine("the processor", 2, 8_000_000_000)


def keys(work: Workload, speed: Speed | None, minutes: float = 60.0, machine: Machine = PROCESSOR, **further):
    return advise_training(work, machine, speed, minutes=minutes, **further).keys


def test_enough_time_shows_every_part_of_an_image_and_enough_objects():
    by_images = keys(Workload(400, 80, windows=1000.0, objects=50.0), Speed(0.01))
    assert by_images["SOLVER.MAX_ITER"] == 7500  # 30 x 1000 / 4
    by_objects = keys(Workload(20, 5, windows=20.0, objects=10.0), Speed(0.01))
    assert by_objects["SOLVER.MAX_ITER"] == 1200  # 50,000 / 10 / 4, two digits
    assert keys(Workload(3, 1, windows=3.0, objects=500.0), Speed(0.01))["SOLVER.MAX_ITER"] == 400
    assert keys(Workload(9000, 1, windows=90000.0, objects=5.0), Speed(0.01))["SOLVER.MAX_ITER"] == 10_000


def test_little_time_makes_it_shorter_and_the_batch_smaller_and_says_so():
    work = Workload(100, 20, windows=400.0, objects=20.0)
    short = advise_training(work, PROCESSOR, Speed(0.5), minutes=20.0)
    # 20 minutes less a quarter are 1,800 images: 450 iterations of 4
    assert (short.keys["SOLVER.IMS_PER_BATCH"], short.keys["SOLVER.MAX_ITER"]) == (4, 450)
    assert "450 iterations of 4 images: about 15 minutes" in short.advice
    assert "(measured: 0.5 s per image)" in short.reason
    shorter = keys(work, Speed(0.5), minutes=10.0)
    assert (shorter["SOLVER.IMS_PER_BATCH"], shorter["SOLVER.MAX_ITER"]) == (2, 450)
    assert keys(work, Speed(30.0), minutes=1.0)["SOLVER.MAX_ITER"] == 10


def test_memory_limits_the_batch():
    work = Workload(100, 20, windows=100.0, objects=20.0)
    assert keys(work, Speed(0.01, 1_500_000_000))["SOLVER.IMS_PER_BATCH"] == 2
    assert keys(work, Speed(0.01, 5_000_000_000))["SOLVER.IMS_PER_BATCH"] == 1
    assert keys(work, Speed(0.01, None))["SOLVER.IMS_PER_BATCH"] == 4


def test_periods_fit_the_length():
    work = Workload(100, 200, windows=100.0, objects=20.0)
    chosen = keys(work, Speed(0.5), minutes=1.0, pretrained=True)
    length = chosen["SOLVER.MAX_ITER"]
    assert chosen["SOLVER.WARMUP_ITERS"] + chosen["SOLVER.HEAD_WARMUP_ITERS"] < length / 2
    assert length / 4 <= chosen["TEST.EVAL_PERIOD"] <= length
    assert chosen["TEST.MAX_IMAGES_DURING_TRAINING"] == 50
    assert keys(Workload(5, 0, 5.0, 5.0), None)["TEST.EVAL_PERIOD"] == 0
    assert "not measured" in advise_training(work, PROCESSOR, None, minutes=5.0).reason
    # As configs/quickstart and configs/dsb2018 have it.
    assert keys(work, Speed(0.5), minutes=20.0)["SOLVER.EMA.DECAY"] == pytest.approx(0.99)


@pytest.mark.parametrize(("minutes", "text"), [(0.5, "30 seconds"), (25, "25 minutes"), (210, "3.5 hours")])
def test_times_are_short_texts(minutes, text):
    assert duration(minutes) == text

"""The film of the plane of codes: that it shows a training which it leaves alone."""

import numpy as np
import pytest
from conftest import assert_equal_weights, make
from PIL import Image

from config import TrainConfig
from evidence.film import CODES, Frame, frame_iterations, record, write_film
from latent_traversal import decode_plane
from mnist import evenly_spaced
from train import encode_means, evaluate, train
from tsne import DIGIT_COLORS


@pytest.mark.parametrize("total", [1, 7, 40, 200, 4610, 100_000])
def test_frames_are_distinct_iterations_from_an_early_one_to_the_last_on_a_log_scale(total):
    chosen = frame_iterations(total)
    assert len(chosen) == 40 or total < 1000
    assert (chosen[0], chosen[-1]) == (max(1, round(total / 200)), total)
    steps = np.diff(chosen)
    assert (steps > 0).all()
    assert (np.diff(steps) >= -1).all()  # they grow, but for rounding


def test_recording_leaves_the_training_as_it_is_bit_by_bit_and_ends_at_its_measurements(dataset):
    few, config = dataset.first(600, 500), TrainConfig(epochs=1, batch_size=64)
    plain, recorded = make(), make()
    train(plain, few.train_images, config)
    frames = record(recorded, few, config)
    assert_equal_weights(plain, recorded)
    assert [frame.iteration for frame in frames] == [*range(1, 10)]  # batches of 540 images
    *_, before, last = frames
    assert np.array_equal(last.plane[:28, :28], decode_plane(plain)[0, 0])
    assert last.elbo == evaluate(plain, few.test_images)["elbo"] != before.elbo
    assert np.array_equal(last.codes, encode_means(plain, evenly_spaced(few.test_images, CODES)))
    assert np.array_equal(last.labels, evenly_spaced(few.test_labels, CODES))
    assert last.network == "fully connected network, K = 2"


def test_film_holds_every_frame_with_codes_in_their_classes_colours_and_the_last_one_longest(tmp_path):
    rng = np.random.default_rng(0)
    plane, labels = rng.random((56, 56)), np.arange(40) % 10
    codes = [rng.normal(size=(40, 2)) for _ in range(3)]
    frames = [Frame("network", number + 1, -100.0, plane, at, labels) for number, at in enumerate(codes)]
    write_film(frames, tmp_path / "film.gif")
    with Image.open(tmp_path / "film.gif") as film:
        assert (film.format, film.n_frames, film.info["loop"]) == ("GIF", 3, 0)
        durations = []
        for number, at in enumerate(codes):
            film.seek(number)
            durations.append(film.info["duration"])
            found = np.asarray(film.convert("RGB"))
            # the frame's place in the picture, from its axes' position: left, bottom, width and height
            x, y = np.rint(np.array([[51], [552]]) + [[1], [-1]] * (at.T + 60 / 19) * 489 / (120 / 19)).astype(int)
            own = (found[y, x] == np.rint(255 * DIGIT_COLORS[labels])).all(axis=1)
            assert own.mean() > 0.7  # others lie below one of another class
    assert durations == [200, 200, 3000]

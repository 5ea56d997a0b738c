"""The film of the plane of codes: it shows a training, which it leaves as it is."""

import numpy as np
import torch
from conftest import make
from PIL import Image, ImageSequence

import drawing
from drawing import PALETTE
from evidence import film
from latent_traversal import decode_plane
from mnist import Dataset
from train import TrainConfig, encode_means, train


def test_frames_are_ever_rarer_iterations_that_end_with_the_last():
    chosen = film.frame_iterations(4610)
    assert len(chosen) == film.FRAMES
    assert (np.diff(chosen, 2) >= -1).all()  # but for rounding
    assert chosen[-1] == 4610
    assert film.frame_iterations(3) == [1, 2, 3]


def test_film_shows_a_plain_training_of_the_convolutional_network_and_holds_its_end(dataset, tmp_path):
    few = Dataset("MNIST", "disk", dataset.train.choose(40), dataset.test.choose(30))
    config = TrainConfig(epochs=1, batch_size=18)
    film.make(few, tmp_path, config)
    model = make(2, "conv", config.seed)
    train(model, few.train.images, config)
    digits, title = few.test.choose(film.CODES), "convolutional, K = 2, iteration 2\nMNIST, 70 images"
    last = film.draw_frame(decode_plane(model), encode_means(model, digits.images), digits.labels, title)
    with Image.open(tmp_path / "film.gif") as shown:
        assert [frame.info["duration"] for frame in ImageSequence.Iterator(shown)] == [200, 3000]
        assert shown.info["loop"] == 0  # endless
        assert np.array_equal(shown.convert("RGB"), last.convert("RGB"))


def test_frame_has_codes_in_their_classes_colours_where_they_belong(monkeypatch):
    monkeypatch.setattr(drawing, "DOTS_PER_INCH", 100)
    codes = np.array([[2.0, 2.0], [2.5, 1.0], [-2.0, -2.0], [-1.0, -2.5]])
    frame = np.asarray(film.draw_frame(torch.zeros(5, 5, 28, 28), codes, torch.tensor([3, 3, 7, 7]), "").convert("RGB"))
    own = [(frame == np.rint(255 * np.array(PALETTE[digit]))).all(axis=2).nonzero() for digit in (3, 7)]
    (row_3, column_3), (row_7, column_7) = np.array([np.mean(places, axis=1) for places in own]) / frame.shape[:2]
    assert row_3 < 0.5 < row_7
    assert column_7 < 0.5 < column_3

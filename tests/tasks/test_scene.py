import numpy as np
import pytest

from nsa_lab.data.video import read_clip
from nsa_lab.tasks.base import Event, Scene
from nsa_lab.tasks.encode import write_video
from nsa_lab.tasks.scene import CENTRES, RGB, render


def scene(events, seed=0, frames=8, height=56, width=56, distractors=2, noise=0.1, scenes=()):
    rng = np.random.default_rng(seed)
    images = render(frames, height, width, events=events, distractors=distractors, noise=noise, rng=rng, scenes=scenes)
    return np.stack(list(images))


def test_seeded():
    event = [Event("red", "northwest", 2, 2)]
    assert np.array_equal(scene(event), scene(event))
    assert not np.array_equal(scene(event), scene(event, seed=1))


def test_it_moves_and_noise_is_a_dial():
    still, moving = scene([], noise=0.0)[:2].astype(int)
    assert np.abs(still - moving).max() > 10
    spread = [np.std(scene([], noise=noise, distractors=0)[0].astype(float)) for noise in (0.0, 0.2)]
    assert spread[1] > spread[0] + 20


def test_distractors_are_grey():
    image = scene([], noise=0.0, distractors=8)[0].astype(int)
    assert (image.max(-1) - image.min(-1)).max() < 90


@pytest.mark.parametrize(("height", "width"), [(56, 56), (168, 252)])
@pytest.mark.parametrize("colour", list(RGB))
def test_colour_and_place_survive_the_codec(tmp_path, colour, height, width):
    palette = np.array(list(RGB.values()), float)
    for place, (down, across) in CENTRES.items():
        path = tmp_path / f"{place}.mp4"
        write_video(path, scene([Event(colour, place, 4, 2)], height=height, width=width), 2.0)
        frames = read_clip(path, 2.0, 768).frames.float()
        y, x, half = int(down * height), int(across * width), min(height, width) // 8
        seen = frames[4:6, :, y - half : y + half, x - half : x + half].mean((0, 2, 3)).numpy()
        distances = np.linalg.norm(palette - seen, axis=1)
        assert list(RGB)[distances.argmin()] == colour
        assert np.sort(distances)[1] > 2 * distances.min()
        before = frames[2:4, :, y - half : y + half, x - half : x + half].mean((0, 2, 3)).numpy()
        assert np.linalg.norm(before - palette[list(RGB).index(colour)]) > 80


def test_disc_fills_half_of_its_token():
    with_event = scene([Event("red", "southeast", 0, 2)], noise=0.0, distractors=0)[0].astype(int)
    without = scene([], noise=0.0, distractors=0)[0].astype(int)
    changed = np.abs(with_event - without).max(-1) > 30
    assert changed[28:, 28:].mean() > 0.5
    assert changed[:28].sum() == changed[:, :28].sum() == 0


def test_scenes_are_cuts_of_colour_that_survive_the_codec(tmp_path):
    colours = [c for c in RGB if c != "white"]
    for first, second in zip(colours, [*colours[1:], colours[0]], strict=True):
        cuts = [Scene(first, 0, 4), Scene(second, 4, 2)]
        images = scene([], frames=8, noise=0.02, distractors=0, scenes=cuts)
        plain = scene([], frames=8, noise=0.02, distractors=0)
        assert np.array_equal(images[6:], plain[6:])
        path = tmp_path / f"{first}.mp4"
        write_video(path, images, 8.0)
        seen = read_clip(path, 8.0, 768).frames.float().mean((2, 3)).numpy()
        palette = 0.6 * np.array([RGB[c] for c in colours]) + 0.4 * plain.mean((0, 1, 2))
        for frame, colour in ((0, first), (3, first), (4, second), (5, second)):
            assert colours[np.linalg.norm(palette - seen[frame], axis=1).argmin()] == colour

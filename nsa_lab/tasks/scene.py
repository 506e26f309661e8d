"""The pixels of a clip: a drifting background tinted by scenes, grey distractors, the events' discs, and noise."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from nsa_lab.tasks.base import Event, Scene

RGB = {
    "red": (230, 20, 20),
    "orange": (255, 135, 0),
    "yellow": (250, 235, 20),
    "green": (20, 170, 40),
    "cyan": (0, 225, 235),
    "blue": (30, 50, 240),
    "purple": (130, 20, 200),
    "pink": (255, 90, 205),
    "white": (255, 255, 255),
}
CENTRES = {
    "northwest": (0.25, 0.25),
    "northeast": (0.25, 0.75),
    "southwest": (0.75, 0.25),
    "southeast": (0.75, 0.75),
}
EVENT_RADIUS = 0.22
CORE = 0.55
WAVES = 3
TINT = 0.6

Draw = Callable[[np.ndarray, int], None]


def render(
    frames: int,
    height: int,
    width: int,
    *,
    events: Sequence[Event],
    distractors: int,
    noise: float,
    rng: np.random.Generator,
    scenes: Sequence[Scene] = (),
) -> Iterator[np.ndarray]:
    """RGB frames [H, W, 3] uint8, one after the other. An event's disc has a diameter of 0.44 of the shorter side; of a
    ring, the inner CORE of that is white. A scene mixes TINT of its colour into the background; `noise` is a pixel
    standard deviation, white being 1."""
    background = _background(frames, height, width, rng)
    shapes = [_tint(scene) for scene in scenes]
    shapes += [_distractor(frames, height, width, rng) for _ in range(distractors)]
    shapes += [_disc(event, height, width, rng) for event in events]
    grain: np.ndarray = np.empty((height, width, 3), np.float32)
    for number in range(frames):
        image = background(number)
        for draw in shapes:
            draw(image, number)
        rng.standard_normal(dtype=np.float32, out=grain)
        grain *= noise
        image += grain
        yield (image * 255 + 0.5).clip(0, 255).astype(np.uint8)


def _background(frames: int, height: int, width: int, rng: np.random.Generator) -> Callable[[int], np.ndarray]:
    """Soft plane waves drifting over mid-grey: frame number to [H, W, 3] float32."""
    time = np.arange(frames)
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    drifts, fields = [np.ones(frames)], [np.full((height, width, 3), rng.uniform(0.35, 0.55))]
    for _ in range(WAVES):
        across = 2 * np.pi * (rng.uniform(-1.5, 1.5) * x + rng.uniform(-1.5, 1.5) * y)
        speed, phase = rng.uniform(-0.3, 0.3), rng.uniform(0, 2 * np.pi)
        tint = 0.06 + 0.02 * rng.standard_normal(3)
        # cos(across + drift) by the addition theorem, so that a frame costs one small product.
        drifts += [np.cos(speed * time + phase), -np.sin(speed * time + phase)]
        fields += [np.cos(across)[..., None] * tint, np.sin(across)[..., None] * tint]
    weights = np.stack(drifts, axis=1).astype(np.float32)
    waves = np.stack(fields).astype(np.float32).reshape(len(fields), -1)
    return lambda number: (weights[number] @ waves).reshape(height, width, 3)


def _tint(scene: Scene) -> Draw:
    """A scene's colour over the background, on its frames only."""
    colour = TINT * np.array(RGB[scene.colour], np.float32) / 255

    def draw(image: np.ndarray, number: int) -> None:
        if scene.start <= number < scene.start + scene.frames:
            image *= 1 - TINT
            image += colour

    return draw


def _distractor(frames: int, height: int, width: int, rng: np.random.Generator) -> Draw:
    """A grey disc or square that bounces off the edges."""
    radius = rng.uniform(0.08, 0.14) * min(height, width)
    grey = (rng.uniform(0.15, 0.85) + 0.02 * rng.standard_normal(3)).astype(np.float32)
    square = rng.random() < 0.5
    rows, columns = (_bounce(frames, side, rng) for side in (height, width))
    return lambda image, number: _blend(image, rows[number], columns[number], radius, grey, square)


def _bounce(frames: int, side: int, rng: np.random.Generator) -> list[float]:
    """Positions in pixels, one per frame, of a point moving at a constant speed between two walls."""
    path = rng.uniform(0, 2) + rng.choice((-1, 1)) * rng.uniform(0.01, 0.05) * np.arange(frames)
    return (side * np.abs(path % 2 - 1)).tolist()


def _disc(event: Event, height: int, width: int, rng: np.random.Generator) -> Draw:
    """An event's disc, drawn on its frames only."""
    shorter = min(height, width)
    row, column = (
        (0.5 + 2 * event.apart * (share - 0.5)) * side + rng.uniform(-0.02, 0.02) * shorter
        for share, side in zip(CENTRES[event.place], (height, width), strict=True)
    )
    colour = np.array(RGB[event.colour], np.float32) / 255

    def draw(image: np.ndarray, number: int) -> None:
        if event.start <= number < event.start + event.frames:
            _blend(image, row, column, EVENT_RADIUS * shorter, colour, square=False)
            if event.ring:
                _blend(image, row, column, CORE * EVENT_RADIUS * shorter, np.float32(1), square=False)

    return draw


def _blend(
    image: np.ndarray, row: float, column: float, radius: float, colour: np.ndarray | np.float32, square: bool
) -> None:
    """Draw a shape with a soft edge of one pixel onto `image` [H, W, 3], in place."""
    top, left = max(0, int(row - radius) - 1), max(0, int(column - radius) - 1)
    part = image[top : int(row + radius) + 2, left : int(column + radius) + 2]
    y = np.abs(np.arange(top, top + part.shape[0], dtype=np.float32) - row)[:, None]
    x = np.abs(np.arange(left, left + part.shape[1], dtype=np.float32) - column)[None]
    distance = np.maximum(y, x) if square else np.hypot(y, x)
    cover = np.clip(radius - distance + 0.5, 0, 1)[..., None]
    part += cover * (colour - part)

"""Rules of the procedural tasks: what their dials allow."""

from collections.abc import Iterator

from nsa_lab.config.schema import DurationConfig, NeedleConfig, OrderConfig, RecallConfig, ScenesConfig, TaskConfig
from nsa_lab.config.sizes import FRAMES_PER_PATCH, MERGE, PATCH, TOKEN_PIXELS
from nsa_lab.errors import Problem

COLOURS = 8
NEEDLE_QUESTIONS = 2
LENGTHS = ("event_frames", "questions", "train_clips", "val_clips")
PATCH_LENGTHS = ("frames", "shortest_frames", "lead_frames", "closing_frames")


def task_rules(task: TaskConfig, path: str) -> Iterator[Problem]:
    """Every broken rule of the task whose settings stand at `path`."""
    for field in ("width", "height"):
        if getattr(task, field) < TOKEN_PIXELS or getattr(task, field) % TOKEN_PIXELS:
            yield Problem(
                f"{path}.{field}",
                f"{getattr(task, field)} is not a multiple of {TOKEN_PIXELS} pixels ({PATCH} x {MERGE})",
            )
    for field in PATCH_LENGTHS:
        value = getattr(task, field, FRAMES_PER_PATCH)
        if value < FRAMES_PER_PATCH or value % FRAMES_PER_PATCH:
            yield Problem(f"{path}.{field}", f"{value} is not a positive multiple of {FRAMES_PER_PATCH}")
    for field in LENGTHS:
        if getattr(task, field, 1) < 1:
            yield Problem(f"{path}.{field}", f"{getattr(task, field)} is not positive")
    if task.distractors < 0:
        yield Problem(f"{path}.distractors", f"{task.distractors} is negative; use 0 or more")
    if not 0 <= task.noise <= 1:
        yield Problem(f"{path}.noise", f"{task.noise} is outside 0 to 1")
    if isinstance(task, NeedleConfig):
        yield from _needle_rules(task, path)
    elif isinstance(task, OrderConfig):
        yield from _order_rules(task, path)
    elif isinstance(task, RecallConfig):
        yield from _scene_rules(task, path, task.scenes * task.shortest_frames + task.closing_frames)
        if task.event_frames % FRAMES_PER_PATCH:
            yield Problem(
                f"{path}.event_frames", f"{task.event_frames} is not a positive multiple of {FRAMES_PER_PATCH}"
            )
        if task.event_frames > task.shortest_frames:
            yield Problem(
                f"{path}.event_frames", f"{task.event_frames} is more than shortest_frames={task.shortest_frames}"
            )
    elif isinstance(task, DurationConfig):
        yield from _scene_rules(task, path, task.scenes * task.shortest_frames + task.lead_frames + task.closing_frames)


def _needle_rules(task: NeedleConfig, path: str) -> Iterator[Problem]:
    if task.event_frames > task.frames:
        yield Problem(f"{path}.event_frames", f"{task.event_frames} is more than the clip's {task.frames} frames")
    elif task.questions > NEEDLE_QUESTIONS:
        yield Problem(f"{path}.questions", f"{task.questions} is more than {NEEDLE_QUESTIONS}: colour and place")


def _order_rules(task: OrderConfig, path: str) -> Iterator[Problem]:
    if not 2 <= task.events <= COLOURS:
        yield Problem(f"{path}.events", f"{task.events} events; use 2 to {COLOURS}, one colour each")
    elif 2 * task.questions > task.events:
        yield Problem(
            f"{path}.questions",
            f"{task.questions} questions need {2 * task.questions} events, of which there are {task.events}",
        )
    # An event begins on an even frame, so one of odd length takes a frame more.
    if task.events * (task.event_frames + task.event_frames % 2) > task.frames:
        yield Problem(
            f"{path}.event_frames",
            f"{task.events} events of {task.event_frames} frames do not fit into {task.frames} frames",
        )


def _scene_rules(task: ScenesConfig, path: str, needed: int) -> Iterator[Problem]:
    if not 2 <= task.scenes <= COLOURS:
        yield Problem(f"{path}.scenes", f"{task.scenes} scenes; use 2 to {COLOURS}, one colour each")
    elif needed > task.frames:
        yield Problem(
            f"{path}.frames", f"{task.frames} frames are fewer than the {needed} that its parts take at least"
        )

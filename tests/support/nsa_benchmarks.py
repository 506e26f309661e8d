"""The benchmarks in small: a few rows each, in the columns and folders that lmms-eval reads, with videos; and a
model that answers them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from nsa_testing import stored_run, tiny_config
from nsa_videos import write

MLVU_KINDS = (
    "anomaly_reco",
    "count",
    "ego",
    "needleQA",
    "order",
    "plotQA",
    "sportsQA",
    "topic_reasoning",
    "tutorialQA",
)
MLVU_DEV_KINDS = ("anomaly_reco", "count", "ego", "needle", "order", "plotQA", "topic_reasoning")
CHOICES = ("object_rel_distance", "route_planning", "obj_appearance_order")
DIRECTIONS = ("object_rel_direction_easy", "object_rel_direction_medium", "object_rel_direction_hard")
NUMBERS = ("object_abs_distance", "object_counting", "object_size_estimation", "room_size_estimation")
THINGS = ("a red ball", "a grey cat", "two cars", "a green door", "the sea", "nobody")
ANSWERS = ("A", "B", "C", "D")
FOLDERS = {
    "longvideobench_val_v": ("datasets/longvideobench/videos", "video_path"),
    "mlvu_test": ("mlvu_test", "video_name"),
    "mlvu_dev": ("mlvu", "video_name"),
    "timescope": ("timescope", "video"),
    "longtimescope": ("longtimescope", "video"),
    "tomato": ("TOMATO", "video_path"),
    "vsibench": ("vsibench", ""),
}
"""Where lmms-eval looks for a task's videos below HF_HOME, and the column that names one."""


def lines(count: int, mark: str) -> str:
    return "\n".join(mark.format("ABCDEF"[place]) + thing for place, thing in enumerate(THINGS[:count]))


def longvideobench(number: int) -> dict[str, Any]:
    options = {f"option{place}": THINGS[place] if place < 4 else "N/A" for place in range(5)}
    return options | {
        "video_id": f"v{number}",
        "question": f"At the moment number {number}, what is beside the table?",
        "question_wo_referring_query": "What is beside the table?",
        "correct_choice": number % 4,
        "topic_category": "KH-Knowledge-History",
        "question_category": ("S2E", "E2O", "SSS")[number % 3],
        "level": "L1-Perception",
        "id": f"v{number}_0",
        "video_path": f"v{number % 3}.mp4",
        "subtitle_path": f"v{number}_en.json",
        "duration_group": (15, 60, 600, 3600)[number % 4],
        "starting_timestamp_for_subtitles": 0.0,
        "duration": 4.0,
        "view_count": 100,
    }


def mlvu(kinds: Sequence[str], letters: int, number: int) -> dict[str, Any]:
    """Kinds are of unequal number, so that their mean is not that of the rows."""
    return {
        "video_name": f"clips/m{number % 3}.mp4",
        "duration": 4.0,
        "question": f"What came after thing {number}?\n{lines(letters, '({}) ')}",
        "candidates": list(THINGS[:letters]),
        "answer": "ABCDEF"[number % letters],
        "task_type": kinds[number if number < len(kinds) else 0],
        "question_type": "multi-choice",
    }


def timescope(number: int) -> dict[str, Any]:
    return {
        "id": number,
        "video": f"t{number % 3}.mp4",
        "input": f"Which word is shown at {number}?\n{lines(4, '{}. ')}\nAnswer with the letter.",
        "answer": "ABCD"[number % 4],
        "type": ("QA", "OCR", "temporal")[number % 3],
        "length": (60, 300)[number % 2],
    }


def tomato(number: int) -> dict[str, Any]:
    return {
        "id": f"tomato-{number}",
        "question": f"Which way does thing {number} turn?",
        "options": list(THINGS[:4]),
        "answer": number % 4,
        "video_path": f"videos/human/o{number % 3}.mp4",
        "reason_type": ("direction", "count")[number % 2],
        "demonstration_type": ("human", "object")[number % 2],
    }


def vsibench(number: int) -> dict[str, Any]:
    kind = (*NUMBERS, *CHOICES, *DIRECTIONS)[number % 10]
    asked = kind in NUMBERS
    return {
        "id": number,
        "dataset": "scannet",
        "scene_name": f"scene{number % 3}",
        "question_type": kind,
        "question": f"In room {number}: {kind.replace('_', ' ')}?",
        "ground_truth": str(number % 4 + 1.4) if asked else "ABCD"[number % 4],
        "options": None if asked else [f"{letter}. {thing}" for letter, thing in zip("ABCD", THINGS, strict=False)],
    }


ROWS = {
    "longvideobench_val_v": [longvideobench(number) for number in range(8)],
    "mlvu_test": [mlvu(MLVU_KINDS, 6, number) for number in range(14)],
    "mlvu_dev": [mlvu(MLVU_DEV_KINDS, 4, number) for number in range(10)],
    "timescope": [timescope(number) for number in range(8)],
    "longtimescope": [timescope(number) for number in range(7)],
    "tomato": [tomato(number) for number in range(8)],
    "vsibench": [vsibench(number) for number in range(24)],
}


def video_of(task: str, row: dict[str, Any]) -> str:
    folder, column = FOLDERS[task]
    name = row[column] if column else f"{row['dataset']}/{row['scene_name']}.mp4"
    return f"{folder}/{name}"


def write_mini(home: Path, rows: Path) -> None:
    """Videos below `home`, as HF_HOME, and a file for each task in `rows`."""
    rows.mkdir(parents=True)
    for task, lines in ROWS.items():
        pq.write_table(pa.Table.from_pylist(lines), rows / f"{task}.parquet")
        for number, name in enumerate(dict.fromkeys(video_of(task, row) for row in lines)):
            (home / name).parent.mkdir(parents=True, exist_ok=True)
            write(home / name, times=range(30 + 20 * number), noise=True)


def prompt_of(task: str, row: dict[str, Any]) -> str:
    """What lmms-eval asks about a row."""
    from lmms_eval.tasks.longvideobench import utils as longvideobench
    from lmms_eval.tasks.tomato import utils as tomato
    from lmms_eval.tasks.vsibench import utils as vsibench

    if task == "longvideobench_val_v":
        words = {"pre_prompt": "", "post_prompt": "Answer with the option's letter from the given choices directly.\n"}
        return str(longvideobench.longvideobench_doc_to_text(row, words))
    if task == "tomato":
        return str(tomato.tomato_doc_to_text(row))
    if task == "vsibench":
        return str(vsibench.vsibench_doc_to_text(row))
    after = "\nOnly give the best option.\nBest option: (" if task == "mlvu_dev" else ""
    return str(row["input"] if "input" in row else row["question"] + after)


def answer_of(task: str, number: int, row: dict[str, Any]) -> str:
    """What the model is to say: two of three times right; a letter with a point after it, or a number."""
    if task == "vsibench" and row["question_type"] in NUMBERS:
        return str(number % 4 + 1)
    right = row.get("correct_choice", row.get("answer", row.get("ground_truth")))
    letters = "ABCDEF"[: len(row["candidates"]) if "candidates" in row else 4]
    place = right if isinstance(right, int) else letters.index(right)
    return f"{letters[(place + (number % 3 == 0)) % len(letters)]}."


def write_model(folder: Path, clips: Path, home: Path) -> Path:
    """The run of a model that answers the rows as `answer_of` says, about the videos below `home`.

    Its weights are random, but for the last layer, which is fitted by least squares.
    """
    from nsa_lab import build_model

    shape = "hidden_size=256 intermediate_size=256 vision_hidden_size=64 vision_layers=2 initializer_range=0.08"
    given = ["model.size=7b", "model.num_heads=4", "model.num_kv_heads=2", *(f"model.{one}" for one in shape.split())]
    computed = (f"data.cache_dir={clips}", "training.accelerator=cpu", "training.threads=1")
    config = tiny_config(*given, *computed, f"output.dir={folder.parent}")
    torch.manual_seed(0)
    model = build_model(config).eval()
    fit(
        model,
        [
            (home / video_of(task, row), prompt_of(task, row), answer_of(task, number, row))
            for task, rows in ROWS.items()
            for number, row in enumerate(rows)
        ],
    )
    stored_run(folder, config, model)
    return folder


@torch.no_grad()
def fit(model: Any, asked: Sequence[tuple[Path, str, str]]) -> None:
    """Change the last layer so that each (video, question) is followed by its answer, and the turn's end."""
    from nsa_lab.evaluation.ask import Answerer, about
    from nsa_lab.evaluation.decode import left_padded

    model.experiment.data.fps = 4
    answerer = Answerer(model, 1)
    states, wanted = [], []
    for video, question, answer in asked:
        inputs = left_padded([answerer.example(about(video, question.strip()))])
        tokens = answerer.tokenizer.convert_tokens_to_ids([*answer, "<|im_end|>"])
        states.append(model.model(**longer(inputs, tokens[:-1])).last_hidden_state[0, -len(tokens) :])
        wanted += tokens
    columns = sorted(set(wanted))
    target = torch.tensor([[token == column for column in columns] for token in wanted]).float()
    model.lm_head.weight.zero_()
    model.lm_head.weight[columns] = torch.linalg.lstsq(torch.cat(states), target).solution.T


def longer(inputs: dict[str, Any], tokens: Sequence[int]) -> dict[str, Any]:
    """`inputs` of one row with `tokens` of text after it."""
    count = len(tokens)
    more = {"input_ids": torch.tensor([tokens]), "attention_mask": torch.ones(1, count, dtype=torch.long)}
    more |= {"mm_token_type_ids": torch.zeros(1, count, dtype=torch.long)}
    grown = {name: torch.cat([inputs[name], value], 1) for name, value in more.items()}
    place = inputs["position_ids"]
    after = place[..., -1:] + torch.arange(1, count + 1)
    return inputs | grown | {"position_ids": torch.cat([place, after], -1)}

"""Examples to one packed batch: a single row without padding, samples told apart by restarting positions."""

from collections.abc import Sequence
from typing import Any

import torch

from nsa_lab.data.chat import IGNORED
from nsa_lab.data.dataset import Example
from nsa_lab.data.positions import VIDEO
from nsa_lab.layout import MERGE, OnHost, layout_from_token_ids


def pack(examples: Sequence[Example]) -> dict[str, Any]:
    """One batch of `examples`, L the sum of their lengths, P of their patches, V of their videos.

    input_ids, labels, mm_token_type_ids (0 text, 2 video), answer_index (number of the answer in the batch, else -1):
    [1, L] int64; position_ids [4, 1, L] int64, row 0 counting each sample's tokens from 0 and rows 1 to 3 M-RoPE;
    pixel_values_videos [P, 1176] float32; video_grid_thw [V, 3] int64; answer_tasks: the task of each answer.
    What a forward would have to wait for the device to know: label_rows [n] int64, the labelled tokens but the first,
    and `host`, the layout.
    """
    answer_tasks: list[str] = []
    answer_index, position_ids = [], []
    for example in examples:
        numbers = example.answer_index
        answer_index.append(torch.where(numbers >= 0, numbers + len(answer_tasks), numbers))
        answer_tasks += [example.task] * (int(numbers.max()) + 1)
        text_positions = torch.arange(len(example.input_ids))[None]
        position_ids.append(torch.cat([text_positions, example.position_ids]))
    types = torch.cat([example.token_types for example in examples])[None]
    labels = torch.cat([example.labels for example in examples])[None]
    grids, positions = torch.cat([example.grid_thw for example in examples]), torch.cat(position_ids, dim=1)[:, None]
    layout = layout_from_token_ids(types, VIDEO, grids, text_positions=positions[0], spatial_merge=MERGE)
    return {
        "input_ids": torch.cat([example.input_ids for example in examples])[None],
        "labels": labels,
        "position_ids": positions,
        "mm_token_type_ids": types,
        "pixel_values_videos": torch.cat([example.pixel_values for example in examples]),
        "video_grid_thw": grids,
        "answer_index": torch.cat(answer_index)[None],
        "answer_tasks": answer_tasks,
        "label_rows": (labels[0, 1:] != IGNORED).nonzero().squeeze(1) + 1,
        "host": OnHost(layout),
    }

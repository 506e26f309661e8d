"""The pictures of a partition: blocks over the frames, what one query selected, and block lengths over time."""

from pathlib import Path

import torch
from matplotlib.figure import Figure

from nsa_lab.analysis.look import LayerLook, Look, look
from nsa_lab.analysis.view import Video, make_blocks, make_choice, make_video
from nsa_lab.config import ExperimentConfig, layer_attention
from nsa_lab.data import VideoDataset, pack
from nsa_lab.errors import NsaLabError
from nsa_lab.layout import FRAMES_AS
from nsa_lab.model import VideoNSAForConditionalGeneration
from nsa_lab.plugin import settings

DPI = 110
MAX_LAYERS = 4


def is_adaptive(config: ExperimentConfig, num_layers: int) -> bool:
    """Whether any sparse layer's partition is another than `uniform`."""
    designs = (layer_attention(config.attention, layer) for layer in range(num_layers))
    partitions = (getattr(settings(design, "method"), "partition", None) for design in designs)
    return any(partition is not None and partition.kind != "uniform" for partition in partitions)


def watch(
    model: VideoNSAForConditionalGeneration, config: ExperimentConfig, data: VideoDataset, index: int, query: int | None
) -> tuple[Video, Look]:
    """Run `model` on sample `index` of `data` and look at video token `query`, by default one at three quarters.

    Raises NsaLabError where there is no such sample or no such token.
    """
    if not 0 <= index < len(data):
        raise NsaLabError(f"sample {index} does not exist: there are {len(data)}, numbered from 0; correct --sample")
    sample = data.samples[index]
    example, clip = data.example(sample), data.clip(sample)
    frames, tokens = int(example.grid_thw[:, 0].sum()), int((example.token_types > 0).sum())
    if query is None:
        query = 3 * frames // 4 * (tokens // frames) + tokens // frames // 2
    if not 0 <= query < tokens:
        raise NsaLabError(
            f"query {query} is not a video token: the {tokens} video tokens of sample {sample.id} are numbered"
            f" 0 to {tokens - 1}; correct --query"
        )
    batch = {name: value.to(model.device) for name, value in pack([example]).items() if isinstance(value, torch.Tensor)}
    batch["pixel_values_videos"] = batch["pixel_values_videos"].to(model.dtype)
    seen = look(model, batch, query)
    tasks_fps = None if config.data.annotations else config.tasks.fps
    per_token = FRAMES_AS[config.data.frames_as]
    return make_video(sample, clip.frames, clip.seconds, seen.embeddings, tasks_fps, per_token), seen


def draw_choice(
    model: VideoNSAForConditionalGeneration, config: ExperimentConfig, data: VideoDataset, layer: int | None
) -> tuple[Figure, int, int]:
    """What the last video token of the first sample of `data` selected in `layer`: the picture, the layer, the token.

    That token has all of the video before it and the question after it. Without a layer, the last of those that
    `typical_layers` names. Raises NsaLabError where the layer selects no blocks.
    """
    from nsa_lab.analysis.query_picture import draw_query

    last = int((data.example(data.samples[0]).token_types > 0).sum()) - 1
    video, seen = watch(model, config, data, 0, last)
    check_layer(model, seen, layer)
    number = typical_layers(seen)[-1] if layer is None else layer
    blocks = make_blocks(seen.layers[number], video.grid)
    choice = make_choice(seen.layers[number], blocks, last)
    if choice is None:
        raise NsaLabError(f"layer {number} neither pools nor selects blocks, so there is no picture of its choice")
    partition = layer_attention(config.attention, number).partition.kind
    figure = draw_query(video, blocks, choice, f"What the video's end selected: layer {number}, partition {partition}")
    return figure, number, last


def typical_layers(seen: Look) -> list[int]:
    """One layer for each partition that occurs, the middle one of those that share it; at most MAX_LAYERS."""
    groups: list[list[int]] = []
    for index, layer in seen.layers.items():
        same = (group for group in groups if _equal(seen.layers[group[0]], layer))
        group = next(same, None)
        if group is None:
            groups.append([index])
        else:
            group.append(index)
    return [group[len(group) // 2] for group in groups[:MAX_LAYERS]]


def check_layer(model: VideoNSAForConditionalGeneration, seen: Look, layer: int | None) -> None:
    """Raise NsaLabError unless `layer` (None: any) was `seen`: sparse, of a method that tells of its partition."""
    count, shown = model.config.text_config.num_hidden_layers, list(seen.layers)
    if not shown:
        raise NsaLabError(
            "no layer shows a partition of the whole video, as attention.method=nsa does with"
            " attention.reducer.kind=none; choose these, or no picture"
        )
    if layer is not None and not 0 <= layer < count:
        raise NsaLabError(f"layer {layer} does not exist: the model has layers 0 to {count - 1}; correct --layer")
    if layer is not None and layer not in shown:
        named = ", ".join(map(str, shown))
        raise NsaLabError(f"layer {layer} shows no partition; choose --layer among {named}")


def draw_partition(
    config: ExperimentConfig, index: int, video: Video, seen: Look, layer: int, folder: Path
) -> list[Path]:
    """Write blocks, query and timeline of one layer for sample `index` as PNG into `folder`, and return the files.

    A layer that neither pools nor selects blocks has no query picture.
    """
    from nsa_lab.analysis.blocks_picture import draw_blocks
    from nsa_lab.analysis.query_picture import draw_query
    from nsa_lab.analysis.timeline import draw_timeline

    partition = layer_attention(config.attention, layer).partition.kind
    blocks = make_blocks(seen.layers[layer], video.grid)
    choice = make_choice(seen.layers[layer], blocks, seen.query)
    where = f"layer {layer}, partition {partition}"
    stem = f"sample{index}-layer{layer:02d}"
    figures = {
        f"blocks-{stem}": draw_blocks(video, blocks, f"Blocks over the frames: {where}"),
        f"timeline-{stem}": draw_timeline(video, blocks, f"Block lengths over time: {where}"),
    }
    if choice is not None:
        figures[f"query-{stem}-token{seen.query}"] = draw_query(
            video, blocks, choice, f"What one query selected: {where}"
        )
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in figures.items():
        figure.savefig(folder / f"{name}.png", dpi=DPI)
    return [folder / f"{name}.png" for name in figures]


def _equal(one: LayerLook, other: LayerLook) -> bool:
    return torch.equal(one.partition.block_id, other.partition.block_id)

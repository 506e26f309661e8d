"""What one query selected: its blocks in the frames, with their weights, its own token, and the future greyed out."""

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from nsa_lab.analysis.blocks_picture import describe_frames
from nsa_lab.analysis.sheet import INK, Sheet, shown_frames
from nsa_lab.analysis.view import Blocks, Choice, Video

MAGENTA = "#ff00c8"
FUTURE = (225, 228, 232)
UNCHOSEN = "#9aa5b1"
OPEN = (0.26, 0.48, 0.85)
FADE = 0.55
TINT = 0.2
MAX_BARS = 16
COLOURS = colormaps["YlOrRd"]


def chosen_blocks(choice: Choice) -> np.ndarray:
    """The blocks that a group attends, or without a selection branch all complete ones: open ones, then by weight."""
    taken = np.flatnonzero(np.isfinite(choice.weight) if choice.groups is None else choice.groups > 0)
    return taken[np.argsort(-np.nan_to_num(choice.weight[taken], nan=np.inf), kind="stable")]


def seen_tokens(blocks: Blocks, choice: Choice) -> np.ndarray:
    """[F, h, w] int64: the chosen block of each token, -1 for tokens of other blocks, -2 for tokens after the query."""
    inside = np.isin(blocks.of_token, chosen_blocks(choice))
    token = np.arange(blocks.of_token.size).reshape(blocks.of_token.shape)
    return np.where(token > choice.query, -2, np.where(inside, blocks.of_token, -1))


def draw_query(video: Video, blocks: Blocks, choice: Choice, title: str) -> Figure:
    """The frames as the query sees them, and a bar for each of the blocks it chose."""
    frame, row, column = video.place(choice.query)
    bars = min(len(chosen_blocks(choice)), MAX_BARS)
    holding = [np.flatnonzero((blocks.of_token == block).any((1, 2))).tolist() for block in chosen_blocks(choice)]
    wanted = [frame, *(one for frames in holding for one in frames)]
    sheet = Sheet(video, shown_frames(video.grid[0], wanted), bars=max(1, bars))
    colours = weight_colours(choice)
    seen = seen_tokens(blocks, choice)
    for shown in sheet.shown:
        sheet.picture(shown, _as_seen(video.images[shown], seen[shown], colours))
        past = np.where(seen[shown] == -2, -1, blocks.of_token[shown])
        sheet.outline(shown, past, lambda block: UNCHOSEN if block >= 0 else None, 0.6)
        sheet.outline(shown, seen[shown], lambda block: colours[block] if block >= 0 else None, 2.4)
    x, y = sheet.corner[frame]
    corner = (x + column * sheet.cell, y + row * sheet.cell)
    sheet.axes.add_patch(
        Rectangle(corner, sheet.cell, sheet.cell, fill=False, edgecolor=MAGENTA, linewidth=3, zorder=5)
    )
    at = f"token {choice.query} (frame {frame}, row {row}, column {column}, {video.seconds[frame]:.2f} s)"
    sheet.title(title, f"{video.name}, {at}: {describe_choice(choice)}; {describe_frames(video, len(sheet.shown))}")
    sheet.legend(_legend(choice))
    _bars(sheet, video, blocks, choice, colours)
    return sheet.figure


def weight_colours(choice: Choice) -> np.ndarray:
    """[N, 3] float: darker for greater weights, blue for blocks without one because they are not complete."""
    heaviest = np.nan_to_num(choice.weight[chosen_blocks(choice)]).max(initial=0.0)
    share = np.nan_to_num(choice.weight) / max(heaviest, 1e-12)
    colours = COLOURS(0.25 + 0.75 * share.clip(max=1))[:, :3]
    colours[np.isnan(choice.weight)] = OPEN
    return colours


def describe_choice(choice: Choice) -> str:
    """How many blocks were chosen, and how much of the compression attention they hold."""
    chosen, complete = chosen_blocks(choice), int(np.isfinite(choice.weight).sum())
    if choice.groups is None:
        return f"no selection branch, complete blocks ({complete}) weighed by compression"
    if not complete:
        return f"{len(chosen)} selected, none complete yet"
    held = float(np.nansum(choice.weight[chosen]))
    return f"selected blocks ({len(chosen)}) hold {held:.0%} of the weight of the complete ones ({complete})"


def _as_seen(image: np.ndarray, seen: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """[H, W, 3] uint8: chosen tokens tinted by weight, other past ones grey and faded, the future blank."""
    state = np.kron(seen, np.ones((image.shape[0] // seen.shape[0], image.shape[1] // seen.shape[1]), np.int64))
    grey = image.mean(-1, keepdims=True)
    faded = grey * (1 - FADE) + 255 * FADE
    tinted = image * (1 - TINT) + 255 * colours[state.clip(min=0)] * TINT
    state = state[..., None]
    return np.select([state == -2, state == -1], [np.array(FUTURE), faded], tinted).round().astype(np.uint8)


def _bars(sheet: Sheet, video: Video, blocks: Blocks, choice: Choice, colours: np.ndarray) -> None:
    """The chosen blocks by weight, at most MAX_BARS of them."""
    chosen = chosen_blocks(choice)
    shown = chosen[:MAX_BARS]
    axes = sheet.panel
    assert axes is not None
    place = np.arange(len(shown))
    weight = np.nan_to_num(choice.weight[shown])
    axes.barh(place, 100 * weight, color=colours[shown], height=0.7)
    for at, block in enumerate(shown):
        value = "open" if np.isnan(choice.weight[block]) else f"{choice.weight[block]:.1%}"
        count = "" if choice.groups is None else f"  {choice.groups[block]}/{choice.num_groups}"
        axes.annotate(
            value + count, (100 * weight[at], at), xytext=(4, 0), textcoords="offset points", size=8, va="center"
        )
    axes.set_yticks(place, [_when(video, blocks, block) for block in shown], size=8)
    axes.set_ylim(max(len(shown), 4) - 0.4, -0.6)
    axes.set_xlim(0, 150 * max(weight.max(initial=0.0), 0.01))
    axes.set_xticks([tick for tick in axes.get_xticks() if tick <= 100])
    axes.set_xlim(0, 150 * max(weight.max(initial=0.0), 0.01))
    axes.set_xlabel("compression weight, mean over heads (%)", size=8)
    axes.tick_params(labelsize=8, color=INK, labelcolor=INK)
    axes.spines[["top", "right"]].set_visible(False)
    part = f"{len(shown)} of {len(chosen)}, by weight" if len(shown) < len(chosen) else str(len(chosen))
    axes.set_title(f"{_noun(choice)} blocks ({part})", size=9, color=INK, loc="left")


def _noun(choice: Choice) -> str:
    return "complete" if choice.groups is None else "selected"


def _when(video: Video, blocks: Blocks, block: int) -> str:
    begin, end = video.time(np.array([blocks.first[block], blocks.last[block] + 1]))
    return f"block {block}   {begin:.2f}-{end:.2f} s"


def _legend(choice: Choice) -> list[Patch]:
    heavy, light = COLOURS(1.0), COLOURS(0.25)
    handles = [
        Patch(facecolor="none", edgecolor=MAGENTA, linewidth=2.5, label="the query's token"),
        Patch(facecolor=heavy, label=f"{_noun(choice)}, heaviest"),
        Patch(facecolor=light, label=f"{_noun(choice)}, light"),
    ]
    if np.isnan(choice.weight[chosen_blocks(choice)]).any():
        handles.append(Patch(facecolor=OPEN, label="selected, still open: not scored"))
    handles += [
        Patch(facecolor="#e3e6ea", edgecolor=UNCHOSEN, label=f"past, not {_noun(choice)} (faded)"),
        Patch(facecolor=tuple(part / 255 for part in FUTURE), label="future"),
    ]
    if choice.groups is not None:
        handles.append(
            Patch(facecolor="none", edgecolor="none", label=f"n/{choice.num_groups}: groups that selected it")
        )
    return handles

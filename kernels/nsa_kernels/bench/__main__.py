"""Command line of the bench."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from nsa_kernels.bench.names import NAMED, OPS

DESCRIPTION = """Time the kernels of native sparse attention, and what others offer, on this machine's GPU.

First every op and the layer are compared with float64 references on small odd inputs; if one is wrong, nothing is
timed. Then each op and the whole layer are timed, forward and forward + backward, then dense attention (cuDNN, flash),
fla's parallel_nsa and FlexAttention. Times are medians (triton.testing.do_bench). Every row is appended to a CSV in
--output as it is measured, with its peak memory, the share of the machine's arithmetic and bandwidth it reaches, and
where it was measured; what fails or does not fit the time becomes a row that says why."""
EPILOG = """Without a GPU:
  python -m nsa_kernels.bench resources     compile every kernel of the layer: registers, spills, shared memory

Then, from a CSV:
  python -m nsa_kernels.bench plot CSV      time against T, as a picture
  python -m nsa_kernels.bench table CSV     tables in Markdown; --readme kernels/README.md puts them there

Examples:
  python -m nsa_kernels.bench                                     everything, about five minutes on an H200
  python -m nsa_kernels.bench --quick                             does it work, and roughly how fast: a minute
  python -m nsa_kernels.bench --only selection --lengths 32768    one op, while working on it
  python -m nsa_kernels.bench --only selection,selection-lists,selection-unions --lengths 32768 --query-tiles 1,16 \\
      --designs 64x32                                             its two walks, and what it makes of them
  python -m nsa_kernels.bench --only selection,selection-in-64s --designs 128x16 --query-tiles 1
                                                                  a backward of blocks of 128 in halves
  python -m nsa_kernels.bench --designs 32x64,64x32,128x16        the price of smaller blocks at one token budget
  python -m nsa_kernels.bench --small-blocks                      16x128, 8x256 and 4x512 beside 64x32, by both walks
  TRITON_INTERPRET=1 python -m nsa_kernels.bench --lengths 96 --heads 7,1,16 --designs 8x3 --window 9 --dtype fp32 \\
      --query-tiles 1,4 --no-baselines                            without a GPU: parity is real, times are not"""
BASELINES = ("dense-cudnn", "dense-flash", "fla", "flex")
QUICK_BASELINES = ("dense-cudnn",)
SMALL = {
    "designs": [(64, 32), (16, 128), (8, 256), (4, 512)],
    "only": ["layer", "compression", "topk", "selection", "selection-lists", "selection-gathered", "dense-cudnn"],
    "query_tiles": [1],
    "lengths": [8192, 32768],
}
"""What --small-blocks stands for, where nothing else is said."""


def main(arguments: Sequence[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if arguments[:1] == ["plot"]:
        return _plot(plot_parser().parse_args(arguments[1:]))
    if arguments[:1] == ["table"]:
        return _table(table_parser().parse_args(arguments[1:]))
    if arguments[:1] == ["resources"]:
        return _resources(resources_parser().parse_args(arguments[1:]))
    return _run(run_parser().parse_args(arguments))


def run_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m nsa_kernels.bench",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--lengths", type=_integers, metavar="T,T,...", help="tokens of the sample (8192,32768,65536,131072)")
    add("--inputs", type=_one_of("random", "video"), metavar="KIND,...",
        help="random: every query chooses alone, the worst case; video: neighbours choose alike (both)")  # fmt: skip
    add("--designs", type=_designs, metavar="SIZExCOUNT,...",
        help="block size x blocks selected; the first gets every op (64x32,128x16: one token budget)")  # fmt: skip
    add("--query-tiles", type=_integers, metavar="N,...",
        help="neighbouring queries that share one choice, with the first design (1,16,64)")  # fmt: skip
    add("--only", type=_one_of(*OPS, *NAMED, *BASELINES), metavar="NAME,...",
        help=f"of {', '.join((*OPS, *NAMED, *BASELINES))}; {', '.join(NAMED)} only where named")  # fmt: skip
    add("--no-baselines", action="store_true", help="only this repository's kernels")
    add("--quick", action="store_true", help="8192 random tokens, 64x32, cuDNN's dense attention beside it")
    add("--small-blocks", action="store_true",
        help="64x32, 16x128, 8x256, 4x512 (one token budget), selection over lists and gathered")  # fmt: skip
    add("--seconds", type=float, default=300.0, metavar="S",
        help="stop in time: what does not fit becomes a skipped row (%(default).0f)")  # fmt: skip
    _add_layer(add)
    add("--output", type=Path, default=Path("kernels/results"), metavar="DIR",
        help="folder of the CSV, which is named after the GPU (%(default)s)")  # fmt: skip
    add("--commit", help="recorded in the rows; by default the variable NSA_COMMIT, else git's HEAD")
    return parser


def _add_layer(add: Callable[..., object]) -> None:
    add("--heads", type=_heads, default=(28, 4, 128), metavar="H,G,D",
        help="query heads, key/value heads, head dim (28,4,128: Qwen2.5-VL-7B)")  # fmt: skip
    add("--window", type=int, default=256, metavar="W", help="tokens of the sliding window (%(default)s)")
    add("--dtype", choices=("bf16", "fp16", "fp32"), default="bf16", help="(%(default)s)")


def plot_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m nsa_kernels.bench plot", description="Time against T, log-log.")
    parser.add_argument("csv", type=Path, metavar="CSV")
    parser.add_argument("--output", type=Path, metavar="PNG", help="by default beside the CSV")
    return parser


def table_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m nsa_kernels.bench table", description="A CSV's tables in Markdown.")
    parser.add_argument("csv", type=Path, metavar="CSV")
    parser.add_argument("--readme", type=Path, metavar="FILE", help="put them between this file's marker comments")
    return parser


def resources_parser() -> argparse.ArgumentParser:
    from nsa_kernels.bench.resources import CARDS

    parser = argparse.ArgumentParser(
        "python -m nsa_kernels.bench resources",
        description="Compile every kernel of the layer, forward and backward, without a GPU, and print what its "
        "threads and programs take. Exit code 1 where one does not compile or needs more shared memory than there is.",
    )
    add = parser.add_argument
    add("--arch", type=int, choices=CARDS, default=90, help="compute capability: 80 A100, 90 H100 and H200 (90)")
    add("--lengths", type=_integers, default=[32768], metavar="T,T,...", help="tokens of the sample (32768)")
    add("--designs", type=_designs, default=[(64, 32), (128, 16)], metavar="SIZExCOUNT,...",
        help="block size x blocks selected (64x32,128x16)")  # fmt: skip
    add("--query-tiles", type=_integers, default=[1], metavar="N,...",
        help="neighbouring queries that share one choice (1)")  # fmt: skip
    _add_layer(add)
    add("--full", action="store_true", help="permuted keys, half of them queries, a block bias and a token budget")
    add("--only", default="", metavar="NAME", help="kernels whose name holds this, such as selection.backward")
    add("--csv", action="store_true", help="print a CSV, to compare two versions")
    return parser


def _run(options: argparse.Namespace) -> int:
    from nsa_kernels.bench.inputs import Heads
    from nsa_kernels.bench.jobs import Design
    from nsa_kernels.bench.run import Plan, run

    if options.small_blocks:
        for name, value in SMALL.items():
            setattr(options, name, getattr(options, name) or value)
    quick = options.quick
    sizes = options.designs or ([(64, 32)] if quick else [(64, 32), (128, 16)])
    tiles = options.query_tiles or ([1] if quick else [1, 16, 64])
    baselines = QUICK_BASELINES if quick else BASELINES
    plan = Plan(
        lengths=options.lengths or ([8192] if quick else [8192, 32768, 65536, 131072]),
        inputs=options.inputs or (["random"] if quick else ["random", "video"]),
        designs=[Design(size, count) for size, count in sizes]
        + [Design(size, count, tile) for size, count in sizes[:1] for tile in tiles if tile > 1],
        only=set(options.only or (*OPS, *baselines)) - (set(BASELINES) if options.no_baselines else set()),
        heads=Heads(*options.heads),
        window=options.window,
        dtype=options.dtype,
        seconds=options.seconds,
        output=options.output,
        commit=options.commit,
    )
    return run(plan)


def _plot(options: argparse.Namespace) -> int:
    from nsa_kernels.bench.plot import draw
    from nsa_kernels.bench.records import read

    target = options.output or options.csv.with_suffix(".png")
    draw(read(options.csv), target)
    print(target)
    return 0


def _table(options: argparse.Namespace) -> int:
    from nsa_kernels.bench.records import read
    from nsa_kernels.bench.report import markdown, write_between_markers

    text = markdown(read(options.csv))
    if options.readme:
        write_between_markers(options.readme, text)
    else:
        print(text, end="")
    return 0


def _resources(options: argparse.Namespace) -> int:
    from nsa_kernels.bench.inputs import Heads
    from nsa_kernels.bench.jobs import Design
    from nsa_kernels.bench.resources import Setting, launches, resources, show
    from nsa_kernels.bench.run import DTYPES
    from nsa_kernels.runtime import INTERPRET

    if INTERPRET:
        print("error: with TRITON_INTERPRET=1 nothing is compiled; unset it")
        return 2
    heads, dtype = Heads(*options.heads), DTYPES[options.dtype]
    settings = [
        Setting(tokens, heads, Design(size, count, tile), options.window, dtype, options.full)
        for tokens in options.lengths
        for size, count in options.designs
        for tile in options.query_tiles
    ]
    names = dict.fromkeys(launch.name for setting in settings for launch in launches(setting))
    if not any(options.only in name for name in names):
        print(f"error: --only {options.only}: no kernel's name holds this; there are {', '.join(names)}")
        return 2
    rows = resources(settings, options.only, options.arch)
    print(show(rows, options.csv), end="")
    return int(any(not row.programs for row in rows))


def _integers(text: str) -> list[int]:
    values = [int(part) for part in text.split(",")]
    if min(values) < 1:
        raise argparse.ArgumentTypeError(f"{text}: every number must be at least 1")
    return values


def _heads(text: str) -> tuple[int, int, int]:
    from nsa_kernels.checks import LEAST_HEAD_DIM, MOST_HEAD_DIM

    values = _integers(text)
    if len(values) != 3 or values[0] % values[1]:
        raise argparse.ArgumentTypeError(f"{text}: wants H,G,D with H a multiple of G")
    if not LEAST_HEAD_DIM <= values[2] <= MOST_HEAD_DIM:
        raise argparse.ArgumentTypeError(
            f"{text}: the kernels take a head dim D of {LEAST_HEAD_DIM} to {MOST_HEAD_DIM}"
        )
    return values[0], values[1], values[2]


def _designs(text: str) -> list[tuple[int, int]]:
    from nsa_kernels.checks import MOST_BLOCK_COUNT, MOST_BLOCK_LENGTH

    designs = []
    for part in text.split(","):
        size, _, count = part.partition("x")
        if not (size.isdigit() and count.isdigit() and int(size) and int(count)):
            raise argparse.ArgumentTypeError(f"{part}: wants SIZExCOUNT, such as 64x32")
        if int(size) > MOST_BLOCK_LENGTH or int(count) > MOST_BLOCK_COUNT:
            most = f"{MOST_BLOCK_LENGTH} tokens, of which {MOST_BLOCK_COUNT} are chosen"
            raise argparse.ArgumentTypeError(f"{part}: the kernels take blocks of at most {most}")
        designs.append((int(size), int(count)))
    return designs


def _one_of(*names: str) -> Callable[[str], list[str]]:
    def parse(text: str) -> list[str]:
        values = text.split(",")
        if unknown := [v for v in values if v not in names]:
            raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: known are {', '.join(names)}")
        return values

    return parse


if __name__ == "__main__":
    sys.exit(main())

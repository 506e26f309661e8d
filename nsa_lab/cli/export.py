"""`nsa-lab export`: a run's model as a folder of Hugging Face's format."""

from pathlib import Path
from typing import Annotated, Literal

import typer


def export(
    run: Annotated[Path, typer.Argument(help="Folder of a run.", metavar="RUN")],
    folder: Annotated[Path, typer.Argument(help="The new folder.", metavar="DIR")],
    dtype: Annotated[Literal["float32", "bfloat16"], typer.Option(help="Of the weights.")] = "float32",
) -> None:
    """Write the last weights of a run as transformers keeps a model, with tokenizer and processor files beside.

    The design is part of its config.json; nsa_lab.model.VideoNSAForConditionalGeneration.from_pretrained loads it.

    `nsa-lab export runs/smoke-0123456789ab exported/smoke`

    `nsa-lab export runs/smoke-0123456789ab exported/smoke --dtype bfloat16`
    """
    from nsa_lab.data import load_tokenizer
    from nsa_lab.model.export import export_model, refuse_taken
    from nsa_lab.training.restore import restore_model

    refuse_taken(folder)  # before a large model is loaded for nothing
    config, model = restore_model(run, as_stored=True)
    tokenizer = load_tokenizer(config.data.tokenizer, Path(config.data.cache_dir))
    export_model(model, config, tokenizer, folder, dtype)
    size = sum(file.stat().st_size for file in folder.iterdir()) / 1e6
    typer.echo(f"{folder}: {size:,.1f} MB, {dtype}; to load it: nsa_lab.load_model({str(folder)!r})")

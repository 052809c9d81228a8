"""`feddmmr features`: encode, import and analyze."""

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from feddmmr.notes import note

app = typer.Typer(help="Make features of items, and measure them.", no_args_is_help=True)


class Device(StrEnum):
    """Where the encoders run."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


Items = Annotated[Path, typer.Option(help="Items: any that `data import` takes; the rows' order.")]
Output = Annotated[Path, typer.Option(help="New features.safetensors; must not exist.")]


@app.command()
def encode(
    items: Items,
    output: Output,
    images: Annotated[
        Path | None, typer.Option(help="Folder of pictures named by item id, 17.jpg.")
    ] = None,
    text_column: Annotated[
        str, typer.Option(help="Column of texts. Default: text, else title.")
    ] = "",
    no_text: Annotated[bool, typer.Option("--no-text", help="Pictures only.")] = False,
    image_model: Annotated[str, typer.Option(help="An open_clip model.")] = "ViT-B-32",
    image_weights: Annotated[
        str, typer.Option(help="Its weights: an open_clip tag on the hub, or a local file.")
    ] = "laion2b_s34b_b79k",
    text_model: Annotated[
        str, typer.Option(help="A sentence-transformers name on the hub, or a local folder.")
    ] = "all-MiniLM-L6-v2",
    clip_tag: Annotated[
        str,
        typer.Option(help="The open_clip tag whose settings a local file's weights were made for."),
    ] = "",
    device: Annotated[Device, typer.Option(help="Where the encoders run.")] = Device.auto,
) -> None:
    """Encode pictures and texts; the same command goes on after an interruption."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from feddmmr.features.encode import EncodeOptions, encode_features
    from feddmmr.features.output import describe

    options = EncodeOptions(
        items=items,
        output=output,
        images=images,
        texts=not no_text,
        text_column=text_column,
        image_model=image_model,
        image_weights=image_weights,
        text_model=text_model,
        clip_tag=clip_tag,
        device=device.value,
    )
    print(*describe(encode_features(options, note, _track), output), sep="\n")


@app.command("import")
def import_(
    items: Items,
    output: Output,
    visual: Annotated[
        Path | None, typer.Option(help=".npy, .npz, .safetensors or tensor-only .pt.")
    ] = None,
    text: Annotated[Path | None, typer.Option(help="The same, for text features.")] = None,
    item_ids: Annotated[
        Path | None,
        typer.Option(
            help="The item of each row, as an array. Default: item_ids beside the arrays, else "
            "the order of the items file."
        ),
    ] = None,
    visual_encoder: Annotated[str, typer.Option(help="What made the visual ones.")] = "unknown",
    text_encoder: Annotated[str, typer.Option(help="What made the text ones.")] = "unknown",
) -> None:
    """Turn arrays made elsewhere into a features file; rows are normalised, nothing is executed."""
    from feddmmr.features.arrays import ImportArrays, import_arrays
    from feddmmr.features.output import describe

    options = ImportArrays(
        items=items,
        output=output,
        visual=visual,
        text=text,
        item_ids=item_ids,
        visual_encoder=visual_encoder,
        text_encoder=text_encoder,
    )
    print(*describe(import_arrays(options), output), sep="\n")


@app.command()
def analyze(
    source: Annotated[Path, typer.Argument(help="Dataset folder, or a features.safetensors.")],
    output: Annotated[
        Path | None, typer.Option(help="New folder for report.json and report.png.")
    ] = None,
    users: Annotated[
        int, typer.Option(min=0, help="Users that tell the similarities; 0 = all.")
    ] = 2000,
) -> None:
    """Say whether features are there, are sound, and tell what users choose."""
    from rich.console import Console

    from client_app.data.compile import refuse_existing
    from feddmmr.features.analysis import analyze as measure
    from feddmmr.features.analysis_output import show, write_report

    if output is not None:
        refuse_existing(output)
    report, drawn = measure(source, users)
    show(report, Console(width=None if sys.stdout.isatty() else 140))
    if output is not None:
        write_report(output, report, drawn)
        print(f"report: {output.resolve()}")


def _track(chunks: Sequence[Any], what: str) -> Iterator[Any]:
    """A progress bar over the chunks, on a terminal."""
    if not sys.stderr.isatty():
        yield from chunks
        return
    from rich.console import Console
    from rich.progress import track

    bar: Iterable[Any] = track(chunks, description=what, console=Console(stderr=True))
    yield from bar

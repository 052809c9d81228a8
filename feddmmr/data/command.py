"""`feddmmr data`: import, demo, split and info."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(help="Import, generate, split and describe datasets.", no_args_is_help=True)


class Format(StrEnum):
    """Source formats, as docs/data.md has them; auto decides by the names of files."""

    auto = "auto"
    movielens = "movielens"
    recbole = "recbole"
    jsonl = "jsonl"
    csv = "csv"
    tsv = "tsv"
    parquet = "parquet"
    folder = "folder"


class By(StrEnum):
    """Which users make up a part of a split dataset."""

    row = "row"
    size = "size"
    length = "length"
    taste = "taste"


class Duplicates(StrEnum):
    """What to do with a repeated (user, item) pair."""

    refuse = "refuse"
    first = "first"
    last = "last"


class Ties(StrEnum):
    """The order of a user's events of one time."""

    hash = "hash"
    rows = "rows"


class NewItems(StrEnum):
    """What to do with an item that has no interaction."""

    cold = "cold"
    drop = "drop"


Output = Annotated[Path, typer.Argument(help="New folder for the dataset; must not exist.")]
Dataset = Annotated[Path, typer.Argument(help="Folder of an imported dataset.")]
Items = Annotated[
    Path | None,
    typer.Option(
        help="Items: CSV, TSV, JSON lines (Amazon's meta_*.jsonl), RecBole's .item, MovieLens' "
        "titles, or a folder with one of them. MovieLens, RecBole and folders bring their own."
    ),
]
Features = Annotated[
    Path | None,
    typer.Option(
        help="A .safetensors file (visual, text; rows as in the items), or a folder with "
        "visual.npy, text.npy and item_ids.npy. A folder source brings its own."
    ),
]
UserColumn = Annotated[str, typer.Option(help="Column of user ids.")]
ItemColumn = Annotated[str, typer.Option(help="Column of item ids.")]
TimeColumn = Annotated[str, typer.Option(help="Column of times: numbers or dates.")]
RatingColumn = Annotated[str, typer.Option(help="Column of ratings.")]
Separator = Annotated[str, typer.Option(help="CSV, TSV: what separates columns, such as ';'.")]
Columns = Annotated[
    str, typer.Option(help="CSV, TSV without a header: user_id,item_id,rating,timestamp.")
]
Repeated = Annotated[
    Duplicates, typer.Option(help="Repeated (user, item) pairs: refuse, or keep one.")
]
TieRule = Annotated[
    Ties,
    typer.Option(
        help="A user's events of one time: by a hash of the ids, or as the rows lie, where their "
        "order is known to be true."
    ),
]
New = Annotated[
    NewItems,
    typer.Option(
        help="Items without any interaction: cold, if they have features or are marked cold, or "
        "drop."
    ),
]
Sort = Annotated[
    bool,
    typer.Option("--sort", help="Sort by time; MovieLens, RecBole and JSON lines always are."),
]
MostActive = Annotated[
    int | None, typer.Option(min=1, help="Only this many users, the most active ones.")
]
Last = Annotated[int | None, typer.Option(min=3, help="Only the last N interactions of each user.")]
KCore = Annotated[int, typer.Option(min=1, help="Interactions that each user and item must have.")]
ColdFraction = Annotated[
    float, typer.Option(min=0, max=0.9, help="Share of the items to hold out as cold.")
]


@app.command("import")
def import_(
    source: Annotated[Path, typer.Argument(help="Folder or file to import.")],
    output: Output,
    format: Annotated[Format, typer.Option(help="Format of the source.")] = Format.auto,
    items: Items = None,
    features: Features = None,
    visual_encoder: Annotated[str, typer.Option(help="What made the visual features.")] = "",
    text_encoder: Annotated[str, typer.Option(help="What made the text features.")] = "",
    user_column: UserColumn = "",
    item_column: ItemColumn = "",
    time_column: TimeColumn = "",
    rating_column: RatingColumn = "",
    separator: Separator = "",
    columns: Columns = "",
    min_rating: Annotated[float | None, typer.Option(help="Drop lower ratings.")] = None,
    duplicates: Repeated = Duplicates.refuse,
    ties: TieRule = Ties.hash,
    sort: Sort = False,
    most_active: MostActive = None,
    last: Last = None,
    k_core: KCore = 5,
    new_items: New = NewItems.cold,
    cold_fraction: ColdFraction = 0.0,
    seed: Annotated[int, typer.Option(help="Seed of the choice of cold items.")] = 0,
    name: Annotated[str, typer.Option(help="Name of the dataset.")] = "",
) -> None:
    """Import interactions of any known format into a dataset that the app can open.

    Columns that are not named go by their usual names, which docs/data.md lists by format.
    """
    from feddmmr.data.importers import ImportOptions, import_dataset

    options = ImportOptions(
        format=format.value,
        items=items,
        features=features,
        visual_encoder=visual_encoder,
        text_encoder=text_encoder,
        user_column=user_column,
        item_column=item_column,
        time_column=time_column,
        rating_column=rating_column,
        separator=separator,
        columns=tuple(name.strip() for name in columns.split(",")) if columns else (),
        min_rating=min_rating,
        duplicates=duplicates.value,
        ties=ties.value,
        sort=sort,
        most_active=most_active,
        last=last,
        k_core=k_core,
        new_items=new_items.value,
        cold_fraction=cold_fraction,
        seed=seed,
        name=name,
    )
    _describe(import_dataset(source, output, options), output)


@app.command()
def demo(output: Output, seed: Annotated[int, typer.Option(help="Seed.")] = 0) -> None:
    """Write the embedded demo dataset to a folder."""
    from client_app.data.demo import write_demo

    _describe(write_demo(output, seed), output)


@app.command()
def split(
    dataset: Dataset,
    output: Output,
    num_partitions: Annotated[int, typer.Option(min=1, help="Number of parts.")],
    by: Annotated[
        By,
        typer.Option(help="Users of a part: any, in equal parts or not (size); or alike."),
    ] = By.row,
) -> None:
    """Split a dataset by users into part-0, part-1, ...: one folder for each SuperNode."""
    from feddmmr.data.importers import split_dataset

    for part, content in enumerate(split_dataset(dataset, output, num_partitions, by.value)):
        _describe(content, output / f"part-{part}")


@app.command()
def info(dataset: Dataset) -> None:
    """Check a dataset and say what it holds."""
    from client_app.data.dataset import open_dataset

    _describe(open_dataset(dataset.resolve()).info, dataset)


def _describe(content: dict[str, Any], folder: Path) -> None:
    """Print what a dataset holds, a few lines, and the record of its import."""
    print(f"{content['name']}: {folder.resolve()}")
    print(
        f"  {content['users']} users, {content['items']} items, "
        f"{content['interactions']} interactions"
    )
    imported = content.get("imported")  # not in a demo, nor in a part of a split
    if content["cold_items"]:
        print(f"  {content['cold_items']} cold items, {content['cold_cases']} cold test cases")
    if content["skipped_users"] and not imported:
        print(f"  skipped {content['skipped_users']} users with fewer than 3 interactions")
    for kind, encoder in content["encoders"].items():
        dim, coverage = content[f"{kind}_dim"], content[f"{kind}_coverage"]
        print(f"  {kind}: {dim} dimensions by {encoder}, {coverage:.1%} of the items")
    if imported:
        from feddmmr.data.import_table import print_record

        print_record(imported, content["interactions"])

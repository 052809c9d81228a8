"""Pages in one HTML file with their plots: drawn, put together and written the same way.

A page loads nothing: pictures are embedded, and a content security policy says so to the browser.
Whatever comes from outside is escaped; no text in a plot is read as mathematics.
"""

import base64
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from feddmmr.features.output import disk_faults
from server_app.record.checkpoint import write_atomically
from shared_model.errors import ConfigError, DataError

PAGE = "index.html"
_MARK = 'name="generator" content="feddmmr"'
_STYLE: Any = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "axes.axisbelow": True,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "legend.frameon": False,
    "text.parse_math": False,
    "svg.hashsalt": "feddmmr",  # the same plot has the same bytes
}
_WIDTH, _HEIGHT = 6.4, 3.0  # inches, of one panel


@dataclass(frozen=True)
class Plot:
    """A picture with what a reader has to know of it."""

    name: str  # of the file
    title: str
    caption: str
    png: bytes
    svg: bytes

    @property
    def embedded(self) -> str:
        """The picture as a data URL: vectors, sharp on a phone and on paper."""
        return f"data:image/svg+xml;base64,{base64.b64encode(self.svg).decode()}"


def plot(
    name: str, title: str, caption: str, panels: int, paint: Callable[..., bool]
) -> Plot | None:
    """What ``paint`` draws into that many panels, ``None`` if it says that there is nothing.

    ``ConfigError`` without matplotlib.
    """
    try:
        import matplotlib as mpl
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise _lacking("matplotlib") from error
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(_WIDTH, 0.4 + _HEIGHT * panels), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(panels, sharex=panels > 1, squeeze=False)[:, 0]
        if not paint(*axes):
            return None
        return Plot(name, title, caption, _saved(figure, "png", dpi=150), _saved(figure, "svg"))


def render(package: str, template: str, **values: Any) -> str:
    """A package's template, which may extend ``page.html``; ``ConfigError`` without jinja2."""
    try:
        from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
    except ImportError as error:
        raise _lacking("jinja2") from error
    loaders = [PackageLoader(package, "."), PackageLoader("feddmmr.runs", ".")]
    environment = Environment(
        loader=ChoiceLoader(loaders), autoescape=True, undefined=StrictUndefined
    )
    return environment.get_template(template).render(**values)


def refuse_other(out: Path) -> None:
    """``DataError`` for a folder with anything else in it than an older page."""
    page = out / PAGE
    ours = page.is_file() and _MARK in page.read_text(encoding="utf-8", errors="replace")
    if out.exists() and not ours and not (out.is_dir() and not any(out.iterdir())):
        raise DataError(
            "the output is there and is no report",
            where=str(out),
            expected="a new or empty folder, or that of an older report",
            todo="choose another --out",
        )


def write_page(out: Path, page: str, plots: Sequence[Plot], known: Iterable[str]) -> Path:
    """Write page and pictures, and delete pictures of ``known`` names that an older one had."""
    files = {PAGE: page.encode()}  # first: it marks the folder as ours
    files |= {_picture(plot.name): plot.png for plot in plots}
    with disk_faults(out):
        out.mkdir(parents=True, exist_ok=True)
        for name in set(map(_picture, known)) - files.keys():
            (out / name).unlink(missing_ok=True)
    for name, content in files.items():
        write_atomically(out / name, content, "free disk space or choose another --out")
    return (out / PAGE).resolve()


def _picture(plot: str) -> str:
    return f"{plot}.png"


def _saved(figure: Any, kind: str, **options: Any) -> bytes:
    buffer = BytesIO()
    metadata = {"Date": None} if kind == "svg" else {}
    figure.savefig(buffer, format=kind, metadata=metadata, **options)
    return buffer.getvalue()


def _lacking(package: str) -> ConfigError:
    return ConfigError(
        f"the report needs {package}", todo="install the extra: pip install 'feddmmr[report]'"
    )

"""Titles that people type, matched with a catalogue: exactly, by a part, or nearly.

What is not clear is refused with the titles that may be meant; nothing is guessed between two.
"""

import csv
import difflib
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path

from client_app.data.dataset import Dataset
from shared_model.errors import ConfigError, DataError

_NEAR, _SHOWN = 0.85, 6  # how alike a mistyped title is, and how many titles an error names
_YEAR = re.compile(r"\s*\(\d{4}\)$")
_ARTICLE = re.compile(r"^(the|an?) | (the|an?)$")


class Catalogue:
    """Ids and titles of a dataset's items by item index; an item without a title goes by its id."""

    def __init__(self, dataset: Dataset) -> None:
        path = Path(dataset.folder / "items.csv")
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        self.ids = ["", *(row["item_id"] for row in rows)]
        self.titles = ["", *(row.get("title") or f"item {row['item_id']}" for row in rows)]
        self._by_id = {id_: index for index, id_ in enumerate(self.ids) if index}
        self._by_title = self._grouped(_folded)
        self._by_name = self._grouped(_bare)

    def find(self, text: str) -> int:
        """The item that is meant by a title, a part of one, or ``#ID``. ``ConfigError`` else."""
        if text.startswith("#"):
            return self._of_id(text[1:].strip())
        found = self._by_title.get(_folded(text)) or self._by_name.get(_bare(text))
        found = found or self._containing(_folded(text)) or self._alike(_folded(text))
        if len(found) != 1:
            raise self._unclear(text, found)
        return found[0]

    def show(self, index: int) -> str:
        """A title, and the id where the title is not the only one of its name."""
        title = self.titles[index]
        return title if len(self._by_title[_folded(title)]) == 1 else f"{title} #{self.ids[index]}"

    def _of_id(self, id_: str) -> int:
        from client_app.data.columns import id_text

        meant = id_ if id_ in self._by_id else id_text(id_)
        if meant not in self._by_id:
            near = difflib.get_close_matches(id_, self.ids[1:], _SHOWN, 0.5) or self.ids[1:4]
            named = ", ".join(f"#{one}" for one in near)
            raise ConfigError("no item with this id", expected=f"one like {named}", got=f"#{id_}")
        return self._by_id[meant]

    def _containing(self, wanted: str) -> list[int]:
        """Items whose title has the words one after the other, from the start of a word."""
        pattern = re.compile(rf"(^|\W){re.escape(wanted)}") if wanted else None
        names = self._by_title if pattern else {}
        return _together(names[name] for name in names if pattern and pattern.search(name))

    def _alike(self, wanted: str) -> list[int]:
        """The items whose title, with or without a year, differs by a slip of the finger.

        Numbers have to be the same: a part 3 that is not there is not part 2.
        """
        near: list[int] = []
        for names, text in ((self._by_name, _bare(wanted)), (self._by_title, wanted)):
            same = [name for name in names if _numbers(name) == _numbers(text)]
            for name in difflib.get_close_matches(text, same, 2, _NEAR):
                near += names[name]
        return sorted(set(near))

    def _unclear(self, text: str, found: list[int]) -> ConfigError:
        if not found:
            near = difflib.get_close_matches(_bare(text), self._by_name, _SHOWN, 0.4)
            found = _together(self._by_name[name] for name in near)
            what = "no such title"
        else:
            what = f"{len(found)} titles fit"
        named = "; ".join(f"{self.titles[i]} (#{self.ids[i]})" for i in found[:_SHOWN])
        todo = f"one of: {named}" if named else "see the titles in items.csv of the dataset"
        more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        return ConfigError(what, where="--history", got=ascii(text), todo=todo + more)

    def _grouped(self, key: Callable[[str], str]) -> dict[str, list[int]]:
        groups = defaultdict(list)
        for index, title in enumerate(self.titles):
            if index:
                groups[key(title)].append(index)
        return dict(groups)


def row_of_user(dataset: Dataset, user: str) -> int:
    """The row of a user by the id that it has in the source. ``ConfigError`` if there is none."""
    import pandas as pd

    from client_app.data.columns import id_text

    path = dataset.folder / "arrays" / "user_ids.parquet"
    try:
        ids = pd.read_parquet(path).iloc[:, 0].astype(str).tolist()
    except (OSError, ValueError) as error:
        raise DataError("the users' ids cannot be read", where=str(path), got=str(error)) from error
    meant = user if user in ids else id_text(user)
    if meant not in ids:
        near = difflib.get_close_matches(user, ids, _SHOWN, 0.5) or ids[:3]
        raise ConfigError(
            "no such user",
            where=f"--user, {len(ids)} users of {dataset.folder}",
            expected=f"one like {', '.join(near)}",
            got=ascii(user),
        )
    return ids.index(meant)


def _together(groups: Iterable[list[int]]) -> list[int]:
    return sorted({index for group in groups for index in group})


def _folded(title: str) -> str:
    """A title's words, without case, accents and punctuation."""
    letters = unicodedata.normalize(
        "NFKD", re.sub("['\N{RIGHT SINGLE QUOTATION MARK}]", "", title.casefold())
    )
    return " ".join(re.findall(r"\w+", "".join(c for c in letters if not unicodedata.combining(c))))


def _bare(title: str) -> str:
    """The words without a year at the end, and without an article at the start or the end."""
    return _ARTICLE.sub("", _folded(_YEAR.sub("", title)))


def _numbers(title: str) -> list[str]:
    return re.findall(r"\d+", title)

"""A person's words about a run: a note and tags, in a file of their own beside the manifest.

The manifest is the run's own word, sealed, and perhaps being written: nobody else writes there.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from feddmmr.output_file import write_output
from shared_model.errors import ConfigError, ManifestError

FILE = "note.json"
_LONGEST, _LONGEST_TAG = 2000, 40  # letters


@dataclass(frozen=True)
class Note:
    """What somebody wrote about a run; empty if nobody did."""

    text: str = ""
    tags: tuple[str, ...] = ()

    @property
    def line(self) -> str:
        """Tags and text in one line, or nothing."""
        marked = " ".join(f"#{tag}" for tag in self.tags)
        return " ".join(filter(None, (marked, " ".join(self.text.split()))))


def read_note(folder: Path) -> Note:
    """The note of the run in ``folder``. ``ManifestError`` if there is one that cannot be read."""
    path = folder / FILE
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return _checked(found["note"], found["tags"])
    except FileNotFoundError:
        return Note()
    except (OSError, ValueError, KeyError, TypeError, ConfigError) as error:
        raise ManifestError(
            "unreadable note of a run",
            where=str(path),
            expected='{"note": "...", "tags": ["..."]}',
            got=str(error),
            todo="mend the file or delete it",
        ) from error


def write_note(folder: Path, text: str | None, tags: Sequence[str] | None) -> Note:
    """Write the note of the run in ``folder`` and return it; ``None`` leaves that part as it was.

    ``ConfigError`` for words that are too long, or a tag that is no word.
    """
    old = read_note(folder)
    note = _checked(old.text if text is None else text, old.tags if tags is None else tags)
    write_output(
        folder / FILE,
        json.dumps({"note": note.text, "tags": note.tags}, indent=1, ensure_ascii=False) + "\n",
    )
    return note


def _checked(text: str, tags: Sequence[str]) -> Note:
    if not isinstance(text, str) or not isinstance(tags, list | tuple):
        raise ConfigError("not a note", expected="a text, and a list of tags")
    if len(text) > _LONGEST or not text.replace("\n", " ").isprintable():
        raise ConfigError("not a note", expected=f"{_LONGEST} printable letters at most")
    for tag in tags:
        if not (isinstance(tag, str) and 0 < len(tag) <= _LONGEST_TAG and _is_word(tag)):
            expected = f"a word of at most {_LONGEST_TAG} letters, digits, '-', '_', '.'"
            raise ConfigError("not a tag", expected=expected, got=ascii(tag))
    return Note(text, tuple(dict.fromkeys(tags)))


def _is_word(tag: str) -> bool:
    return all(letter.isalnum() or letter in "-_." for letter in tag)

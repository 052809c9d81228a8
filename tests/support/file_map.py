"""The file map of docs/architecture.md, from the first line of every file's docstring.

uv run python -m tests.support.file_map      # writes it anew
"""

import ast
from pathlib import Path

from tests.support.paths import ROOT

PACKAGES = ("client_app", "server_app", "shared_model", "feddmmr", "benchmarks")
PAGE = ROOT / "docs" / "architecture.md"
_BEGIN, _END = "<!-- file map -->\n", "<!-- end of the file map -->\n"


def sources() -> list[Path]:
    """Every Python file that ships, and the benchmarks: room by room."""
    files = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    return sorted(files, key=_place)


def file_map() -> str:
    """A table a room, with what each of its files is for."""
    lines: list[str] = []
    for path in sources():
        where, told = path.relative_to(ROOT), _first_line(path)
        if path.name == "__init__.py":
            lines += [
                f"\n### {where.parent.as_posix()}/\n",
                f"{told}\n",
                "| file | what |",
                "|---|---|",
            ]
        else:
            lines.append(f"| `{where.name}` | {told} |")
    return "\n".join(lines).lstrip("\n") + "\n"


def with_map(page: str) -> str:
    """The page with the map as it is now."""
    before, rest = page.split(_BEGIN)
    return before + _BEGIN + file_map() + _END + rest.split(_END)[1]


def _place(path: Path) -> tuple[int, str, bool, str]:
    """By package and room, where a room's own line comes first."""
    package, room = path.relative_to(ROOT).parts[0], path.parent.as_posix()
    return PACKAGES.index(package), room, path.name != "__init__.py", path.name


def _first_line(path: Path) -> str:
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return docstring.partition("\n")[0].replace("|", r"\|")


if __name__ == "__main__":
    PAGE.write_text(with_map(PAGE.read_text(encoding="utf-8")), encoding="utf-8")

"""What of an app's folder goes into its bundle, apart from the rest of that folder.

Flower resolves every file below the folder before it asks which ones it wants: of an environment
beside the app (`.venv`) that is 65,000, and seconds of each start.
"""

import shutil
import tomllib
from pathlib import Path

_FLOWERS = ("pyproject.toml", ".gitignore")  # which it reads besides
_LEFT_OUT = shutil.ignore_patterns("__pycache__")


def staged(app: Path, folder: Path) -> Path:
    """A copy in a new folder of what the app's ``fab-include`` names, from which Flower makes the
    same bundle; the app's own folder where that does not name whole folders and files of it."""
    names = _named(app)
    if not names:
        return app
    folder.mkdir()
    for name in dict.fromkeys([*names, *_FLOWERS]):
        if (app / name).is_dir():
            shutil.copytree(app / name, folder / name, ignore=_LEFT_OUT)
        elif (app / name).exists():
            shutil.copy2(app / name, folder / name)
    return folder


def _named(app: Path) -> list[str]:
    """The folders and files of the app's root that alone are bundled; none if that is not sure."""
    try:
        told = tomllib.loads((app / "pyproject.toml").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []  # Flower says what is wrong with it
    rules = told.get("tool", {}).get("flwr", {}).get("app", {})
    patterns = rules.get("fab-include")
    if not isinstance(patterns, list) or "fab-exclude" in rules:
        return []
    names = [str(pattern).removesuffix("/**").removeprefix("/") for pattern in patterns]
    roots = {path.name for path in app.iterdir()}
    return names if roots.issuperset(names) else []

"""Print the dependencies of a pyproject.toml for pip: the Flower that was tried, without Ray."""

import sys
import tomllib
from pathlib import Path

document = tomllib.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
flower = f"flwr=={document['tool']['flwr']['app']['flwr-version-target']}"
for dependency in document["project"]["dependencies"]:
    print(flower if dependency.startswith("flwr[") else dependency)

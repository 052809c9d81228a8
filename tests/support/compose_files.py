"""The project's Compose files."""

import shutil
import subprocess

COMPOSE = next(
    (
        command
        for command in (["docker", "compose"], ["docker-compose"])
        if shutil.which(command[0])
        and subprocess.run([*command, "version"], capture_output=True, check=False).returncode == 0
    ),
    None,
)

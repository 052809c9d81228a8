"""The file that a command was asked for: whole, or as it was."""

from pathlib import Path

from shared_model.files import write_whole


def write_output(path: Path, content: str | bytes) -> None:
    """Write bytes, or a text in UTF-8; ``DataError`` if the disk is full, say.

    A link or a device, such as /dev/stdout, is written to as it is: a rename would replace it.
    """
    from feddmmr.features.output import disk_faults  # pandas comes with it

    given = content.encode() if isinstance(content, str) else content
    with disk_faults(path):
        if path.is_symlink() or (path.exists() and not path.is_file()):
            path.write_bytes(given)
        else:
            write_whole(path, given, rivals=True)

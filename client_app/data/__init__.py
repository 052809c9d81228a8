"""The data of a node: datasets on disk, opened and made."""

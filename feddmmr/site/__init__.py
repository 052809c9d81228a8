"""A site's ClientApps in one resident worker, instead of a new Python for each message."""

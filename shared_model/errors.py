"""One tree of errors. Each says what, where, expected, got, and what to do."""


class FedDMMRError(Exception):
    """Root of every error that data, configuration, disk or a peer can cause.

    The message is one line, so that it survives logs, Ray and exit codes whole; what a terminal
    would obey instead of showing it, from a file or a peer, is written as an escape.
    """

    def __init__(
        self, what: str, *, where: str = "", expected: str = "", got: str = "", todo: str = ""
    ) -> None:
        self.what, self.expected = what, expected
        labelled = [("where: ", where), ("expected ", expected), ("got ", got), ("do: ", todo)]
        parts = [what] + [label + text for label, text in labelled if text]
        line = " ".join("; ".join(parts).split())
        super().__init__("".join(c if c.isprintable() else ascii(c)[1:-1] for c in line))


class ConfigError(FedDMMRError):
    """A run-config or node-config key that is unknown, of a wrong type, or out of range."""


class DataError(FedDMMRError):
    """A dataset that is missing, unreadable, inconsistent or changed."""


class DataWarning(UserWarning):
    """Data that are taken, but say less than they seem to; the message is one line."""


class ModelError(FedDMMRError):
    """Arrays that do not fit the parameter groups: missing, unexpected or misshapen names."""


class ManifestError(FedDMMRError):
    """A manifest or checkpoint that is missing, damaged or out of order."""


class NodeError(FedDMMRError):
    """A node that is missing, refuses the round plan, or answers what cannot be used."""


class WorkerError(FedDMMRError):
    """A worker process of the simulation died; its pool cannot be used any more."""


class RoundError(FedDMMRError):
    """A round that too few nodes completed."""

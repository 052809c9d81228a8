"""A node as a site of secure aggregation: its identity, and its session's file.

In a real deployment a message can be a new process, so what a session is lies on the disk, for its
owner alone. A mask's number is written down before the mask is used: a process that is killed in
between has lost the round, and no mask serves twice.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from shared_model.errors import ConfigError, NodeError
from shared_model.files import write_whole
from shared_model.protocol.gaussian import derive, keep_secret
from shared_model.protocol.masked_update import SiteNoise, packed
from shared_model.protocol.plan import LocalUpdate, RoundPlan
from shared_model.protocol.secure_messages import SecureRequest
from shared_model.secure import site
from shared_model.secure.identity import Identity, SignedKey, drawn_identity, read_identity
from shared_model.secure.noise import share_of
from shared_model.secure.site import Masked, Session


@dataclass(frozen=True)
class Promise:
    """The noise on a run's sums, as the run's settings have it; a server's word is not taken."""

    clip_norm: float
    std: float  # on the sum of as many sites as the threshold
    secret: Path  # of the site


@dataclass(frozen=True)
class SecureSite:
    """What a node needs to take part in one run's sums."""

    name: str
    path: Path  # of the session's file
    files: tuple[Path, Path] | None  # of the identity: own key, pinned sites
    simulated: bool  # a partition, whose others are processes of the same owner
    only: bool  # its owner lets nothing bare leave, and does not take the server at its word
    self_masked: bool  # as the run's settings have it
    promise: Promise | None = None  # of noise that sites add; None = no site adds any

    def draw(self, session: str) -> SignedKey:
        """This site's key of a new session, in place of any old one."""
        before = self._session() if self.path.exists() else None
        key, drawn = site.begin(session, self._identity(), before)
        self._keep(drawn)
        return key

    def mask(self, update: LocalUpdate, plan: RoundPlan, request: SecureRequest) -> Masked:
        """The update as integers under this site's masks."""
        use = request.use
        if self.only and not use.self_masked:
            raise NodeError(
                "this site takes no server at its word",
                where=f"{self.name}, node-config key 'secure-only'",
                expected="secure-against='lying'",
                got="curious",
            )
        if use.round != plan.round or use.self_masked != self.self_masked:
            raise NodeError(
                "the masks that are asked for are not those of the run",
                where=f"{self.name}, run-config key 'secure-against'",
                expected=f"round {plan.round}, own masks: {self.self_masked}",
                got=f"round {use.round}, own masks: {use.self_masked}",
            )
        words = packed(update, plan.clip_norm, request.scale, self._noise(plan, request))
        session, identity = self._session(), self._identity()
        masked, after = site.mask(session, identity, use, request.keys, words)
        self._keep(after)
        return masked

    def reveal(
        self, request: SecureRequest, lost: list[str], envelopes: Mapping[str, bytes]
    ) -> dict[str, bytes]:
        """This site's shares of the use that it masked last."""
        session, identity = self._session(), self._identity()
        shares, after = site.reveal(session, identity, request.use, request.keys, lost, envelopes)
        self._keep(after)
        return shares

    def forget(self, session: str) -> None:
        """Delete what is known of a session, and what a killed process left beside it."""
        if self.path.exists() and self._session().name == session:
            for path in (*self.path.parent.glob(f"{self.path.name}.*.tmp"), self.path):
                path.unlink(missing_ok=True)

    def _noise(self, plan: RoundPlan, request: SecureRequest) -> SiteNoise | None:
        """This site's share of the round's noise, by a secret of its own."""
        promise = self.promise
        if promise is None:
            return None
        if plan.clip_norm != promise.clip_norm:
            raise NodeError(
                "the round's users are clipped to another norm than its noise is for",
                where=f"{self.name}, run-config key 'dp-clip-norm'",
                expected=f"{promise.clip_norm:g}",
                got=f"{plan.clip_norm:g}",
            )
        share = share_of(promise.std, request.scale, request.use.threshold)
        key = derive(keep_secret(promise.secret), "secure", plan.draw, repr(request.scale))
        return SiteNoise(share, key)

    def _identity(self) -> Identity:
        if self.files is not None:
            return read_identity(self.name, *self.files)
        if not self.simulated:
            raise ConfigError(
                "the site does not know the keys of the others, which the server could replace",
                where=f"{self.name}, node-config",
                expected="secure-key and secure-sites",
                got="neither",
                todo="make the files as docs/security.md says, and name them in --node-config",
            )
        return drawn_identity(self.name)

    def _session(self) -> Session:
        try:
            given = json.loads(self.path.read_text("ascii"))
            return Session(**given | {"private": bytes.fromhex(given["private"])})
        except FileNotFoundError:
            raise NodeError("this site has no key of the session", where=self.name) from None
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise NodeError(
                "unreadable session", where=str(self.path), got=str(error), todo="delete the file"
            ) from error

    def _keep(self, session: Session) -> None:
        fields = asdict(session) | {"private": session.private.hex()}
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_whole(self.path, json.dumps(fields).encode(), mode=0o600, rivals=True)
        except OSError as error:
            raise NodeError(
                "cannot keep a session", where=str(self.path), got=str(error)
            ) from error


def session_path(home: Path, name: str, run: str) -> Path:
    """Where a site of that name keeps its session of a run: two runs at once are apart."""
    digest = hashlib.sha256(f"{name}\0{run}".encode()).hexdigest()[:24]
    return home / "secure" / f"{digest}.json"


def identity_files(name: str, node_config: Mapping[str, object]) -> tuple[Path, Path] | None:
    """The files of a node's identity. ``ConfigError`` for a key without pinned sites, or these
    without a key; or for a ``secure-only`` that is neither true nor false."""
    if type(node_config.get("secure-only", False)) is not bool:
        raise ConfigError(
            "neither true nor false",
            where=f"{name}, node-config key 'secure-only'",
            got=ascii(node_config["secure-only"]),
        )
    named = [str(node_config[key]) for key in ("secure-key", "secure-sites") if key in node_config]
    if len(named) == 1:
        raise ConfigError(
            "an identity is both: a key, and the sites that are pinned",
            where=f"{name}, node-config",
            expected="secure-key and secure-sites",
            got=named[0],
        )
    return (Path(named[0]), Path(named[1])) if named else None

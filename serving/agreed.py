"""What keeper and members tell each other: the agreed choice, orders, reports. Plain records, which travel."""

from enum import StrEnum
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from serving.rule import Rule, Verdict


class KeeperLost(Exception):
    """The keeper cannot be asked now."""


class KeeperSilent(KeeperLost):
    """It did not answer in time: it may be there, and this replica may have been stopped meanwhile."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, protected_namespaces=())


class Wish(_Record):
    """What the configuration asks for: `args.model`, or the `user_config` in its place."""

    model: str  # bundle folder or registry, absolute
    threshold: float | None = None


class Chosen(_Record):
    """One exact bundle: a version's folder, never a registry."""

    uri: str
    sha256: str  # its identity, with this threshold
    name: str
    version: str
    threshold: float | None = None  # instead of the bundle's own


class CandidateWish(_Record):
    """A model on trial beside the one that answers, as the configuration asks for it."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    model: str = Field(min_length=1, description="bundle folder or registry, local path or s3:// URI")
    threshold: float | None = Field(None, ge=0, le=1, description="instead of the bundle's own")
    share: float = Field(0.0, ge=0, le=1, description="of requests that it answers; 0: none, it is only compared")
    cores: float = Field(
        0.25,
        gt=0,
        le=1,
        description="of a processor, in each replica, that comparisons may take; others are dropped",
    )
    rule: Rule | None = Field(None, description="by which it is promoted or dropped; none: people do it")


class Trial(_Record):
    """One candidate beside one agreed model, from one time on."""

    id: str  # begins with that of the candidate, and ends with when it began
    chosen: Chosen
    against: str  # sha256 of the model that answers
    wish: CandidateWish
    since: str  # ISO 8601, UTC
    is_running: bool = False  # every replica has the candidate
    revision: int = 0  # of the trials when it was last changed: of two that differ the newer has more
    counted_in: str = ""  # which life of the counts' actor its counts are in; empty: not known yet

    @property
    def stage(self) -> Literal["loading", "shadow", "canary"]:
        if not self.is_running:
            return "loading"
        return "canary" if self.wish.share else "shadow"


class Ended(_Record):
    """How a trial ended, and what it rests on."""

    trial: str
    version: str
    sha256: str
    decision: Literal["promoted", "dropped"]
    by: Literal["rule", "administrator", "configuration", "replica"]
    reason: str
    at: str  # ISO 8601, UTC
    rule: Rule | None = None
    verdict: Verdict | None = None


class Trials(_Record):
    """All that is agreed of candidates. Members hold it too, for a keeper that was lost."""

    revision: int = 0  # rises with every change
    asked: CandidateWish | None = None
    is_dealt_with: bool = True  # what is asked for began, or ended: it does not begin again by itself
    current: Trial | None = None
    refused: str | None = None  # why what is asked for does not begin, or is not taken though its rule is met
    last: Ended | None = None


class Agreed(_Record):
    """What every replica answers with. Members hold it too, so that a keeper that was lost learns it from them."""

    generation: int  # 1 for the first, one more with every change
    chosen: Chosen
    before: Chosen | None = None  # what a rollback goes to
    cause: str = "configuration"  # or best.json, reload, rollback, promotion
    since: str = ""  # ISO 8601, UTC
    asked: Wish | str | None = None  # the configuration last considered; a text: what is wrong with it
    best_json: str = ""  # URI of the pointer that is followed; empty: the configuration names a bundle
    pointer: str = ""  # digest of its content when last considered


class Follows(_Record):
    """The pointer of a registry that the service follows."""

    uri: str
    every_s: float
    looked_at: str | None = None  # when it was last read, ISO 8601, UTC
    error: str | None = None  # why it could not be read when last tried


class Order(StrEnum):
    """What a member is to do next."""

    STAY = "stay"
    WAIT = "wait"  # a change is going on that began before this member was there
    PREPARE = "prepare"  # load the model beside the current one
    HOLD = "hold"  # let new requests wait
    RELEASE = "release"  # the change does not happen now: let them go on
    TAKE = "take"  # answer with the agreed model from now on
    GIVE = "give"  # the keeper lost the files: hand yours over


class News(_Record):
    """The keeper's answer to a report."""

    order: Order
    generation: int  # that the order is about
    agreed: Agreed | None = None
    refused: str | None = None  # why the model last asked for was not taken
    follows: Follows | None = None
    told: int = 0  # rises whenever `refused` or `follows` changes
    trials: Trials = Trials()


class Report(_Record):
    """What a member says of itself."""

    generation: int = 0  # that it answers with; 0: none yet
    preparing: int = 0  # generations; 0: none
    prepared: int = 0
    failed: int = 0
    reason: str = ""  # why that one could not be prepared
    is_holding: bool = False
    told: int = 0
    agreed: Agreed | None = None
    trials: Trials = Trials()
    trial_ready: str = ""  # ids
    trial_failed: str = ""
    trial_reason: str = ""  # why that candidate could not be loaded


class Joined(_Record):
    """Answer to a wish: what is agreed now (None: nothing, and this service cannot start), and what was refused."""

    agreed: Agreed | None
    refused: str | None


class Outcome(_Record):
    """What an order of an administrator did."""

    has_changed: bool
    refused: str | None
    agreed: Agreed

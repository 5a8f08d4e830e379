"""What keeper and members tell each other: the agreed choice, orders, reports. Plain records, which travel."""

from enum import StrEnum

from pydantic import BaseModel, ConfigDict


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


class Agreed(_Record):
    """What every replica answers with. Members hold it too, so that a keeper that was lost learns it from them."""

    generation: int  # 1 for the first, one more with every change
    chosen: Chosen
    before: Chosen | None = None  # what a rollback goes to
    cause: str = "configuration"  # or best.json, reload, rollback
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


class Joined(_Record):
    """Answer to a wish: what is agreed now (None: nothing, and this service cannot start), and what was refused."""

    agreed: Agreed | None
    refused: str | None


class Outcome(_Record):
    """What an order of an administrator did."""

    has_changed: bool
    refused: str | None
    agreed: Agreed

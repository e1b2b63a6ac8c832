"""Values marked as Secret, in parameters and in fields of their types: the paths that a signature says."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Generic,
    Literal,
    NamedTuple,
    NewType,
    NotRequired,
    TypedDict,
    TypeVar,
    Unpack,
)

import msgspec
import pytest

from workerd import Context, Secret
from workerd.pool.arguments import Arguments
from workerd.pool.secret_paths import secret_paths
from workerd.redaction import REDACTED
from workerd.signature import parse, redaction_of

if TYPE_CHECKING:
    from collections.abc import Nowhere

T = TypeVar("T")
Pin = NewType("Pin", Annotated[str, Secret])  # type: ignore[valid-newtype]


class Card(msgspec.Struct):
    number: Annotated[str, Secret] = "4111"
    owner: str = ""


class Renamed(msgspec.Struct, rename="camel"):
    card_number: Annotated[str, Secret]


class InArray(msgspec.Struct, array_like=True, tag=True):
    owner: str
    number: Annotated[str, Secret]


@dataclass
class Login:
    user: str
    password: Annotated[str, Secret] | None = None
    cards: list[Card] = field(default_factory=list)


class Options(TypedDict):
    token: NotRequired[Annotated[str, Secret()]]
    level: int


class Place(NamedTuple):
    name: str
    code: Annotated[int, Secret]


class Box(msgspec.Struct, Generic[T]):
    items: list[T]


class Tree(msgspec.Struct):
    pin: Pin
    left: Tree | None = None
    children: list[Tree] = []


class Unresolved(msgspec.Struct):
    nowhere: Nowhere
    password: Annotated[str, Secret]
    other: Annotated[Nowhere, Secret]


def _deep() -> Any:
    found: Any = Card
    for level in range(12):
        found = msgspec.defstruct(f"Level{level}", [("below", found)])
    return found


def _wide() -> Any:
    return msgspec.defstruct("Wide", [(f"f{n}", Card) for n in range(101)])


@pytest.mark.parametrize(
    ("annotation", "paths"),
    [
        (Annotated[str, Secret], ["it"]),
        (list[Annotated[str, Secret]], ["it"]),
        (Pin, ["it"]),
        (Card, ["it.number"]),
        (Card | None, ["it.number"]),
        (Annotated[Card, "anything"], ["it.number"]),
        (list[Card], ["it.*.number"]),
        (Sequence[Card], ["it.*.number"]),
        (tuple[Card, ...], ["it.*.number"]),
        (dict[str, Card], ["it.*.number"]),
        (Mapping[str, list[Card]], ["it.*.*.number"]),
        (Renamed, ["it.cardNumber"]),
        (InArray, ["it.2"]),
        (Login, ["it.password", "it.cards.*.number"]),
        (Options, ["it.token"]),
        (Place, ["it.1"]),
        (Box[Card], ["it.items.*.number"]),
        (Box[Box[Login]], ["it.items.*.items.*.password", "it.items.*.items.*.cards.*.number"]),
        (Box[Annotated[str, Secret]], ["it.items"]),
        (Box[int], []),
        (Tree, ["it.pin", "it.left", "it.children.*"]),
        (Unresolved, ["it.password", "it.other"]),
        (TypedDict("Named", {"a.b": Annotated[str, Secret], "": Card}), ["it.*", "it.*.number"]),
        (_deep(), ["it" + ".below" * 8]),
        (_wide(), ["it"]),
        (Literal["Secret"], []),
        (dict[str, Any], []),
    ],
)
def test_a_mark_is_found_wherever_it_is(annotation: Any, paths: list[str]) -> None:
    """A type that names itself, is deep or wide is hidden as a whole from some level on."""

    def target(ctx: Context, it: Any, other: int = 1) -> None: ...

    target.__annotations__["it"] = annotation
    signature = parse(Arguments(target).signature or b"")
    assert signature is not None
    assert list(signature.redact) == paths


def paths_of(target: Callable[..., Any]) -> list[str]:
    signature = parse(Arguments(target).signature or b"")
    assert signature is not None
    return list(signature.redact)


def test_other_names_are_hidden_if_those_are_marked() -> None:
    """Of `**others` any name may be given, so that all of vars is hidden."""

    def marked(ctx: Context, a: int, **others: Annotated[str, Secret]) -> None: ...

    def cards(**others: Card) -> None: ...

    def unpacked(**others: Unpack[Options]) -> None: ...

    def plain(**others: Any) -> None: ...

    assert paths_of(marked) == ["*"]
    assert paths_of(cards) == ["*.number"]
    assert paths_of(unpacked) == ["token"]
    assert paths_of(plain) == []
    assert paths_of(functools.partial(marked, a=1)) == ["*"]


def test_no_default_tells_a_secret() -> None:
    """That of a parameter with marked fields is not published."""

    def target(card: Card = Card("4111222233334444")) -> None: ...  # noqa: B008

    data = Arguments(target).signature or b""
    assert b"4111222233334444" not in data
    shown = redaction_of(data).shown({"card": {"number": "4111222233334444", "owner": "Ann"}})
    assert shown == {"card": {"number": REDACTED, "owner": "Ann"}}


def test_a_type_whose_inspection_raises_is_hidden() -> None:
    """Nobody knows what is in it."""

    class Meta(type):
        def __getattr__(cls, name: str) -> Any:
            if name == "__attrs_attrs__":
                raise RuntimeError
            raise AttributeError(name)

    class Odd(metaclass=Meta):
        pass

    assert secret_paths("it", dict[str, Odd]) == ("it",)

"""Which models there are, and whose engines answer a request: by the ``model`` field, announced names and aliases. No I/O."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from andes_api.errors import ApiError

__all__ = ["ANY", "ModelCatalog", "ModelRoute", "Offer", "no_adapters", "no_model", "read_offers"]

ANY = "*"
"""The alias of every name that is no model."""
_UNNAMED = (None, "", "default")
"""What a request says that names no model; ``default`` is SGLang's own word for it."""
MAX_NAMES_SHOWN = 50


@dataclass(frozen=True, slots=True)
class ModelRoute:
    """What a request's ``model`` means. model: whose engines answer; None: what no engine has announced, which only those
    answer that announce nothing. adapter: LoRA adapter on it."""

    model: str | None = None
    adapter: str | None = None


@dataclass(frozen=True, slots=True)
class Offer:
    """What one engine has of one model. engine_name: what the engine calls it; cards: the entries of ``/v1/models`` for the
    model and for each adapter on it, by name."""

    engine_name: str
    cards: Mapping[str, Mapping[str, Any]]

    def has(self, route: ModelRoute) -> bool:
        return route.adapter is None or route.adapter in self.cards

    def name_of(self, route: ModelRoute) -> str:
        """What to ask the engine for."""
        return self.engine_name if route.adapter is None else f"{self.engine_name}:{route.adapter}"  # SGLang's syntax


def read_offers(answer: Any, configured: str | None = None) -> dict[str, Offer]:
    """What an answer of ``/v1/models`` offers, by model. configured: what its model is called here, whatever the engine
    calls it. Raises ``KeyError``, ``TypeError``, ``AttributeError`` or ``ValueError`` where it is no such answer."""
    bases: dict[str, dict[str, Any]] = {}
    adapters: list[dict[str, Any]] = []
    for card in answer["data"]:
        if not isinstance(card["id"], str) or not card["id"]:
            raise ValueError(f"a model without a name: {str(card)[:200]}")
        if card.get("parent") is None:
            bases[card["id"]] = card
        else:
            adapters.append(card)
    if not bases:
        return {}
    first = next(iter(bases))
    names = {configured: first} if configured is not None else {name: name for name in bases}
    found: dict[str, Offer] = {}
    for model, engine_name in names.items():
        known = {model: {**bases[engine_name], "id": model}}
        for card in adapters:
            parent = card["parent"] if card["parent"] in bases else first
            if configured is not None or parent == model:
                known[card["id"]] = {**card, "parent": model}
        found[model] = Offer(engine_name, known)
    return found


class ModelCatalog:
    """All models that were announced or configured. aliases: other names, and the model that each stands for; those of
    ``configured`` are known before any engine has come. ladders: names that stand for several models, and the best of each.

    A model is remembered while no engine is there for it, so that requests are held for the first one to come.
    """

    def __init__(
        self,
        configured: Iterable[str] = (),
        aliases: Mapping[str, str] | None = None,
        ladders: Mapping[str, str] | None = None,
    ) -> None:
        self._aliases, self._ladders = dict(aliases or {}), dict(ladders or {})
        self._cards: dict[str, Mapping[str, Mapping[str, Any]]] = {name: {} for name in configured}
        self._configured = tuple(self._cards)

    @property
    def models(self) -> list[str]:
        """Without adapters and aliases: the configured ones, then by name."""
        return [*self._configured, *sorted(self._cards.keys() - {*self._configured})]

    def learn(self, model: str, offers: Iterable[Offer]) -> None:
        """``offers``: of ``model``, of all engines that have it now."""
        cards: dict[str, Mapping[str, Any]] = {}
        for offer in offers:
            cards = {**offer.cards, **cards}
        self._cards[model] = cards

    def forget(self, model: str) -> None:
        """The engine that announced ``model`` announces another one instead, and no other engine has it."""
        if model not in self._configured:
            self._cards.pop(model, None)

    def resolve(self, asked: Any, *, incomplete: bool = False) -> ModelRoute:
        """What the ``model`` of a request means. incomplete: an engine may still announce more. Raises a 404 with the list
        for a name that is none, a 400 where a name is needed."""
        if asked is not None and not isinstance(asked, str):
            raise ApiError(
                400, f"model: expected a name; got {str(asked)[:100]!r}", param="model", reason="model", retry=False
            )
        name = self._named(asked)
        if name in self._ladders:
            return ModelRoute(self._ladders[name])
        if name is None and len(self._cards) == 1:
            return ModelRoute(next(iter(self._cards)))
        if name is not None and (found := self._find(name)):
            return found
        if incomplete or not self._cards:
            return ModelRoute()
        if name is None:
            raise ApiError(
                400, f"model: this gateway serves several, name one of: {_listed(self.names())}", param="model",
                reason="model", retry=False,
            )  # fmt: skip
        raise no_model(name, self.names())

    def name_adapter(self, body: dict[str, Any]) -> None:
        """Make an adapter that a request names as SGLang's ``lora_path`` part of its ``model``, by which engines are chosen.
        Raises a 400 where it cannot be told which is meant, a 404 where the model has none of that name."""
        adapter, asked = body.pop("lora_path", None), body.get("model")
        if adapter is None or not isinstance(asked, str | None):
            return
        if not isinstance(adapter, str) or not adapter:
            raise _wrong_adapter(f"expected the name of one adapter; got {str(adapter)[:100]!r}")
        name = self._named(asked)
        if name is None:
            if len(self._cards) != 1:
                raise _wrong_adapter("name the model as well")
            name = next(iter(self._cards))
        said = self._find(name)
        if said is not None and said.adapter is not None:
            if said.adapter != adapter:
                raise _wrong_adapter(f"{adapter[:100]!r}, but model names adapter {said.adapter!r}")
            body["model"] = name
            return
        body["model"] = whole = f"{name}:{adapter}"
        if ANY in self._aliases and self._find(whole) is None:  # another model would answer
            raise no_model(whole, self.names())

    def ladder_of(self, asked: Any) -> str | None:
        """The ladder that the ``model`` of a request means; None where it means none."""
        name = self._named(asked) if asked is None or isinstance(asked, str) else None
        return name if name in self._ladders else None

    def _named(self, asked: str | None) -> str | None:
        """The name asked for, or the one that stands for it; None where there is none."""
        if asked in self._cards or asked in self._ladders:
            return asked
        if asked in _UNNAMED:
            return self._aliases.get(asked or "", self._aliases.get(ANY))
        if self._find(asked):
            return asked
        return self._aliases.get(asked, self._aliases.get(ANY, asked))

    def _find(self, name: str) -> ModelRoute | None:
        """A model, an adapter, or ``MODEL:ADAPTER``."""
        if name in self._cards:
            return ModelRoute(name)
        for model, cards in self._cards.items():
            if name in cards:
                return ModelRoute(model, name)
            if name.startswith(f"{model}:") and (adapter := name[len(model) + 1 :]) in cards and adapter != model:
                return ModelRoute(model, adapter)
        return None

    def names(self) -> list[str]:
        """Everything that can be asked for by name: models, adapters, aliases."""
        return [card["id"] for card in self.cards()]

    def cards(self) -> list[Mapping[str, Any]]:
        """As in ``/v1/models``: every model as its engine announces it, then its adapters; then ladders and aliases."""
        cards: dict[str, Mapping[str, Any]] = {}
        for model in self.models:
            known = self._cards[model]
            cards.setdefault(model, known.get(model) or _card(model, model))
            for name, card in known.items():
                cards.setdefault(name, card)
        for ladder, best in self._ladders.items():
            cards.setdefault(ladder, _card(ladder, best))
        for alias, name in self._aliases.items():
            if alias != ANY and alias and (name in self._ladders or self._find(name)):
                cards.setdefault(alias, _card(alias, name))
        return list(cards.values())


def no_model(asked: Any, names: Sequence[str]) -> ApiError:
    """The answer to a request for a model that is not among ``names``."""
    return ApiError(
        404, f"model: no model {str(asked)[:100]!r} is served here; there are: {_listed(names)}", param="model",
        code="model_not_found", reason="model", retry=False,
    )  # fmt: skip


def _wrong_adapter(what: str) -> ApiError:
    return ApiError(400, f"lora_path: {what}", param="lora_path", reason="model", retry=False)


def no_adapters(path: str, route: ModelRoute) -> ApiError:
    """The answer to a request for an adapter where the engine would leave it out without a word."""
    return ApiError(
        400, f"model: SGLang has no LoRA adapters at {path}; ask for {route.model!r} itself", param="model",
        reason="model", retry=False,
    )  # fmt: skip


def _listed(names: Sequence[str]) -> str:
    more = len(names) - MAX_NAMES_SHOWN
    return ", ".join(names[:MAX_NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _card(name: str, root: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "andes", "root": root, "parent": None}

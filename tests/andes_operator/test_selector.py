"""Label selectors, as the API server writes and reads them."""

from __future__ import annotations

import pytest

from andes_operator.selector import SelectorError, matches

POD = {"app": "engine", "tier": "a", "app.kubernetes.io/name": "andes", "empty": ""}


@pytest.mark.parametrize(
    ("selector", "selected"),
    [
        ("app=engine", True), ("app==engine", True), ("app=gateway", False), ("app=engine,tier=b", False),
        ("app.kubernetes.io/name=andes,app=engine", True), ("tier in (a,b)", True), ("tier in (b, c)", False),
        ("tier notin (b,c),app=engine", True), ("tier notin (a)", False), ("zone notin (a)", True), ("zone!=x", True),
        ("app!=engine", False), ("app", True), ("zone", False), ("!zone", True), ("!app", False), ("empty=", True),
        ("zone=", False), ("", True), ("app=engine,tier in (a,b),zone!=x,!old,app", True), ("in in (in)", False),
        ("notin", False),
    ],
)  # fmt: skip
def test_what_a_selector_selects(selector: str, selected: bool) -> None:
    assert matches(selector, POD) is selected


@pytest.mark.parametrize("text", ["app=(x)", "a b", "=x", "tier in a", "tier in (a", ",", "app=engine,,tier=a"])
def test_what_is_no_selector_is_refused(text: str) -> None:
    with pytest.raises(SelectorError):
        matches(text, POD)

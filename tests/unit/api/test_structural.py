"""The converter from pydantic's JSON schema to a structural schema."""

from typing import Annotated

import pytest
from pydantic import Field

from equipoise_api.model import ApiModel
from equipoise_api.structural import list_map, rules, structural_schema


class Leaf(ApiModel):
    """A leaf."""

    size: Annotated[int, Field(gt=0, lt=10)] = 3
    """How
    large."""


class Tree(ApiModel):
    leaf: Leaf = Leaf()
    """The tree's leaf."""
    maybe: Leaf | None = None
    """Perhaps another."""
    leaves: Annotated[list[Leaf], Field(max_length=4), list_map("size")] = []
    large: Annotated[int, Field(le=2**40)] = 0
    guarded: Annotated[Leaf, rules(("self.size > 1", "too small", ".size"))]


def test_references_are_inlined_and_the_field_describes_itself():
    leaf = structural_schema(Tree)["properties"]["leaf"]
    assert leaf["type"] == "object"
    assert leaf["description"] == "The tree's leaf."
    assert leaf["properties"]["size"]["description"] == "How large."


def test_optional_becomes_the_type_itself_without_a_default():
    maybe = structural_schema(Tree)["properties"]["maybe"]
    assert maybe["type"] == "object"
    assert "default" not in maybe
    assert "anyOf" not in maybe


def test_exclusive_limits_become_inclusive_ones():
    size = structural_schema(Leaf)["properties"]["size"]
    assert (size["minimum"], size["maximum"]) == (1, 9)
    assert "exclusiveMinimum" not in size


def test_large_integers_say_int64():
    assert structural_schema(Tree)["properties"]["large"]["format"] == "int64"


def test_lists_keep_their_map_keys_and_rules_their_field_path():
    properties = structural_schema(Tree)["properties"]
    assert properties["leaves"]["x-kubernetes-list-map-keys"] == ["size"]
    assert properties["guarded"]["x-kubernetes-validations"][0]["fieldPath"] == ".size"


def test_defaults_are_written_out_and_empty_ones_left_out():
    properties = structural_schema(Tree)["properties"]
    assert properties["leaf"]["default"] == {"size": 3}
    assert "default" not in properties["leaves"]


def test_a_status_has_no_defaults():
    leaf = structural_schema(Tree, defaults=False)["properties"]["leaf"]
    assert "default" not in leaf
    assert "default" not in leaf["properties"]["size"]


class Union(ApiModel):
    either: int | str = 0


class Pair(ApiModel):
    outer: list[tuple[int, str]] = []


class Node(ApiModel):
    child: "Node | None" = None


@pytest.mark.parametrize(
    ("model", "want"),
    [
        (Union, r"either: a union of 2 types"),
        (Pair, r"outer\[\]: a tuple"),
        (Node, r"child.child: Node contains itself|child: Node contains itself"),
    ],
)
def test_what_has_no_structural_form_is_refused_with_its_path(model, want):
    with pytest.raises(ValueError, match=want):
        structural_schema(model)

"""The generator of random graphs: it must reach everything that kernels are tested on."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_models import integer_graphs, random_input, random_integer_graph

from intcert.compile.graph import IntegerGraph
from intcert.compile.nodes import NODE_KINDS, Clamp, Conv2d, LogitScale, RequantQ31
from intcert.compile.reference import activations


@pytest.mark.parametrize("scheme", ["q15", "q31"])
def test_everything_is_reached(scheme: str):
    graphs = [random_integer_graph(seed, scheme) for seed in range(120)]
    nodes = [node for graph in graphs for node in graph.nodes]
    convolutions = [node for node in nodes if isinstance(node, Conv2d)]
    clamps = [node.clamp for node in nodes if isinstance(getattr(node, "clamp", None), Clamp)]
    depthwise = [n for n in convolutions if n.weight.shape[3] == 1 and n.groups > 1]
    assert Counter(type(node).__name__ for node in nodes).keys() == NODE_KINDS.keys()
    assert {clamp.dtype for clamp in clamps} == {"int8", "uint8"}
    assert any(clamp.hi < 127 for clamp in clamps)
    assert depthwise
    assert any(n.groups > 1 and n not in depthwise for n in convolutions)
    assert any(max(n.stride) > 1 for n in convolutions)
    assert any(max(n.dilation) > 1 for n in convolutions)
    assert any(n.padding[:2] != n.padding[2:] for n in convolutions)
    assert any(n.pad_value for n in convolutions)
    assert any((n.weight == -128).any() for n in convolutions)
    assert any(not n.weight.reshape(len(n.weight), -1).any(1).all() for n in convolutions)
    assert {len(n.terms) for n in convolutions} == {0, 1, 2, 3}
    assert any(isinstance(n.requant, LogitScale) for n in convolutions)
    assert {
        isinstance(graph.nodes[-1].requant, LogitScale) for graph in graphs if hasattr(graph.nodes[-1], "requant")
    } == {
        True,
        False,
    }
    if scheme == "q31":
        assert any((n.requant.multiplier < 0).any() for n in convolutions if isinstance(n.requant, RequantQ31))
    else:
        assert any(0 in n.requant.shift for n in convolutions if not isinstance(n.requant, LogitScale))


@pytest.mark.parametrize("scheme", ["q15", "q31"])
def test_activations_spread_over_their_range(scheme: str):
    inside = []
    for seed in range(60):
        graph = random_integer_graph(seed, scheme)
        for node, value in zip(graph.nodes, activations(graph, random_input(graph, 2, seed)), strict=True):
            if getattr(node, "clamp", None) is not None:
                inside.append(np.mean((value > node.clamp.lo) & (value < node.clamp.hi)))
    assert np.mean(inside) > 0.3


@given(integer_graphs(), st.integers(0, 2**32 - 1))
@settings(max_examples=50, deadline=None)
def test_graphs_are_valid_and_execute_within_their_ranges(graph: IntegerGraph, seed: int):
    assert IntegerGraph.from_bytes(graph.to_bytes()).digest == graph.digest
    for info, value in zip(graph.info, activations(graph, random_input(graph, 2, seed)), strict=True):
        assert value.shape == (2, *info.shape)
        assert value.dtype.name == info.dtype
        assert info.range[0] <= value.min()
        assert value.max() <= info.range[1]


def test_a_seed_names_one_graph():
    assert random_integer_graph(5, "q15").digest == random_integer_graph(5, "q15").digest
    assert random_integer_graph(5, "q15").digest != random_integer_graph(6, "q15").digest

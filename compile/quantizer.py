"""A PT2E quantizer whose models need integers only between the input and the logits.

``IntegerQuantizer`` decides which tensors of an exported graph become 8-bit integers; torchao does the rest
(Krishnamoorthi 2018 describes the training scheme). Every *value* is quantized once, where it is produced:

- the normalised input, int8: the float normalisation in front of it stays in the program, for the importer to fold;
- the end of each group of a head (convolution, linear, addition, average pooling), batch normalisation and clamp.

Weights are int8 in -127..127, symmetric per output channel. Activations are uint8 where they are proven non-negative
(a clamp at 0, and whatever averages, adds, joins or moves such values), else int8 in -127..127; all zero points are 0.
Between a convolution and an addition that is its only user there is no quantization: the residual is added to the int32
accumulator. If several operands are such convolutions, the latest in graph order stays an accumulator. Inputs of a
concatenation share one scale. The last convolution or linear keeps float outputs: its accumulator gives the logits.
Data movement (max pooling, flatten, dropout, slices, padding) keeps its input's scale because nothing is inserted after
it; a shared observer there would see the same values twice and bias the moving average.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from intcert.runtime.errors import MissingDependencyError, ModelError

try:
    import torch
    from torch.fx import GraphModule, Node
    from torchao.quantization.pt2e import (
        FakeQuantize,
        MovingAverageMinMaxObserver,
        MovingAveragePerChannelMinMaxObserver,
        move_exported_model_to_eval,
    )
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e, prepare_qat_pt2e
    from torchao.quantization.pt2e.quantizer import (
        QuantizationAnnotation,
        QuantizationSpec,
        Quantizer,
        SharedQuantizationSpec,
    )
    from torchao.quantization.pt2e.quantizer.quantizer import Q_ANNOTATION_KEY
except ModuleNotFoundError as error:
    raise MissingDependencyError(
        f"quantizing a model needs {error.name.partition('.')[0]}: pip install 'intcert[torch]'"
    ) from error

_ATEN = torch.ops.aten
_CONVOLUTIONS = {_ATEN.conv2d.default, _ATEN.conv2d.padding}
_WEIGHTED = _CONVOLUTIONS | {_ATEN.linear.default}
_BATCH_NORMS = {_ATEN.batch_norm.default}
_ADDITIONS = {_ATEN.add.Tensor, _ATEN.add_.Tensor}
_AVERAGES = {
    _ATEN.avg_pool2d.default,
    _ATEN.adaptive_avg_pool2d.default,
    _ATEN.mean.dim,
}
_RELUS = {_ATEN.relu.default, _ATEN.relu_.default, _ATEN.relu6.default, _ATEN.relu6_.default}
#: Clamps whose bounds are the arguments 1 (lower) and 2 (upper).
_BOUNDED = {
    _ATEN.hardtanh.default,
    _ATEN.hardtanh_.default,
    _ATEN.clamp.default,
    _ATEN.clamp_.default,
    _ATEN.clamp_min.default,
    _ATEN.clamp_min_.default,
}
_CLAMPS = _RELUS | _BOUNDED
#: Data movement: every result is a copy of an input value, or zero padding. Argument 0 is the input.
_MOVES = {
    _ATEN.max_pool2d.default,
    _ATEN.flatten.using_ints,
    _ATEN.reshape.default,
    _ATEN.view.default,
    _ATEN.squeeze.default,
    _ATEN.squeeze.dim,
    _ATEN.squeeze.dims,
    _ATEN.dropout.default,
    _ATEN.dropout_.default,
    _ATEN.feature_dropout.default,
    _ATEN.feature_dropout_.default,
    _ATEN.slice.Tensor,
    _ATEN.pad.default,
    _ATEN.constant_pad_nd.default,
    _ATEN.contiguous.default,
    _ATEN.clone.default,
    _ATEN.detach.default,
    _ATEN.detach_.default,
    _ATEN.alias.default,
}
_CONCATENATIONS = {_ATEN.cat.default, _ATEN.concat.default, _ATEN.concatenate.default}
#: Arithmetic with constants that may stand between the input and the first quantization.
_NORMALIZATIONS = _ADDITIONS | {
    _ATEN.sub.Tensor,
    _ATEN.sub_.Tensor,
    _ATEN.rsub.Scalar,
    _ATEN.rsub.Tensor,
    _ATEN.mul.Tensor,
    _ATEN.mul_.Tensor,
    _ATEN.div.Tensor,
    _ATEN.div_.Tensor,
}
# Everything that produces new values, so that its result may need a scale of its own.
_VALUES = _WEIGHTED | _BATCH_NORMS | _ADDITIONS | _AVERAGES | _CLAMPS

# Least scale. Channels that batch normalisation has switched off would otherwise ask for biases beyond 32 bits.
_EPS = 2.0**-20


def _spec(observer: type, dtype: torch.dtype, low: int, scheme: torch.qscheme, **options: Any) -> QuantizationSpec:
    # Plain FakeQuantize: the fused one trains with scales that differ from the converted ones by up to 0.4 %.
    fake_quantize = FakeQuantize.with_args(observer=observer, eps=_EPS, **options)
    axis = 0 if scheme == torch.per_channel_symmetric else None
    return QuantizationSpec(dtype, fake_quantize, low, torch.iinfo(dtype).max, scheme, axis)


class IntegerQuantizer(Quantizer):
    """Quantizer for ``prepare_qat_pt2e`` (training) and ``prepare_pt2e`` (calibration); see the module's text.

    activation_observer: class of torchao observer that chooses activation ranges. The default suits training; for
    calibration alone ``HistogramObserver`` is slower and cuts outliers.

    Raises ModelError, naming the node, where the graph holds an operator that no integer program can express.
    """

    def __init__(self, activation_observer: type = MovingAverageMinMaxObserver) -> None:
        self._unsigned = _spec(activation_observer, torch.uint8, 0, torch.per_tensor_affine)
        self._signed = _spec(activation_observer, torch.int8, -127, torch.per_tensor_symmetric)
        # averaging_constant 1: the scale follows the weights of this step instead of lagging behind them.
        self._weight = _spec(
            MovingAveragePerChannelMinMaxObserver,
            torch.int8,
            -127,
            torch.per_channel_symmetric,
            averaging_constant=1.0,
        )

    def transform_for_annotation(self, model: GraphModule) -> GraphModule:
        """Write the graph in the forms that annotation and torchao's fusion know."""
        for node in list(model.graph.nodes):
            if _is_in_place(node) and isinstance(node.args[0], Node):
                # Whoever reads a tensor after an in-place operator has changed it reads the operator's result.
                node.args[0].replace_all_uses_with(node, delete_user_cb=lambda user, node=node: user > node)
            elif node.target is _ATEN.conv2d.padding:
                _name_padding_in_numbers(node)
            elif node.target in _ADDITIONS and node.args[1] == 0:  # the start value of Python's sum()
                node.replace_all_uses_with(node.args[0])
                model.graph.erase_node(node)
        model.recompile()
        return model

    def annotate(self, model: GraphModule) -> GraphModule:
        flow = _Flow(model.graph)
        flow.require_integer_forms()
        for node in flow.weighted:
            # torchao's QAT fusion reads this map by position: activation first, then weight.
            _annotation(node).input_qspec_map = {node.args[0]: None, node.args[1]: self._weight}
        for group in flow.scale_groups():
            unsigned = all(flow.is_non_negative(node) for node in group)
            _annotation(group[0]).output_qspec = self._unsigned if unsigned else self._signed
            for node in group[1:]:
                _annotation(node).output_qspec = SharedQuantizationSpec(group[0])
        return model

    def validate(self, model: GraphModule) -> None:
        """Nothing is left to check: annotate refuses what it cannot quantize."""


class _Flow:
    """Who produces, absorbs and shares values in one graph."""

    def __init__(self, graph: torch.fx.Graph) -> None:
        self._order = {node: position for position, node in enumerate(graph.nodes)}
        self._fed = _fed_by_input(graph)
        self._input = self._input_region(graph)
        self._values = {n: None for n in self._fed if n.target in _VALUES and n not in self._input and _is_tensor(n)}
        self.weighted = [n for n in self._values if n.target in _WEIGHTED]

    def require_integer_forms(self) -> None:
        """Raise ModelError for the first node that would leave float arithmetic behind the input."""
        for node in self._fed:
            if node.op != "call_function" or not _is_tensor(node) or node in self._input:
                continue
            if node.target in _ADDITIONS:
                known = all(operand in self._fed for operand in node.args[:2])
            else:
                known = node.target in _VALUES | _MOVES | _CONCATENATIONS
            if not known:
                raise ModelError(
                    f"{node.name} ({node.target}): no integer form; build the model from convolutions, linears, ReLUs, "
                    "residual additions, concatenations and pooling, with constants only in front of the first of them"
                )

    def _input_region(self, graph: torch.fx.Graph) -> set[Node]:
        """The placeholder and the arithmetic with constants that follows it directly."""
        region: set[Node] = set()
        for node in graph.nodes:
            if node.op == "placeholder":
                region.add(node)
            elif node.target in _NORMALIZATIONS:
                operands = [a for a in node.all_input_nodes if a in self._fed]
                if len(operands) == 1 and operands[0] in region:
                    region.add(node)
        return region

    def _users(self, node: Node) -> list[Node]:
        return [user for user in node.users if user.op != "call_module" and (_is_tensor(user) or user.op == "output")]

    def _only_user(self, node: Node) -> Node | None:
        users = self._users(node)
        return users[0] if len(users) == 1 else None

    def _terms(self, addition: Node) -> Iterator[Node]:
        """Operands of an addition and of the additions that it absorbs."""
        for operand in addition.args[:2]:
            if operand in self._values and operand.target in _ADDITIONS and self._only_user(operand) is addition:
                yield from self._terms(operand)
            else:
                yield operand

    def _ends_convolution(self, node: Node) -> bool:
        """Whether a node's value is an accumulator: a convolution or linear, with its batch normalisation if any."""
        head = node.args[0] if node.target in _BATCH_NORMS else node
        return head in self._values and head.target in _WEIGHTED

    def _residual_accumulators(self) -> set[Node]:
        """Of each chain of additions, the operand that stays an accumulator."""
        chosen = set()
        for node in self._values:
            user = self._only_user(node)
            if node.target not in _ADDITIONS or (user in self._values and user.target in _ADDITIONS):
                continue
            candidates = [
                term
                for term in self._terms(node)
                if term in self._values and self._ends_convolution(term) and self._only_user(term) is not None
            ]
            if candidates:
                chosen.add(max(candidates, key=self._order.__getitem__))
        return chosen

    def _is_closed(self, node: Node, accumulators: set[Node]) -> bool:
        """Whether a quantization follows the node: its value is not absorbed by its only user."""
        if node in self._input:
            return any(user not in self._input for user in self._users(node))
        if node not in self._values:
            return False
        user = self._only_user(node)
        if user is None:
            return bool(self._users(node))
        if user in self._values:
            if user.target in _BATCH_NORMS:
                return node.target not in _WEIGHTED
            if user.target in _CLAMPS:
                return node.target in _CLAMPS
            if user.target in _ADDITIONS:
                return node.target not in _ADDITIONS and node not in accumulators
        return not (self._ends_convolution(node) and self._reaches_only_output(node))

    def _reaches_only_output(self, node: Node) -> bool:
        user = self._only_user(node)
        while user is not None and user.target in _MOVES:
            user = self._only_user(user)
        return user is not None and user.op == "output"

    def _sources(self, node: Node) -> list[Node]:
        """The closed nodes whose values a tensor carries."""
        if node.target in _MOVES:
            return self._sources(node.args[0])
        if node.target in _CONCATENATIONS:
            return [source for part in node.args[0] for source in self._sources(part)]
        return [node]

    def scale_groups(self) -> list[list[Node]]:
        """Closed nodes that share one scale, each group and the list of groups in graph order."""
        accumulators = self._residual_accumulators()
        group = {node: [node] for node in self._order if self._is_closed(node, accumulators)}
        for node in self._order:
            if node.target not in _CONCATENATIONS:
                continue
            sources = [source for source in self._sources(node) if source in group]
            for source in sources[1:]:
                first, second = group[sources[0]], group[source]
                if first is not second:
                    first.extend(second)
                    group.update(dict.fromkeys(second, first))
        groups = {id(members): sorted(members, key=self._order.__getitem__) for members in group.values()}
        return sorted(groups.values(), key=lambda members: self._order[members[0]])

    def is_non_negative(self, node: Node) -> bool:
        """Whether no value of the tensor can be below 0, for any input."""
        if node in self._input:
            return False
        if node.target in _CLAMPS:
            return _lower_bound(node) >= 0 or self.is_non_negative(node.args[0])
        if node.target in _AVERAGES:
            return self.is_non_negative(node.args[0])
        if node.target in _ADDITIONS:
            return all(self.is_non_negative(operand) for operand in node.args[:2])
        if node.target in _MOVES | _CONCATENATIONS:
            return all(self.is_non_negative(source) for source in self._sources(node))
        return False


def _name_padding_in_numbers(node: Node) -> None:
    """conv2d(padding="same") as conv2d with numbers, where both sides get the same: only that is fused in training."""
    image, weight, *rest = node.args
    bias, stride, name, dilation, groups = (*rest, *(None, [1, 1], "valid", [1, 1], 1)[len(rest) :])
    kernel = weight.meta["val"].shape[2:]
    total = [0, 0] if name == "valid" else [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    if not any(n % 2 for n in total):
        node.target = _ATEN.conv2d.default
        node.args = (image, weight, bias, stride, [n // 2 for n in total], dilation, groups)


def _is_in_place(node: Node) -> bool:
    """Whether a node is an operator that overwrites its first argument."""
    schema = getattr(node.target, "_schema", None)
    written = schema.arguments[0].alias_info if schema is not None and schema.arguments else None
    return written is not None and written.is_write


def _lower_bound(node: Node) -> float:
    """Lower bound of a clamp; minus infinity where it has none."""
    if node.target in _RELUS:
        return 0.0
    default = -1.0 if "hardtanh" in str(node.target) else None
    low = node.args[1] if len(node.args) > 1 else node.kwargs.get("min", node.kwargs.get("min_val", default))
    return -float("inf") if low is None else float(low)


def _annotation(node: Node) -> QuantizationAnnotation:
    return node.meta.setdefault(Q_ANNOTATION_KEY, QuantizationAnnotation(_annotated=True))


def _is_tensor(node: Node) -> bool:
    return isinstance(node.meta.get("val"), torch.Tensor)


def _fed_by_input(graph: torch.fx.Graph) -> dict[Node, None]:
    """Nodes that depend on the input, in graph order; the others are constants."""
    fed: dict[Node, None] = {}
    for node in graph.nodes:
        if node.op == "placeholder" or any(operand in fed for operand in node.all_input_nodes):
            fed[node] = None
    return fed


def prepare_qat(
    model: torch.nn.Module, example: torch.Tensor, activation_observer: type = MovingAverageMinMaxObserver
) -> GraphModule:
    """Export a model in train mode and insert fake quantization for quantization-aware training.

    model: float images [N, C, H, W] in [0, 1] to logits; example: such a batch with N >= 2. N stays free.
    activation_observer: see IntegerQuantizer.
    The result is switched by ``move_exported_model_to_train`` and ``move_exported_model_to_eval`` of torchao only.
    """
    return prepare_qat_pt2e(_export(model.train(), example).module(), IntegerQuantizer(activation_observer))


def prepare_calibration(
    model: torch.nn.Module, example: torch.Tensor, activation_observer: type = MovingAverageMinMaxObserver
) -> GraphModule:
    """Export a model in eval mode and insert observers; run calibration images through the result, then convert it.

    Arguments as in prepare_qat.
    """
    return prepare_pt2e(_export(model.eval(), example).module(), IntegerQuantizer(activation_observer))


def convert(prepared: GraphModule, example: torch.Tensor) -> torch.export.ExportedProgram:
    """Turn a trained or calibrated graph into the program that the importer reads; its batch size stays free."""
    move_exported_model_to_eval(prepared)
    converted = convert_pt2e(prepared)
    # The float weights and batch normalisations are folded by now, but would still fill four fifths of the file.
    used = {node.target for node in converted.graph.nodes if node.op == "get_attr"}
    for name, _ in [*converted.named_parameters(), *converted.named_buffers()]:
        if name not in used:
            owner, _, attribute = name.rpartition(".")
            delattr(converted.get_submodule(owner), attribute)
    return _export(converted, example)


def _export(model: torch.nn.Module, example: torch.Tensor) -> torch.export.ExportedProgram:
    return torch.export.export(model, (example,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))

"""model.onnx: compose it, write it, read it and verify what was read."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from onnx import AttributeProto, TensorProto, helper, numpy_helper

from tellapart.errors import ModelError, RecipeError
from tellapart.evaluation.familiarity import Familiarity
from tellapart.inference.familiarity import add_familiarity
from tellapart.inference.heatmap import HEATMAP, add_heatmap
from tellapart.records import (
    Band,
    Calibration,
    ConformalRule,
    DecisionRule,
    FamiliarityRule,
    ModelCard,
    Preprocess,
    SetLevel,
    Weights,
)
from tellapart.storage import sha256, write_bytes

SCHEMA_VERSION = 3
METADATA_KEY = "tellapart"
MAX_MODEL_BYTES = 2**30

# What our own models and timm's networks are made of; none has a subgraph. An operator is added together with what needs it.
_ALLOWED_OPERATORS = frozenset(
    [
        "Abs",
        "Add",
        "AveragePool",
        "BatchNormalization",
        "Cast",
        "Clip",
        "Concat",
        "Conv",
        "Div",
        "Equal",
        "Erf",
        "Expand",
        "Flatten",
        "Gather",
        "Gelu",
        "Gemm",
        "GlobalAveragePool",
        "GlobalMaxPool",
        "HardSigmoid",
        "HardSwish",
        "LayerNormalization",
        "MatMul",
        "Max",
        "MaxPool",
        "Min",
        "Mul",
        "Pad",
        "Pow",
        "Range",
        "ReduceL2",
        "ReduceMax",
        "ReduceMean",
        "ReduceSum",
        "Relu",
        "Reshape",
        "Shape",
        "Sigmoid",
        "Sign",
        "Slice",
        "Softmax",
        "Split",
        "Sqrt",
        "Squeeze",
        "Sub",
        "Tanh",
        "Transpose",
        "Unsqueeze",
        "Where",
    ]
)


@dataclass(frozen=True, kw_only=True, slots=True)
class LinearHead:
    """logits = embedding @ weight + bias; (D, K) and (K,) float32."""

    weight: NDArray[np.float32]
    bias: NDArray[np.float32]

    def logits(self, embeddings: NDArray[np.float32]) -> NDArray[np.float32]:
        """(N, K) logits of (N, D) embeddings."""
        return embeddings @ self.weight + self.bias


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelFile:
    """A verified model: the bytes of ``model.onnx`` and what they say about themselves."""

    onnx_bytes: bytes
    card: ModelCard

    def with_card(self, card: ModelCard) -> "ModelFile":
        """The same graph with more to say about itself."""
        return _with_card(onnx.load_model_from_string(self.onnx_bytes), card)

    def save(self, path: Path) -> None:
        """Write the file atomically."""
        write_bytes(path, self.onnx_bytes)


def compose(
    trunk: bytes,
    head: LinearHead,
    *,
    temperature: float,
    activation: str = "Softmax",
    familiarity: Familiarity | None = None,
) -> onnx.ModelProto:
    """Put a trunk, its head and the calibration into one graph with the outputs ``probs`` and ``embedding``.

    The embedding comes before the head, so the file also serves search and clustering. Where it is the average of a spatial map,
    there is the output ``heatmap``, too; see ``add_heatmap``.

    Args:
        trunk: an ONNX model from ``images`` (uint8 [N, S, S, 3]) to ``embedding`` (float32 [N, D]).
        head: from embeddings to logits.
        temperature: that logits are divided by.
        activation: ``Softmax``, or ``Sigmoid`` for labels that do not exclude each other.
        familiarity: adds the output ``familiarity``.
    """
    model = onnx.load_model_from_string(trunk)
    graph = model.graph
    graph.name = "tellapart"
    constants = {
        "head.weight": head.weight.astype(np.float32),
        "head.bias": head.bias.astype(np.float32),
        "temperature": np.array(temperature, dtype=np.float32),
    }
    graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    graph.node.extend(
        [
            helper.make_node("Gemm", ["embedding", "head.weight", "head.bias"], ["logits"], name="head"),
            helper.make_node("Div", ["logits", "temperature"], ["calibrated_logits"], name="calibration"),
            helper.make_node(activation, ["calibrated_logits"], ["probs"], name="probs"),
        ]
    )
    graph.output.insert(0, helper.make_tensor_value_info("probs", TensorProto.FLOAT, ["N", len(head.bias)]))
    add_heatmap(model, head.weight)
    if familiarity is not None:
        add_familiarity(model, familiarity)
    return model


def graph_checksum(model: onnx.ModelProto) -> str:
    """SHA-256 of the graph alone; metadata may be added without changing it."""
    return sha256(model.graph.SerializeToString(deterministic=True))


def pack(model: onnx.ModelProto, card: ModelCard) -> ModelFile:
    """Turn a composed graph and its card into a model file, and verify it as any reader would.

    The card's checksum is filled in, and the input size, which the backbone leaves free, is stated in the graph.
    """
    dims = model.graph.input[0].type.tensor_type.shape.dim
    for dim in (dims[1], dims[2]):
        dim.dim_value = card.preprocess.input_size_px
    return _with_card(model, replace(card, graph_sha256=graph_checksum(model)))


def _with_card(model: onnx.ModelProto, card: ModelCard) -> ModelFile:
    del model.metadata_props[:]
    text = json.dumps(card_document(card), ensure_ascii=False, allow_nan=False)
    model.metadata_props.add(key=METADATA_KEY, value=text)
    return parse_model(model.SerializeToString())


def card_document(card: ModelCard) -> dict[str, Any]:
    """The card as plain data, as it stands in the file."""
    document = {"schema_version": SCHEMA_VERSION, **asdict(card)}
    return {**document, "card_sha256": card_checksum(document)}


def card_checksum(document: Mapping[str, Any]) -> str:
    """SHA-256 of the card, so that a changed class name is noticed as a changed weight is."""
    return sha256(json.dumps(document, sort_keys=True, allow_nan=False).encode())


def read_model(path: str | Path) -> ModelFile:
    """Read and verify a model file.

    Refused are files that are damaged, that tellapart did not write, that come from a newer version, that use other
    operators than our models do, or that point to data outside themselves.

    Raises:
        ModelError: model-not-found, damaged-model, foreign-model, newer-model, older-model, unsafe-model.
    """
    path = Path(path)
    try:
        if path.stat().st_size > MAX_MODEL_BYTES:
            raise ModelError("unsafe-model", f"{path} is larger than {MAX_MODEL_BYTES:,} bytes")
        content = path.read_bytes()
    except OSError as error:
        hint = "train one with: tellapart train FOLDER"
        raise ModelError("model-not-found", f"{path}: {error.strerror}", hint=hint) from error
    try:
        return parse_model(content)
    except ModelError as error:
        hint = error.hint or "what is wanted is the model.onnx of a run folder; copy it again, or train anew"
        raise ModelError(error.code, f"{path}: {error.message}", hint=hint) from error


def parse_model(content: bytes) -> ModelFile:
    """Verify the bytes of a model file; see ``read_model``."""
    try:
        model = onnx.load_model_from_string(content)
    except (DecodeError, ValueError) as error:
        raise ModelError("damaged-model", "this is not an ONNX file, or it is damaged") from error
    if not model.graph.node:
        raise ModelError("damaged-model", "this is not an ONNX file, or it is damaged")
    documents = [entry.value for entry in model.metadata_props if entry.key == METADATA_KEY]
    if len(documents) != 1:
        raise ModelError("foreign-model", "an ONNX file that tellapart did not write: it has no model card")
    card = _card(documents[0])
    if graph_checksum(model) != card.graph_sha256:
        raise ModelError(
            "damaged-model", "the graph is not the one the model card describes: its checksum differs"
        )
    require_safe(model)
    _require_shapes(model, card)
    return ModelFile(onnx_bytes=content, card=card)


def _card(document: str) -> ModelCard:
    try:
        values: dict[str, Any] = json.loads(document)
        if not isinstance(values, dict):
            raise TypeError(f"it is no JSON object but {document[:20]!r}")
        version = values.pop("schema_version")
        if version > SCHEMA_VERSION:
            message = (
                f"the model file has schema version {version}; this version of tellapart reads {SCHEMA_VERSION}"
            )
            raise ModelError("newer-model", message, hint="pip install --upgrade tellapart")
        if version < SCHEMA_VERSION:
            message = (
                f"the model file has schema version {version}; this version of tellapart reads {SCHEMA_VERSION}"
            )
            raise ModelError("older-model", message, hint="train it again: tellapart train FOLDER")
        if values.pop("card_sha256") != card_checksum({"schema_version": version, **values}):
            raise ValueError("its checksum differs")
        if not all(isinstance(name, str) for name in values["class_names"]) or isinstance(
            values["class_names"], str
        ):
            raise TypeError("class_names must be a list of names")
        values["class_names"] = tuple(values["class_names"])
        values["label_thresholds"] = tuple(values["label_thresholds"])
        values["decision_rules"] = tuple(_decision_rule(rule) for rule in values["decision_rules"])
        values["preprocess"] = Preprocess(**values["preprocess"])
        values["calibration"] = Calibration(**values["calibration"])
        values["weights"] = None if values["weights"] is None else Weights(**values["weights"])
        values["conformal"] = None if values["conformal"] is None else _conformal(values["conformal"])
        familiarity = values["familiarity"]
        values["familiarity"] = None if familiarity is None else FamiliarityRule(**familiarity)
        return ModelCard(**{field.name: values[field.name] for field in fields(ModelCard)})
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError, RecipeError) as error:
        raise ModelError("damaged-model", f"the model card cannot be read: {error}") from error


def _conformal(values: Mapping[str, Any]) -> ConformalRule:
    levels = tuple(SetLevel(**{**level, "min_probs": tuple(level["min_probs"])}) for level in values["levels"])
    return ConformalRule(**{**values, "levels": levels})


def _decision_rule(values: Mapping[str, Any]) -> DecisionRule:
    if not isinstance(values["bands"], list):
        raise TypeError("the bands of a decision rule must be a list")
    return DecisionRule(**{**values, "bands": tuple(Band(**band) for band in values["bands"])})


def require_safe(model: onnx.ModelProto) -> None:
    """Refuse what our models never need: functions, subgraphs, other operators, data outside the file.

    Raises:
        ModelError: unsafe-model.
    """
    domains = {opset.domain for opset in model.opset_import} | {node.domain for node in model.graph.node}
    if model.functions or model.training_info or domains - {"", "ai.onnx"}:
        raise ModelError("unsafe-model", "the file brings functions or operators of its own")
    for node in model.graph.node:
        if node.op_type not in _ALLOWED_OPERATORS:
            raise ModelError(
                "unsafe-model", f"the file uses the operator {node.op_type!r}, which our models do not"
            )
        if any(attribute.type not in _PLAIN_ATTRIBUTES for attribute in node.attribute):
            raise ModelError("unsafe-model", f"the operator {node.op_type!r} has a subgraph or data of its own")
    external = [tensor.name for tensor in model.graph.initializer if tensor.data_location == TensorProto.EXTERNAL]
    if external or model.graph.sparse_initializer:
        raise ModelError("unsafe-model", "the file points to data outside itself")


_PLAIN_ATTRIBUTES = frozenset(
    {
        AttributeProto.INT,
        AttributeProto.INTS,
        AttributeProto.FLOAT,
        AttributeProto.FLOATS,
        AttributeProto.STRING,
        AttributeProto.STRINGS,
    }
)


def _require_shapes(model: onnx.ModelProto, card: ModelCard) -> None:
    side = card.preprocess.input_size_px
    expected = {
        "images": (TensorProto.UINT8, (side, side, 3)),
        "probs": (TensorProto.FLOAT, (len(card.class_names),)),
        "embedding": (TensorProto.FLOAT, (card.embedding_dim,)),
    }
    if any(output.name == HEATMAP for output in model.graph.output):
        expected[HEATMAP] = (
            TensorProto.FLOAT,
            (len(card.class_names), 0, 0),
        )  # height and width follow from the trunk
    if card.familiarity is not None:
        expected["familiarity"] = (TensorProto.FLOAT, ())
    ports = (*model.graph.input, *model.graph.output)
    found = {
        port.name: (
            port.type.tensor_type.elem_type,
            tuple(dim.dim_value for dim in port.type.tensor_type.shape.dim[1:]),
        )
        for port in ports
    }
    if found != expected:
        raise ModelError("damaged-model", f"inputs and outputs are {found}; the model card says {expected}")

"""model.onnx: what is written is read back; what is damaged, foreign, unsafe or newer is refused."""

import json
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tiny import CLASS_NAMES, SIDE_PX, parsed, tiny_card, tiny_model

from tellapart.errors import ModelError
from tellapart.inference import model as model_module
from tellapart.inference.engine import OpenVINOEngine
from tellapart.inference.model import (
    METADATA_KEY,
    card_checksum,
    card_document,
    graph_checksum,
    parse_model,
    read_model,
)
from tellapart.records import Band, Calibration, DecisionRule, Preprocess

CONTENT = tiny_model().onnx_bytes
RULE = card_document(tiny_card())["conformal"]
FAMILIARITY = {"threshold": 0.0, "rate": 0.02, "promised": 0.02, "achieved": 0.01, "method": "calib", "n": 60}
BANDS = {
    "class_name": "green",
    "bands": [
        {"name": "high", "min_prob": 0.75, "goal": "precision 0.9", "note": ""},
        {"name": "low", "min_prob": 0.0, "goal": "", "note": ""},
    ],
}


def code_of(content):
    with pytest.raises(ModelError) as caught:
        parse_model(content)
    return caught.value.code


# What is written is read back


def test_round_trip(tmp_path):
    written = tiny_model()
    written.save(tmp_path / "model.onnx")
    found = read_model(tmp_path / "model.onnx")
    assert found == written
    assert found.card == tiny_card(graph_sha256=graph_checksum(parsed(written)))


def test_round_trip_of_decision_rules():
    rule = DecisionRule(
        class_name="green",
        bands=(
            Band(name="high", min_prob=0.1 + 0.2, goal="precision 0.9"),
            Band(name="medium", min_prob=None, goal="recall 0.5", note="out of reach"),
            Band(name="low", min_prob=0.0),
        ),
    )
    model = tiny_model(decision_rules=(rule,))
    assert parse_model(model.onnx_bytes).card.decision_rules == (rule,)
    assert parse_model(with_values(decision_rules=[BANDS])).card.decision_rules[0].bands[0].min_prob == 0.75


def test_round_trip_of_a_real_model(run):
    found = read_model(run.model_path)
    assert found.onnx_bytes == run.model_path.read_bytes()
    assert found.card.class_names == ("blobs", "dots", "stripes")
    assert found.card.metrics == run.report["test"]
    assert found.card.dataset == run.report["dataset"]
    assert found.card.verification == run.report["verification"]
    assert found.card.preprocess == Preprocess(input_size_px=224)
    assert found.card.weights.license == "Apache-2.0"


def test_a_model_without_conformal_rule_and_weights():
    model = tiny_model(conformal=None, weights=None)
    assert parse_model(model.onnx_bytes).card == model.card
    assert model.card.conformal is None
    assert model.card.weights is None


def test_class_names_of_all_scripts_survive():
    names = ("Käse 🧀", 'say "x"\n', "猫")
    assert parse_model(tiny_model(class_names=names).onnx_bytes).card.class_names == names


def test_the_graph_is_valid_onnx_and_answers():
    onnx.checker.check_model(CONTENT, full_check=True)
    image = np.zeros((1, SIDE_PX, SIDE_PX, 3), np.uint8)
    image[..., 1] = 200
    answer = OpenVINOEngine(CONTENT, input_size_px=SIDE_PX, precision="f32").run(image)
    assert answer["embedding"] == pytest.approx(np.array([[0, 200, 0]]), abs=1e-3)
    powers = np.exp(np.array([0, 200, 0]) / 50 / 2)  # head, then temperature
    assert answer["probs"][0] == pytest.approx(powers / powers.sum(), abs=1e-5)


def test_with_card_keeps_the_graph():
    first = tiny_model()
    second = first.with_card(replace(first.card, metrics={"n": 3}, class_names=("r", "g", "b")))
    assert second.card.metrics == {"n": 3}
    assert second.card.class_names == ("r", "g", "b")
    assert second.card.graph_sha256 == first.card.graph_sha256 == graph_checksum(parsed(second))
    assert parsed(second).graph == parsed(first).graph
    assert len(parsed(second).metadata_props) == 1
    assert first.card.metrics == {}


def test_the_checksum_survives_resaving_with_onnx(tmp_path):
    original = tiny_model()
    original.save(tmp_path / "model.onnx")
    model = onnx.load(tmp_path / "model.onnx")
    model.doc_string = "looked at in another tool"
    model.metadata_props.add(key="author", value="somebody")
    onnx.save(model, tmp_path / "resaved.onnx")
    found = read_model(tmp_path / "resaved.onnx")
    assert found.onnx_bytes != original.onnx_bytes
    assert found.card == original.card


def test_other_weights_have_another_checksum():
    model = parsed(tiny_model())
    flip_a_weight(model)
    assert graph_checksum(model) != tiny_model().card.graph_sha256


# Bytes that are no model


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="empty"),
        pytest.param(np.random.default_rng(1).bytes(5_000), id="random"),
        pytest.param(b"\x00" * 5_000, id="zeros"),
        pytest.param(b"<html>Not found</html>", id="a web page"),
        pytest.param(json.dumps(card_document(tiny_card())).encode(), id="a card alone"),
        pytest.param(CONTENT[: len(CONTENT) // 2], id="half"),
        pytest.param(CONTENT[:-1], id="last byte missing"),
        pytest.param(CONTENT[1:], id="first byte missing"),
        pytest.param(CONTENT + b"\xff", id="a byte too many"),
        pytest.param(onnx.ModelProto(ir_version=9).SerializeToString(), id="no graph"),
    ],
)
def test_not_a_model(content, tmp_path):
    assert code_of(content) == "damaged-model"
    (tmp_path / "model.onnx").write_bytes(content)
    with pytest.raises(ModelError) as caught:
        read_model(tmp_path / "model.onnx")
    assert caught.value.code == "damaged-model"
    assert str(tmp_path / "model.onnx") in caught.value.message


@pytest.mark.parametrize("name", ["missing.onnx", ".", "missing/model.onnx"])
def test_there_is_no_file(tmp_path, name):
    with pytest.raises(ModelError) as caught:
        read_model(tmp_path / name)
    assert caught.value.code == "model-not-found"


def test_a_file_over_the_limit_is_not_parsed(monkeypatch, tmp_path):
    (tmp_path / "model.onnx").write_bytes(CONTENT)
    monkeypatch.setattr(model_module, "MAX_MODEL_BYTES", len(CONTENT))
    assert read_model(tmp_path / "model.onnx").card.class_names == CLASS_NAMES
    monkeypatch.setattr(model_module, "MAX_MODEL_BYTES", len(CONTENT) - 1)
    monkeypatch.setattr(model_module, "parse_model", lambda _content: pytest.fail("parsed"))
    with pytest.raises(ModelError) as caught:
        read_model(tmp_path / "model.onnx")
    assert caught.value.code == "unsafe-model"


def test_cut_anywhere_it_is_refused():
    for length in range(len(CONTENT)):
        assert code_of(CONTENT[:length]) in ("damaged-model", "foreign-model"), length


def test_any_flipped_bit_is_refused_or_harmless():
    """In the graph it is always noticed; in the text around it nothing worse than a ModelError happens."""
    graph = parsed(tiny_model()).graph.SerializeToString()
    start = CONTENT.index(graph)
    for i in range(len(CONTENT)):
        content = bytearray(CONTENT)
        content[i] ^= 1 << i % 8
        try:
            found = parse_model(bytes(content))
        except ModelError:
            continue
        assert not start <= i < start + len(graph), f"byte {i} of the graph"
        assert parsed(found).graph.SerializeToString() == graph


# Models of others, and models that were changed


def flip_a_weight(model):
    (weight,) = (tensor for tensor in model.graph.initializer if tensor.name == "head.weight")
    weight.raw_data = weight.raw_data[:-1] + bytes([weight.raw_data[-1] ^ 1])


def without_card(model):
    del model.metadata_props[:]


def second_card(model):
    model.metadata_props.append(model.metadata_props[0])


def card_of_another_tool(model):
    model.metadata_props[0].key = "names"


def exchange_nodes_operator(model):
    model.graph.node[-1].op_type = "LogSoftmax"


def rename_the_graph(model):
    model.graph.name = "other"


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (without_card, "foreign-model"),
        (second_card, "foreign-model"),
        (card_of_another_tool, "foreign-model"),
        (flip_a_weight, "damaged-model"),
        (exchange_nodes_operator, "damaged-model"),
        (rename_the_graph, "damaged-model"),
    ],
)
def test_foreign_and_damaged(change, code):
    model = parsed(tiny_model())
    change(model)
    assert code_of(model.SerializeToString()) == code


# The card


def with_document(text):
    model = parsed(tiny_model())
    model.metadata_props[0].value = text
    return model.SerializeToString()


def with_values(*removed, **changed):
    """The card with other values and a checksum that fits, so that the values themselves are what is refused."""
    document = json.loads(parsed(tiny_model()).metadata_props[0].value) | changed
    return with_document(json.dumps(sealed({key: value for key, value in document.items() if key not in removed})))


def sealed(document):
    if "card_sha256" not in document:
        return document
    rest = {key: value for key, value in document.items() if key != "card_sha256"}
    try:
        return {**rest, "card_sha256": card_checksum(rest)}
    except ValueError:  # not a number: no card of ours can hold it, so no checksum fits
        return document


def test_a_card_changed_by_hand_is_refused():
    document = json.loads(parsed(tiny_model()).metadata_props[0].value)
    assert (
        code_of(with_document(json.dumps(document | {"class_names": document["class_names"][::-1]})))
        == "damaged-model"
    )
    assert parse_model(with_document(json.dumps(document))).card == tiny_model().card


def test_the_card_is_json_under_one_key():
    (entry,) = parsed(tiny_model()).metadata_props
    document = json.loads(entry.value)
    assert entry.key == METADATA_KEY == "tellapart"
    assert document["schema_version"] == 3
    assert document["class_names"] == list(CLASS_NAMES)
    assert document["preprocess"]["input_size_px"] == SIDE_PX
    assert parse_model(with_values()).card == tiny_model().card  # with_values alone changes nothing


@pytest.mark.parametrize("key", card_document(tiny_card()))
def test_a_missing_key(key):
    assert code_of(with_values(key)) == "damaged-model"


@pytest.mark.parametrize(
    "text",
    ["", "{", "{}", "[]", "5", '"tellapart"', "null", "true", "[" * 100_000, '{"schema_version": 3}', "\x00"],
    ids=lambda text: text[:10],
)
def test_a_card_that_is_no_card(text):
    assert code_of(with_document(text)) == "damaged-model"


@pytest.mark.parametrize(
    "changed",
    [
        {"class_names": ["red", "green"]},
        {"class_names": ["red", "green", "blue", "violet"]},
        {"class_names": ["red", "green", "green"]},
        {"class_names": []},
        {"class_names": None},
        {"class_names": "rgb"},
        {"class_names": [1, 2, 3]},
        {"class_names": [["red"], ["green"], ["blue"]]},
        {"graph_sha256": ""},
        {"graph_sha256": None},
        {"graph_sha256": "0" * 64},
        {"embedding_dim": 4},
        {"embedding_dim": "3"},
        {"preprocess": {"input_size_px": 32, "resize": "squash", "interpolation": "bilinear"}},
        {"preprocess": {"input_size_px": 16, "resize": "fold", "interpolation": "bilinear"}},
        {"preprocess": {"input_size_px": 16, "resize": "squash", "interpolation": "bilinear", "more": 1}},
        {"preprocess": {"input_size_px": "16"}},
        {"preprocess": {}},
        {"preprocess": 16},
        {"preprocess": None},
        {"calibration": {"temperature": 0, "method": "calib", "n": 60}},
        {"calibration": {"temperature": 10**400, "method": "calib", "n": 60}},
        {"calibration": {"temperature": None, "method": "calib", "n": 60}},
        {"calibration": {"temperature": float("nan"), "method": "calib", "n": 60}},
        {"calibration": None},
        {"conformal": RULE | {"coverage": 2}},
        {"conformal": RULE | {"levels": [{"coverage": 2, "min_probs": [0.1]}], "coverage": 2}},
        {"conformal": {key: RULE[key] for key in RULE if key != "n"}},
        {"conformal": RULE | {"levels": [{"coverage": 0.9, "min_probs": ["0.1"]}]}},
        {"conformal": RULE | {"levels": [{"coverage": 0.9, "min_probs": []}]}},
        {"conformal": RULE | {"levels": [{"coverage": 0.9, "min_probs": 0.1}]}},
        {"conformal": RULE | {"levels": RULE["levels"] * 2}},
        {"conformal": RULE | {"levels": []}},
        {"conformal": RULE | {"method": "guess"}},
        {"conformal": RULE | {"levels": [{"coverage": 0.9, "min_probs": [0.1, 0.2]}]}},
        {"familiarity": "0.9"},
        {"familiarity": FAMILIARITY | {"rate": 2}},
        {"familiarity": FAMILIARITY | {"threshold": None}},
        {"familiarity": FAMILIARITY | {"promised": 0.001}},
        {"familiarity": FAMILIARITY | {"method": "guess"}},
        {"familiarity": {}},
        {"conformal": "0.9"},
        {"conformal": ""},
        {"conformal": 0},
        {"weights": "ImageNet"},
        {"weights": []},
        {"decision_rules": 1},
        {"decision_rules": ["green: high above 0.5, low"]},
        {"decision_rules": [BANDS | {"class_name": "pink"}]},
        {"decision_rules": [BANDS | {"class_name": 1}]},
        {"decision_rules": [BANDS, BANDS]},
        {"decision_rules": [BANDS | {"more": 1}]},
        {"decision_rules": [BANDS | {"bands": "ab"}]},
        {"decision_rules": [BANDS | {"bands": BANDS["bands"][:1]}]},
        {"decision_rules": [BANDS | {"bands": BANDS["bands"][::-1]}]},
        {"decision_rules": [BANDS | {"bands": [BANDS["bands"][0] | {"min_prob": "0.5"}, BANDS["bands"][1]]}]},
        {"decision_rules": [BANDS | {"bands": [BANDS["bands"][0] | {"min_prob": 1.5}, BANDS["bands"][1]]}]},
        {"decision_rules": [BANDS | {"bands": [BANDS["bands"][0] | {"min_prob": None}, BANDS["bands"][1]]}]},
        {"decision_rules": [BANDS | {"bands": [BANDS["bands"][0] | {"name": ["high"]}, BANDS["bands"][1]]}]},
        {"schema_version": "1"},
        {"schema_version": None},
    ],
    ids=lambda changed: "-".join(f"{key}={str(value)[:40]}" for key, value in changed.items()),
)
def test_a_card_that_does_not_fit(changed):
    assert code_of(with_values(**changed)) == "damaged-model"


@pytest.mark.parametrize(("version", "also_changed"), [(4, {}), (99, {}), (99, {"class_names": {"new": "form"}})])
def test_a_newer_model(version, also_changed):
    content = with_values(schema_version=version, **also_changed)
    assert code_of(content) == "newer-model"


def test_an_older_model_is_said_to_be_old_not_damaged():
    with pytest.raises(ModelError) as caught:
        parse_model(with_values(schema_version=2))
    assert caught.value.code == "older-model"
    assert "train it again" in caught.value.hint


def test_the_error_of_a_newer_model_says_what_to_do():
    with pytest.raises(ModelError) as caught:
        parse_model(with_values(schema_version=99))
    assert "99" in caught.value.message
    assert "upgrade" in caught.value.hint


# What could do harm: each file here has a right checksum, as a hostile one would


def resealed(change, **card_changes):
    """A model changed and then given the checksum of what it became."""
    model = parsed(tiny_model())
    change(model)
    document = json.loads(model.metadata_props[0].value) | card_changes
    document["graph_sha256"] = graph_checksum(model)
    model.metadata_props[0].value = json.dumps(sealed(document))
    return model.SerializeToString()


def insert_node(model, operator, **options):
    """Put a node between the softmax and the output."""
    model.graph.node[-1].output[0] = "before"
    model.graph.node.append(helper.make_node(operator, ["before"], ["probs"], **options))


def branch():
    output = helper.make_tensor_value_info("out", TensorProto.FLOAT, None)
    constant = helper.make_node("Constant", [], ["out"], value_float=1.0)
    return helper.make_graph([constant], "branch", [], [output])


def identity(model):
    insert_node(model, "Identity")


def if_with_subgraphs(model):
    insert_node(model, "If", then_branch=branch(), else_branch=branch())


def loop(model):
    insert_node(model, "Loop", body=branch())


def allowed_operator_with_subgraph(model):
    insert_node(model, "Softmax", axis=1, hidden=branch())


def allowed_operator_with_tensor(model):
    insert_node(model, "Softmax", axis=1, hidden=numpy_helper.from_array(np.zeros(3), "hidden"))


def custom_domain(model):
    insert_node(model, "Softmax", domain="com.example")
    model.opset_import.append(helper.make_opsetid("com.example", 1))


def undeclared_custom_domain(model):
    insert_node(model, "Softmax", domain="com.example")


def unused_custom_domain(model):
    model.opset_import.append(helper.make_opsetid("ai.onnx.contrib", 1))


def own_function(model):
    body = [helper.make_node("Softmax", ["x"], ["y"])]
    model.functions.append(helper.make_function("", "Softmax", ["x"], ["y"], body, [helper.make_opsetid("", 17)]))


def external_data(model):
    (weight,) = (tensor for tensor in model.graph.initializer if tensor.name == "head.weight")
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="/etc/passwd")


def sparse_weights(model):
    values, indices = (
        numpy_helper.from_array(np.ones(1, np.float32), "s"),
        numpy_helper.from_array(np.zeros(1, np.int64)),
    )
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [3]))


def training_part(model):
    model.training_info.add()


def nothing(_model):
    pass


def test_a_resealed_model_is_accepted():
    """So that those below are refused for what is in them."""
    assert parse_model(resealed(nothing)).card == tiny_model().card
    assert (
        parse_model(resealed(lambda model: insert_node(model, "Softmax", axis=1))).card.class_names == CLASS_NAMES
    )


@pytest.mark.parametrize(
    "change",
    [
        identity,
        if_with_subgraphs,
        loop,
        allowed_operator_with_subgraph,
        allowed_operator_with_tensor,
        custom_domain,
        undeclared_custom_domain,
        unused_custom_domain,
        own_function,
        external_data,
        sparse_weights,
        training_part,
    ],
)
def test_unsafe(change):
    assert code_of(resealed(change)) == "unsafe-model"


def input_of_another_size(model):
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 32


def input_of_free_size(model):
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "S"


def input_of_floats(model):
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT


def input_of_another_name(model):
    model.graph.input[0].name = "pixels"


def no_embedding(model):
    del model.graph.output[1]


def more_outputs(model):
    model.graph.output.append(helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 3]))


def two_classes(model):
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 2


def shape_without_dims(model):
    del model.graph.output[0].type.tensor_type.shape.dim[:]


def output_that_is_no_tensor(model):
    model.graph.output[0].type.Clear()


@pytest.mark.parametrize(
    "change",
    [
        input_of_another_size,
        input_of_free_size,
        input_of_floats,
        input_of_another_name,
        no_embedding,
        more_outputs,
        two_classes,
        shape_without_dims,
        output_that_is_no_tensor,
    ],
)
def test_inputs_and_outputs_that_do_not_fit(change):
    assert code_of(resealed(change)) == "damaged-model"


@pytest.mark.parametrize(
    "card_changes",
    [{"class_names": ["red", "green"]}, {"class_names": ["a", "b", "c", "d"]}, {"embedding_dim": 1280}],
)
def test_cards_that_do_not_fit_the_graph(card_changes):
    assert code_of(resealed(nothing, **card_changes)) == "damaged-model"


def test_a_graph_that_cannot_run_is_damaged():
    """Every check above passes, yet no engine can make sense of it."""

    def cut_the_head(model):
        model.graph.node[-1].input[0] = "nowhere"

    content = parse_model(resealed(cut_the_head)).onnx_bytes
    with pytest.raises(ModelError) as caught:
        OpenVINOEngine(content, input_size_px=SIDE_PX)
    assert caught.value.code == "damaged-model"


def test_packing_a_card_that_does_not_fit_is_refused():
    with pytest.raises(ModelError):
        tiny_model(class_names=("red", "green"))
    with pytest.raises(ModelError):
        tiny_model(embedding_dim=4)


def test_the_card_is_not_shared_with_the_file():
    first = tiny_model()
    changed = replace(first.card, calibration=Calibration(temperature=9.0, method="cross-fit", n=5))
    assert first.with_card(changed).card.calibration.method == "cross-fit"
    assert parse_model(first.onnx_bytes).card.calibration.method == "calib"

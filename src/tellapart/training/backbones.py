"""The backbone a recipe names, wherever its weights come from."""

from dataclasses import replace

import onnx

from tellapart.errors import ModelError, TrainingError
from tellapart.inference.bundled import BUNDLED, open_backbone
from tellapart.inference.model import require_safe
from tellapart.records import Backbone
from tellapart.training.recipes import ProbeRecipe


def open_features(recipe: ProbeRecipe) -> tuple[Backbone, ProbeRecipe]:
    """Open a recipe's backbone. PyTorch is imported here, and only for weights that are not bundled.

    Returns:
        The backbone, and the recipe with what it left to the weights filled in.

    Raises:
        TrainingError: package-missing.
        RecipeError: bad-setting.
        ModelError: offline, weights-missing, weights-mismatch, not-exportable.
    """
    if recipe.backbone in BUNDLED:
        return open_backbone(recipe.backbone, recipe.feature_stages, recipe.feature_pooling), recipe
    try:
        from tellapart.models.backbone import open_timm
    except ModuleNotFoundError as error:
        message = (
            f"the backbone {recipe.backbone!r} needs PyTorch, timm and onnxscript; {error.name} is not installed"
        )
        raise TrainingError("package-missing", message, hint="pip install 'tellapart[train]'") from error
    backbone, preprocess = open_timm(
        recipe.backbone, weights_file=recipe.weights, input_size_px=recipe.input_size_px
    )
    try:
        require_safe(onnx.load_model_from_string(backbone.onnx_bytes))
    except ModelError as error:
        raise ModelError("not-exportable", f"{recipe.backbone}: {error.message}") from error
    resize = preprocess.resize if recipe.resize == "auto" else recipe.resize
    return backbone, replace(
        recipe,
        input_size_px=preprocess.input_size_px,
        resize=resize,
        interpolation=preprocess.interpolation if recipe.interpolation == "auto" else recipe.interpolation,
        crop_share=recipe.crop_share or (preprocess.crop_share if resize == "crop" else 1.0),
    )

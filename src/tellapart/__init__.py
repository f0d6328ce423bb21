"""tellapart: a folder of labelled images in, an image recogniser that can be trusted out.

    import tellapart

    run = tellapart.train("photos/")
    model = tellapart.load(run.model_path)
    for prediction in model.predict(["new.jpg"]):
        print(prediction.label, prediction.prob, prediction.verdict)

Names are resolved when they are first used, so that importing tellapart loads nothing heavy.
"""

import importlib

__version__ = "0.1.0"

_HOMES = {
    "Classifier": "tellapart.inference.predict",
    "Prediction": "tellapart.records",
    "Run": "tellapart.pipeline",
    "TellapartError": "tellapart.errors",
    "SourceOptions": "tellapart.records",
    "check": "tellapart.pipeline",
    "compare": "tellapart.comparing",
    "decode_image": "tellapart.imaging.decode",
    "evaluate": "tellapart.pipeline",
    "load": "tellapart.inference.predict",
    "open_dataset": "tellapart.data.sources",
    "resume": "tellapart.pipeline",
    "train": "tellapart.pipeline",
}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> object:
    """Import a public name when it is asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module 'tellapart' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)

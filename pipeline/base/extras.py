"""What an installation without extras lacks: a missing package of training as one sentence that says what to install.

Takes the import that failed, or nothing to ask ahead; gives a PlatformError.
"""

import importlib.util

from pipeline.base.errors import PlatformError

# What only training and evaluation import, by the names of modules: the extra `train` of pyproject.toml
TRAINING = ("torch", "torchvision", "sklearn", "onnxscript", "tensorboard", "pandas", "fsspec")


def needs_training(error: BaseException) -> PlatformError | None:
    """What to install where `error` is the failed import of a package of training, else None."""
    if not isinstance(error, ModuleNotFoundError) or (error.name or "").partition(".")[0] not in TRAINING:
        return None
    return _missing(error.name)


def refuse_without_training() -> None:
    """Before the work of a job whose later steps train or measure. Raises PlatformError."""
    for name in TRAINING:
        if importlib.util.find_spec(name) is None:
            raise _missing(name)


def _missing(name: str | None) -> PlatformError:
    return PlatformError(f"{name} is missing, it needs the extra 'train': pip install 'leukoray[train]'")

"""What of a machine's software decides results, as one word each, so that nodes can be compared.

Two versions of a decoder or of this package on two nodes give rows that no later run can tell apart.
"""

import functools
import hashlib
import importlib.metadata
import platform
import sys
from pathlib import Path

OWN = "leukoray"
# Distributions that make pixels and probabilities; torch where this process works with it
_DECIDING = ("ray", "numpy", "onnxruntime", "opencv-python-headless", "pillow", "simplejpeg")
_OF_TRAINING = ("torch", "torchvision")


def deciding() -> list[str]:
    """Names for `version_here`, of what decides the work of this process."""
    return ["python", OWN, *_DECIDING, *(name for name in _OF_TRAINING if name in sys.modules)]


def version_here(name: str) -> str:
    """Of a distribution, without the label of its build (PEP 440, `+cpu`): a head and its GPU nodes may differ there.

    Of this package the version and a digest of its code; empty for what is not installed.
    """
    if name == "python":
        return platform.python_version()
    if name == OWN:
        return _own()
    try:
        return importlib.metadata.version(name).partition("+")[0]
    except importlib.metadata.PackageNotFoundError:
        return ""


@functools.lru_cache(maxsize=1)
def _own() -> str:
    import pipeline

    folder, digest = Path(str(pipeline.__file__)).parent, hashlib.sha256()
    for file in sorted(folder.rglob("*.py")):
        digest.update(f"{file.relative_to(folder)}\0".encode() + file.read_bytes())
    return f"{pipeline.__version__}, code {digest.hexdigest()[:8]}"


def other_version(name: str, own: str) -> str:
    """What is wrong on a node whose version is another one than `own`, and what to do there."""
    if name == "python":
        return f"runs another Python than this one's {own}; start its Ray with the same one"
    if name == OWN:
        return f"has other code of leukoray than this one's {own}; install the same version there"
    return f"has another {name} than this one's {own}; there: {install(name, own)}"


def install(name: str, version: str) -> str:
    return f"pip install {name}=={version}"

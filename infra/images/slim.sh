#!/bin/sh
# Inside a build: take from /opt/leukoray what no command of the image opens: tests, headers, symbols, Ray's Java and
# reinforcement learning, Arrow's network protocols, boto3's other services, ONNX Runtime's library for C programs.
# Then compile what the commands import; a read-only root keeps no bytecode of its own.
set -eu

cd /opt/leukoray/lib/python3*/site-packages
rm -rf ray/jars ray/rllib onnx/backend/test
rm -f pyarrow/libarrow_flight.so* pyarrow/libarrow_python_flight.so* pyarrow/_flight.*.so
rm -f onnxruntime/capi/libonnxruntime.so*
find botocore/data -mindepth 1 -maxdepth 1 -type d ! -name s3 ! -name 'sts' ! -name 'sso*' ! -name signin -exec rm -rf {} +
find . -type d -name tests -prune ! -path './ray/*' -exec rm -rf {} +
find . -type f \( -name '*.pyi' -o -name '*.pyx' -o -name '*.pxd' -o -name '*.h' -o -name '*.hpp' -o -name '*.cc' -o -name '*.a' \) -delete
# Libraries in *.libs were rewritten by their packagers and do not bear it
find ray/_raylet.so ray/core/src uvloop kiwisolver fontTools aiohttp pyarrow -type f \
    \( -name '*.so*' -o -name raylet -o -name gcs_server \) -exec strip --strip-unneeded {} +
find . -type d -empty -delete

python=/opt/leukoray/bin/python
$python -m compileall -q ray/_private ray/serve ray/dashboard ray/util ray/core ray/scripts pipeline jobs serving
PYTHONDONTWRITEBYTECODE='' $python - <<'END'
import importlib

from jobs import cli
from pipeline.base.extras import needs_training

for job in cli.JOBS:
    try:
        importlib.import_module(f"jobs.{cli.module_of(job)}")
    except ModuleNotFoundError as error:
        if needs_training(error) is None:
            raise
for name in ("serving.app", "serving.front", "serving.own_proxy", "pipeline.scoring.work.worker", "ray.serve", "uvicorn.main"):
    importlib.import_module(name)
END

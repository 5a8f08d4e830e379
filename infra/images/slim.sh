#!/bin/sh
# Inside a build: take from /opt/leukoray what no command of the image opens: tests, headers, symbols, what Ray has for
# Java and for learning of all kinds, its profiler (which wants root), Arrow's network protocol, its own S3 and second
# names, SciPy's packages that others do not import, what Matplotlib needs for PostScript and PDF, DICOM's terms for
# reports, boto3's other services, ONNX Runtime's library for C programs, the pip by which a `runtime_env` would install.
# Then compile what the commands import; a read-only root keeps no bytecode of its own.
set -eu

cd /opt/leukoray/lib/python3*/site-packages
(cd ray && rm -rf jars rllib llm air data train tune)
(cd scipy && rm -rf cluster datasets fftpack io misc odr signal)
(cd matplotlib/mpl-data && rm -rf sample_data fonts/afm fonts/pdfcorefonts)
find fontTools -mindepth 1 -maxdepth 1 -type d ! -name misc -exec rm -rf {} +
rm -rf onnx/backend/test pydicom/data/test_files pydicom/sr securesystemslib/_vendor/ed25519/test_data
rm -f pyarrow/libarrow_flight.so* pyarrow/libarrow_python_flight.so* pyarrow/_flight.*.so
rm -f pyarrow/libarrow_s3.so* pyarrow/_s3fs.*.so
# A wheel holds no links: the same library under three names, of which the one with a version of one number is opened
rm -f pyarrow/libarrow_python.so pyarrow/libarrow_python.so.*.*
rm -f /opt/leukoray/bin/py-spy
rm -f onnxruntime/capi/libonnxruntime.so*
find botocore/data -mindepth 1 -maxdepth 1 -type d ! -name s3 ! -name 'sts' ! -name 'sso*' ! -name signin -exec rm -rf {} +
rm -rf virtualenv/seed/wheels/embed/*.whl ./*.dist-info/sboms
find . -type d -name tests -prune ! -path './ray/*' -exec rm -rf {} +
find . -type f \( -name '*.pyi' -o -name '*.pyx' -o -name '*.pxd' -o -name '*.h' -o -name '*.hpp' -o -name '*.cc' -o -name '*.c' \
    -o -name '*.a' -o -name '*.js.map' \) -delete
# Not libraries in *.libs and what opens them: they were rewritten by their packagers and do not bear it
find ray/_raylet.so ray/core/src ray/_private uvloop httptools msgpack kiwisolver fontTools aiohttp multidict yaml pyarrow \
    cryptography rfc3161_client _CharLS.*.so _openjpeg.*.so -type f \
    \( -name '*.so*' -o -name raylet -o -name gcs_server \) -exec strip --strip-unneeded {} +
find . -type d -empty -delete

python=/opt/leukoray/bin/python
$python -m compileall -q ray/_private ray/serve ray/dashboard ray/util ray/core ray/scripts pipeline jobs serving
# What commands import late is imported here too: a build that took too much fails
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
ours = "serving.app serving.front serving.own_proxy pipeline.scoring.work.worker jobs.lineage_events"
late = "scipy.special scipy.stats scipy.optimize pyarrow.csv pyarrow.fs pydicom.pixels pylibjpeg openjpeg jpeg_ls pillow_heif"
others = "ray.serve uvicorn.main uvloop httptools model_signing.signing model_signing.verifying matplotlib.figure"
for name in f"{ours} {late} {others}".split():
    importlib.import_module(name)
END

"""Which environment variables a trainer inherits from its control plane; nothing else reaches it.

The control plane's environment may hold secrets that no trainer should see, its own token
first of all. A variable that a trainer needs and that is not named here has to be added here.
"""

import os
from collections.abc import Mapping

from lectern_common.files import LOCKS_VARIABLE
from lectern_common.threads import waiting_environment

# What any process needs: to find programs, libraries and files, and to speak the user's language.
_PROCESS = (
    *("PATH", "HOME", "USER", "LOGNAME", "SHELL", "TERM", "LANG", "LANGUAGE", "TZ", "TZDIR"),
    *("TMPDIR", "TEMP", "TMP", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME"),
    *("VIRTUAL_ENV", "CONDA_PREFIX", "PYTHONPATH", "PYTHONHOME", "PYTHONUSERBASE"),
    *("PYTHONSAFEPATH", "PYTHONNOUSERSITE", "PYTHONDONTWRITEBYTECODE", "PYTHONPYCACHEPREFIX"),
    *("PYTHONWARNINGS", "PYTHONFAULTHANDLER", "PYTHONUTF8", "PYTHONIOENCODING", "PYTHONHASHSEED"),
)
# How the network is reached (in lower case too), and whom to believe.
_NETWORK = (
    *("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"),
    *("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"),
)
# Of libraries that trainers use: devices, communication, threads, models, metrics.
_LIBRARY_PREFIXES = (
    *("LD_", "LC_", "CUDA_", "CUDNN_", "CUBLAS_", "NVIDIA_", "NCCL_", "GLOO_", "TORCH_"),
    *("PYTORCH_", "TORCHINDUCTOR_", "TRITON_", "OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_"),
    *("NUMEXPR_", "MALLOC_", "HF_", "HUGGINGFACE_", "TRANSFORMERS_", "TOKENIZERS_"),
    *("SAFETENSORS_", "WANDB_", "GRPC_"),
    # The same for AMD's devices.
    *("HIP_", "ROCR_", "HSA_", "ROCM_", "MIOPEN_", "RCCL_", "HIPBLASLT_", "ROCBLAS_", "GPU_"),
)
_LIBRARIES = ("CC", "CXX", "HUGGING_FACE_HUB_TOKEN")
# Of Lectern: only where its folders lie. Its tokens are never passed on.
_LECTERN = (
    *("LECTERN_HOME", "LECTERN_DATA_ROOT", "LECTERN_MODELS_ROOT", "LECTERN_RUNS_ROOT"),
    *("LECTERN_SECRETS_ROOT", "LECTERN_CACHE_ROOT", LOCKS_VARIABLE),
)
_NAMES = frozenset(
    (*_PROCESS, *_NETWORK, *(name.lower() for name in _NETWORK[:4]), *_LIBRARIES, *_LECTERN)
)


def trainer_environment(env: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Returns what a trainer gets of `env`, and what makes its log and its threads behave."""
    kept = {name: value for name, value in env.items() if _is_passed_on(name)}
    return {**kept, **waiting_environment(env), "PYTHONUNBUFFERED": "1"}


def _is_passed_on(name: str) -> bool:
    return name in _NAMES or name.startswith(_LIBRARY_PREFIXES)

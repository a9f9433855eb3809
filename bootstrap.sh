#!/usr/bin/env bash
# Makes .venv with exactly the pinned versions. Everything after this line of defence is Python.
# Two traps: PyPI's torch for Linux is the CUDA build (5 GB), so without a GPU the CPU build is tried
# first, and where its index does not answer the default one is used; and uv does not read pip.conf,
# so a mirror named there is handed to it.
set -euo pipefail
cd "$(dirname "$0")"
cache=${LMTRAIN_CACHE:-$HOME/.cache/lm-training-operator}

say() { printf '\033[1m==>\033[0m %s\n' "$*" >&2; }
fail() { printf 'error: %s\n' "$*" >&2; exit 1; }

python=$(command -v python3 || true)
if [ -z "$python" ] && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
  say "installing python3 (apt-get)"
  apt-get update -qq && apt-get install -qqy python3 python3-venv >/dev/null
  python=$(command -v python3)
fi
[ -n "$python" ] || fail "python3 is missing: install Python 3.11 or newer (Debian: apt-get install python3 python3-venv)"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
  fail "$python is $("$python" -V), and Python 3.11 or newer is needed"
settings=$("$python" devcluster/packages.py) # uv_version, torch_backend, and where the index is
eval "$settings"

uv=$cache/tools/uv-$uv_version/bin/uv
if [ ! -x "$uv" ]; then
  if ! "$python" -c 'import ensurepip' 2>/dev/null; then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
      say "installing python3-venv (apt-get)"
      apt-get update -qq && apt-get install -qqy python3-venv >/dev/null
    else
      fail "python3 has no venv: sudo apt-get install python3-venv"
    fi
  fi
  say "installing uv $uv_version"
  rm -rf "$cache/tools/uv-$uv_version.part" && mkdir -p "$cache/tools"
  "$python" -m venv "$cache/tools/uv-$uv_version.part"
  "$cache/tools/uv-$uv_version.part/bin/python" -m pip install -q "uv==$uv_version"
  mv "$cache/tools/uv-$uv_version.part" "$cache/tools/uv-$uv_version"
fi

install() { "$uv" pip install --quiet --python .venv -c constraints/python.txt "$@" -e '.[dev]'; }

[ -x .venv/bin/python ] || "$uv" venv --quiet --python "$python" .venv
if [ ! -e .venv/.ready ]; then
  say "installing the Python environment (0.5 to 6 GB, 10 seconds to 5 minutes, once per machine)"
fi
if [ -z "$torch_backend" ] || .venv/bin/python -c 'import importlib.metadata as m; m.version("torch")' 2>/dev/null; then
  install
else
  UV_HTTP_RETRIES=0 install "--torch-backend=$torch_backend" 2>/dev/null || install
fi
touch .venv/.ready

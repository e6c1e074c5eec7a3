#!/usr/bin/env bash
# Installs the Debian packages that building, training and testing need: only those that are missing, by apt, as root or through sudo.
# Changes nothing when all are there. Used by examples/quickstart.sh and tests/run.sh.
# --browser: Chromium too (400 MB), for the tests that look at report.html; tests/nightly.sh asks for it.
set -euo pipefail

packages=(
  g++ cmake ninja-build ccache                       # build
  libopenmpi-dev openmpi-bin                         # communication
  libprotobuf-dev protobuf-compiler                  # job files, manifests
  libfmt-dev libcli11-dev nlohmann-json3-dev         # text, command line, JSON
  zlib1g-dev libpng-dev libxxhash-dev                # compressed data, pictures, digests
  libgtest-dev libgmock-dev libbenchmark-dev         # tests, benchmarks
  bible-kjv bible-kjv-text dataset-fashion-mnist     # data
)

[[ ${1:-} != --browser ]] || packages+=(chromium)

if ! command -v apt-get >/dev/null || ! command -v dpkg-query >/dev/null; then
  echo "install_dependencies: this is no Debian system (apt-get is missing). Install the equivalents of these packages:" >&2
  echo "  ${packages[*]}" >&2
  exit 1
fi

missing=()
for package in "${packages[@]}"; do
  state=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)
  [[ $state == installed ]] || missing+=("$package")
done
if ((${#missing[@]} == 0)); then
  echo "install_dependencies: all packages are there"
  exit 0
fi

as_root=()
if ((EUID != 0)); then
  if ! command -v sudo >/dev/null; then
    echo "install_dependencies: packages are missing, and this is neither root nor is there sudo. Run as root:" >&2
    echo "  apt-get update && apt-get install ${missing[*]}" >&2
    exit 1
  fi
  as_root=(sudo)
fi

echo "install_dependencies: installing ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
# A lock held by another apt is waited for, not fought.
options=(-o DPkg::Lock::Timeout=300 -q)
"${as_root[@]}" apt-get "${options[@]}" update
if ! "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get "${options[@]}" install --yes --no-install-recommends "${missing[@]}"; then
  echo "install_dependencies: apt-get could not install: ${missing[*]}" >&2
  echo "  (they are in the main section of Debian 12; see /etc/apt/sources.list)" >&2
  exit 1
fi

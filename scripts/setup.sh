#!/usr/bin/env bash
# Set up everything that `make demo` and `make test` need: system packages (where apt and root or sudo are there) and a
# virtual environment with pinned Python packages. Safe to run again: what is there already is left alone.
#   scripts/setup.sh demo|test
set -euo pipefail
cd "$(dirname "$0")/.."
purpose=${1:-demo}

declare -A packages=(
  [gcc]="gcc libc6-dev" [aarch64-linux-gnu-gcc]="gcc-aarch64-linux-gnu libc6-dev-arm64-cross" [clang-19]="clang-19 lld-19 llvm-19"
  [qemu-aarch64]=qemu-user [sshd]="openssh-server openssh-client" [mmdebstrap]="mmdebstrap arch-test debian-archive-keyring"
)
declare -A without=(
  [gcc]="the neon converter cannot build for this machine"
  [aarch64-linux-gnu-gcc]="neon builds for ARM only on boards that have gcc"
  [clang-19]="neon builds use gcc" [qemu-aarch64]="no emulated boards" [sshd]="no emulated boards"
  [mmdebstrap]="no emulated boards"
)
if [ "$purpose" = test ]; then
  packages+=([chromium]=chromium [busybox]=busybox-static [qemu-system-aarch64]=qemu-system-arm [qemu-img]=qemu-utils
    [mke2fs]=e2fsprogs)
  without+=([chromium]="the report is not opened in a browser" [busybox]="no board without Python is tested over SSH"
    [qemu-system-aarch64]="no full board is tested" [qemu-img]="no full board is tested" [mke2fs]="no full board is tested")
fi

lacking() { echo "setup: missing $1 (package ${packages[$1]}): ${without[$1]}"; }

missing=()
PATH=$PATH:/usr/sbin:/sbin
for command in "${!packages[@]}"; do command -v "$command" >/dev/null || missing+=("$command"); done
python3 -c 'import ensurepip' 2>/dev/null || { missing+=(venv); packages[venv]=python3-venv; without[venv]="nothing works"; }

if [ ${#missing[@]} -gt 0 ]; then
  root=""
  if [ "$(id -u)" != 0 ]; then root=none; sudo -n true 2>/dev/null && root="sudo -n"; fi
  if command -v apt-get >/dev/null && [ "$root" != none ]; then
    echo "setup: installing system packages for: ${missing[*]}"
    $root apt-get update -qq || echo "setup: apt-get update failed; going on with the lists that are here"
    # One by one: a package that this distribution does not have must not keep the others out.
    for command in "${missing[@]}"; do
      read -ra names <<<"${packages[$command]}"
      $root env DEBIAN_FRONTEND=noninteractive \
        apt-get install -y -qq --no-install-recommends "${names[@]}" >/dev/null || lacking "$command"
    done
  else
    for command in "${missing[@]}"; do lacking "$command"; done
  fi
fi

# The stamp holds the digest of what was installed, so a changed pin installs again.
stamp=.venv/.edgesdk-setup
wanted=$(cat requirements.txt setup.cfg scripts/setup.sh | sha256sum)
if [ ! -f "$stamp" ] || [ "$(cat "$stamp")" != "$wanted" ]; then
  python=$(command -v python3.11 || command -v python3)
  "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "setup: Python 3.11 or newer is needed"; exit 1; }
  .venv/bin/python -m pip --version >/dev/null 2>&1 || "$python" -m venv --clear .venv
  echo "setup: installing Python packages into .venv"
  # torch first and by itself: a later resolver must find it installed and leave it alone.
  .venv/bin/python -m pip install -q --disable-pip-version-check torch==2.13.0
  .venv/bin/python -m pip install -q --disable-pip-version-check -r requirements.txt
  echo "$wanted" >"$stamp"
fi
# The editable install is a tree of links: it is made anew so that new files are seen.
.venv/bin/python -m pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .

"""Room on a full board: files of ours that were not used for the longest time are removed, and nothing else.

Candidates are what EdgeSDK itself put there under a digest: laid-out artifacts (made again from their files when they
are needed), half uploads and blobs, and at last engines and programs, which take minutes to build; oldest use first.
Jobs and their results stay, and files that the caller needs. While a job runs (it holds `STATE/lock`, or is named in
`STATE/holders` where there is no flock), nothing is removed.
"""

from __future__ import annotations

from collections.abc import Iterable

from edgesdk.harness.session import Session
from edgesdk.harness.transport import check_remote

EVICT_SECONDS = 120.0

# $1 the state folder, $2 the KiB that must be free, then digests to keep. Prints `evicted NAME` for each, or `busy`.
_EVICT = """
cd "$1" || exit 1
need=$2; shift 2; keep=" $* "
if command -v flock >/dev/null; then
  exec 9>>lock && flock -n 9 || { echo busy; exit 0; }
else
  # Empty files named PID-START-BOOT, see harness/shell/worker.sh.
  read -r boot < /proc/sys/kernel/random/boot_id
  since() { read -r stat < "/proc/$1/stat" && set -- ${stat##*) } && [ "$1" != Z ] && echo "${20}"; }
  for holder in holders/*-*-"$boot"; do
    name=${holder#holders/}; pid=${name%%-*}
    start=$(since "$pid" 2>/dev/null) && [ "$name" = "$pid-$start-$boot" ] && { echo busy; exit 0; }
  done
fi
enough() { [ "$(df -Pk . | tail -n 1 | { read -r _ _ _ kib _; echo "$kib"; })" -ge "$need" ]; }
digest() { [ "${#1}" = 64 ] && case $1 in *[!0-9a-f]*) return 1;; esac; }
ls -1tr artifacts | while IFS= read -r name; do
  enough && break
  if digest "$name"; then rm -rf "artifacts/$name" && echo "evicted $name"; fi
done
ls -1tr blobs | while IFS= read -r name; do
  enough && break
  sum=${name%.part}
  case $keep in *" $sum "*) continue;; esac
  if digest "$sum"; then rm -f "blobs/$name" && echo "evicted $name"; fi
done
for built in engines programs; do
  [ -d "$built" ] && ls -1tr "$built" | while IFS= read -r name; do
    enough && break
    if digest "${name%%.*}"; then rm -f "$built/$name" && echo "evicted $name"; fi
  done
done
exit 0
"""


def evict(session: Session, bytes_needed: int, keep: Iterable[str] = ()) -> int:
    """Make room; returns the number of files and folders that were removed (0: nothing could be).

    Args:
        bytes_needed: stop when so much is free.
        keep: digests that stay.

    Raises:
        What `Session.step` raises.
    """
    state = check_remote(session.board.state)
    argv = ["sh", "-c", _EVICT, "evict", state, str(-(-bytes_needed // 1024)), *session.keep, *keep]
    completed = session.step(lambda transport: transport.run(argv, EVICT_SECONDS))
    return sum(line.startswith("evicted ") for line in completed.text.splitlines())

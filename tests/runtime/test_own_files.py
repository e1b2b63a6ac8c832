"""Which folders are the daemon's own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from workerd.runtime.own_files import folder_fault

CODE = """
import sys
from pathlib import Path
from workerd.runtime.own_files import folder_fault
print(folder_fault(Path(sys.argv[1])))
"""


def test_a_folder_that_only_its_owner_may_write_is_taken(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    assert folder_fault(tmp_path) == ""
    tmp_path.chmod(0o777)
    assert "chmod go-w" in folder_fault(tmp_path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")
@pytest.mark.parametrize(("container", "fault"), [(True, False), (False, True)])
def test_a_volume_of_a_container_may_be_open_to_all(tmp_path: Path, container: bool, fault: bool) -> None:
    """Kubernetes makes an `emptyDir` 0777; the same on a host is refused."""
    isolated = ["unshare", "--mount", *(["--pid", "--fork", "--mount-proc"] if container else [])]
    script = f'mount -t tmpfs -o mode=2777 tmpfs {tmp_path} && {sys.executable} -c "$1" {tmp_path}'
    done = subprocess.run(
        [*isolated, "sh", "-c", script, "sh", CODE], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"cannot mount here: {done.stderr}")
    assert bool(done.stdout.strip()) is fault

"""Run a command on a GPU that no other command of the study uses: one_gpu.py GPUS LOCK_FOLDER COMMAND...

The lock on a file per GPU ends with the command, even if it is killed. GPUs: those of CUDA_VISIBLE_DEVICES, or the
machine's, from 0.
"""

import fcntl
import os
import sys
import time
from pathlib import Path


def main() -> None:
    n_gpus, folder, command = int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]
    folder.mkdir(parents=True, exist_ok=True)
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    devices = visible.split(",")[:n_gpus] if visible else [str(number) for number in range(n_gpus)]
    while True:
        for device in devices:
            descriptor = os.open(folder / f"{device}.lock", os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(descriptor)
                continue
            os.set_inheritable(descriptor, True)  # the command holds the lock from here on
            os.environ["CUDA_VISIBLE_DEVICES"] = device
            os.execvp(command[0], command)
        time.sleep(0.2)  # Snakemake starts no more commands than there are GPUs: one is about to be free


if __name__ == "__main__":
    main()

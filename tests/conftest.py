"""What every test process needs before the first test."""

import os

# Two cores are shared by many tests and the processes they start; one thread each is also what
# makes sums come out the same on every machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

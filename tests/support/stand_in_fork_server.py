"""python -m tests.support.stand_in_fork_server DESCRIPTOR ROOM: forks stand-in trainers."""

import sys

from student_trainer import fork_server
from tests.support import stand_in_trainer

if __name__ == "__main__":
    fork_server.main(sys.argv[1:], stand_in_trainer.main, modules=())

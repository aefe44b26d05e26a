"""python -m tests.support.stand_in_fork_server [OPTIONS] DESCRIPTOR ROOM: forks stand-in trainers.

OPTIONS are those of each trainer.
"""

import sys

from student_trainer.run import fork_server
from tests.support import stand_in_trainer


def main() -> None:
    *options, descriptor, room = sys.argv[1:]

    def train() -> int:
        sys.argv[1:1] = options
        return stand_in_trainer.main()

    fork_server.main([descriptor, room], train, load=lambda: None)


if __name__ == "__main__":
    main()

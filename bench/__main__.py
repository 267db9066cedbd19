"""`python -m bench [SUBJECT]`: measures one subject, or all of them, one after the other."""

import importlib
import sys

SUBJECTS = ("reads", "commands")


def main() -> int:
    """Runs the subjects; 0 when all have met their targets, else the worst of their results."""
    if len(sys.argv) > 1 and sys.argv[1] not in SUBJECTS:
        print(f"bench: there is no {sys.argv[1]!r}; there are {', '.join(SUBJECTS)}", file=sys.stderr)
        return 2
    subjects = sys.argv[1:2] or SUBJECTS
    return max(importlib.import_module(f"bench.{name}").main(sys.argv[2:]) for name in subjects)


if __name__ == "__main__":
    sys.exit(main())

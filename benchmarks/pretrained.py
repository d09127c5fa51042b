"""Compare the speed and memory of an update and of sampling with plain transformers, on your models and your rows.

Update: the student learns from labels and from the teacher's distributions (full logits in transformers). Sampling: the
teacher writes several targets per input (`generate` in transformers). Each implementation has a process of its own and
they take turns, as in bench.py.

Example:
  python benchmarks/pretrained.py --teacher outputs/ft_teacher/model --student outputs/students/small \
    --dataset datasets/original/data.json
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import bench  # noqa: E402 (needs the path above)
from benchmarks.speed.rows import Pretrained, Row  # noqa: E402


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", required=True, help="model folder or hub name")
    parser.add_argument("--student", required=True, help="model folder or hub name")
    parser.add_argument("--dataset", required=True, help="dataset file")
    parser.add_argument("--rows", type=int, default=8, help="rows in a batch [8]")
    parser.add_argument("--targets", type=int, default=4, help="samples per input [4]")
    parser.add_argument("--max_input_length", type=int, default=512, help="in tokens [512]")
    parser.add_argument("--max_labels_length", type=int, default=128, help="in tokens [128]")
    parser.add_argument("--repetitions", type=int, default=7, help="[7]")
    args, others = parser.parse_known_args(argv)
    sizes = (args.teacher, args.student, args.dataset, args.rows, args.max_input_length, args.max_labels_length)
    implementations = ("ours", "transformers")
    rows = (
        Row("update", Pretrained(*sizes), implementations, args.repetitions),
        Row("sampling", Pretrained(*sizes, targets=args.targets), implementations, args.repetitions),
    )
    return bench.main(others, rows)


if __name__ == "__main__":
    sys.exit(main())
